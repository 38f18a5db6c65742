// SPDX-License-Identifier: Apache-2.0
// The checked arguments of relu_conv_norm, for every backend.
#pragma once

#include <ATen/core/List.h>
#include <ATen/core/Tensor.h>

#include <optional>
#include <vector>

#include "checks.h"
#include "conv_block.h"
#include "node_sum.h"

namespace darts_fast {

struct ReluConvNormArguments {
  BlockShape shape;
  ConvBlock block;
  int64_t groups;
  int64_t images;
  at::Tensor input;  // channels_last
  at::Tensor first, second;
  std::optional<at::Tensor> gamma, beta;
  Norm norm;
  double eps;
  bool relu;

  std::vector<int64_t> output_sizes() const {
    return {groups * images, shape.out_channels, shape.out_height, shape.out_width};
  }
};

// One weight [C', C, k, k], or the two halves of a factorized reduce.
inline void check_relu_conv_norm_weights(const char* op, ReluConvNormArguments& a,
                                         at::TensorList weights) {
  TORCH_CHECK_VALUE((weights.size() == 1 || weights.size() == 2) && weights[0].dim() == 4, op,
                    ": weights must be one of 4 dimensions or two halves, got ", weights.size());
  BlockShape& s = a.shape;
  if (weights.size() == 2) {
    s.out_channels = 2 * weights[0].size(0);
    a.block = {ConvKind::kReduce, 1, 1};
    TORCH_CHECK_VALUE(s.stride == 2 && s.height % 2 == 0 && s.width % 2 == 0, op,
                      ": two halves need stride 2 and even sizes, got stride ", s.stride, " for ",
                      a.input.sizes());
    for (const at::Tensor& half : weights) {
      check_beside(op, "each half", half, {s.out_channels / 2, s.channels, 1, 1}, a.input);
    }
    a.second = weights[1].contiguous();
  } else {
    s.out_channels = weights[0].size(0);
    const int64_t kernel = weights[0].size(3);
    TORCH_CHECK_VALUE(kernel == 1 || kernel == 3, op, ": kernel must be 1 or 3, got ",
                      weights[0].sizes());
    a.block = {ConvKind::kDense, kernel, 1};
    check_beside(op, "the weight", weights[0], {s.out_channels, s.channels, kernel, kernel},
                 a.input);
  }
  TORCH_CHECK_VALUE(s.out_channels >= 1, op, ": weights must have output channels, got ",
                    weights[0].sizes());
  a.first = weights[0].contiguous();
}

inline ReluConvNormArguments check_relu_conv_norm(
    const char* op, const at::Tensor& input, at::TensorList weights,
    const std::optional<at::Tensor>& gamma, const std::optional<at::Tensor>& beta, int64_t norm,
    double eps, int64_t stride, int64_t groups, bool relu, bool takes_halves = false) {
  TORCH_CHECK_VALUE(input.dim() == 4, op, ": input must have 4 dimensions [N, C, H, W], got ",
                    input.sizes());
  check_map_type(op, "input", input, takes_halves);
  TORCH_CHECK_VALUE(stride == 1 || stride == 2, op, ": stride must be 1 or 2, got ", stride);
  TORCH_CHECK_VALUE(groups >= 1 && input.size(0) % groups == 0, op,
                    ": groups must divide the batch, got ", groups, " groups for a batch of ",
                    input.size(0));
  TORCH_CHECK_VALUE(norm == 1 || norm == 2, op, ": norm must be 1 or 2, got ", norm);
  ReluConvNormArguments a;
  a.groups = groups;
  a.images = input.size(0) / groups;
  BlockShape& s = a.shape;
  s.channels = input.size(1);
  s.height = input.size(2);
  s.width = input.size(3);
  s.stride = stride;
  s.out_height = (s.height + stride - 1) / stride;
  s.out_width = (s.width + stride - 1) / stride;
  TORCH_CHECK_VALUE(s.channels >= 1 && s.height >= 1 && s.width >= 1, op,
                    ": input must have channels, rows and columns, got ", input.sizes());
  a.input = input.contiguous(at::MemoryFormat::ChannelsLast);
  check_relu_conv_norm_weights(op, a, weights);
  a.norm = static_cast<Norm>(norm);
  a.eps = eps;
  a.relu = relu;
  TORCH_CHECK_VALUE(a.norm != Norm::kBatch || a.images * s.out_height * s.out_width != 1, op,
                    ": expected more than 1 value per channel when training, got input of ",
                    input.sizes(), " in ", groups, " groups");
  a.gamma = check_optional(op, "gamma", gamma, {s.out_channels}, input);
  a.beta = check_optional(op, "beta", beta, {s.out_channels}, input);
  return a;
}

// What the backward takes besides. output_mask: input, every weight, gamma, beta.
inline void check_relu_conv_norm_backward(const char* op, const ReluConvNormArguments& a,
                                          const at::Tensor& grad_output, const at::Tensor& raw,
                                          const at::Tensor& mean, const at::Tensor& var,
                                          size_t weights, const c10::List<bool>& output_mask) {
  check_like(op, "grad_output", grad_output, a.output_sizes(), a.input);
  check_like(op, "raw", raw, a.output_sizes(), a.input);
  check_beside(op, "mean", mean, {a.groups, a.shape.out_channels}, a.input);
  check_beside(op, "var", var, {a.groups, a.shape.out_channels}, a.input);
  TORCH_CHECK_VALUE(output_mask.size() == weights + 3, op, ": output_mask must have ", weights + 3,
                    " entries, got ", output_mask.size());
}

}  // namespace darts_fast
