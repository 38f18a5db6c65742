// SPDX-License-Identifier: Apache-2.0
// The product inside a matrix's gradient: outputs times inputs, contracted over positions. 64
// outputs by 16 inputs per block, four sums a thread.
#pragma once

#include "cuda/cell_fragments.cuh"

namespace darts_fast::cuda {
namespace {

constexpr int kGradPositions = 32;

// Factors of type F, the positions innermost.
template <typename T, typename F = T>
struct GradOperands {
  static constexpr int kRow = kGradPositions + (std::is_same_v<T, F> ? 4 : kFragmentPadding);

  alignas(32) F a[kDepth][kRow];
  alignas(32) F g[kWidth][kRow];
  T taps[kMostTaps][kDepth];
};

// Where a thread's four sums belong: sum[i] to output `output(i)` and input `input(i)`.
template <typename T, typename F>
struct GradPlace {
  static constexpr bool kFragments = !std::is_same_v<T, F>;
  static constexpr int kColumns = kDepth / kFragmentColumns;
  static_assert(!kFragments || kWidth / kFragmentRows * kColumns == kWarps);

  int o, d;

  __device__ __forceinline__ GradPlace() {
    const int thread = static_cast<int>(threadIdx.x);
    if constexpr (kFragments) {
      const FragmentPlace lane;
      const int warp = thread / kWarp;
      o = warp / kColumns * kFragmentRows + lane.row;
      d = warp % kColumns * kFragmentColumns + lane.pair;
    } else {
      o = thread / 4;
      d = thread % 4 * 4;
    }
  }
  __device__ __forceinline__ int output(int i) const { return kFragments ? o + i / 2 * 8 : o; }
  __device__ __forceinline__ int input(int i) const { return kFragments ? d + i % 2 : d + i; }
};

template <typename T, typename F>
__device__ __forceinline__ void add_products(const GradOperands<T, F>& s, const GradPlace<T, F>& at,
                                             int outputs, T (&sum)[4]) {
  if constexpr (GradPlace<T, F>::kFragments) {
    constexpr int kRow = GradOperands<T, F>::kRow;
    const FragmentPlace lane;
    const int first = at.o - lane.row;
    if (first >= outputs) return;  // the whole warp
#pragma unroll
    for (int p = 0; p < kGradPositions; p += kFragmentDepth) {
      uint32_t g[4], a[2];
      load_rows(g, lane, &s.g[first][p], kRow);
      load_columns(a, lane, &s.a[at.d - lane.pair][p], kRow);
      multiply_fragments<F>(sum, g, a);
    }
  } else {
    if (at.o >= outputs) return;
#pragma unroll 2
    for (int p = 0; p < kGradPositions; p += 4) {
      const Vec<T, 4> g = load<T, 4>(&s.g[at.o][p]);
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const Vec<T, 4> a = load<T, 4>(&s.a[at.d + i][p]);
#pragma unroll
        for (int lane = 0; lane < 4; ++lane) sum[i] += g.lane[lane] * a.lane[lane];
      }
    }
  }
}

}  // namespace
}  // namespace darts_fast::cuda
