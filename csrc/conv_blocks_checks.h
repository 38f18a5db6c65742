// SPDX-License-Identifier: Apache-2.0
// The checked arguments of conv_blocks and its backward, for every backend.
#pragma once

#include <ATen/core/List.h>
#include <ATen/core/Tensor.h>

#include <optional>
#include <tuple>
#include <vector>

#include "conv_blocks.h"

namespace darts_fast {

// The arguments of the schema that forward and backward share, as they come in.
struct ConvBlocksInputs {
  at::TensorList inputs;
  const std::optional<at::Tensor>& mean;
  const std::optional<at::Tensor>& var;
  const std::optional<at::Tensor>& gamma;
  const std::optional<at::Tensor>& beta;
  int64_t norm;
  double eps;
  at::IntArrayRef sources;
  at::TensorList depthwise;
  at::TensorList pointwise;
  at::IntArrayRef dilations;
  int64_t stride;
  int64_t groups;
  const std::optional<at::Tensor>& active;
  bool takes_halves = false;  // maps of 16 bits, beside parameters in float32
};

struct ConvBlocksArguments {
  ConvBlocksShape shape;
  std::vector<ConvBranch> branches;
  std::vector<at::Tensor> inputs;  // channels_last
  std::vector<at::Tensor> depthwise;
  std::vector<at::Tensor> pointwise;
  std::optional<at::Tensor> mean, var, gamma, beta;
  Norm norm;
  double eps;
  at::Tensor active;  // bool [G, B] on the CPU

  int64_t batch() const { return shape.groups * shape.images; }
  std::vector<int64_t> output_sizes() const {
    return {batch(), shape.out_channels, shape.out_height, shape.out_width};
  }
  const uint8_t* active_pointer() const {
    return reinterpret_cast<const uint8_t*>(active.const_data_ptr<bool>());
  }
};

// Raises with the op's name where anything does not fit.
ConvBlocksArguments check_conv_blocks(const char* op, const ConvBlocksInputs& in);

// The gradients that arrive, channels_last; empty where none does.
std::vector<at::Tensor> check_conv_blocks_gradients(const char* op, const ConvBlocksArguments& a,
                                                    at::TensorList grad_outputs,
                                                    const c10::List<bool>& arrives);

using ConvBlocksForwardResult = std::tuple<std::vector<at::Tensor>, at::Tensor, at::Tensor>;
using ConvBlocksBackwardResult = std::tuple<std::vector<at::Tensor>, at::Tensor, at::Tensor,
                                            std::vector<at::Tensor>, std::vector<at::Tensor>>;

// What the forward gives, allocated: outputs, mean, var.
ConvBlocksForwardResult allocate_conv_blocks(const ConvBlocksArguments& a);

// What the backward gives, allocated; empty where nobody asked.
struct ConvBlocksGradients {
  std::vector<at::Tensor> inputs;
  at::Tensor gamma, beta;
  std::vector<at::Tensor> depthwise, pointwise;

  bool wants_norm() const { return gamma.numel() > 0 || beta.numel() > 0; }
  bool wants_weights() const;
  ConvBlocksBackwardResult result() const { return {inputs, gamma, beta, depthwise, pointwise}; }
};

// output_mask: an entry per input, then gamma, beta, then an entry per branch for depthwise and one
// per branch for pointwise.
ConvBlocksGradients allocate_conv_blocks_gradients(const char* op, const ConvBlocksArguments& a,
                                                   const c10::List<bool>& output_mask);

}  // namespace darts_fast
