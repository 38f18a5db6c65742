// SPDX-License-Identifier: Apache-2.0
// The four inner loops of a separable block, one row of an image at a time: depthwise and pointwise
// convolution and the gradients of their weights. Rows are flat, channels innermost, and depthwise
// weights are expanded to the pattern of channels (channel_pattern.h), so every lane works at every
// number of channels. Accumulators stay in registers over the taps or the input channels.
#pragma once

#include "cpu/kernels/channel_pattern.h"

namespace darts_fast::cpu::DARTS_CPU_CAPABILITY {

// Registers of the capability bound the blocks: 32 with AVX-512, 16 below.
constexpr int kBlock = 8;
constexpr bool kManyRegisters = DARTS_VECTOR_BYTES == 64;

template <typename T, int kCount>
static inline void depthwise_block(const T* base, const int64_t* offsets, int64_t taps,
                                   const T* weights, int64_t period, T* out, bool accumulate) {
  Vec<T> sum[kCount];
  for (int u = 0; u < kCount; ++u) sum[u] = accumulate ? load(out + u * period) : Vec<T>{};
  for (int64_t t = 0; t < taps; ++t) {
    const Vec<T> w = load(weights + t * period);
    const T* x = base + offsets[t];
#pragma GCC unroll 8
    for (int u = 0; u < kCount; ++u) sum[u] += w * load(x + u * period);
  }
  for (int u = 0; u < kCount; ++u) store(out + u * period, sum[u]);
}

// out[i] (+)= sum_t weights[t][i mod C] * base[offsets[t] + i] for i < count, a multiple of period.
template <typename T>
static void depthwise_row(const T* base, const int64_t* offsets, int64_t taps, const T* weights,
                          int64_t period, int64_t count, T* out, bool accumulate) {
  for (int64_t lane = 0; lane < period; lane += kLanes<T>) {
    int64_t i = lane;
    for (; i + (kBlock - 1) * period < count; i += kBlock * period) {
      depthwise_block<T, kBlock>(base + i, offsets, taps, weights + lane, period, out + i,
                                 accumulate);
    }
    for (; i + 3 * period < count; i += 4 * period) {
      depthwise_block<T, 4>(base + i, offsets, taps, weights + lane, period, out + i, accumulate);
    }
    for (; i < count; i += period) {
      depthwise_block<T, 1>(base + i, offsets, taps, weights + lane, period, out + i, accumulate);
    }
  }
}

// acc[t][i mod period] += g[i] * base[offsets[t] + i] for kTaps taps; g is 0 behind the row.
template <typename T, int kTaps>
static inline void depthwise_grad_taps(const T* base, const int64_t* offsets, const T* g,
                                       int64_t period, int64_t count, T* acc) {
  for (int64_t lane = 0; lane < period; lane += kLanes<T>) {
    Vec<T> sum[kTaps];
    for (int t = 0; t < kTaps; ++t) sum[t] = load(acc + t * period + lane);
    for (int64_t i = lane; i < count; i += period) {
      const Vec<T> grad = load(g + i);
#pragma GCC unroll 25
      for (int t = 0; t < kTaps; ++t) sum[t] += grad * load(base + offsets[t] + i);
    }
    for (int t = 0; t < kTaps; ++t) store(acc + t * period + lane, sum[t]);
  }
}

template <typename T>
static void depthwise_grad_row(const T* base, const int64_t* offsets, int64_t taps, const T* g,
                               int64_t period, int64_t count, T* acc) {
  int64_t t = 0;
  if (kManyRegisters) {
    for (; t + 25 <= taps; t += 25) {
      depthwise_grad_taps<T, 25>(base, offsets + t, g, period, count, acc + t * period);
    }
  }
  for (; t + 9 <= taps; t += 9) {
    depthwise_grad_taps<T, 9>(base, offsets + t, g, period, count, acc + t * period);
  }
  for (; t + 4 <= taps; t += 4) {
    depthwise_grad_taps<T, 4>(base, offsets + t, g, period, count, acc + t * period);
  }
  for (; t < taps; ++t) {
    depthwise_grad_taps<T, 1>(base, offsets + t, g, period, count, acc + t * period);
  }
}

// out[offsets[t] + i] += weights[t][i mod C] * g[i]: the input gradient at stride 2, where the taps
// of an output reach into both column planes.
template <typename T>
static void depthwise_scatter_row(T* out, const int64_t* offsets, int64_t taps, const T* weights,
                                  int64_t period, int64_t count, const T* g) {
  for (int64_t t = 0; t < taps; ++t) {
    T* target = out + offsets[t];
    for (int64_t lane = 0; lane < period; lane += kLanes<T>) {
      const Vec<T> w = load(weights + t * period + lane);
      for (int64_t i = lane; i < count; i += period) {
        store(target + i, load(target + i) + w * load(g + i));
      }
    }
  }
}

template <typename T, int kPixels, int kVectors>
static inline void pointwise_block(const T* in, int64_t in_stride, int64_t channels,
                                   const T* packed, int64_t packed_row, T* out,
                                   int64_t out_stride) {
  Vec<T> sum[kPixels][kVectors] = {};
  for (int64_t ci = 0; ci < channels; ++ci) {
    Vec<T> w[kVectors];
    for (int v = 0; v < kVectors; ++v) w[v] = load(packed + ci * packed_row + v * kLanes<T>);
#pragma GCC unroll 8
    for (int p = 0; p < kPixels; ++p) {
      const T x = in[p * in_stride + ci];
#pragma GCC unroll 2
      for (int v = 0; v < kVectors; ++v) sum[p][v] += x * w[v];
    }
  }
  for (int p = 0; p < kPixels; ++p) {
    for (int v = 0; v < kVectors; ++v) store(out + p * out_stride + v * kLanes<T>, sum[p][v]);
  }
}

// out[p] = packed^T in[p] for every pixel p of a row: packed is [channels, vectors * lanes].
template <typename T>
static void pointwise_row(const T* in, int64_t in_stride, int64_t pixels, int64_t channels,
                          const T* packed, int64_t vectors, T* out, int64_t out_stride) {
  const int64_t row = vectors * kLanes<T>;
  constexpr int kPairPixels = kManyRegisters ? 8 : 4;
  int64_t v = 0;
  for (; v + 2 <= vectors; v += 2) {
    const T* w = packed + v * kLanes<T>;
    T* to = out + v * kLanes<T>;
    int64_t p = 0;
    for (; p + kPairPixels <= pixels; p += kPairPixels) {
      pointwise_block<T, kPairPixels, 2>(in + p * in_stride, in_stride, channels, w, row,
                                         to + p * out_stride, out_stride);
    }
    for (; p < pixels; ++p) {
      pointwise_block<T, 1, 2>(in + p * in_stride, in_stride, channels, w, row, to + p * out_stride,
                               out_stride);
    }
  }
  if (v == vectors) return;
  const T* w = packed + v * kLanes<T>;
  T* to = out + v * kLanes<T>;
  int64_t p = 0;
  for (; p + kBlock <= pixels; p += kBlock) {
    pointwise_block<T, kBlock, 1>(in + p * in_stride, in_stride, channels, w, row,
                                  to + p * out_stride, out_stride);
  }
  for (; p + 4 <= pixels; p += 4) {
    pointwise_block<T, 4, 1>(in + p * in_stride, in_stride, channels, w, row, to + p * out_stride,
                             out_stride);
  }
  for (; p < pixels; ++p) {
    pointwise_block<T, 1, 1>(in + p * in_stride, in_stride, channels, w, row, to + p * out_stride,
                             out_stride);
  }
}

template <typename T, int kChannels, int kVectors>
static inline void pointwise_grad_block(const T* in, int64_t in_stride, const T* g,
                                        int64_t g_stride, int64_t pixels, T* acc, int64_t acc_row) {
  Vec<T> sum[kChannels][kVectors];
  for (int c = 0; c < kChannels; ++c) {
    for (int v = 0; v < kVectors; ++v) sum[c][v] = load(acc + c * acc_row + v * kLanes<T>);
  }
  for (int64_t p = 0; p < pixels; ++p) {
    Vec<T> grad[kVectors];
    for (int v = 0; v < kVectors; ++v) grad[v] = load(g + p * g_stride + v * kLanes<T>);
#pragma GCC unroll 16
    for (int c = 0; c < kChannels; ++c) {
      const T x = in[p * in_stride + c];
#pragma GCC unroll 2
      for (int v = 0; v < kVectors; ++v) sum[c][v] += x * grad[v];
    }
  }
  for (int c = 0; c < kChannels; ++c) {
    for (int v = 0; v < kVectors; ++v) store(acc + c * acc_row + v * kLanes<T>, sum[c][v]);
  }
}

// acc[ci][co] += sum over the pixels of a row of in[p][ci] * g[p][co]; acc is [channels, row].
template <typename T>
static void pointwise_grad_row(const T* in, int64_t in_stride, const T* g, int64_t g_stride,
                               int64_t pixels, int64_t channels, int64_t vectors, T* acc) {
  const int64_t row = vectors * kLanes<T>;
  constexpr int kSingle = kManyRegisters ? 16 : 8;
  constexpr int kPair = kManyRegisters ? 8 : 4;
  int64_t v = 0;
  for (; v + 2 <= vectors; v += 2) {
    int64_t c = 0;
    T* to = acc + v * kLanes<T>;
    const T* from = g + v * kLanes<T>;
    for (; c + kPair <= channels; c += kPair) {
      pointwise_grad_block<T, kPair, 2>(in + c, in_stride, from, g_stride, pixels, to + c * row,
                                        row);
    }
    for (; c < channels; ++c) {
      pointwise_grad_block<T, 1, 2>(in + c, in_stride, from, g_stride, pixels, to + c * row, row);
    }
  }
  if (v == vectors) return;
  int64_t c = 0;
  T* to = acc + v * kLanes<T>;
  const T* from = g + v * kLanes<T>;
  for (; c + kSingle <= channels; c += kSingle) {
    pointwise_grad_block<T, kSingle, 1>(in + c, in_stride, from, g_stride, pixels, to + c * row,
                                        row);
  }
  for (; c + 4 <= channels; c += 4) {
    pointwise_grad_block<T, 4, 1>(in + c, in_stride, from, g_stride, pixels, to + c * row, row);
  }
  for (; c < channels; ++c) {
    pointwise_grad_block<T, 1, 1>(in + c, in_stride, from, g_stride, pixels, to + c * row, row);
  }
}

}  // namespace darts_fast::cpu::DARTS_CPU_CAPABILITY
