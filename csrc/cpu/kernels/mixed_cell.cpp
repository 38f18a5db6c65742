// SPDX-License-Identifier: Apache-2.0
// The kernels of mixed_cell for the capability this file is compiled for.
#include "cpu/kernels/mixed_cell_table.h"

namespace darts_fast::cpu::DARTS_CPU_CAPABILITY {

const MixedCellKernels<float> mixed_cell_kernels_float = make_kernels<float>();
const MixedCellKernels<double> mixed_cell_kernels_double = make_kernels<double>();

}  // namespace darts_fast::cpu::DARTS_CPU_CAPABILITY
