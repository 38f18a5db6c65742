// SPDX-License-Identifier: Apache-2.0
// The inner loops of a pointwise convolution and of a dense one, which is a sum of pointwise ones
// over its taps: a stretch of pixels times a matrix, accumulators in registers over input channels
// and taps. Pixels stand C elements apart, channels innermost. The last vector of a pixel may reach
// into the next one, whose values it leaves as they are: nobody else may write there meanwhile, and
// buffers end in a vector of slack.
#pragma once

#include "cpu/kernels/depthwise_rows.h"

namespace darts_fast::cpu::DARTS_CPU_CAPABILITY {

template <typename T>
static inline int64_t vectors_of(int64_t channels) {
  return (channels + kLanes<T> - 1) / kLanes<T>;
}

// The first `valid` lanes of `value`; the others keep what is there.
template <typename T>
static inline void store_head(T* to, Vec<T> value, int64_t valid) {
  if (valid < kLanes<T>) {
    Vec<T> lane;
    for (int64_t i = 0; i < kLanes<T>; ++i) lane[i] = static_cast<T>(i);
    value = lane < Vec<T>{} + static_cast<T>(valid) ? value : load(to);
  }
  store(to, value);
}

// Sums of y - about and of its square over the pixels, per lane; null where nobody asks.
template <typename T>
struct RowMoments {
  const T* about;
  T* sum;
  T* square;
};

// The matrices of a stretch: packed [taps][C][row], row = whole vectors of C', 0 behind C'.
template <typename T>
struct PointwiseRows {
  const T* in;
  int64_t in_stride;
  const Tap* taps;
  int64_t count_taps;
  int64_t channels;
  const T* packed;
  int64_t row;
  T* out;
  int64_t out_stride;
  int64_t out_channels;
  bool accumulate;
};

// Stores the sums of the lanes [lane, lane + kVectors * lanes) of kPixels pixels, and adds their
// moments.
template <typename T, int kPixels, int kVectors, bool kMoments>
__attribute__((always_inline)) static inline void finish_block(
    const PointwiseRows<T>& r, const Vec<T> (&sum)[kPixels][kVectors], int64_t pixel, int64_t lane,
    const RowMoments<T>& moments) {
  T* out = r.out + pixel * r.out_stride + lane;
  const int64_t valid = r.out_channels - lane;
  if (valid >= kVectors * kLanes<T>) {
#pragma GCC unroll 16
    for (int p = 0; p < kPixels; ++p) {
#pragma GCC unroll 2
      for (int v = 0; v < kVectors; ++v) {
        store(out + p * r.out_stride + v * kLanes<T>, sum[p][v]);
      }
    }
  } else {
#pragma GCC unroll 16
    for (int p = 0; p < kPixels; ++p) {
#pragma GCC unroll 2
      for (int v = 0; v < kVectors; ++v) {
        store_head(out + p * r.out_stride + v * kLanes<T>, sum[p][v], valid - v * kLanes<T>);
      }
    }
  }
  if (!kMoments) return;
#pragma GCC unroll 2
  for (int v = 0; v < kVectors; ++v) {
    const int64_t at = lane + v * kLanes<T>;
    const Vec<T> about = load(moments.about + at);
    Vec<T> sums[2] = {load(moments.sum + at), {}}, squares[2] = {load(moments.square + at), {}};
#pragma GCC unroll 16
    for (int p = 0; p < kPixels; ++p) {
      const Vec<T> d = sum[p][v] - about;
      sums[p % 2] += d;
      squares[p % 2] += d * d;
    }
    store(moments.sum + at, sums[0] + sums[1]);
    store(moments.square + at, squares[0] + squares[1]);
  }
}

// The lanes [lane, lane + kVectors * lanes) of kPixels pixels.
template <typename T, int kPixels, int kVectors, bool kAccumulate, bool kMoments>
static inline void pointwise_block(const PointwiseRows<T>& r, int64_t pixel, int64_t lane,
                                   const RowMoments<T>& moments) {
  Vec<T> sum[kPixels][kVectors] = {};
  for (int64_t t = 0; t < r.count_taps; ++t) {
    Stepped<T, kPixels> in(r.in + pixel * r.in_stride + r.taps[t].input, r.in_stride);
    const T* packed = r.packed + r.taps[t].weight + lane;
    const auto add = [&](int64_t ci, const T* weights) {
      Vec<T> w[kVectors];
#pragma GCC unroll 2
      for (int v = 0; v < kVectors; ++v) w[v] = load(weights + v * kLanes<T>);
#pragma GCC unroll 16
      for (int p = 0; p < kPixels; ++p) {
        const T x = in.at(p)[ci];
#pragma GCC unroll 2
        for (int v = 0; v < kVectors; ++v) sum[p][v] += x * w[v];
      }
    };
    for (int64_t ci = 0; ci < r.channels; ++ci) {
      add(0, packed);
      packed += r.row;
      in.advance(1);
    }
  }
  // What is there comes last: added to a large sum one by one, products would lose their digits.
  if constexpr (kAccumulate) {
    const T* out = r.out + pixel * r.out_stride + lane;
#pragma GCC unroll 16
    for (int p = 0; p < kPixels; ++p) {
#pragma GCC unroll 2
      for (int v = 0; v < kVectors; ++v) sum[p][v] += load(out + p * r.out_stride + v * kLanes<T>);
    }
  }
  finish_block<T, kPixels, kVectors, kMoments>(r, sum, pixel, lane, moments);
}

template <typename T, int kVectors, bool kAccumulate, bool kMoments>
static inline void pointwise_lanes(const PointwiseRows<T>& r, int64_t pixels, int64_t lane,
                                   const RowMoments<T>& moments) {
  constexpr int kMost = (kManyRegisters ? 16 : 8) / kVectors;
  int64_t p = 0;
  for (; p + kMost <= pixels; p += kMost) {
    pointwise_block<T, kMost, kVectors, kAccumulate, kMoments>(r, p, lane, moments);
  }
  for (; p + 4 <= pixels; p += 4) {
    pointwise_block<T, 4, kVectors, kAccumulate, kMoments>(r, p, lane, moments);
  }
  for (; p < pixels; ++p) {
    pointwise_block<T, 1, kVectors, kAccumulate, kMoments>(r, p, lane, moments);
  }
}

template <typename T, bool kAccumulate, bool kMoments>
static void pointwise_all(const PointwiseRows<T>& r, int64_t pixels, const RowMoments<T>& moments) {
  int64_t lane = 0;
  for (; lane + 2 * kLanes<T> <= r.row; lane += 2 * kLanes<T>) {
    pointwise_lanes<T, 2, kAccumulate, kMoments>(r, pixels, lane, moments);
  }
  if (lane < r.row) pointwise_lanes<T, 1, kAccumulate, kMoments>(r, pixels, lane, moments);
}

// out[p] (+)= sum_t packed_t^T in[taps[t] + p] for every pixel p of the stretch. Moments are those
// of a sum that starts at 0.
template <typename T>
static void pointwise_rows(const PointwiseRows<T>& r, int64_t pixels,
                           const RowMoments<T>* moments) {
  if (r.accumulate) {
    pointwise_all<T, true, false>(r, pixels, {});
  } else if (moments != nullptr) {
    pointwise_all<T, false, true>(r, pixels, *moments);
  } else {
    pointwise_all<T, false, false>(r, pixels, {});
  }
}

// Pixels of the input and of the gradient, in `rows` stretches.
template <typename T>
struct PointwiseGradRows {
  const T* input;
  int64_t input_row;  // elements between stretches
  int64_t input_stride;
  const T* grad;
  int64_t grad_row;
  int64_t grad_stride;
  int64_t rows;
  int64_t pixels;  // of a stretch
};

template <typename T, int kChannels, int kVectors>
static inline void pointwise_grad_block(const PointwiseGradRows<T>& r, int64_t channel,
                                        int64_t lane, T* acc, int64_t row) {
  Vec<T> sum[kChannels][kVectors];
  T* to = acc + channel * row + lane;
#pragma GCC unroll 16
  for (int c = 0; c < kChannels; ++c) {
#pragma GCC unroll 2
    for (int v = 0; v < kVectors; ++v) sum[c][v] = load(to + c * row + v * kLanes<T>);
  }
  for (int64_t h = 0; h < r.rows; ++h) {
    const T* in = r.input + h * r.input_row + channel;
    const T* g = r.grad + h * r.grad_row + lane;
    for (int64_t p = 0; p < r.pixels; ++p) {
      Vec<T> grad[kVectors];
#pragma GCC unroll 2
      for (int v = 0; v < kVectors; ++v) grad[v] = load(g + p * r.grad_stride + v * kLanes<T>);
#pragma GCC unroll 16
      for (int c = 0; c < kChannels; ++c) {
        const T x = in[p * r.input_stride + c];
#pragma GCC unroll 2
        for (int v = 0; v < kVectors; ++v) sum[c][v] += x * grad[v];
      }
    }
  }
#pragma GCC unroll 16
  for (int c = 0; c < kChannels; ++c) {
#pragma GCC unroll 2
    for (int v = 0; v < kVectors; ++v) store(to + c * row + v * kLanes<T>, sum[c][v]);
  }
}

template <typename T, int kVectors>
static inline void pointwise_grad_lanes(const PointwiseGradRows<T>& r, int64_t channels,
                                        int64_t lane, T* acc, int64_t row) {
  constexpr int kMost = (kManyRegisters ? 16 : 8) / kVectors;
  int64_t c = 0;
  for (; c + kMost <= channels; c += kMost) {
    pointwise_grad_block<T, kMost, kVectors>(r, c, lane, acc, row);
  }
  for (; c + 4 <= channels; c += 4) pointwise_grad_block<T, 4, kVectors>(r, c, lane, acc, row);
  for (; c < channels; ++c) pointwise_grad_block<T, 1, kVectors>(r, c, lane, acc, row);
}

// acc[ci][co] += sum over the pixels of in[p][ci] * g[p][co]; acc is [C, row], and its lanes behind
// C' hold nothing of use.
template <typename T>
static void pointwise_grad(const PointwiseGradRows<T>& r, int64_t channels, int64_t row, T* acc) {
  int64_t lane = 0;
  for (; lane + 2 * kLanes<T> <= row; lane += 2 * kLanes<T>) {
    pointwise_grad_lanes<T, 2>(r, channels, lane, acc, row);
  }
  if (lane < row) pointwise_grad_lanes<T, 1>(r, channels, lane, acc, row);
}

}  // namespace darts_fast::cpu::DARTS_CPU_CAPABILITY
