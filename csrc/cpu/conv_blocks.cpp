// SPDX-License-Identifier: Apache-2.0
// CPU binding of conv_blocks: checks, allocation, parallel phases, registration.
#include <ATen/Dispatch.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include <algorithm>
#include <optional>
#include <tuple>
#include <vector>

#include "checks.h"
#include "cpu/dispatch.h"
#include "cpu/kernels/conv_blocks_kernels.h"
#include "pointers.h"

namespace darts_fast::cpu {
namespace {

using at::Tensor;
using OptionalTensor = std::optional<Tensor>;
constexpr auto kChannelsLast = at::MemoryFormat::ChannelsLast;

DARTS_KERNEL_TABLES(ConvBlocksKernels, conv_blocks_kernels)

struct Arguments {
  ConvBlocksShape shape;
  std::vector<ConvBranch> branches;
  std::vector<Tensor> inputs;  // channels_last
  std::vector<Tensor> depthwise;
  std::vector<Tensor> pointwise;
  OptionalTensor mean, var, gamma, beta;
  Norm norm;
  double eps;
  Tensor active;
};

void check_branches(const char* op, Arguments& a, at::IntArrayRef sources, at::TensorList depthwise,
                    at::TensorList pointwise, at::IntArrayRef dilations) {
  ConvBlocksShape& s = a.shape;
  TORCH_CHECK_VALUE(!sources.empty() && depthwise.size() == sources.size() &&
                        pointwise.size() == sources.size() && dilations.size() == sources.size(),
                    op, ": needs a source, weights and a dilation for every branch, got ",
                    sources.size(), " sources, ", depthwise.size(), " depthwise, ",
                    pointwise.size(), " pointwise and ", dilations.size(), " dilations");
  s.branches = static_cast<int64_t>(sources.size());
  s.out_channels = pointwise[0].size(0);
  for (int64_t b = 0; b < s.branches; ++b) {
    TORCH_CHECK_VALUE(sources[b] >= 0 && sources[b] < s.sources, op, ": sources must be below ",
                      s.sources, ", got ", sources[b]);
    TORCH_CHECK_VALUE(dilations[b] >= 1, op, ": dilations must be at least 1, got ", dilations[b]);
    int64_t kernel = 0;
    if (depthwise[b].numel() > 0) {
      kernel = depthwise[b].size(-1);
      TORCH_CHECK_VALUE(kernel == 3 || kernel == 5 || kernel == 7, op,
                        ": depthwise kernels must be 3, 5 or 7, got ", depthwise[b].sizes());
      check_like(op, "depthwise", depthwise[b], {s.channels, 1, kernel, kernel}, a.inputs[0]);
    }
    TORCH_CHECK_VALUE(kernel > 0 || s.stride == 1, op,
                      ": a branch without depthwise convolution needs stride 1, got ", s.stride);
    check_like(op, "pointwise", pointwise[b], {s.out_channels, s.channels, 1, 1}, a.inputs[0]);
    a.branches.push_back({sources[b], kernel > 0
                                          ? ConvBlock{ConvKind::kSeparable, kernel, dilations[b]}
                                          : ConvBlock{ConvKind::kDense, 1, 1}});
    a.depthwise.push_back(depthwise[b].contiguous());
    a.pointwise.push_back(pointwise[b].contiguous());
  }
}

Arguments check_arguments(const char* op, at::TensorList inputs, const OptionalTensor& mean,
                          const OptionalTensor& var, const OptionalTensor& gamma,
                          const OptionalTensor& beta, int64_t norm, double eps,
                          at::IntArrayRef sources, at::TensorList depthwise,
                          at::TensorList pointwise, at::IntArrayRef dilations, int64_t stride,
                          int64_t groups, const OptionalTensor& active) {
  TORCH_CHECK_VALUE(!inputs.empty(), op, ": needs at least one input, got none");
  const Tensor& first = inputs[0];
  TORCH_CHECK_VALUE(first.dim() == 4, op, ": inputs must have 4 dimensions [N, C, H, W], got ",
                    first.sizes());
  TORCH_CHECK_NOT_IMPLEMENTED(
      first.scalar_type() == at::kFloat || first.scalar_type() == at::kDouble, op,
      ": inputs must be float32 or float64 on CPU, got ", first.scalar_type());
  TORCH_CHECK_VALUE(stride == 1 || stride == 2, op, ": stride must be 1 or 2, got ", stride);
  TORCH_CHECK_VALUE(groups >= 1 && first.size(0) % groups == 0, op,
                    ": groups must divide the batch, got ", groups, " groups for a batch of ",
                    first.size(0));
  Arguments a;
  ConvBlocksShape& s = a.shape;
  s.groups = groups;
  s.images = first.size(0) / groups;
  s.sources = static_cast<int64_t>(inputs.size());
  s.channels = first.size(1);
  s.height = first.size(2);
  s.width = first.size(3);
  s.stride = stride;
  s.out_height = (s.height + stride - 1) / stride;
  s.out_width = (s.width + stride - 1) / stride;
  TORCH_CHECK_VALUE(s.channels >= 1 && s.height >= 1 && s.width >= 1, op,
                    ": inputs must have channels, rows and columns, got ", first.sizes());
  for (const Tensor& input : inputs) {
    check_like(op, "every input", input, first.sizes(), first);
    a.inputs.push_back(input.contiguous(kChannelsLast));
  }
  check_branches(op, a, sources, depthwise, pointwise, dilations);
  TORCH_CHECK_VALUE(norm >= 0 && norm <= 2, op, ": norm must be 0, 1 or 2, got ", norm);
  a.norm = static_cast<Norm>(norm);
  TORCH_CHECK_VALUE((a.norm != Norm::kNone) == (mean.has_value() && var.has_value()), op,
                    ": mean and var must be given exactly where there is a norm, got norm ", norm);
  a.mean = check_optional(op, "mean", mean, {s.sources, groups, s.channels}, first);
  a.var = check_optional(op, "var", var, {s.sources, groups, s.channels}, first);
  a.gamma = check_optional(op, "gamma", gamma, {s.sources, s.channels}, first);
  a.beta = check_optional(op, "beta", beta, {s.sources, s.channels}, first);
  a.eps = eps;
  a.active = check_active(op, active, groups, s.branches);
  return a;
}

template <typename T>
ConvBlocksNorm<T> norm_pointers(const Arguments& a) {
  return {a.norm,
          a.eps,
          read_pointer<T>(a.mean),
          read_pointer<T>(a.var),
          read_pointer<T>(a.gamma),
          read_pointer<T>(a.beta)};
}

const uint8_t* active_pointer(const Arguments& a) {
  return reinterpret_cast<const uint8_t*>(a.active.const_data_ptr<bool>());
}

// Elements that an item, one image of one input, goes through: what the grain is measured in.
int64_t item_work(const ConvBlocksShape& s) {
  return s.height * s.width * s.channels * s.branches / s.sources;
}

using Forward = std::tuple<std::vector<Tensor>, Tensor, Tensor>;

Forward conv_blocks(at::TensorList inputs, const OptionalTensor& mean, const OptionalTensor& var,
                    const OptionalTensor& gamma, const OptionalTensor& beta, int64_t norm,
                    double eps, at::IntArrayRef sources, at::TensorList depthwise,
                    at::TensorList pointwise, at::IntArrayRef dilations, int64_t stride,
                    int64_t groups, const OptionalTensor& active) {
  static constexpr char op[] = "conv_blocks";
  const Arguments a = check_arguments(op, inputs, mean, var, gamma, beta, norm, eps, sources,
                                      depthwise, pointwise, dilations, stride, groups, active);
  const ConvBlocksShape& s = a.shape;
  const auto options = a.inputs[0].options();
  const int64_t batch = groups * s.images;
  std::vector<Tensor> outputs;
  for (int64_t b = 0; b < s.branches; ++b) {
    outputs.push_back(
        at::empty({batch, s.out_channels, s.out_height, s.out_width}, options, kChannelsLast));
  }
  Tensor out_mean = at::empty({groups, s.branches, s.out_channels}, options);
  Tensor out_var = at::empty({groups, s.branches, s.out_channels}, options);
  AT_DISPATCH_FLOATING_TYPES(options.dtype().toScalarType(), op, [&] {
    const ConvBlocksKernels<scalar_t>& kernel = kernels<scalar_t>();
    ConvBlocksForward<scalar_t> p;
    p.packed_stride = kernel.packed_size(s, a.branches.data());
    p.scratch_stride = kernel.forward_scratch(s, a.branches.data());
    Tensor packed = at::empty({s.branches, p.packed_stride}, options);
    Tensor scratch = at::empty({at::get_num_threads(), p.scratch_stride}, options);
    Tensor moments =
        at::empty({2, s.branches * batch * s.out_channels}, options.dtype(at::kDouble));
    const auto x = read_pointers<scalar_t>(a.inputs);
    const auto dw = read_pointers<scalar_t>(a.depthwise);
    const auto pw = read_pointers<scalar_t>(a.pointwise);
    const auto y = write_pointers<scalar_t>(outputs);
    p.shape = s;
    p.norm = norm_pointers<scalar_t>(a);
    p.branches = a.branches.data();
    p.inputs = x.data();
    p.depthwise = dw.data();
    p.pointwise = pw.data();
    p.active = active_pointer(a);
    p.packed = packed.data_ptr<scalar_t>();
    p.scratch = scratch.data_ptr<scalar_t>();
    p.partial_mean = moments.data_ptr<double>();
    p.partial_square = p.partial_mean + moments.size(1);
    p.outputs = y.data();
    p.mean = out_mean.data_ptr<scalar_t>();
    p.var = out_var.data_ptr<scalar_t>();
    run_phase(kernel.pack, p, s.branches, p.packed_stride);
    run_phase(kernel.run, p, batch * s.sources, item_work(s));
    run_phase(kernel.merge, p, groups * s.branches, s.images * s.out_channels);
  });
  return {outputs, out_mean, out_var};
}

using Backward =
    std::tuple<std::vector<Tensor>, Tensor, Tensor, std::vector<Tensor>, std::vector<Tensor>>;

// output_mask: an entry per input, then gamma, beta, then an entry per branch for depthwise and one
// per branch for pointwise.
Backward conv_blocks_backward(at::TensorList grad_outputs, c10::List<bool> arrives,
                              at::TensorList inputs, const OptionalTensor& mean,
                              const OptionalTensor& var, const OptionalTensor& gamma,
                              const OptionalTensor& beta, int64_t norm, double eps,
                              at::IntArrayRef sources, at::TensorList depthwise,
                              at::TensorList pointwise, at::IntArrayRef dilations, int64_t stride,
                              int64_t groups, const OptionalTensor& active,
                              c10::List<bool> output_mask) {
  static constexpr char op[] = "conv_blocks_backward";
  const Arguments a = check_arguments(op, inputs, mean, var, gamma, beta, norm, eps, sources,
                                      depthwise, pointwise, dilations, stride, groups, active);
  const ConvBlocksShape& s = a.shape;
  const auto options = a.inputs[0].options();
  const int64_t batch = groups * s.images;
  const int64_t expected = s.sources + 2 + 2 * s.branches;
  TORCH_CHECK_VALUE(static_cast<int64_t>(output_mask.size()) == expected, op,
                    ": output_mask must have ", expected, " entries, got ", output_mask.size());
  TORCH_CHECK_VALUE(static_cast<int64_t>(grad_outputs.size()) == s.branches &&
                        static_cast<int64_t>(arrives.size()) == s.branches,
                    op, ": grad_outputs and arrives must have one entry per branch, got ",
                    grad_outputs.size(), " and ", arrives.size(), " for ", s.branches);
  std::vector<Tensor> g;
  for (int64_t b = 0; b < s.branches; ++b) {
    if (arrives[b]) {
      check_like(op, "every gradient", grad_outputs[b],
                 {batch, s.out_channels, s.out_height, s.out_width}, a.inputs[0]);
    }
    g.push_back(arrives[b] ? grad_outputs[b].contiguous(kChannelsLast) : at::empty({0}, options));
  }
  const auto wanted = [&](int64_t index, at::IntArrayRef shape) {
    return output_mask[index] ? at::empty(shape, options) : at::empty({0}, options);
  };
  std::vector<Tensor> grad_inputs, grad_depthwise, grad_pointwise;
  bool want_weights = false;
  for (int64_t i = 0; i < s.sources; ++i) {
    grad_inputs.push_back(output_mask[i] ? at::empty(a.inputs[0].sizes(), options, kChannelsLast)
                                         : at::empty({0}, options));
  }
  const bool want_norm = output_mask[s.sources] || output_mask[s.sources + 1];
  Tensor grad_gamma = wanted(s.sources, {s.sources, s.channels});
  Tensor grad_beta = wanted(s.sources + 1, {s.sources, s.channels});
  for (int64_t b = 0; b < s.branches; ++b) {
    const int64_t index = s.sources + 2 + b;
    grad_depthwise.push_back(wanted(index, a.depthwise[b].sizes()));
    grad_pointwise.push_back(wanted(index + s.branches, a.pointwise[b].sizes()));
    want_weights = want_weights || output_mask[index] || output_mask[index + s.branches];
  }
  AT_DISPATCH_FLOATING_TYPES(options.dtype().toScalarType(), op, [&] {
    const ConvBlocksKernels<scalar_t>& kernel = kernels<scalar_t>();
    ConvBlocksBackward<scalar_t> p;
    // The gradients of gamma and beta come out of the input gradient's sums.
    std::vector<Tensor> scratch_inputs = grad_inputs;
    for (Tensor& grad : scratch_inputs) {
      if (want_norm && grad.numel() == 0) {
        grad = at::empty(a.inputs[0].sizes(), options, kChannelsLast);
      }
    }
    p.packed_stride = kernel.packed_size(s, a.branches.data());
    p.scratch_stride = kernel.backward_scratch(s, a.branches.data());
    p.partial_stride = kernel.partial_size(s, a.branches.data());
    Tensor partial_weights =
        at::empty({want_weights ? s.branches * batch : 0, p.partial_stride}, options);
    Tensor packed = at::empty({s.branches, p.packed_stride}, options);
    Tensor scratch = at::empty({at::get_num_threads(), p.scratch_stride}, options);
    const auto double_options = options.dtype(at::kDouble);
    Tensor partial_sums = at::empty({s.sources, batch, 2, s.channels}, double_options);
    Tensor sums = at::empty({s.sources, groups, 2, s.channels}, double_options);
    const auto x = read_pointers<scalar_t>(a.inputs);
    const auto dw = read_pointers<scalar_t>(a.depthwise);
    const auto pw = read_pointers<scalar_t>(a.pointwise);
    const auto gy = read_pointers<scalar_t>(g);
    const auto gx = write_pointers<scalar_t>(scratch_inputs);
    const auto gdw = write_pointers<scalar_t>(grad_depthwise);
    const auto gpw = write_pointers<scalar_t>(grad_pointwise);
    p.shape = s;
    p.norm = norm_pointers<scalar_t>(a);
    p.branches = a.branches.data();
    p.inputs = x.data();
    p.depthwise = dw.data();
    p.pointwise = pw.data();
    p.grad_outputs = gy.data();
    p.active = active_pointer(a);
    p.packed = packed.data_ptr<scalar_t>();
    p.scratch = scratch.data_ptr<scalar_t>();
    p.partial_weights = want_weights ? partial_weights.data_ptr<scalar_t>() : nullptr;
    p.partial_sums = partial_sums.data_ptr<double>();
    p.sums = sums.data_ptr<double>();
    p.grad_inputs = gx.data();
    p.grad_depthwise = gdw.data();
    p.grad_pointwise = gpw.data();
    p.grad_gamma = write_pointer<scalar_t>(grad_gamma);
    p.grad_beta = write_pointer<scalar_t>(grad_beta);
    run_phase(kernel.backward_pack, p, s.branches, p.packed_stride);
    run_phase(kernel.backward_run, p, batch * s.sources, item_work(s));
    if (want_weights) {
      run_phase(kernel.weights, p, s.branches, batch * p.partial_stride);
    }
    if (a.norm != Norm::kNone) {
      run_phase(kernel.sums, p, s.sources, batch * s.channels);
      run_phase(kernel.norm, p, batch * s.sources, s.height * s.width * s.channels);
    }
  });
  return {grad_inputs, grad_gamma, grad_beta, grad_depthwise, grad_pointwise};
}

TORCH_LIBRARY_IMPL(darts_fast, CPU, m) {
  m.impl("conv_blocks", conv_blocks);
  m.impl("conv_blocks_backward", conv_blocks_backward);
}

}  // namespace
}  // namespace darts_fast::cpu
