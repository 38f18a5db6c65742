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
#include "cpu/workspace.h"
#include "pointers.h"
#include "relu_conv_norm_checks.h"

namespace darts_fast::cpu {
namespace {

using at::Tensor;
using OptionalTensor = std::optional<Tensor>;
constexpr auto kChannelsLast = at::MemoryFormat::ChannelsLast;

DARTS_KERNEL_TABLES(ReluConvNormKernels, relu_conv_norm_kernels)

template <typename T>
void set_arguments(ReluConvNorm<T>& p, const ReluConvNormArguments& a) {
  p.shape = a.shape;
  p.block = a.block;
  p.relu = a.relu;
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
    const OptionalTensor& running_var, int64_t norm, double eps, int64_t stride, int64_t groups,
    bool relu, bool save) {
  static constexpr char op[] = "relu_conv_norm";
  const ReluConvNormArguments a =
      check_relu_conv_norm(op, input, weights, gamma, beta, norm, eps, stride, groups, relu);
  const BlockShape& s = a.shape;
  const auto options = a.input.options().memory_format(std::nullopt);
  const auto given_mean = check_optional(op, "running_mean", running_mean, {s.out_channels}, input);
  const auto given_var = check_optional(op, "running_var", running_var, {s.out_channels}, input);
  TORCH_CHECK_VALUE(a.norm != Norm::kRunning || (given_mean.has_value() && given_var.has_value()),
                    op, ": a running norm needs running_mean and running_var, got none");
  Tensor output = arena_maps(a.output_sizes(), options);
  Tensor raw = save ? arena_maps(a.output_sizes(), options) : at::empty({0}, options);
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
    p.output = write_pointer<scalar_t>(output);
    p.raw = save ? write_pointer<scalar_t>(raw) : p.output;
    p.mean = write_pointer<scalar_t>(mean);
    p.var = write_pointer<scalar_t>(var);
    run_phase(kernel.pack, p, 1, 1);
    const auto merge = [&] { run_phase(kernel.merge, p, groups, a.images * s.out_channels); };
    if (a.norm == Norm::kRunning) merge();
    run_phase(kernel.convolve, p, images, image_work(s));
    if (a.norm == Norm::kRunning) return;
    merge();
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
                                 bool relu, c10::List<bool> output_mask) {
  static constexpr char op[] = "relu_conv_norm_backward";
  const ReluConvNormArguments a =
      check_relu_conv_norm(op, input, weights, gamma, beta, norm, eps, stride, groups, relu);
  const BlockShape& s = a.shape;
  const auto options = a.input.options().memory_format(std::nullopt);
  check_relu_conv_norm_backward(op, a, grad_output, raw, mean, var, weights.size(), output_mask);
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
    run_phase(kernel.grad_pack, p, 1, 1);
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
