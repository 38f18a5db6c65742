// SPDX-License-Identifier: Apache-2.0
// A warp's product of factors of 16 bits in shared memory, on tensor cores: [16, 8] sums += [16,
// 16] * [16, 8]. Both factors lie with the contracted index innermost, so that a register's two
// factors are neighbours.
#pragma once

#include "cuda/elements.cuh"
#include "cuda/mma_sync.cuh"

namespace darts_fast::cuda {
namespace {

constexpr int kFragmentRows = 16, kFragmentColumns = 8, kFragmentDepth = 16;

// Of the architecture that is compiled for; the emulation has all that sm_80 has.
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 800
constexpr bool kWideFragments = false;
#else
constexpr bool kWideFragments = true;
#endif

// Whether factors of this type have tensor cores: sm_75 multiplies no bfloat16.
template <typename H>
constexpr bool kHasFragments = false;
template <>
constexpr bool kHasFragments<Half> = true;
template <>
constexpr bool kHasFragments<BFloat16> = kWideFragments;

// Rows of factors are padded by so many that the 8 rows of 4 words which a warp reads at a time lie
// in 32 banks: a row has 4 words more than a multiple of 8.
constexpr int kFragmentPadding = 8;

// Where a lane's registers come from and its sums belong.
struct FragmentPlace {
  int row, pair;  // `row` and 8 further; `pair` and 1 further

  __device__ __forceinline__ FragmentPlace() {
    const int lane = static_cast<int>(threadIdx.x) % kWarp;
    row = lane / 4;
    pair = lane % 4 * 2;
  }
};

template <typename H>
__device__ __forceinline__ uint32_t factor_pair(const H* at) {
  return __builtin_bit_cast(uint32_t, load<H, 2>(at));
}

// Rows and columns [0, 16) of `from`, whose rows are `row` long.
template <typename H>
__device__ __forceinline__ void load_rows(uint32_t (&a)[4], const FragmentPlace& at, const H* from,
                                          int row) {
  const H* own = from + at.row * row + at.pair;
  a[0] = factor_pair(own);
  a[1] = factor_pair(own + 8 * row);
  a[2] = factor_pair(own + 8);
  a[3] = factor_pair(own + 8 * row + 8);
}

// The same of a matrix of which `from` has the transpose: two factors of a register are `row`
// apart.
template <typename H>
__device__ __forceinline__ void load_transposed_rows(uint32_t (&a)[4], const FragmentPlace& at,
                                                     const H* from, int row) {
  const H* own = from + at.pair * row + at.row;
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const H* pair = own + i % 2 * 8 + i / 2 * 8 * row;
    a[i] = __builtin_bit_cast(uint32_t, Vec<H, 2>{pair[0], pair[row]});
  }
}

// The transposed second factor: rows [0, 8), columns [0, 16).
template <typename H>
__device__ __forceinline__ void load_columns(uint32_t (&b)[2], const FragmentPlace& at,
                                             const H* from, int row) {
  const H* own = from + at.row * row + at.pair;
  b[0] = factor_pair(own);
  b[1] = factor_pair(own + 8);
}

// sum[0], sum[1]: of row `place.row`, columns `pair` and 1 further; sum[2], sum[3]: 8 rows further.
// All lanes of the warp.
template <typename H>
__device__ __forceinline__ void multiply_fragments(float (&sum)[4], const uint32_t (&a)[4],
                                                   const uint32_t (&b)[2]) {
  if constexpr (kWideFragments) {
    mma_m16n8k16<H>(sum, a, b);
  } else {
    mma_m16n8k8(sum, a[0], a[1], b[0]);
    mma_m16n8k8(sum, a[2], a[3], b[1]);
  }
}

}  // namespace
}  // namespace darts_fast::cuda
