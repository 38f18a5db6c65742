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

#include "conv_blocks_checks.h"
#include "conv_blocks_pointers.h"
#include "cpu/dispatch.h"
#include "cpu/kernels/conv_blocks_kernels.h"

namespace darts_fast::cpu {
namespace {

using at::Tensor;
using OptionalTensor = std::optional<Tensor>;
constexpr auto kChannelsLast = at::MemoryFormat::ChannelsLast;

DARTS_KERNEL_TABLES(ConvBlocksKernels, conv_blocks_kernels)

// Elements that an item, one image of one input, goes through: what the grain is measured in.
int64_t item_work(const ConvBlocksShape& s) {
  return s.height * s.width * s.channels * s.branches / s.sources;
}

ConvBlocksForwardResult conv_blocks(at::TensorList inputs, const OptionalTensor& mean,
                                    const OptionalTensor& var, const OptionalTensor& gamma,
                                    const OptionalTensor& beta, int64_t norm, double eps,
                                    at::IntArrayRef sources, at::TensorList depthwise,
                                    at::TensorList pointwise, at::IntArrayRef dilations,
                                    int64_t stride, int64_t groups, const OptionalTensor& active) {
  static constexpr char op[] = "conv_blocks";
  const ConvBlocksArguments a =
      check_conv_blocks(op, {inputs, mean, var, gamma, beta, norm, eps, sources, depthwise,
                             pointwise, dilations, stride, groups, active});
  const ConvBlocksShape& s = a.shape;
  const auto options = a.inputs[0].options();
  const int64_t batch = a.batch();
  auto [outputs, out_mean, out_var] = allocate_conv_blocks(a);
  AT_DISPATCH_FLOATING_TYPES(options.dtype().toScalarType(), op, [&] {
    const ConvBlocksKernels<scalar_t>& kernel = kernels<scalar_t>();
    ConvBlocksForward<scalar_t> p;
    p.packed_stride = kernel.packed_size(s, a.branches.data());
    p.scratch_stride = kernel.forward_scratch(s, a.branches.data());
    Tensor packed = at::empty({s.branches, p.packed_stride}, options);
    Tensor scratch = at::empty({at::get_num_threads(), p.scratch_stride}, options);
    Tensor moments =
        at::empty({2, s.branches * batch * s.out_channels}, options.dtype(at::kDouble));
    const ConvBlocksPointers<scalar_t> pointers(a);
    const auto y = write_pointers<scalar_t>(outputs);
    pointers.set(p, a);
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

ConvBlocksBackwardResult conv_blocks_backward(
    at::TensorList grad_outputs, c10::List<bool> arrives, at::TensorList inputs,
    const OptionalTensor& mean, const OptionalTensor& var, const OptionalTensor& gamma,
    const OptionalTensor& beta, int64_t norm, double eps, at::IntArrayRef sources,
    at::TensorList depthwise, at::TensorList pointwise, at::IntArrayRef dilations, int64_t stride,
    int64_t groups, const OptionalTensor& active, c10::List<bool> output_mask) {
  static constexpr char op[] = "conv_blocks_backward";
  const ConvBlocksArguments a =
      check_conv_blocks(op, {inputs, mean, var, gamma, beta, norm, eps, sources, depthwise,
                             pointwise, dilations, stride, groups, active});
  const ConvBlocksShape& s = a.shape;
  const auto options = a.inputs[0].options();
  const int64_t batch = a.batch();
  const std::vector<Tensor> g = check_conv_blocks_gradients(op, a, grad_outputs, arrives);
  const ConvBlocksGradients grads = allocate_conv_blocks_gradients(op, a, output_mask);
  const bool want_weights = grads.wants_weights(), want_norm = grads.wants_norm();
  AT_DISPATCH_FLOATING_TYPES(options.dtype().toScalarType(), op, [&] {
    const ConvBlocksKernels<scalar_t>& kernel = kernels<scalar_t>();
    ConvBlocksBackward<scalar_t> p;
    // The gradients of gamma and beta come out of the input gradient's sums.
    std::vector<Tensor> scratch_inputs = grads.inputs;
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
    const ConvBlocksPointers<scalar_t> pointers(a);
    const auto gy = read_pointers<scalar_t>(g);
    const auto gx = write_pointers<scalar_t>(scratch_inputs);
    const auto gdw = write_pointers<scalar_t>(grads.depthwise);
    const auto gpw = write_pointers<scalar_t>(grads.pointwise);
    pointers.set(p, a);
    p.grad_outputs = gy.data();
    p.packed = packed.data_ptr<scalar_t>();
    p.scratch = scratch.data_ptr<scalar_t>();
    p.partial_weights = want_weights ? partial_weights.data_ptr<scalar_t>() : nullptr;
    p.partial_sums = partial_sums.data_ptr<double>();
    p.sums = sums.data_ptr<double>();
    p.grad_inputs = gx.data();
    p.grad_depthwise = gdw.data();
    p.grad_pointwise = gpw.data();
    p.grad_gamma = write_pointer<scalar_t>(grads.gamma);
    p.grad_beta = write_pointer<scalar_t>(grads.beta);
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
  return grads.result();
}

TORCH_LIBRARY_IMPL(darts_fast, CPU, m) {
  m.impl("conv_blocks", conv_blocks);
  m.impl("conv_blocks_backward", conv_blocks_backward);
}

}  // namespace
}  // namespace darts_fast::cpu
