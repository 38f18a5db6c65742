// SPDX-License-Identifier: Apache-2.0
// CUDA binding of mixed_cell: checks, allocation, launch, registration.
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#include <torch/library.h>

#include <optional>
#include <tuple>
#include <vector>

#include "checks.h"
#include "cuda/mixed_cell_launch.h"
#include "device_allocation.h"
#include "dispatch_maps.h"
#include "mixed_cell_gradients.h"
#include "mixed_cell_pointers.h"
#include "pointers.h"

namespace darts_fast::cuda {
namespace {

using at::Tensor;
using OptionalTensor = std::optional<Tensor>;
constexpr auto kChannelsLast = at::MemoryFormat::ChannelsLast;

// body<T, M>() for what is computed with and how maps are stored.
template <typename Body>
void dispatch_cell(const MixedCellArguments& a, Body body) {
  if (a.precision == Precision::kFull) {
    dispatch_maps(a.states[0].scalar_type(), body);
  } else {
    body.template operator()<float, BFloat16>();
  }
}

std::optional<c10::Device> device_of(at::TensorList states) {
  return states.empty() ? std::nullopt : std::optional(states[0].device());
}

// Without images there is nothing to launch. As the CPU's: given statistics of norms that use them
// in groups where their op runs, 0 and 1 elsewhere.
void statistics_of_nothing(const MixedCellArguments& a, const std::vector<Tensor>& means,
                           const std::vector<Tensor>& variances, Tensor& mean, Tensor& var) {
  const CellShape& s = a.plan.shape;
  mean.zero_();
  var.fill_(1);
  for (int64_t k = 0; k < s.ops; ++k) {
    const CellOp& op = a.plan.ops[k];
    for (int64_t b = op.inner_map >= 0 ? op.norm - 1 : op.norm; b >= 0 && b <= op.norm; ++b) {
      if (a.norms[b] != Norm::kRunning) continue;
      for (int64_t group = 0; group < s.groups; ++group) {
        if (!a.active.const_data_ptr<bool>()[group * s.ops + k]) continue;
        mean.select(0, group).select(0, b).copy_(means[b]);
        var.select(0, group).select(0, b).copy_(variances[b]);
      }
    }
  }
}

std::tuple<Tensor, Tensor, Tensor, Tensor> mixed_cell(
    at::TensorList states, const Tensor& weights, at::TensorList convolutions,
    at::TensorList gammas, at::TensorList betas, at::TensorList running_means,
    at::TensorList running_vars, at::IntArrayRef ops, at::IntArrayRef norms,
    at::ArrayRef<double> eps, int64_t nodes, int64_t multiplier, int64_t stride, int64_t groups,
    int64_t shared, const OptionalTensor& active, int64_t precision, bool save) {
  static constexpr char op[] = "mixed_cell";
  const c10::cuda::OptionalCUDAGuard guard(device_of(states));
  const MixedCellArguments a =
      check_mixed_cell(op,
                       {states, weights, convolutions, gammas, betas, ops, norms, eps, nodes,
                        multiplier, stride, groups, shared, active, precision, true},
                       save);
  const CellShape& s = a.plan.shape;
  const auto means = check_per_norm(op, "running_means", running_means, a.plan, states[0]);
  const auto variances = check_per_norm(op, "running_vars", running_vars, a.plan, states[0]);
  for (int64_t b = 0; b < s.norms; ++b) {
    TORCH_CHECK_VALUE(
        a.norms[b] != Norm::kRunning || (means[b].defined() && variances[b].defined()), op,
        ": a running norm needs running_means and running_vars, got none for norm ", b);
  }
  const auto options = a.states[0].options().memory_format(std::nullopt);
  Tensor output = empty_maps(
      {s.groups * s.images, s.multiplier * s.channels, s.node_height, s.node_width}, options);
  Tensor maps = at::empty({buffer_elements(a.plan)}, options);
  Tensor mean = at::empty({groups, s.norms, s.channels}, a.weights.options());
  Tensor var = at::empty_like(mean);
  if (s.images == 0) {
    statistics_of_nothing(a, means, variances, mean, var);
  } else {
    dispatch_cell(a, [&]<typename scalar_t, typename map_t>() {
      using state_t = StateOf<scalar_t, map_t>;
      const MixedCellPointers<scalar_t, state_t> pointers(a);
      const auto running_mean = read_pointers<scalar_t>(means);
      const auto running_var = read_pointers<scalar_t>(variances);
      CudaCellForward<scalar_t, map_t> p = {};
      set_cell_arguments(p, a, pointers, static_cast<state_t*>(maps.mutable_data_ptr()));
      p.mean = mean.mutable_data_ptr<scalar_t>();
      p.var = var.mutable_data_ptr<scalar_t>();
      p.in_channels = s.channels;
      p.running_mean = running_mean.data();
      p.running_var = running_var.data();
      p.output = static_cast<state_t*>(output.mutable_data_ptr());
      Scratch scratch(output);
      launch_cell(p, std::ref(scratch), c10::cuda::getCurrentCUDAStream(output.get_device()));
    });
  }
  if (!save) maps = at::empty({0}, options);
  return {output, maps, mean, var};
}

// Pointers where there is a gradient to write; null for all where the list is empty.
template <typename T>
std::vector<T*> gradient_pointers(const std::vector<Tensor>& grads, int64_t count) {
  std::vector<T*> pointers = write_pointers<T>(grads);
  pointers.resize(count, nullptr);
  return pointers;
}

MixedCellBackward mixed_cell_backward(const Tensor& grad_output, const Tensor& saved,
                                      const Tensor& mean, const Tensor& var, at::TensorList states,
                                      const Tensor& weights, at::TensorList convolutions,
                                      at::TensorList gammas, at::TensorList betas,
                                      at::IntArrayRef ops, at::IntArrayRef norms,
                                      at::ArrayRef<double> eps, int64_t nodes, int64_t multiplier,
                                      int64_t stride, int64_t groups, const OptionalTensor& active,
                                      int64_t precision, c10::List<bool> output_mask) {
  static constexpr char op[] = "mixed_cell_backward";
  const c10::cuda::OptionalCUDAGuard guard(device_of(states));
  const MixedCellArguments a =
      check_mixed_cell(op,
                       {states, weights, convolutions, gammas, betas, ops, norms, eps, nodes,
                        multiplier, stride, groups, 0, active, precision, true},
                       true);
  const CellShape& s = a.plan.shape;
  check_mixed_cell_backward(op, a, grad_output, saved, mean, var);
  MixedCellGradients grads = allocate_mixed_cell_gradients(op, a, convolutions, gammas, betas,
                                                           output_mask, empty_maps, empty_each);
  if (s.images == 0) {
    for (auto* list : {&grads.convolutions, &grads.gammas, &grads.betas}) {
      for (Tensor& grad : *list) grad.zero_();
    }
    return grads.result();
  }
  // An input that no op but `none` leaves is nobody's to write.
  for (int64_t i = 0; i < s.inputs; ++i) {
    bool read = false;
    for (int64_t j = a.plan.leaving_at[i]; j < a.plan.leaving_at[i + 1]; ++j) {
      read = read || a.plan.ops[a.plan.leaving[j]].kind != CellOpKind::kNone;
    }
    if (!read) grads.states[i].zero_();
  }
  const Tensor g = grad_output.contiguous(kChannelsLast), kept = saved.contiguous();
  const Tensor given_mean = mean.contiguous(), given_var = var.contiguous();
  dispatch_cell(a, [&]<typename scalar_t, typename map_t>() {
    using state_t = StateOf<scalar_t, map_t>;
    const MixedCellPointers<scalar_t, state_t> pointers(a);
    // Maps and statistics are only read here; the forward writes them through the same struct.
    const auto only_read = [](const Tensor& tensor) {
      return const_cast<void*>(tensor.const_data_ptr());
    };
    CudaCellBackward<scalar_t, map_t> p = {};
    set_cell_arguments(p, a, pointers, static_cast<state_t*>(only_read(kept)));
    p.mean = static_cast<scalar_t*>(only_read(given_mean));
    p.var = static_cast<scalar_t*>(only_read(given_var));
    const auto grad_states = write_elements<state_t>(grads.states);
    const auto grad_first = gradient_pointers<scalar_t>(grads.first, s.blocks);
    const auto grad_second = gradient_pointers<scalar_t>(grads.second, s.blocks);
    const auto grad_gamma = gradient_pointers<scalar_t>(grads.gammas, s.norms);
    const auto grad_beta = gradient_pointers<scalar_t>(grads.betas, s.norms);
    p.in_channels = s.channels;
    p.grad_output = static_cast<const state_t*>(g.const_data_ptr());
    p.grad_states = grad_states.data();
    p.grad_weights = write_pointer<scalar_t>(grads.weights);
    p.grad_first = grad_first.data();
    p.grad_second = grad_second.data();
    p.grad_gamma = grad_gamma.data();
    p.grad_beta = grad_beta.data();
    Scratch scratch(g);
    launch_cell(p, std::ref(scratch), c10::cuda::getCurrentCUDAStream(g.get_device()));
  });
  return grads.result();
}

TORCH_LIBRARY_IMPL(darts_fast, CUDA, m) {
  m.impl("mixed_cell", mixed_cell);
  m.impl("mixed_cell_backward", mixed_cell_backward);
}

}  // namespace
}  // namespace darts_fast::cuda
