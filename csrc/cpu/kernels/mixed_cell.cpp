// SPDX-License-Identifier: Apache-2.0
// The kernels of mixed_cell for the capability this file is compiled for.
#include "cpu/kernels/mixed_cell_backward.h"
#include "cpu/kernels/mixed_cell_forward.h"
#include "cpu/kernels/mixed_cell_kernels.h"
#include "cpu/kernels/mixed_cell_running.h"

namespace darts_fast::cpu::DARTS_CPU_CAPABILITY {

template <typename T>
static constexpr MixedCellKernels<T> make_kernels() {
  return {pattern_period<T>,
          cell_packed_size<T>,
          cell_forward_scratch<T>,
          cell_running_scratch<T>,
          cell_backward_scratch<T>,
          cell_partial_size<T>,
          cell_pack<T>,
          cell_first<T>,
          cell_norms<T>,
          cell_second<T>,
          cell_running_norms<T>,
          cell_running_constants<T>,
          cell_running_pack<T>,
          cell_running<T>,
          cell_prepare<T>,
          cell_grad_first<T>,
          cell_node_norms<T>,
          cell_grad_second<T>,
          cell_inner_norms<T>,
          cell_weights<T>,
          cell_parameters<T>};
}

const MixedCellKernels<float> mixed_cell_kernels_float = make_kernels<float>();
const MixedCellKernels<double> mixed_cell_kernels_double = make_kernels<double>();

}  // namespace darts_fast::cpu::DARTS_CPU_CAPABILITY
