// SPDX-License-Identifier: Apache-2.0
// CPU binding of node_sum: checks, allocation, parallel phases, registration.
#include <ATen/Dispatch.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include <algorithm>
#include <tuple>
#include <vector>

#include "cpu/dispatch.h"
#include "cpu/kernels/node_sum_kernels.h"
#include "node_sum_checks.h"

namespace darts_fast::cpu {
namespace {

DARTS_KERNEL_TABLES(NodeSumKernels, node_sum_kernels)

// A tile of the node is about 16 KiB: it stays in a first-level cache while the maps pass by.
// Multiples of 16 positions hold whole patterns of channels at every vector length.
int64_t tile_positions(int64_t channels) {
  return std::clamp<int64_t>(4096 / channels / 16 * 16, 16, 1024);
}

std::tuple<Tensor, Tensor, Tensor> node_sum(at::TensorList maps, const Tensor& weights,
                                            const OptionalTensor& gamma, const OptionalTensor& beta,
                                            const OptionalTensor& running_mean,
                                            const OptionalTensor& running_var,
                                            at::IntArrayRef norms, at::ArrayRef<double> eps,
                                            int64_t groups, const OptionalTensor& active) {
  static constexpr char op[] = "node_sum";
  NodeSumArguments a = check_node_sum(op, maps, weights, gamma, beta, norms, eps, groups, active);
  a.shape.tile = tile_positions(a.shape.channels);
  const NodeSumShape& s = a.shape;
  NodeSumOutputs out = allocate_outputs(op, a, running_mean, running_var);
  const auto options = out.node.options();
  AT_DISPATCH_FLOATING_TYPES(out.node.scalar_type(), op, [&] {
    const NodeSumKernels<scalar_t>& kernel = kernels<scalar_t>();
    const int64_t period = kernel.period(s.channels);
    Tensor centers = at::empty({s.terms, groups, tiles(s), s.channels}, options);
    Tensor moments = at::empty({2, centers.numel()}, options.dtype(at::kDouble));
    Tensor patterns = at::empty({2 * groups * s.terms + groups, period}, options);
    std::vector<const scalar_t*> y;
    NodeSumForward<scalar_t> p;
    set_arguments<scalar_t>(p, a, y);
    p.partial_center = centers.data_ptr<scalar_t>();
    p.partial_mean = moments.data_ptr<double>();
    p.partial_square = p.partial_mean + moments.size(1);
    p.scale = patterns.data_ptr<scalar_t>();
    p.center = p.scale + groups * s.terms * period;
    p.constant = p.center + groups * s.terms * period;
    p.mean = out.mean.data_ptr<scalar_t>();
    p.var = out.var.data_ptr<scalar_t>();
    p.node = out.node.data_ptr<scalar_t>();
    const int64_t tile_elements = s.tile * s.channels;
    run_phase(kernel.statistics, p, groups * tiles(s) * s.terms, tile_elements);
    run_phase(kernel.merge, p, groups * s.terms, tiles(s) * s.channels);
    run_phase(kernel.prepare, p, groups, s.terms * period);
    run_phase(kernel.combine, p, groups * tiles(s), s.terms * tile_elements);
  });
  return {out.node, out.mean, out.var};
}

std::tuple<std::vector<Tensor>, Tensor, Tensor, Tensor> node_sum_backward(
    const Tensor& grad_node, at::TensorList maps, const Tensor& weights,
    const OptionalTensor& gamma, const OptionalTensor& beta, const Tensor& mean, const Tensor& var,
    at::IntArrayRef norms, at::ArrayRef<double> eps, int64_t groups, const OptionalTensor& active,
    c10::List<bool> output_mask) {
  static constexpr char op[] = "node_sum_backward";
  NodeSumArguments a = check_node_sum(op, maps, weights, gamma, beta, norms, eps, groups, active);
  a.shape.tile = tile_positions(a.shape.channels);
  const NodeSumShape& s = a.shape;
  NodeSumGradients grads = allocate_gradients(op, a, grad_node, mean, var, output_mask);
  const auto options = a.maps[0].options();
  const Tensor g = grad_node.contiguous(at::MemoryFormat::ChannelsLast);
  const Tensor given_mean = mean.contiguous();
  const Tensor given_var = var.contiguous();
  AT_DISPATCH_FLOATING_TYPES(g.scalar_type(), op, [&] {
    const NodeSumKernels<scalar_t>& kernel = kernels<scalar_t>();
    const int64_t period = kernel.period(s.channels);
    Tensor partial = at::empty({groups, tiles(s), s.terms + 1, s.channels}, options);
    Tensor sums = at::empty({groups, s.terms + 1, s.channels}, options.dtype(at::kDouble));
    Tensor patterns = at::empty({4, groups * s.terms * period}, options);
    std::vector<const scalar_t*> y;
    std::vector<scalar_t*> grad_y;
    NodeSumBackward<scalar_t> p;
    set_arguments<scalar_t>(p, a, y);
    set_gradients(p, grads, grad_y);
    p.grad_node = g.const_data_ptr<scalar_t>();
    p.mean = given_mean.const_data_ptr<scalar_t>();
    p.var = given_var.const_data_ptr<scalar_t>();
    p.center = patterns.data_ptr<scalar_t>();
    p.grad_scale = p.center + patterns.size(1);
    p.grad_shift = p.grad_scale + patterns.size(1);
    p.grad_slope = p.grad_shift + patterns.size(1);
    p.partial = partial.data_ptr<scalar_t>();
    p.sums = sums.data_ptr<double>();
    const int64_t rows = groups * s.terms;
    const int64_t tile_elements = s.tile * s.channels;
    run_phase(kernel.center, p, rows, period);
    run_phase(kernel.reduce, p, groups * tiles(s), s.terms * tile_elements);
    run_phase(kernel.merge_sums, p, groups * (s.terms + 1), tiles(s) * s.channels);
    run_phase(kernel.coefficients, p, rows, period);
    run_phase(kernel.parameters, p, s.terms, groups * s.channels);
    run_phase(kernel.grad_maps, p, groups * tiles(s), s.terms * tile_elements);
  });
  return {grads.maps, grads.weights, grads.gamma, grads.beta};
}

TORCH_LIBRARY_IMPL(darts_fast, CPU, m) {
  m.impl("node_sum", node_sum);
  m.impl("node_sum_backward", node_sum_backward);
}

}  // namespace
}  // namespace darts_fast::cpu
