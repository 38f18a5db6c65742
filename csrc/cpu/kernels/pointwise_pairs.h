// SPDX-License-Identifier: Apache-2.0
// Pointwise products of a separable block: of factors in bfloat16, two input channels an
// instruction and sums in float32, where this file is compiled for a CPU that has it; of what the
// block computes in, elsewhere. Blocks round their factors by `as_factors`, pack matrices by
// `pack_factors`, and multiply by `multiply_rows`, whichever it is.
#pragma once

#include "cpu/kernels/pointwise_rows.h"

namespace darts_fast::cpu::DARTS_CPU_CAPABILITY {

#if defined(__AVX512BF16__)

// Whether `multiply_rows` fills sinks.
constexpr bool kProductsSink = false;

// Rounds values in place; behind them there is room for a vector.
static inline const BFloat16* as_factors(float* values, int64_t count) {
  BFloat16* rounded = reinterpret_cast<BFloat16*>(values);
  for (int64_t i = 0; i < count; i += kLanes<float>) store(rounded + i, load(values + i));
  return rounded;
}

// A matrix [channels, row] in place to pairs of rows [channels / 2 rounded up, row], an even row in
// the lower half of each word, 0 for the row behind the last.
static inline void pack_factors(float* matrix, int64_t channels, int64_t row) {
  for (int64_t c = 0; c < channels; c += 2) {
    for (int64_t i = 0; i < row; ++i) {
      const uint32_t even = narrow(matrix[c * row + i]).bits;
      const uint32_t odd = c + 1 < channels ? narrow(matrix[(c + 1) * row + i]).bits : 0;
      const uint32_t pair = odd << 16 | even;
      std::memcpy(matrix + c / 2 * row + i, &pair, sizeof(pair));
    }
  }
}

template <int kPixels, int kVectors, typename S>
__attribute__((noinline)) static int64_t pairs_span(const PointwiseRows<float> r,
                                                    const BFloat16* in, int64_t pixel,
                                                    int64_t pixels, int64_t lane) {
  for (; pixel + kPixels <= pixels; pixel += kPixels) {
    Vec<float> sum[kPixels][kVectors] = {};
    Stepped<BFloat16, kPixels, S::kIn> x(in + pixel * r.in_stride, r.in_stride);
    const float* packed = r.packed + lane;
    const auto add = [&](uint32_t kept) {
      WordVec w[kVectors];
#pragma GCC unroll 2
      for (int v = 0; v < kVectors; ++v) {
        std::memcpy(&w[v], packed + v * kLanes<float>, sizeof(w[v]));
      }
#pragma GCC unroll 16
      for (int p = 0; p < kPixels; ++p) {
        uint32_t pair;
        std::memcpy(&pair, x.at(p), sizeof(pair));
        const WordVec factor = WordVec{} + (pair & kept);
#pragma GCC unroll 2
        for (int v = 0; v < kVectors; ++v) sum[p][v] = add_pairs(sum[p][v], w[v], factor);
      }
    };
    int64_t c = 0;
    for (; c + 2 <= r.channels; c += 2) {
      add(0xffffffff);
      packed += r.row;
      x.advance(2);
    }
    // What stands behind an odd last channel is the next pixel's, and may be infinite.
    if (c < r.channels) add(0xffff);
    store_block<float, kPixels, kVectors, S::kOut>(r, sum, pixel, lane);
  }
  return pixel;
}

template <int kVectors>
static inline void pairs_lanes(const PointwiseRows<float>& r, const BFloat16* in, int64_t pixels,
                               int64_t lane) {
  using Any = Strides<0, 0>;
  int64_t p = with_strides(r, [&](auto strides) {
    return pairs_span<16 / kVectors, kVectors, decltype(strides)>(r, in, 0, pixels, lane);
  });
  if (p < pixels) p = pairs_span<4, kVectors, Any>(r, in, p, pixels, lane);
  if (p < pixels) pairs_span<1, kVectors, Any>(r, in, p, pixels, lane);
}

// `pointwise_rows` of the factors `in`, one tap, not accumulated.
static inline void multiply_rows(const PointwiseRows<float>& r, const BFloat16* in,
                                 int64_t pixels) {
  int64_t lane = 0;
  for (; lane + 2 * kLanes<float> <= r.row; lane += 2 * kLanes<float>) {
    pairs_lanes<2>(r, in, pixels, lane);
  }
  if (lane < r.row) pairs_lanes<1>(r, in, pixels, lane);
}

#else

constexpr bool kProductsSink = true;

template <typename T>
static inline const T* as_factors(T* values, int64_t) {
  return values;
}

template <typename T>
static inline void pack_factors(T*, int64_t, int64_t) {}

template <typename T>
static inline void multiply_rows(PointwiseRows<T> r, const T* in, int64_t pixels) {
  r.in = in;
  pointwise_rows<T>(r, pixels);
}

#endif

}  // namespace darts_fast::cpu::DARTS_CPU_CAPABILITY
