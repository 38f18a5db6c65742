// SPDX-License-Identifier: Apache-2.0
// The table of mixed_cell's kernels for an element type T, and the one of the maps, M.
#pragma once

#include "cpu/kernels/mixed_cell_backward.h"
#include "cpu/kernels/mixed_cell_forward.h"
#include "cpu/kernels/mixed_cell_kernels.h"

namespace darts_fast::cpu::DARTS_CPU_CAPABILITY {

template <typename T, typename M = T>
static constexpr MixedCellKernels<T, M> make_kernels() {
  return {pattern_period<T>,        cell_packed_size<T>,    cell_forward_scratch<T>,
          cell_backward_scratch<T>, cell_partial_size<T>,   cell_pack<T, M>,
          cell_first<T, M>,         cell_norms<T, M>,       cell_second<T, M>,
          cell_prepare<T, M>,       cell_grad_first<T, M>,  cell_node_norms<T, M>,
          cell_grad_second<T, M>,   cell_inner_norms<T, M>, cell_weights<T, M>,
          cell_parameters<T, M>};
}

}  // namespace darts_fast::cpu::DARTS_CPU_CAPABILITY
