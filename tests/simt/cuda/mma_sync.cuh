// SPDX-License-Identifier: Apache-2.0
// Stands in for csrc/cuda/mma_sync.cuh, the kernels' only inline PTX: the same functions, by the
// emulation. All 32 lanes of the warp must arrive at the same line; what is missing is reported as
// for shuffles. A lane gives and gets the fragments that the PTX ISA assigns to it. Products are
// exact, and added in float32 in the order of the contracted index, which the hardware does not
// promise. As a shuffle, it orders no memory.
#pragma once

#include <cstdint>
#include <type_traits>

#include "half_types.h"
#include "simt.h"

namespace darts_fast::cuda {
namespace {

template <typename H>
void mma_m16n8k16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2],
                  simt::Site site = {}) {
  constexpr bool half = std::is_same_v<H, Half>;
  static_assert(half || std::is_same_v<H, BFloat16>);
  simt::multiply_fragments(half ? simt::Factors::kHalf : simt::Factors::kBFloat16, d, a, b, 16,
                           site);
}

inline void mma_m16n8k8(float (&d)[4], uint32_t a0, uint32_t a1, uint32_t b0,
                        simt::Site site = {}) {
  const uint32_t a[] = {a0, a1}, b[] = {b0};
  simt::multiply_fragments(simt::Factors::kHalf, d, a, b, 8, site);
}

}  // namespace
}  // namespace darts_fast::cuda
