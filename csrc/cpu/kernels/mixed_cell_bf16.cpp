// SPDX-License-Identifier: Apache-2.0
// The kernels of mixed_cell that compute in float32 and keep the outputs of convolutions in
// bfloat16.
#include "cpu/kernels/mixed_cell_table.h"

namespace darts_fast::cpu::DARTS_CPU_CAPABILITY {

const MixedCellKernels<float, BFloat16> mixed_cell_kernels_bf16 = make_kernels<float, BFloat16>();

}  // namespace darts_fast::cpu::DARTS_CPU_CAPABILITY
