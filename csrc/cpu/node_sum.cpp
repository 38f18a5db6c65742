// SPDX-License-Identifier: Apache-2.0
// CPU binding of node_sum: checks, allocation, parallel phases, registration.
#include <ATen/Dispatch.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <torch/library.h>

#include <algorithm>
#include <array>
#include <optional>
#include <tuple>
#include <vector>

#include "checks.h"
#include "cpu/dispatch.h"
#include "cpu/kernels/node_sum_kernels.h"

namespace darts_fast::cpu {
namespace {

using at::Tensor;
using OptionalTensor = std::optional<Tensor>;

template <typename T>
const NodeSumKernels<T>& kernels();

template <>
const NodeSumKernels<float>& kernels<float>() {
  DARTS_SELECT_TABLE(node_sum_kernels_float)
}
template <>
const NodeSumKernels<double>& kernels<double>(){DARTS_SELECT_TABLE(node_sum_kernels_double)}
// A tile of the node is about 16 KiB: it stays in a first-level cache while the maps pass by.
// Multiples of 16 positions hold whole patterns of channels at every vector length.
int64_t tile_positions(int64_t channels) {
  return std::clamp<int64_t>(4096 / channels / 16 * 16, 16, 1024);
}

struct Arguments {
  NodeSumShape shape;
  std::vector<Tensor> maps;  // channels_last
  Tensor weights;            // contiguous, as all that follow
  OptionalTensor gamma;
  OptionalTensor beta;
  std::vector<Norm> norms;
  std::vector<double> eps;
  Tensor active;
};

OptionalTensor check_parameter(const char* op, const char* name, const OptionalTensor& value,
                               const NodeSumShape& shape, const Tensor& like) {
  if (!value.has_value()) return std::nullopt;
  check_like(op, name, *value, {shape.terms, shape.channels}, like);
  return value->contiguous();
}

Arguments check_arguments(const char* op, at::TensorList maps, const Tensor& weights,
                          const OptionalTensor& gamma, const OptionalTensor& beta,
                          at::IntArrayRef norms, at::ArrayRef<double> eps, int64_t groups,
                          const OptionalTensor& active) {
  TORCH_CHECK_VALUE(!maps.empty(), op, ": needs at least one map, got none");
  const Tensor& first = maps[0];
  TORCH_CHECK_VALUE(first.dim() == 4, op, ": maps must have 4 dimensions [N, C, H, W], got ",
                    first.sizes());
  TORCH_CHECK_NOT_IMPLEMENTED(
      first.scalar_type() == at::kFloat || first.scalar_type() == at::kDouble, op,
      ": maps must be float32 or float64 on CPU, got ", first.scalar_type());
  TORCH_CHECK_VALUE(groups >= 1 && first.size(0) % groups == 0, op,
                    ": groups must divide the batch, got ", groups, " groups for a batch of ",
                    first.size(0));
  Arguments a;
  a.shape.groups = groups;
  a.shape.terms = static_cast<int64_t>(maps.size());
  a.shape.channels = first.size(1);
  a.shape.positions = first.size(0) / groups * first.size(2) * first.size(3);
  TORCH_CHECK_VALUE(a.shape.channels >= 1, op, ": maps must have channels, got ", first.sizes());
  a.shape.tile = tile_positions(a.shape.channels);
  for (const Tensor& map : maps) {
    check_like(op, "every map", map, first.sizes(), first);
    a.maps.push_back(map.contiguous(at::MemoryFormat::ChannelsLast));
  }
  check_like(op, "weights", weights, {groups, a.shape.terms}, first);
  a.weights = weights.contiguous();
  a.gamma = check_parameter(op, "gamma", gamma, a.shape, first);
  a.beta = check_parameter(op, "beta", beta, a.shape, first);
  TORCH_CHECK_VALUE(static_cast<int64_t>(norms.size()) == a.shape.terms &&
                        static_cast<int64_t>(eps.size()) == a.shape.terms,
                    op, ": norms and eps must have one entry per map, got ", norms.size(), " and ",
                    eps.size(), " for ", a.shape.terms, " maps");
  for (const int64_t norm : norms) {
    TORCH_CHECK_VALUE(norm >= 0 && norm <= 2, op, ": norms must be 0, 1 or 2, got ", norm);
    TORCH_CHECK_VALUE(norm != static_cast<int64_t>(Norm::kBatch) || a.shape.positions != 1, op,
                      ": expected more than 1 value per channel when training, got maps of ",
                      first.sizes(), " in ", groups, " groups");
    a.norms.push_back(static_cast<Norm>(norm));
  }
  a.eps = eps.vec();
  if (active.has_value()) {
    TORCH_CHECK_TYPE(active->scalar_type() == at::kBool && active->device().is_cpu(), op,
                     ": active must be a bool tensor on the CPU, got ", active->scalar_type(),
                     " on ", active->device());
    TORCH_CHECK_VALUE(active->sizes() == weights.sizes(), op,
                      ": active must have the shape of weights, ", weights.sizes(), ", got ",
                      active->sizes());
    a.active = active->contiguous();
  } else {
    a.active = at::empty({groups, a.shape.terms}, at::kBool);
    a.active.fill_(true);
  }
  return a;
}

const uint8_t* active_pointer(const Arguments& a) {
  return reinterpret_cast<const uint8_t*>(a.active.const_data_ptr<bool>());
}

template <typename T>
const T* pointer(const OptionalTensor& tensor) {
  return tensor.has_value() ? tensor->const_data_ptr<T>() : nullptr;
}

template <typename T>
std::vector<const T*> map_pointers(const Arguments& a) {
  std::vector<const T*> pointers;
  for (const Tensor& map : a.maps) pointers.push_back(map.const_data_ptr<T>());
  return pointers;
}

std::tuple<Tensor, Tensor, Tensor> node_sum(at::TensorList maps, const Tensor& weights,
                                            const OptionalTensor& gamma, const OptionalTensor& beta,
                                            const OptionalTensor& running_mean,
                                            const OptionalTensor& running_var,
                                            at::IntArrayRef norms, at::ArrayRef<double> eps,
                                            int64_t groups, const OptionalTensor& active) {
  static constexpr char op[] = "node_sum";
  const Arguments a = check_arguments(op, maps, weights, gamma, beta, norms, eps, groups, active);
  const NodeSumShape& s = a.shape;
  const auto given_mean = check_parameter(op, "running_mean", running_mean, s, a.maps[0]);
  const auto given_var = check_parameter(op, "running_var", running_var, s, a.maps[0]);
  const auto options = a.maps[0].options();
  Tensor node = at::empty(a.maps[0].sizes(), options, at::MemoryFormat::ChannelsLast);
  Tensor mean = at::empty({groups, s.terms, s.channels}, options);
  Tensor var = at::empty_like(mean);
  for (int64_t k = 0; k < s.terms; ++k) {
    if (a.norms[k] != Norm::kRunning) continue;
    TORCH_CHECK_VALUE(given_mean.has_value() && given_var.has_value(), op,
                      ": a running norm needs running_mean and running_var, got none for map ", k);
    mean.select(1, k).copy_(given_mean->select(0, k).expand({groups, s.channels}));
    var.select(1, k).copy_(given_var->select(0, k).expand({groups, s.channels}));
  }
  AT_DISPATCH_FLOATING_TYPES(node.scalar_type(), op, [&] {
    const NodeSumKernels<scalar_t>& kernel = kernels<scalar_t>();
    const int64_t period = kernel.period(s.channels);
    Tensor centers = at::empty({s.terms, groups, tiles(s), s.channels}, options);
    Tensor moments = at::empty({2, centers.numel()}, options.dtype(at::kDouble));
    Tensor patterns = at::empty({2 * groups * s.terms + groups, period}, options);
    const std::vector<const scalar_t*> y = map_pointers<scalar_t>(a);
    NodeSumForward<scalar_t> p;
    p.shape = s;
    p.maps = y.data();
    p.weights = a.weights.const_data_ptr<scalar_t>();
    p.gamma = pointer<scalar_t>(a.gamma);
    p.beta = pointer<scalar_t>(a.beta);
    p.norms = a.norms.data();
    p.eps = a.eps.data();
    p.active = active_pointer(a);
    p.partial_center = centers.data_ptr<scalar_t>();
    p.partial_mean = moments.data_ptr<double>();
    p.partial_square = p.partial_mean + moments.size(1);
    p.scale = patterns.data_ptr<scalar_t>();
    p.center = p.scale + groups * s.terms * period;
    p.constant = p.center + groups * s.terms * period;
    p.mean = mean.data_ptr<scalar_t>();
    p.var = var.data_ptr<scalar_t>();
    p.node = node.data_ptr<scalar_t>();
    const int64_t tile_elements = s.tile * s.channels;
    run_phase(kernel.statistics, p, groups * tiles(s) * s.terms, tile_elements);
    run_phase(kernel.merge, p, groups * s.terms, tiles(s) * s.channels);
    run_phase(kernel.prepare, p, groups, s.terms * period);
    run_phase(kernel.combine, p, groups * tiles(s), s.terms * tile_elements);
  });
  return {node, mean, var};
}

std::tuple<std::vector<Tensor>, Tensor, Tensor, Tensor> node_sum_backward(
    const Tensor& grad_node, at::TensorList maps, const Tensor& weights,
    const OptionalTensor& gamma, const OptionalTensor& beta, const Tensor& mean, const Tensor& var,
    at::IntArrayRef norms, at::ArrayRef<double> eps, int64_t groups, const OptionalTensor& active,
    c10::List<bool> output_mask) {
  static constexpr char op[] = "node_sum_backward";
  const Arguments a = check_arguments(op, maps, weights, gamma, beta, norms, eps, groups, active);
  const NodeSumShape& s = a.shape;
  check_like(op, "grad_node", grad_node, a.maps[0].sizes(), a.maps[0]);
  check_like(op, "mean", mean, {groups, s.terms, s.channels}, a.maps[0]);
  check_like(op, "var", var, {groups, s.terms, s.channels}, a.maps[0]);
  TORCH_CHECK_VALUE(
      static_cast<int64_t>(output_mask.size()) == s.terms + 3, op,
      ": output_mask must have an entry per map and for weights, gamma and beta, got ",
      output_mask.size(), " for ", s.terms, " maps");
  const auto options = a.maps[0].options();
  const auto wanted = [&](int64_t index, at::IntArrayRef shape) {
    return output_mask[index] ? at::empty(shape, options) : at::empty({0}, options);
  };
  std::vector<Tensor> grad_maps;
  for (int64_t k = 0; k < s.terms; ++k) {
    grad_maps.push_back(output_mask[k]
                            ? at::empty(a.maps[0].sizes(), options, at::MemoryFormat::ChannelsLast)
                            : at::empty({0}, options));
  }
  Tensor grad_weights = wanted(s.terms, {groups, s.terms});
  Tensor grad_gamma = wanted(s.terms + 1, {s.terms, s.channels});
  Tensor grad_beta = wanted(s.terms + 2, {s.terms, s.channels});
  const Tensor g = grad_node.contiguous(at::MemoryFormat::ChannelsLast);
  const Tensor given_mean = mean.contiguous();
  const Tensor given_var = var.contiguous();
  AT_DISPATCH_FLOATING_TYPES(g.scalar_type(), op, [&] {
    const NodeSumKernels<scalar_t>& kernel = kernels<scalar_t>();
    const int64_t period = kernel.period(s.channels);
    const auto output = [](Tensor& tensor) {
      return tensor.numel() > 0 ? tensor.data_ptr<scalar_t>() : nullptr;
    };
    Tensor partial = at::empty({groups, tiles(s), s.terms + 1, s.channels}, options);
    Tensor sums = at::empty({groups, s.terms + 1, s.channels}, options.dtype(at::kDouble));
    Tensor patterns = at::empty({4, groups * s.terms * period}, options);
    const std::vector<const scalar_t*> y = map_pointers<scalar_t>(a);
    std::vector<scalar_t*> grad_y;
    for (Tensor& grad : grad_maps) grad_y.push_back(output(grad));
    NodeSumBackward<scalar_t> p;
    p.shape = s;
    p.grad_node = g.const_data_ptr<scalar_t>();
    p.maps = y.data();
    p.weights = a.weights.const_data_ptr<scalar_t>();
    p.gamma = pointer<scalar_t>(a.gamma);
    p.beta = pointer<scalar_t>(a.beta);
    p.mean = given_mean.const_data_ptr<scalar_t>();
    p.var = given_var.const_data_ptr<scalar_t>();
    p.norms = a.norms.data();
    p.eps = a.eps.data();
    p.active = active_pointer(a);
    p.center = patterns.data_ptr<scalar_t>();
    p.grad_scale = p.center + patterns.size(1);
    p.grad_shift = p.grad_scale + patterns.size(1);
    p.grad_slope = p.grad_shift + patterns.size(1);
    p.partial = partial.data_ptr<scalar_t>();
    p.sums = sums.data_ptr<double>();
    p.grad_maps = grad_y.data();
    p.grad_weights = output(grad_weights);
    p.grad_gamma = output(grad_gamma);
    p.grad_beta = output(grad_beta);
    const int64_t rows = groups * s.terms;
    const int64_t tile_elements = s.tile * s.channels;
    run_phase(kernel.center, p, rows, period);
    run_phase(kernel.reduce, p, groups * tiles(s), s.terms * tile_elements);
    run_phase(kernel.merge_sums, p, groups * (s.terms + 1), tiles(s) * s.channels);
    run_phase(kernel.coefficients, p, rows, period);
    run_phase(kernel.parameters, p, s.terms, groups * s.channels);
    run_phase(kernel.grad_maps, p, groups * tiles(s), s.terms * tile_elements);
  });
  return {grad_maps, grad_weights, grad_gamma, grad_beta};
}

TORCH_LIBRARY_IMPL(darts_fast, CPU, m) {
  m.impl("node_sum", node_sum);
  m.impl("node_sum_backward", node_sum_backward);
}

}  // namespace
}  // namespace darts_fast::cpu
