// SPDX-License-Identifier: Apache-2.0
#include "cell_call.h"

#include <ATen/core/grad_mode.h>
#include <ATen/ops/empty.h>
#include <torch/csrc/utils/pybind.h>

#include <algorithm>
#include <numeric>
#include <utility>

#include "node_sum.h"
#include "norm_lists.h"
#include "operators.h"

namespace darts_fast {
namespace {

namespace py = pybind11;
using at::Tensor;

PyObject* entry(const py::list& list, size_t i) {
  return PyList_GET_ITEM(list.ptr(), static_cast<Py_ssize_t>(i));
}

bool any_requires_grad(at::TensorList tensors) {
  return std::any_of(tensors.begin(), tensors.end(),
                     [](const Tensor& x) { return x.requires_grad(); });
}

// The parameters of operations that reach nothing, without their history.
void detach_others(std::vector<Tensor>& tensors, const std::vector<int64_t>& owners,
                   const std::vector<bool>& live) {
  for (size_t i = 0; i < tensors.size(); ++i) {
    if (!live[owners[i]]) tensors[i] = tensors[i].detach();
  }
}

Tensor table_of(const std::vector<bool>& active) {
  Tensor table = at::empty({1, static_cast<int64_t>(active.size())}, at::kBool);
  std::copy(active.begin(), active.end(), table.mutable_data_ptr<bool>());
  return table;
}

py::tuple result(const Tensor& output, bool moved, const Tensor& mean, const Tensor& var) {
  return py::make_tuple(output,
                        moved ? py::object(py::none()) : py::object(py::make_tuple(mean, var)));
}

}  // namespace

CellCall::CellCall(std::vector<int64_t> ops, std::vector<int64_t> convolution_ops,
                   std::vector<int64_t> norm_ops, int64_t inputs, int64_t nodes, int64_t multiplier,
                   int64_t stride)
    : ops_(std::move(ops)),
      convolution_ops_(std::move(convolution_ops)),
      norm_ops_(std::move(norm_ops)),
      inputs_(inputs),
      nodes_(nodes),
      multiplier_(multiplier),
      stride_(stride),
      by_node_(ops_.size() / 5),
      weights_(convolution_ops_.size()),
      norms_(norm_ops_.size()) {
  std::iota(by_node_.begin(), by_node_.end(), 0);
  std::stable_sort(by_node_.begin(), by_node_.end(),
                   [&](int64_t a, int64_t b) { return ops_[5 * a + 1] > ops_[5 * b + 1]; });
}

void CellCall::reach(const std::vector<bool>& active, std::vector<bool>& states,
                     std::vector<bool>& operations) const {
  states.assign(inputs_ + nodes_, false);
  std::fill(states.end() - multiplier_, states.end(), true);
  operations.assign(width(), false);
  for (const int64_t k : by_node_) {
    if (!active[k] || !states[ops_[5 * k + 1]]) continue;
    operations[k] = states[ops_[5 * k]] = true;
  }
}

py::tuple CellCall::run(const py::list& convolutions, const py::list& norms,
                        std::vector<Tensor> states, Tensor weights,
                        const std::optional<std::vector<bool>>& active, bool half_maps, bool cuda) {
  static const auto op = find_op<MixedCellOp>("darts_fast::mixed_cell");
  if (convolutions.size() != weights_.size() || norms.size() != norms_.size() ||
      (active.has_value() && static_cast<int64_t>(active->size()) != width())) {
    throw py::value_error("cell_call: modules and active must be those of the plan");
  }
  weights = weights.reshape({1, -1});
  const Tensor empty = at::empty({0}, weights.options());
  std::vector<Tensor> filters;
  filters.reserve(weights_.size());
  for (size_t i = 0; i < weights_.size(); ++i) {
    filters.push_back(tensor_of(weights_[i].of(entry(convolutions, i))));
  }
  TensorOrNone gammas(empty), betas(empty), means(empty), variances(empty);
  RunningStatistics moving(empty);
  std::vector<int64_t> kinds;
  std::vector<double> eps;
  for (size_t i = 0; i < norms_.size(); ++i) {
    PyObject* norm = entry(norms, i);
    const NormState* state = norm == Py_None ? nullptr : &norms_[i].of(norm);
    const bool batch = state != nullptr && state->is_batch();
    const bool running = state != nullptr && !batch;
    gammas.add(state == nullptr ? nullptr : state->gamma);
    betas.add(state == nullptr ? nullptr : state->beta);
    means.add(running ? state->mean : nullptr);
    variances.add(running ? state->var : nullptr);
    kinds.push_back(static_cast<int64_t>(batch     ? Norm::kBatch
                                         : running ? Norm::kRunning
                                                   : Norm::kNone));
    eps.push_back(state == nullptr ? 0.0 : state->eps);
    const bool left_out = active.has_value() && !(*active)[norm_ops_[i]];
    moving.add(left_out ? nullptr : state);
  }
  Tensor output, mean, var;
  bool moved = true;
  {
    const py::gil_scoped_release released;
    std::optional<Tensor> table;
    if (active.has_value()) {
      std::vector<bool> reached, live;
      reach(*active, reached, live);
      table = table_of(*active);
      detach_others(filters, convolution_ops_, live);
      detach_others(gammas.tensors(), norm_ops_, live);
      detach_others(betas.tensors(), norm_ops_, live);
      for (size_t i = 0; i < states.size(); ++i) {
        if (!reached[i]) states[i] = states[i].detach();
      }
    }
    const bool differentiable =
        at::GradMode::is_enabled() &&
        (weights.requires_grad() || any_requires_grad(states) || any_requires_grad(filters) ||
         any_requires_grad(gammas.found()) || any_requires_grad(betas.found()));
    const int64_t precision = half_maps && differentiable ? 1 : 0;
    std::tie(output, std::ignore, mean, var) = op.call(
        states, weights, filters, gammas.found(), betas.found(), means.found(), variances.found(),
        ops_, kinds, eps, nodes_, multiplier_, stride_, 1, 0, table, precision, differentiable);
    if (moving.any) {
      mean = mean.squeeze(0);
      var = var.squeeze(0);
      moved = moving.move(mean, var, output.numel() / output.size(1), cuda);
    }
  }
  return result(output, moved, mean, var);
}

ReluConvNormResult ReluConvNormCall::call(const py::tuple& convolutions, const NormState& state,
                                          const Tensor& input, int64_t groups) {
  static const auto op = find_op<ReluConvNormOp>("darts_fast::relu_conv_norm");
  if (convolutions.size() != weights_.size()) {
    throw py::value_error("relu_conv_norm_call: convolutions must be those of the plan");
  }
  std::vector<Tensor> filters;
  for (size_t i = 0; i < weights_.size(); ++i) {
    PyObject* module = PyTuple_GET_ITEM(convolutions.ptr(), static_cast<Py_ssize_t>(i));
    filters.push_back(tensor_of(weights_[i].of(module)));
  }
  const auto optional = [](PyObject* value) {
    return value == nullptr ? std::optional<Tensor>() : tensor_of(value);
  };
  const bool batch = state.is_batch();
  const auto gamma = optional(state.gamma), beta = optional(state.beta);
  const auto mean = optional(batch ? nullptr : state.mean);
  const auto var = optional(batch ? nullptr : state.var);
  const double eps = state.eps;
  const py::gil_scoped_release released;
  const auto wants = [](const std::optional<Tensor>& x) {
    return x.has_value() && x->requires_grad();
  };
  // Only a backward reads the map before the norm.
  const bool differentiable =
      at::GradMode::is_enabled() &&
      (input.requires_grad() || any_requires_grad(filters) || wants(gamma) || wants(beta));
  return op.call(input, filters, gamma, beta, mean, var,
                 static_cast<int64_t>(batch ? Norm::kBatch : Norm::kRunning), eps, stride_, groups,
                 relu_, differentiable);
}

py::tuple ReluConvNormCall::run(const py::tuple& convolutions, const py::object& norm,
                                const Tensor& input, int64_t groups) {
  const auto [output, raw, mean, var] = call(convolutions, norm_.of(norm.ptr()), input, groups);
  return py::make_tuple(output, mean, var);
}

py::tuple ReluConvNormCall::run_and_move(const py::tuple& convolutions, const py::object& norm,
                                         const Tensor& input, bool cuda) {
  const NormState& state = norm_.of(norm.ptr());
  const Tensor empty = at::empty({0}, input.options());
  RunningStatistics moving(empty);
  moving.add(&state);
  const auto [output, raw, mean, var] = call(convolutions, state, input, 1);
  bool moved = true;
  if (moving.any) {
    const py::gil_scoped_release released;
    moved = moving.move(mean, var, output.numel() / output.size(1), cuda);
  }
  return result(output, moved, mean, var);
}

}  // namespace darts_fast
