// SPDX-License-Identifier: Apache-2.0
// What the bindings of node_sum have in common: arguments checked and laid out, outputs allocated.
#pragma once

#include <ATen/core/List.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>

#include <optional>
#include <vector>

#include "checks.h"
#include "node_sum.h"
#include "pointers.h"

namespace darts_fast {

using at::Tensor;
using OptionalTensor = std::optional<Tensor>;

// The arguments that both directions take. The tile is the backend's to choose.
struct NodeSumArguments {
  NodeSumShape shape;
  std::vector<Tensor> maps;  // channels_last
  Tensor weights;            // contiguous, as all that follow
  OptionalTensor gamma;
  OptionalTensor beta;
  std::vector<Norm> norms;
  std::vector<double> eps;
  Tensor active;
};

struct NodeSumOutputs {
  Tensor node;
  Tensor mean;
  Tensor var;
};

// A gradient that nobody asked for is empty.
struct NodeSumGradients {
  std::vector<Tensor> maps;
  Tensor weights;
  Tensor gamma;
  Tensor beta;
};

inline NodeSumArguments check_node_sum(const char* op, at::TensorList maps, const Tensor& weights,
                                       const OptionalTensor& gamma, const OptionalTensor& beta,
                                       at::IntArrayRef norms, at::ArrayRef<double> eps,
                                       int64_t groups, const OptionalTensor& active,
                                       bool takes_halves = false) {
  TORCH_CHECK_VALUE(!maps.empty(), op, ": needs at least one map, got none");
  const Tensor& first = maps[0];
  TORCH_CHECK_VALUE(first.dim() == 4, op, ": maps must have 4 dimensions [N, C, H, W], got ",
                    first.sizes());
  check_map_type(op, "maps", first, takes_halves);
  TORCH_CHECK_VALUE(groups >= 1 && first.size(0) % groups == 0, op,
                    ": groups must divide the batch, got ", groups, " groups for a batch of ",
                    first.size(0));
  NodeSumArguments a;
  a.shape.groups = groups;
  a.shape.terms = static_cast<int64_t>(maps.size());
  a.shape.channels = first.size(1);
  a.shape.positions = first.size(0) / groups * first.size(2) * first.size(3);
  a.shape.tile = 0;
  TORCH_CHECK_VALUE(a.shape.channels >= 1, op, ": maps must have channels, got ", first.sizes());
  for (const Tensor& map : maps) {
    check_like(op, "every map", map, first.sizes(), first);
    a.maps.push_back(map.contiguous(at::MemoryFormat::ChannelsLast));
  }
  check_beside(op, "weights", weights, {groups, a.shape.terms}, first);
  a.weights = weights.contiguous();
  a.gamma = check_optional(op, "gamma", gamma, {a.shape.terms, a.shape.channels}, first);
  a.beta = check_optional(op, "beta", beta, {a.shape.terms, a.shape.channels}, first);
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
  a.active = check_active(op, active, groups, a.shape.terms);
  return a;
}

// The node, and statistics that already hold what is given: the running ones, if any term is to
// use them. Kernels replace the rows of the other terms.
inline NodeSumOutputs allocate_outputs(const char* op, const NodeSumArguments& a,
                                       const OptionalTensor& running_mean,
                                       const OptionalTensor& running_var) {
  const NodeSumShape& s = a.shape;
  const auto given_mean =
      check_optional(op, "running_mean", running_mean, {s.terms, s.channels}, a.maps[0]);
  const auto given_var =
      check_optional(op, "running_var", running_var, {s.terms, s.channels}, a.maps[0]);
  NodeSumOutputs out;
  out.node = at::empty(a.maps[0].sizes(), a.maps[0].options(), at::MemoryFormat::ChannelsLast);
  out.mean = at::empty({s.groups, s.terms, s.channels}, a.weights.options());
  out.var = at::empty_like(out.mean);
  for (int64_t k = 0; k < s.terms; ++k) {
    if (a.norms[k] != Norm::kRunning) continue;
    TORCH_CHECK_VALUE(given_mean.has_value() && given_var.has_value(), op,
                      ": a running norm needs running_mean and running_var, got none for map ", k);
    out.mean.copy_(given_mean->expand(out.mean.sizes()));
    out.var.copy_(given_var->expand(out.var.sizes()));
    break;
  }
  return out;
}

inline NodeSumGradients allocate_gradients(const char* op, const NodeSumArguments& a,
                                           const Tensor& grad_node, const Tensor& mean,
                                           const Tensor& var, const c10::List<bool>& output_mask) {
  const NodeSumShape& s = a.shape;
  check_like(op, "grad_node", grad_node, a.maps[0].sizes(), a.maps[0]);
  check_beside(op, "mean", mean, {s.groups, s.terms, s.channels}, a.maps[0]);
  check_beside(op, "var", var, {s.groups, s.terms, s.channels}, a.maps[0]);
  TORCH_CHECK_VALUE(
      static_cast<int64_t>(output_mask.size()) == s.terms + 3, op,
      ": output_mask must have an entry per map and for weights, gamma and beta, got ",
      output_mask.size(), " for ", s.terms, " maps");
  const auto options = a.maps[0].options();
  const auto wanted = [&](int64_t index, at::IntArrayRef shape) {
    const auto beside = a.weights.options();
    return output_mask[index] ? at::empty(shape, beside) : at::empty({0}, beside);
  };
  NodeSumGradients grads;
  for (int64_t k = 0; k < s.terms; ++k) {
    grads.maps.push_back(output_mask[k]
                             ? at::empty(a.maps[0].sizes(), options, at::MemoryFormat::ChannelsLast)
                             : at::empty({0}, options));
  }
  grads.weights = wanted(s.terms, {s.groups, s.terms});
  grads.gamma = wanted(s.terms + 1, {s.terms, s.channels});
  grads.beta = wanted(s.terms + 2, {s.terms, s.channels});
  return grads;
}

// What is the same for both directions; `Params` is NodeSumForward or NodeSumBackward. `maps` is
// the table of the maps' pointers, filled here and kept alive by the caller.
template <typename T, typename Map, typename Params>
void set_arguments(Params& p, const NodeSumArguments& a, std::vector<const Map*>& maps) {
  maps = read_elements<Map>(a.maps);
  p.shape = a.shape;
  p.maps = maps.data();
  p.weights = a.weights.const_data_ptr<T>();
  p.gamma = read_pointer<T>(a.gamma);
  p.beta = read_pointer<T>(a.beta);
  p.norms = a.norms.data();
  p.eps = a.eps.data();
  p.active = reinterpret_cast<const uint8_t*>(a.active.const_data_ptr<bool>());
}

// `table` becomes that of the gradients of the maps, and is kept alive by the caller.
template <typename T, typename Map>
void set_gradients(darts_fast::NodeSumBackward<T, Map>& p, const NodeSumGradients& grads,
                   std::vector<Map*>& table) {
  table = write_elements<Map>(grads.maps);
  p.grad_maps = table.data();
  p.grad_weights = write_pointer<T>(grads.weights);
  p.grad_gamma = write_pointer<T>(grads.gamma);
  p.grad_beta = write_pointer<T>(grads.beta);
}

}  // namespace darts_fast
