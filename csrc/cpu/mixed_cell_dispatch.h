// SPDX-License-Identifier: Apache-2.0
// The kernels of mixed_cell for the arguments of a call and the capability in use.
#pragma once

#include "cpu/dispatch.h"
#include "cpu/kernels/mixed_cell_kernels.h"
#include "mixed_cell_checks.h"

namespace darts_fast::cpu {

template <typename T, typename M>
const MixedCellKernels<T, M>& cell_kernels(Precision precision);
template <>
inline const MixedCellKernels<float>& cell_kernels<float, float>(Precision) {
  return DARTS_SELECT_TABLE(mixed_cell_kernels_float);
}
template <>
inline const MixedCellKernels<double>& cell_kernels<double, double>(Precision) {
  return DARTS_SELECT_TABLE(mixed_cell_kernels_double);
}
template <>
inline const MixedCellKernels<float, BFloat16>& cell_kernels<float, BFloat16>(
    [[maybe_unused]] Precision precision) {
#if defined(DARTS_X86_CAPABILITIES)
  if (precision == Precision::kProducts && capability() == Capability::kAvx512Bf16) {
    return AVX512BF16::mixed_cell_kernels_bf16;
  }
#endif
  return DARTS_SELECT_TABLE(mixed_cell_kernels_bf16);
}

// body<T, M>() for the elements of states and of convolutions' maps.
template <typename Body>
void dispatch_cell(const MixedCellArguments& a, Precision precision, Body body) {
  if (a.states[0].scalar_type() == at::kDouble) {
    body.template operator()<double, double>();
  } else if (precision == Precision::kFull) {
    body.template operator()<float, float>();
  } else {
    body.template operator()<float, BFloat16>();
  }
}

}  // namespace darts_fast::cpu
