// SPDX-License-Identifier: Apache-2.0
// The table of mixed_cell's kernels for an element type T, and the one of the maps, M.
#pragma once

#include "cpu/kernels/mixed_cell_backward.h"
#include "cpu/kernels/mixed_cell_forward.h"
#include "cpu/kernels/mixed_cell_kernels.h"
#include "cpu/kernels/mixed_cell_running.h"

namespace darts_fast::cpu::DARTS_CPU_CAPABILITY {

template <typename T, typename M = T>
static constexpr MixedCellKernels<T, M> make_kernels() {
  MixedCellKernels<T, M> table = {};
  table.period = pattern_period<T>;
  table.packed_size = cell_packed_size<T>;
  table.forward_scratch = cell_forward_scratch<T>;
  table.backward_scratch = cell_backward_scratch<T>;
  table.partial_size = cell_partial_size<T>;
  table.pack = cell_pack<T, M>;
  table.first = cell_first<T, M>;
  table.norms = cell_norms<T, M>;
  table.second = cell_second<T, M>;
  if constexpr (kSameElement<T, M>) {
    table.running_scratch = cell_running_scratch<T>;
    table.running_norms = cell_running_norms<T>;
    table.running_constants = cell_running_constants<T>;
    table.running_pack = cell_running_pack<T>;
    table.running = cell_running<T>;
  }
  table.grad_pack = cell_grad_pack<T, M>;
  table.prepare = cell_prepare<T, M>;
  table.grad_first = cell_grad_first<T, M>;
  table.node_norms = cell_node_norms<T, M>;
  table.grad_second = cell_grad_second<T, M>;
  table.inner_norms = cell_inner_norms<T, M>;
  table.weights = cell_weights<T, M>;
  table.parameters = cell_parameters<T, M>;
  return table;
}

}  // namespace darts_fast::cpu::DARTS_CPU_CAPABILITY
