// SPDX-License-Identifier: Apache-2.0
// What mixed_cell_backward takes besides the arguments of the forward, checked, and what it gives
// back, allocated; for every backend.
#pragma once

#include <ATen/core/List.h>
#include <ATen/core/Tensor.h>

#include <tuple>
#include <vector>

#include "mixed_cell_checks.h"

namespace darts_fast {

using MixedCellBackward = std::tuple<std::vector<at::Tensor>, at::Tensor, std::vector<at::Tensor>,
                                     std::vector<at::Tensor>, std::vector<at::Tensor>>;

// A gradient that nobody asked for is empty.
struct MixedCellGradients {
  std::vector<at::Tensor> states;
  at::Tensor weights;  // zeros
  std::vector<at::Tensor> convolutions, gammas, betas;
  // Per block the entries of `convolutions` that are its weights; undefined where it has no second.
  std::vector<at::Tensor> first, second;
  bool any_convolution;

  MixedCellBackward result() const { return {states, weights, convolutions, gammas, betas}; }
};

// Raises where a tensor does not fit what the forward gave.
void check_mixed_cell_backward(const char* op, const MixedCellArguments& a,
                               const at::Tensor& grad_output, const at::Tensor& saved,
                               const at::Tensor& mean, const at::Tensor& var);

// `allocate_state` allocates [N, C, H, W], channels_last; `allocate` the gradients of one list of
// parameters.
MixedCellGradients allocate_mixed_cell_gradients(
    const char* op, const MixedCellArguments& a, at::TensorList convolutions, at::TensorList gammas,
    at::TensorList betas, const c10::List<bool>& output_mask,
    at::Tensor (*allocate_state)(at::IntArrayRef, const at::TensorOptions&),
    std::vector<at::Tensor> (*allocate)(at::ArrayRef<at::IntArrayRef>, const at::TensorOptions&));

}  // namespace darts_fast
