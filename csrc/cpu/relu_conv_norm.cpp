// SPDX-License-Identifier: Apache-2.0
// CPU binding of relu_conv_norm: checks, allocation, parallel phases, registration.
#include <ATen/Dispatch.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include <optional>
#include <tuple>
#include <vector>

#include "checks.h"
#include "cpu/dispatch.h"
#include "cpu/kernels/relu_conv_norm_kernels.h"
#include "cpu/pointers.h"
#include "cpu/workspace.h"

namespace darts_fast::cpu {
namespace {

using at::Tensor;
using OptionalTensor = std::optional<Tensor>;
constexpr auto kChannelsLast = at::MemoryFormat::ChannelsLast;

DARTS_KERNEL_TABLES(ReluConvNormKernels, relu_conv_norm_kernels)

struct Arguments {
  BlockShape shape;
  ConvBlock block;
  int64_t groups;
  int64_t images;
  Tensor input;  // channels_last
  Tensor first, second;
  OptionalTensor gamma, beta;
  Norm norm;
  double eps;

  std::vector<int64_t> output_sizes() const {
    return {groups * images, shape.out_channels, shape.out_height, shape.out_width};
  }
};

// One weight [C', C, k, k], or the two halves of a factorized reduce.
void check_weights(const char* op, Arguments& a, at::TensorList weights) {
  TORCH_CHECK_VALUE((weights.size() == 1 || weights.size() == 2) && weights[0].dim() == 4, op,
                    ": weights must be one of 4 dimensions or two halves, got ", weights.size());
  BlockShape& s = a.shape;
  if (weights.size() == 2) {
    s.out_channels = 2 * weights[0].size(0);
    a.block = {ConvKind::kReduce, 1, 1};
    TORCH_CHECK_VALUE(s.stride == 2 && s.height % 2 == 0 && s.width % 2 == 0, op,
                      ": two halves need stride 2 and even sizes, got stride ", s.stride, " for ",
                      a.input.sizes());
    for (const Tensor& half : weights) {
      check_like(op, "each half", half, {s.out_channels / 2, s.channels, 1, 1}, a.input);
    }
    a.second = weights[1].contiguous();
  } else {
    s.out_channels = weights[0].size(0);
    const int64_t kernel = weights[0].size(3);
    TORCH_CHECK_VALUE(kernel == 1 || kernel == 3, op, ": kernel must be 1 or 3, got ",
                      weights[0].sizes());
    a.block = {ConvKind::kDense, kernel, 1};
    check_like(op, "the weight", weights[0], {s.out_channels, s.channels, kernel, kernel}, a.input);
  }
  TORCH_CHECK_VALUE(s.out_channels >= 1, op, ": weights must have output channels, got ",
                    weights[0].sizes());
  a.first = weights[0].contiguous();
}

Arguments check_arguments(const char* op, const Tensor& input, at::TensorList weights,
                          const OptionalTensor& gamma, const OptionalTensor& beta, int64_t norm,
                          double eps, int64_t stride, int64_t groups) {
  TORCH_CHECK_VALUE(input.dim() == 4, op, ": input must have 4 dimensions [N, C, H, W], got ",
                    input.sizes());
  TORCH_CHECK_NOT_IMPLEMENTED(
      input.scalar_type() == at::kFloat || input.scalar_type() == at::kDouble, op,
      ": input must be float32 or float64 on CPU, got ", input.scalar_type());
  TORCH_CHECK_VALUE(stride == 1 || stride == 2, op, ": stride must be 1 or 2, got ", stride);
  TORCH_CHECK_VALUE(groups >= 1 && input.size(0) % groups == 0, op,
                    ": groups must divide the batch, got ", groups, " groups for a batch of ",
                    input.size(0));
  TORCH_CHECK_VALUE(norm == 1 || norm == 2, op, ": norm must be 1 or 2, got ", norm);
  Arguments a;
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
  a.input = input.contiguous(kChannelsLast);
  check_weights(op, a, weights);
  a.norm = static_cast<Norm>(norm);
  a.eps = eps;
  TORCH_CHECK_VALUE(a.norm != Norm::kBatch || a.images * s.out_height * s.out_width != 1, op,
                    ": expected more than 1 value per channel when training, got input of ",
                    input.sizes(), " in ", groups, " groups");
  a.gamma = check_optional(op, "gamma", gamma, {s.out_channels}, input);
  a.beta = check_optional(op, "beta", beta, {s.out_channels}, input);
  return a;
}

template <typename T>
void set_arguments(ReluConvNorm<T>& p, const Arguments& a) {
  p.shape = a.shape;
  p.block = a.block;
  p.groups = a.groups;
  p.images = a.images;
  p.input = read_pointer<T>(a.input);
  p.first = read_pointer<T>(a.first);
  p.second = read_pointer<T>(a.second);
  p.gamma = read_pointer<T>(a.gamma);
  p.beta = read_pointer<T>(a.beta);
  p.norm = a.norm;
  p.eps = a.eps;
}

// Multiply-adds of an image, in which the grain of parallel regions is measured.
int64_t image_work(const BlockShape& s) {
  return s.out_height * s.out_width * s.out_channels * s.channels / 16 + 1;
}

std::tuple<Tensor, Tensor, Tensor, Tensor> relu_conv_norm(
    const Tensor& input, at::TensorList weights, const OptionalTensor& gamma,
    const OptionalTensor& beta, const OptionalTensor& running_mean,
    const OptionalTensor& running_var, int64_t norm, double eps, int64_t stride, int64_t groups) {
  static constexpr char op[] = "relu_conv_norm";
  const Arguments a = check_arguments(op, input, weights, gamma, beta, norm, eps, stride, groups);
  const BlockShape& s = a.shape;
  const auto options = a.input.options().memory_format(std::nullopt);
  const auto given_mean = check_optional(op, "running_mean", running_mean, {s.out_channels}, input);
  const auto given_var = check_optional(op, "running_var", running_var, {s.out_channels}, input);
  TORCH_CHECK_VALUE(a.norm != Norm::kRunning || (given_mean.has_value() && given_var.has_value()),
                    op, ": a running norm needs running_mean and running_var, got none");
  Tensor output = arena_maps(a.output_sizes(), options);
  Tensor raw = arena_maps(a.output_sizes(), options);
  Tensor mean = at::empty({groups, s.out_channels}, options);
  Tensor var = at::empty({groups, s.out_channels}, options);
  if (a.norm == Norm::kRunning) {
    mean.copy_(given_mean->expand({groups, s.out_channels}));
    var.copy_(given_var->expand({groups, s.out_channels}));
  } else if (a.images == 0) {
    mean.zero_();
    var.fill_(1);
  }
  if (a.images == 0) return {output, raw, mean, var};
  AT_DISPATCH_FLOATING_TYPES(options.dtype().toScalarType(), op, [&] {
    const ReluConvNormKernels<scalar_t>& kernel = kernels<scalar_t>();
    ReluConvNormForward<scalar_t> p;
    set_arguments(p, a);
    const int64_t images = groups * a.images;
    const int64_t moments = images * s.out_channels;
    p.scratch_stride = kernel.forward_scratch(p);
    Workspace work;
    const int64_t packed = work.reserve<scalar_t>(kernel.packed_size(p));
    const int64_t scratch = work.reserve<scalar_t>(at::get_num_threads() * p.scratch_stride);
    const int64_t partial = work.reserve<double>(2 * moments);
    const int64_t patterns = work.reserve<scalar_t>(groups * 3 * kernel.period(s.out_channels));
    work.allocate();
    p.packed = work.get<scalar_t>(packed);
    p.scratch = work.get<scalar_t>(scratch);
    p.partial_mean = work.get<double>(partial);
    p.partial_square = p.partial_mean + moments;
    p.coefficients = work.get<scalar_t>(patterns);
    p.raw = write_pointer<scalar_t>(raw);
    p.mean = write_pointer<scalar_t>(mean);
    p.var = write_pointer<scalar_t>(var);
    p.output = write_pointer<scalar_t>(output);
    const ReluConvNorm<scalar_t>& shared = p;
    run_phase(kernel.pack, shared, 1, 1);
    run_phase(kernel.convolve, p, images, image_work(s));
    run_phase(kernel.merge, p, groups, a.images * s.out_channels);
    run_phase(kernel.normalise, p, images, s.out_height * s.out_width * s.out_channels);
  });
  return {output, raw, mean, var};
}

using Backward = std::tuple<Tensor, std::vector<Tensor>, Tensor, Tensor>;

// output_mask: input, every weight, gamma, beta.
Backward relu_conv_norm_backward(const Tensor& grad_output, const Tensor& input, const Tensor& raw,
                                 const Tensor& mean, const Tensor& var, at::TensorList weights,
                                 const OptionalTensor& gamma, const OptionalTensor& beta,
                                 int64_t norm, double eps, int64_t stride, int64_t groups,
                                 c10::List<bool> output_mask) {
  static constexpr char op[] = "relu_conv_norm_backward";
  const Arguments a = check_arguments(op, input, weights, gamma, beta, norm, eps, stride, groups);
  const BlockShape& s = a.shape;
  const auto options = a.input.options().memory_format(std::nullopt);
  check_like(op, "grad_output", grad_output, a.output_sizes(), input);
  check_like(op, "raw", raw, a.output_sizes(), input);
  check_like(op, "mean", mean, {groups, s.out_channels}, input);
  check_like(op, "var", var, {groups, s.out_channels}, input);
  TORCH_CHECK_VALUE(output_mask.size() == weights.size() + 3, op, ": output_mask must have ",
                    weights.size() + 3, " entries, got ", output_mask.size());
  const Tensor g = grad_output.contiguous(kChannelsLast), y = raw.contiguous(kChannelsLast);
  const Tensor given_mean = mean.contiguous(), given_var = var.contiguous();
  const auto wanted = [&](size_t index, at::IntArrayRef sizes) {
    Tensor grad = at::empty(output_mask[index] ? sizes : at::IntArrayRef{0}, options);
    return grad.zero_();
  };
  Tensor grad_input = output_mask[0] ? arena_maps(input.sizes(), options) : at::empty({0}, options);
  std::vector<Tensor> grad_weights;
  bool want_weights = false;
  for (size_t i = 0; i < weights.size(); ++i) {
    grad_weights.push_back(wanted(1 + i, weights[i].sizes()));
    want_weights = want_weights || output_mask[1 + i];
  }
  Tensor grad_gamma = wanted(weights.size() + 1, {s.out_channels});
  Tensor grad_beta = wanted(weights.size() + 2, {s.out_channels});
  if (a.images == 0) return {grad_input, grad_weights, grad_gamma, grad_beta};
  AT_DISPATCH_FLOATING_TYPES(options.dtype().toScalarType(), op, [&] {
    const ReluConvNormKernels<scalar_t>& kernel = kernels<scalar_t>();
    ReluConvNormBackward<scalar_t> p;
    set_arguments(p, a);
    const int64_t images = groups * a.images;
    p.scratch_stride = kernel.backward_scratch(p);
    p.partial_stride = kernel.partial_size(p);
    p.chunk_images = chunk_images(a.images);
    const int64_t chunks = groups * ((a.images + p.chunk_images - 1) / p.chunk_images);
    Workspace work;
    const int64_t packed = work.reserve<scalar_t>(kernel.packed_size(p));
    const int64_t scratch = work.reserve<scalar_t>(at::get_num_threads() * p.scratch_stride);
    const int64_t partial_sums = work.reserve<double>(images * 2 * s.out_channels);
    const int64_t sums = work.reserve<double>(groups * 2 * s.out_channels);
    const int64_t patterns = work.reserve<scalar_t>(groups * 4 * kernel.period(s.out_channels));
    const int64_t partial = work.reserve<scalar_t>(want_weights ? chunks * p.partial_stride : 0);
    work.allocate();
    p.packed = work.get<scalar_t>(packed);
    p.scratch = work.get<scalar_t>(scratch);
    p.partial_sums = work.get<double>(partial_sums);
    p.sums = work.get<double>(sums);
    p.coefficients = work.get<scalar_t>(patterns);
    p.partial_weights = want_weights ? work.get<scalar_t>(partial) : nullptr;
    p.grad_output = read_pointer<scalar_t>(g);
    // Read only here; forward writes them through the same struct.
    p.raw = const_cast<scalar_t*>(read_pointer<scalar_t>(y));
    p.mean = const_cast<scalar_t*>(read_pointer<scalar_t>(given_mean));
    p.var = const_cast<scalar_t*>(read_pointer<scalar_t>(given_var));
    p.grad_input = write_pointer<scalar_t>(grad_input);
    p.grad_first = write_pointer<scalar_t>(grad_weights[0]);
    p.grad_second = weights.size() == 2 ? write_pointer<scalar_t>(grad_weights[1]) : nullptr;
    p.grad_gamma = write_pointer<scalar_t>(grad_gamma);
    p.grad_beta = write_pointer<scalar_t>(grad_beta);
    const ReluConvNorm<scalar_t>& shared = p;
    run_phase(kernel.pack, shared, 1, 1);
    run_phase(kernel.reduce, p, images, s.out_height * s.out_width * s.out_channels);
    run_phase(kernel.merge_sums, p, groups, a.images * s.out_channels);
    run_phase(kernel.grad_convolve, p, chunks, image_work(s) * 2 * p.chunk_images);
    run_phase(kernel.parameters, p, 1, 1);
  });
  return {grad_input, grad_weights, grad_gamma, grad_beta};
}

TORCH_LIBRARY_IMPL(darts_fast, CPU, m) {
  m.impl("relu_conv_norm", relu_conv_norm);
  m.impl("relu_conv_norm_backward", relu_conv_norm_backward);
}

}  // namespace
}  // namespace darts_fast::cpu
