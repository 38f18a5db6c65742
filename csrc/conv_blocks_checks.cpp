// SPDX-License-Identifier: Apache-2.0
#include "conv_blocks_checks.h"

#include <ATen/ops/empty.h>

#include <algorithm>

#include "checks.h"

namespace darts_fast {

using at::Tensor;

namespace {

constexpr auto kChannelsLast = at::MemoryFormat::ChannelsLast;

void check_branches(const char* op, const ConvBlocksInputs& in, ConvBlocksArguments& a) {
  ConvBlocksShape& s = a.shape;
  const size_t branches = in.sources.size();
  TORCH_CHECK_VALUE(branches > 0 && in.depthwise.size() == branches &&
                        in.pointwise.size() == branches && in.dilations.size() == branches,
                    op, ": needs a source, weights and a dilation for every branch, got ", branches,
                    " sources, ", in.depthwise.size(), " depthwise, ", in.pointwise.size(),
                    " pointwise and ", in.dilations.size(), " dilations");
  s.branches = static_cast<int64_t>(branches);
  s.out_channels = in.pointwise[0].size(0);
  for (int64_t b = 0; b < s.branches; ++b) {
    TORCH_CHECK_VALUE(in.sources[b] >= 0 && in.sources[b] < s.sources, op,
                      ": sources must be below ", s.sources, ", got ", in.sources[b]);
    TORCH_CHECK_VALUE(in.dilations[b] >= 1, op, ": dilations must be at least 1, got ",
                      in.dilations[b]);
    const Tensor& depthwise = in.depthwise[b];
    int64_t kernel = 0;
    if (depthwise.numel() > 0) {
      kernel = depthwise.size(-1);
      TORCH_CHECK_VALUE(kernel == 3 || kernel == 5 || kernel == 7, op,
                        ": depthwise kernels must be 3, 5 or 7, got ", depthwise.sizes());
      check_beside(op, "depthwise", depthwise, {s.channels, 1, kernel, kernel}, a.inputs[0]);
    }
    TORCH_CHECK_VALUE(kernel > 0 || s.stride == 1, op,
                      ": a branch without depthwise convolution needs stride 1, got ", s.stride);
    check_beside(op, "pointwise", in.pointwise[b], {s.out_channels, s.channels, 1, 1}, a.inputs[0]);
    a.branches.push_back(
        {in.sources[b], kernel > 0 ? ConvBlock{ConvKind::kSeparable, kernel, in.dilations[b]}
                                   : ConvBlock{ConvKind::kDense, 1, 1}});
    a.depthwise.push_back(depthwise.contiguous());
    a.pointwise.push_back(in.pointwise[b].contiguous());
  }
}

}  // namespace

ConvBlocksArguments check_conv_blocks(const char* op, const ConvBlocksInputs& in) {
  TORCH_CHECK_VALUE(!in.inputs.empty(), op, ": needs at least one input, got none");
  const Tensor& first = in.inputs[0];
  TORCH_CHECK_VALUE(first.dim() == 4, op, ": inputs must have 4 dimensions [N, C, H, W], got ",
                    first.sizes());
  check_map_type(op, "inputs", first, in.takes_halves);
  TORCH_CHECK_VALUE(in.stride == 1 || in.stride == 2, op, ": stride must be 1 or 2, got ",
                    in.stride);
  TORCH_CHECK_VALUE(in.groups >= 1 && first.size(0) % in.groups == 0, op,
                    ": groups must divide the batch, got ", in.groups, " groups for a batch of ",
                    first.size(0));
  ConvBlocksArguments a;
  ConvBlocksShape& s = a.shape;
  s.groups = in.groups;
  s.images = first.size(0) / in.groups;
  s.sources = static_cast<int64_t>(in.inputs.size());
  s.channels = first.size(1);
  s.height = first.size(2);
  s.width = first.size(3);
  s.stride = in.stride;
  s.out_height = (s.height + in.stride - 1) / in.stride;
  s.out_width = (s.width + in.stride - 1) / in.stride;
  TORCH_CHECK_VALUE(s.channels >= 1 && s.height >= 1 && s.width >= 1, op,
                    ": inputs must have channels, rows and columns, got ", first.sizes());
  for (const Tensor& input : in.inputs) {
    check_like(op, "every input", input, first.sizes(), first);
    a.inputs.push_back(input.contiguous(kChannelsLast));
  }
  check_branches(op, in, a);
  TORCH_CHECK_VALUE(in.norm >= 0 && in.norm <= 2, op, ": norm must be 0, 1 or 2, got ", in.norm);
  a.norm = static_cast<Norm>(in.norm);
  TORCH_CHECK_VALUE((a.norm != Norm::kNone) == (in.mean.has_value() && in.var.has_value()), op,
                    ": mean and var must be given exactly where there is a norm, got norm ",
                    in.norm);
  a.mean = check_optional(op, "mean", in.mean, {s.sources, s.groups, s.channels}, first);
  a.var = check_optional(op, "var", in.var, {s.sources, s.groups, s.channels}, first);
  a.gamma = check_optional(op, "gamma", in.gamma, {s.sources, s.channels}, first);
  a.beta = check_optional(op, "beta", in.beta, {s.sources, s.channels}, first);
  a.eps = in.eps;
  a.active = check_active(op, in.active, s.groups, s.branches);
  return a;
}

std::vector<Tensor> check_conv_blocks_gradients(const char* op, const ConvBlocksArguments& a,
                                                at::TensorList grad_outputs,
                                                const c10::List<bool>& arrives) {
  const ConvBlocksShape& s = a.shape;
  TORCH_CHECK_VALUE(static_cast<int64_t>(grad_outputs.size()) == s.branches &&
                        static_cast<int64_t>(arrives.size()) == s.branches,
                    op, ": grad_outputs and arrives must have one entry per branch, got ",
                    grad_outputs.size(), " and ", arrives.size(), " for ", s.branches);
  const auto options = a.inputs[0].options().memory_format(std::nullopt);
  std::vector<Tensor> grads;
  for (int64_t b = 0; b < s.branches; ++b) {
    if (arrives[b]) {
      check_like(op, "every gradient", grad_outputs[b], a.output_sizes(), a.inputs[0]);
    }
    grads.push_back(arrives[b] ? grad_outputs[b].contiguous(kChannelsLast)
                               : at::empty({0}, options));
  }
  return grads;
}

ConvBlocksForwardResult allocate_conv_blocks(const ConvBlocksArguments& a) {
  const auto options = a.inputs[0].options().memory_format(std::nullopt);
  const std::vector<int64_t> statistics = {a.shape.groups, a.shape.branches, a.shape.out_channels};
  std::vector<Tensor> outputs;
  for (int64_t b = 0; b < a.shape.branches; ++b) {
    outputs.push_back(at::empty(a.output_sizes(), options, kChannelsLast));
  }
  const auto computed = options.dtype(computed_type(a.inputs[0]));
  return {outputs, at::empty(statistics, computed), at::empty(statistics, computed)};
}

bool ConvBlocksGradients::wants_weights() const {
  const auto wanted = [](const Tensor& grad) { return grad.numel() > 0; };
  return std::any_of(depthwise.begin(), depthwise.end(), wanted) ||
         std::any_of(pointwise.begin(), pointwise.end(), wanted);
}

ConvBlocksGradients allocate_conv_blocks_gradients(const char* op, const ConvBlocksArguments& a,
                                                   const c10::List<bool>& output_mask) {
  const ConvBlocksShape& s = a.shape;
  const int64_t expected = s.sources + 2 + 2 * s.branches;
  TORCH_CHECK_VALUE(static_cast<int64_t>(output_mask.size()) == expected, op,
                    ": output_mask must have ", expected, " entries, got ", output_mask.size());
  const auto options = a.inputs[0].options().memory_format(std::nullopt);
  const auto computed = options.dtype(computed_type(a.inputs[0]));
  const auto wanted = [&](int64_t index, at::IntArrayRef shape) {
    return at::empty(output_mask[index] ? shape : at::IntArrayRef{0}, computed);
  };
  ConvBlocksGradients grads;
  for (int64_t i = 0; i < s.sources; ++i) {
    grads.inputs.push_back(output_mask[i] ? at::empty(a.inputs[0].sizes(), options, kChannelsLast)
                                          : at::empty({0}, options));
  }
  grads.gamma = wanted(s.sources, {s.sources, s.channels});
  grads.beta = wanted(s.sources + 1, {s.sources, s.channels});
  for (int64_t b = 0; b < s.branches; ++b) {
    const int64_t index = s.sources + 2 + b;
    grads.depthwise.push_back(wanted(index, a.depthwise[b].sizes()));
    grads.pointwise.push_back(wanted(index + s.branches, a.pointwise[b].sizes()));
  }
  return grads;
}

}  // namespace darts_fast
