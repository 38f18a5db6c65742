// SPDX-License-Identifier: Apache-2.0
// A depthwise convolution whose taps are a square of neighbours `dilation` pixels apart, at stride
// 1 and with whole vectors of channels. All distances are known to the compiler: an input that a
// block of outputs reads for several taps of a kernel row is loaded once, and no address is
// computed.
#pragma once

#include "cpu/kernels/channel_pattern.h"

namespace darts_fast::cpu::DARTS_CPU_CAPABILITY {

// Registers of the capability bound the blocks: 32 with AVX-512, 16 below.
constexpr bool kManyRegisters = DARTS_VECTOR_BYTES == 64;

constexpr int64_t kMaxTaps = 49;

// One tap of a row: where its input stands from the row's first, and where its weights stand.
struct Tap {
  int64_t input;
  int64_t weight;
};

// Rows of outputs, and the places of their first taps' inputs.
template <typename T>
struct DepthwiseRows {
  const T* input;
  int64_t input_row;  // elements from the input of one output row to that of the next
  T* out;
  int64_t out_row;
  int64_t rows;
  int64_t count;  // elements of a row of outputs, a multiple of the pattern
  bool accumulate;
};

// kCount outputs kPeriod elements apart; within a kernel row taps are kDilation outputs apart.
template <typename T, int kKernel, int kDilation, int kPeriod, int kCount>
static inline void grid_block(const T* base, const Tap* taps, const T* weights, T* out,
                              bool accumulate) {
  constexpr int kReach = kCount + (kKernel - 1) * kDilation;
  Vec<T> sum[kCount];
#pragma GCC unroll 16
  for (int u = 0; u < kCount; ++u) sum[u] = accumulate ? load(out + u * kPeriod) : Vec<T>{};
  for (const Tap* row = taps; row < taps + kKernel * kKernel; row += kKernel) {
    const T* from = base + row->input;
    Vec<T> w[kKernel];
#pragma GCC unroll 7
    for (int kx = 0; kx < kKernel; ++kx) w[kx] = load(weights + row[kx].weight);
#pragma GCC unroll 32
    for (int j = 0; j < kReach; ++j) {
      const Vec<T> x = load(from + j * kPeriod);
#pragma GCC unroll 7
      for (int kx = 0; kx < kKernel; ++kx) {
        const int u = j - kx * kDilation;
        if (u >= 0 && u < kCount) sum[u] += w[kx] * x;
      }
    }
  }
#pragma GCC unroll 16
  for (int u = 0; u < kCount; ++u) store(out + u * kPeriod, sum[u]);
}

// The same of a 3x3 kernel for kCount outputs of two rows, which are as far apart as kernel rows
// are: the two input rows that both reach are loaded once.
template <typename T, int kPeriod, int kCount>
static inline void grid_pair(const T* base, int64_t row, const Tap* taps, const T* weights, T* out,
                             int64_t out_row, bool accumulate) {
  constexpr int kKernel = 3;
  Vec<T> sum[2][kCount], w[kKernel * kKernel];
#pragma GCC unroll 9
  for (int t = 0; t < kKernel * kKernel; ++t) w[t] = load(weights + taps[t].weight);
#pragma GCC unroll 2
  for (int r = 0; r < 2; ++r) {
#pragma GCC unroll 8
    for (int u = 0; u < kCount; ++u) {
      sum[r][u] = accumulate ? load(out + r * out_row + u * kPeriod) : Vec<T>{};
    }
  }
  const T* from = base + taps->input;
#pragma GCC unroll 4
  for (int ky = 0; ky <= kKernel; ++ky, from += row) {
#pragma GCC unroll 10
    for (int j = 0; j < kCount + kKernel - 1; ++j) {
      const Vec<T> x = load(from + j * kPeriod);
#pragma GCC unroll 3
      for (int kx = 0; kx < kKernel; ++kx) {
        const int u = j - kx;
        if (u < 0 || u >= kCount) continue;
        if (ky < kKernel) sum[0][u] += w[ky * kKernel + kx] * x;
        if (ky > 0) sum[1][u] += w[(ky - 1) * kKernel + kx] * x;
      }
    }
  }
#pragma GCC unroll 2
  for (int r = 0; r < 2; ++r) {
#pragma GCC unroll 8
    for (int u = 0; u < kCount; ++u) store(out + r * out_row + u * kPeriod, sum[r][u]);
  }
}

template <typename T>
using GridRows = void(const DepthwiseRows<T>& rows, const Tap* taps, const T* weights);

template <typename T, int kKernel, int kDilation, int kVectors>
static void grid_rows(const DepthwiseRows<T>& r, const Tap* taps, const T* weights) {
  constexpr int kPeriod = kVectors * kLanes<T>;
  constexpr int kMost = kManyRegisters ? 16 : 8, kPaired = 8;
  const bool pairs = kManyRegisters && kKernel == 3 && kDilation == 1 &&
                     r.input_row == taps[kKernel].input - taps[0].input &&
                     r.count % (kPaired * kPeriod) == 0;
  for (int64_t lane = 0; lane < kPeriod; lane += kLanes<T>) {
    const T* w = weights + lane;
    const T* base = r.input + lane;
    T* out = r.out + lane;
    const int64_t end = r.count - lane;
    int64_t h = 0;
    for (; pairs && h + 1 < r.rows; h += 2, base += 2 * r.input_row, out += 2 * r.out_row) {
      for (int64_t i = 0; i < end; i += kPaired * kPeriod) {
        grid_pair<T, kPeriod, kPaired>(base + i, r.input_row, taps, w, out + i, r.out_row,
                                       r.accumulate);
      }
    }
    for (; h < r.rows; ++h, base += r.input_row, out += r.out_row) {
      int64_t i = 0;
      for (; i + (kMost - 1) * kPeriod < end; i += kMost * kPeriod) {
        grid_block<T, kKernel, kDilation, kPeriod, kMost>(base + i, taps, w, out + i, r.accumulate);
      }
      for (; i + 7 * kPeriod < end; i += 8 * kPeriod) {
        grid_block<T, kKernel, kDilation, kPeriod, 8>(base + i, taps, w, out + i, r.accumulate);
      }
      for (; i < end; i += kPeriod) {
        grid_block<T, kKernel, kDilation, kPeriod, 1>(base + i, taps, w, out + i, r.accumulate);
      }
    }
  }
}

template <typename T, int kKernel, int kDilation>
static GridRows<T>* grid_of_period(int64_t period) {
  switch (period / kLanes<T>) {
    case 1:
      return grid_rows<T, kKernel, kDilation, 1>;
    case 2:
      return grid_rows<T, kKernel, kDilation, 2>;
    case 4:
      return grid_rows<T, kKernel, kDilation, 4>;
    default:
      return nullptr;
  }
}

// The loop for these taps, kernel rows one after the other; null if they are no such grid or one
// that is not worth its code. The kernels are those of the spaces of DARTS.
template <typename T>
static GridRows<T>* grid_for(const Tap* taps, int64_t count, int64_t period) {
  const int64_t kernel = count == 9 ? 3 : count == 25 ? 5 : count == 49 ? 7 : 0;
  if (kernel == 0) return nullptr;
  const int64_t distance = taps[1].input - taps[0].input;
  for (int64_t t = 0; t < count; ++t) {
    if (taps[t].input != taps[t / kernel * kernel].input + t % kernel * distance) return nullptr;
  }
  if (distance == period) {
    return kernel == 3   ? grid_of_period<T, 3, 1>(period)
           : kernel == 5 ? grid_of_period<T, 5, 1>(period)
                         : grid_of_period<T, 7, 1>(period);
  }
  if (distance == 2 * period && kernel == 3) return grid_of_period<T, 3, 2>(period);
  if (distance == 2 * period && kernel == 5) return grid_of_period<T, 5, 2>(period);
  return nullptr;
}

}  // namespace darts_fast::cpu::DARTS_CPU_CAPABILITY
