// SPDX-License-Identifier: Apache-2.0
// The inner loops of a pointwise convolution and of a dense one, which is a sum of pointwise ones
// over its taps: a stretch of pixels times a matrix, accumulators in registers over input channels
// and taps. Pixels stand C elements apart, channels innermost. The last vector of a pixel may reach
// into the next one, whose values it leaves as they are: nobody else may write there meanwhile, and
// buffers end in a vector of slack.
#pragma once

#include "cpu/kernels/channel_pattern.h"
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

// Where outputs go besides `out` while they stand in registers; C' is a number of whole vectors.
template <typename T>
struct PointwiseSinks {
  T* about;         // [C']
  double* sums;     // [C'] += y - about
  double* squares;  // [C'] += (y - about)^2
  T* saved;         // unless null: as `out`, past the caches (streams_lines)
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
  const PointwiseSinks<T>* sinks = nullptr;  // not together with `accumulate`
};

// How far apart pixels of input and output stand, where the compiler knows; 0 where it does not.
template <int kInput, int kOutput>
struct Strides {
  static constexpr int kIn = kInput, kOut = kOutput;
};

// Stores the sums of the lanes from `lane` of kPixels pixels; with kStride of whole vectors, that
// far apart.
template <typename T, int kPixels, int kVectors, int kStride>
__attribute__((always_inline)) static inline void store_block(
    const PointwiseRows<T>& r, const Vec<T> (&sum)[kPixels][kVectors], int64_t pixel,
    int64_t lane) {
  const int64_t stride = kStride > 0 ? kStride : r.out_stride;
  const int64_t valid = r.out_channels - lane;
  const bool whole = kStride > 0 || valid >= kVectors * kLanes<T>;
  T* out = r.out + pixel * stride + lane;
#pragma GCC unroll 16
  for (int p = 0; p < kPixels; ++p) {
#pragma GCC unroll 2
    for (int v = 0; v < kVectors; ++v) {
      T* to = out + p * stride + v * kLanes<T>;
      if (whole) {
        store(to, sum[p][v]);
      } else {
        store_head(to, sum[p][v], valid - v * kLanes<T>);
      }
    }
  }
}

// The moments of the lanes that a span of pixels stands in.
template <typename T, int kVectors>
struct LaneMoments {
  Vec<T> about[kVectors] = {}, sum[kVectors] = {}, square[kVectors] = {};

  void start(const T* from) {
    for (int v = 0; v < kVectors; ++v) about[v] = load(from + v * kLanes<T>);
  }

  // Pixels in pairs: a chain of additions as long as a stretch would lose digits.
  template <int kPixels>
  void add(const Vec<T> (&y)[kPixels][kVectors]) {
#pragma GCC unroll 2
    for (int v = 0; v < kVectors; ++v) {
      Vec<T> d[kPixels], d2[kPixels];
#pragma GCC unroll 16
      for (int p = 0; p < kPixels; ++p) {
        d[p] = y[p][v] - about[v];
        d2[p] = d[p] * d[p];
      }
#pragma GCC unroll 4
      for (int half = kPixels / 2; half > 0; half /= 2) {
#pragma GCC unroll 8
        for (int p = 0; p < half; ++p) {
          d[p] += d[p + half];
          d2[p] += d2[p + half];
        }
      }
      sum[v] += d[0];
      square[v] += d2[0];
    }
  }

  void flush(double* sums, double* squares) const {
    for (int v = 0; v < kVectors; ++v) {
      const int64_t offset = v * kLanes<T>;
      fold_wide<T>(sums, sum[v], offset, kVectors * kLanes<T>);
      fold_wide<T>(squares, square[v], offset, kVectors * kLanes<T>);
    }
  }
};

// What becomes of outputs: they are stored, added to what is there, or stored and given to sinks.
enum class Outputs { kStored, kAdded, kSunk };

// The lanes [lane, lane + kVectors * lanes) of the pixels from `pixel`, as far as whole blocks of
// kPixels reach; returns how far. `r` is a copy, which no store can change.
template <typename T, int kPixels, int kVectors, Outputs kOutputs, typename S>
__attribute__((noinline)) static int64_t pointwise_span(const PointwiseRows<T> r, int64_t pixel,
                                                        int64_t pixels, int64_t lane) {
  constexpr bool kAccumulate = kOutputs == Outputs::kAdded;
  constexpr bool kSinks = kOutputs == Outputs::kSunk;
  [[maybe_unused]] PointwiseSinks<T> sinks = {};
  [[maybe_unused]] LaneMoments<T, kVectors> moments;
  if constexpr (kSinks) {
    sinks = *r.sinks;
    moments.start(sinks.about + lane);
  }
  for (; pixel + kPixels <= pixels; pixel += kPixels) {
    Vec<T> sum[kPixels][kVectors] = {};
    for (int64_t t = 0; t < r.count_taps; ++t) {
      Stepped<T, kPixels, S::kIn> in(r.in + pixel * r.in_stride + r.taps[t].input, r.in_stride);
      const T* packed = r.packed + r.taps[t].weight + lane;
      for (int64_t ci = 0; ci < r.channels; ++ci) {
        Vec<T> w[kVectors];
#pragma GCC unroll 2
        for (int v = 0; v < kVectors; ++v) w[v] = load(packed + v * kLanes<T>);
#pragma GCC unroll 16
        for (int p = 0; p < kPixels; ++p) {
          const T x = *in.at(p);
#pragma GCC unroll 2
          for (int v = 0; v < kVectors; ++v) sum[p][v] += x * w[v];
        }
        packed += r.row;
        in.advance(1);
      }
    }
    // What is there comes last: added to a large sum one by one, products would lose their digits.
#pragma GCC unroll 16
    for (int p = 0; p < kPixels && kAccumulate; ++p) {
#pragma GCC unroll 2
      for (int v = 0; v < kVectors; ++v) {
        const int64_t stride = S::kOut > 0 ? S::kOut : r.out_stride;
        sum[p][v] += load(r.out + (pixel + p) * stride + lane + v * kLanes<T>);
      }
    }
    store_block<T, kPixels, kVectors, S::kOut>(r, sum, pixel, lane);
    if constexpr (kSinks) {
      const int64_t stride = S::kOut > 0 ? S::kOut : r.out_stride;
      moments.add(sum);
#pragma GCC unroll 16
      for (int p = 0; p < kPixels; ++p) {
#pragma GCC unroll 2
        for (int v = 0; v < kVectors; ++v) {
          const int64_t at = (pixel + p) * stride + lane + v * kLanes<T>;
          if (sinks.saved != nullptr) stream(sinks.saved + at, sum[p][v]);
        }
      }
    }
  }
  if constexpr (kSinks) moments.flush(sinks.sums + lane, sinks.squares + lane);
  return pixel;
}

// call(Strides) of r, for the usual numbers of channels in and out.
template <typename T, typename Call>
static inline int64_t with_strides(const PointwiseRows<T>& r, Call call) {
  const bool same = r.in_stride == r.out_stride && r.out_stride == r.out_channels;
  switch (r.in_stride) {
    case 16:
      return same ? call(Strides<16, 16>()) : call(Strides<16, 0>());
    case 32:
      return same ? call(Strides<32, 32>()) : call(Strides<32, 0>());
    case 48:
      return call(Strides<48, 0>());
    case 64:
      return same ? call(Strides<64, 64>()) : call(Strides<64, 0>());
    case 128:
      return call(Strides<128, 0>());
    case 256:
      return call(Strides<256, 0>());
    default:
      return call(Strides<0, 0>());
  }
}

template <typename T, int kVectors, Outputs kOutputs>
static inline void pointwise_lanes(const PointwiseRows<T>& r, int64_t pixels, int64_t lane) {
  constexpr int kMost = (kManyRegisters ? 16 : 8) / kVectors;
  using Any = Strides<0, 0>;
  int64_t p = with_strides(r, [&](auto strides) {
    using S = decltype(strides);
    return pointwise_span<T, kMost, kVectors, kOutputs, S>(r, 0, pixels, lane);
  });
  if (p < pixels) p = pointwise_span<T, 4, kVectors, kOutputs, Any>(r, p, pixels, lane);
  if (p < pixels) pointwise_span<T, 1, kVectors, kOutputs, Any>(r, p, pixels, lane);
}

template <typename T, Outputs kOutputs>
static void pointwise_all(const PointwiseRows<T>& r, int64_t pixels) {
  int64_t lane = 0;
  for (; lane + 2 * kLanes<T> <= r.row; lane += 2 * kLanes<T>) {
    pointwise_lanes<T, 2, kOutputs>(r, pixels, lane);
  }
  if (lane < r.row) pointwise_lanes<T, 1, kOutputs>(r, pixels, lane);
}

// out[p] (+)= sum_t packed_t^T in[taps[t] + p] for every pixel p of the stretch.
template <typename T>
static void pointwise_rows(const PointwiseRows<T>& r, int64_t pixels) {
  if (r.sinks != nullptr) {
    pointwise_all<T, Outputs::kSunk>(r, pixels);
  } else if (r.accumulate) {
    pointwise_all<T, Outputs::kAdded>(r, pixels);
  } else {
    pointwise_all<T, Outputs::kStored>(r, pixels);
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
  // From 0, and added to what is there in the end: a long sum one by one would lose its digits.
  Vec<T> sum[kChannels][kVectors] = {};
  T* to = acc + channel * row + lane;
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
    for (int v = 0; v < kVectors; ++v) {
      T* at = to + c * row + v * kLanes<T>;
      store(at, load(at) + sum[c][v]);
    }
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
