// SPDX-License-Identifier: Apache-2.0
// The instructions of tensor cores that kernels use, as functions: D += A * B of a warp, in
// registers of 32 bits with two factors each, the first one in the lower half. The only inline PTX;
// the emulation has functions of these names in place of this file (tests/simt/cuda).
//
// The 32 lanes of a warp call together. Lane l has, with g = l / 4 and q = 2 * (l % 4),
//   a[0]: A[g][q, q + 1]   a[1]: A[g + 8][q, q + 1]   a[2], a[3]: the same, 8 columns further
//   b[0]: B[q, q + 1][g]   b[1]: the same, 8 rows further
//   d[0], d[1]: D[g][q, q + 1]   d[2], d[3]: D[g + 8][q, q + 1]
// (PTX ISA, "Matrix fragments for mma.m16n8k8" and "mma.m16n8k16"). Products are exact, sums are
// float32; in which order, and how they are rounded, is the hardware's.
#pragma once

#include <cstdint>
#include <type_traits>

#include "half_types.h"

namespace darts_fast::cuda {
namespace {

#define DARTS_MMA_K16(TYPE)                                           \
  asm volatile("mma.sync.aligned.m16n8k16.row.col.f32." TYPE "." TYPE \
               ".f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "  \
               "{%0, %1, %2, %3};"                                    \
               : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])       \
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]))

// A is [16, 16], B [16, 8]. H: Half or BFloat16. From sm_80 on.
template <typename H>
__device__ __forceinline__ void mma_m16n8k16(float (&d)[4], const uint32_t (&a)[4],
                                             const uint32_t (&b)[2]) {
  if constexpr (std::is_same_v<H, Half>) {
    DARTS_MMA_K16("f16");
  } else {
    static_assert(std::is_same_v<H, BFloat16>);
    DARTS_MMA_K16("bf16");
  }
}
#undef DARTS_MMA_K16

// A is [16, 8], B [8, 8]: a0 and a1 as a[0] and a[1] above, b0 as b[0]. Half only. From sm_75 on.
__device__ __forceinline__ void mma_m16n8k8(float (&d)[4], uint32_t a0, uint32_t a1, uint32_t b0) {
  asm volatile(
      "mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5}, {%6}, "
      "{%0, %1, %2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a0), "r"(a1), "r"(b0));
}

}  // namespace
}  // namespace darts_fast::cuda
