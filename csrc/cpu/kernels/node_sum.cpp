// SPDX-License-Identifier: Apache-2.0
// The kernels of node_sum for the capability this file is compiled for.
#include "cpu/kernels/node_sum_backward.h"
#include "cpu/kernels/node_sum_forward.h"
#include "cpu/kernels/node_sum_kernels.h"

namespace darts_fast::cpu::DARTS_CPU_CAPABILITY {

template <typename T>
static constexpr NodeSumKernels<T> make_kernels() {
  return {pattern_period<T>,      node_sum_statistics<T>, node_sum_merge<T>,
          node_sum_prepare<T>,    node_sum_combine<T>,    node_sum_center<T>,
          node_sum_reduce<T>,     node_sum_merge_sums<T>, node_sum_coefficients<T>,
          node_sum_parameters<T>, node_sum_grad_maps<T>};
}

const NodeSumKernels<float> node_sum_kernels_float = make_kernels<float>();
const NodeSumKernels<double> node_sum_kernels_double = make_kernels<double>();

}  // namespace darts_fast::cpu::DARTS_CPU_CAPABILITY
