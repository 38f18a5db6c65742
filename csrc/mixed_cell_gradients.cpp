// SPDX-License-Identifier: Apache-2.0
#include "mixed_cell_gradients.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>

#include <utility>

#include "checks.h"

namespace darts_fast {

using at::Tensor;

void check_mixed_cell_backward(const char* op, const MixedCellArguments& a,
                               const Tensor& grad_output, const Tensor& saved, const Tensor& mean,
                               const Tensor& var) {
  const CellShape& s = a.plan.shape;
  check_like(op, "grad_output", grad_output,
             {s.groups * s.images, s.multiplier * s.channels, s.node_height, s.node_width},
             a.states[0]);
  check_like(op, "saved", saved, {buffer_elements(a.plan)}, a.states[0]);
  check_beside(op, "mean", mean, {s.groups, s.norms, s.channels}, a.states[0]);
  check_beside(op, "var", var, {s.groups, s.norms, s.channels}, a.states[0]);
}

MixedCellGradients allocate_mixed_cell_gradients(
    const char* op, const MixedCellArguments& a, at::TensorList convolutions, at::TensorList gammas,
    at::TensorList betas, const c10::List<bool>& output_mask,
    Tensor (*allocate_state)(at::IntArrayRef, const at::TensorOptions&),
    std::vector<Tensor> (*allocate)(at::ArrayRef<at::IntArrayRef>, const at::TensorOptions&)) {
  const size_t expected = a.states.size() + 1 + convolutions.size() + gammas.size() + betas.size();
  TORCH_CHECK_VALUE(output_mask.size() == expected, op, ": output_mask must have ", expected,
                    " entries, got ", output_mask.size());
  const auto options = a.weights.options();  // of parameters
  const auto state_options = a.states[0].options().memory_format(std::nullopt);
  size_t next = 0;
  const auto wanted = [&](at::TensorList like) {
    std::vector<Tensor> grads(like.size());
    std::vector<at::IntArrayRef> shapes;
    std::vector<size_t> places;
    for (size_t i = 0; i < like.size(); ++i) {
      if (output_mask[next++] && like[i].numel() > 0) {
        shapes.push_back(like[i].sizes());
        places.push_back(i);
      } else {
        grads[i] = at::empty({0}, options);
      }
    }
    std::vector<Tensor> found = allocate(shapes, options);
    for (size_t i = 0; i < places.size(); ++i) grads[places[i]] = std::move(found[i]);
    return grads;
  };
  MixedCellGradients grads;
  for (const Tensor& state : a.states) {
    grads.states.push_back(output_mask[next++] ? allocate_state(state.sizes(), state_options)
                                               : at::empty({0}, state_options));
  }
  const CellShape& s = a.plan.shape;
  grads.weights =
      output_mask[next++] ? at::zeros({s.groups, s.ops}, options) : at::empty({0}, options);
  grads.convolutions = wanted(convolutions);
  grads.gammas = wanted(gammas);
  grads.betas = wanted(betas);
  grads.any_convolution = false;
  next = 0;
  for (const ConvBlock& block : a.plan.blocks) {
    const bool two = block.kind != ConvKind::kDense;
    grads.first.push_back(grads.convolutions[next++]);
    grads.second.push_back(two ? grads.convolutions[next++] : Tensor());
    grads.any_convolution = grads.any_convolution || grads.first.back().numel() > 0 ||
                            (two && grads.second.back().numel() > 0);
  }
  return grads;
}

}  // namespace darts_fast
