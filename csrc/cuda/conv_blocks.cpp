// SPDX-License-Identifier: Apache-2.0
// CUDA binding of conv_blocks: checks, allocation, launch, registration.
#include <ATen/core/List.h>
#include <ATen/core/Tensor.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#include <torch/library.h>

#include <optional>
#include <vector>

#include "conv_blocks_checks.h"
#include "conv_blocks_pointers.h"
#include "cuda/conv_blocks_launch.h"
#include "device_allocation.h"
#include "dispatch_maps.h"

namespace darts_fast::cuda {
namespace {

using at::Tensor;
using OptionalTensor = std::optional<Tensor>;

std::optional<c10::Device> device_of(at::TensorList inputs) {
  return inputs.empty() ? std::nullopt : std::optional(inputs[0].device());
}

ConvBlocksForwardResult conv_blocks(at::TensorList inputs, const OptionalTensor& mean,
                                    const OptionalTensor& var, const OptionalTensor& gamma,
                                    const OptionalTensor& beta, int64_t norm, double eps,
                                    at::IntArrayRef sources, at::TensorList depthwise,
                                    at::TensorList pointwise, at::IntArrayRef dilations,
                                    int64_t stride, int64_t groups, const OptionalTensor& active) {
  static constexpr char op[] = "conv_blocks";
  const c10::cuda::OptionalCUDAGuard guard(device_of(inputs));
  const ConvBlocksArguments a =
      check_conv_blocks(op, {inputs, mean, var, gamma, beta, norm, eps, sources, depthwise,
                             pointwise, dilations, stride, groups, active, true});
  auto [outputs, out_mean, out_var] = allocate_conv_blocks(a);
  if (a.shape.images == 0) return {outputs, out_mean.zero_(), out_var.fill_(1)};
  dispatch_maps(a.inputs[0].scalar_type(), [&]<typename scalar_t, typename map_t>() {
    using state_t = StateOf<scalar_t, map_t>;
    const ConvBlocksPointers<scalar_t, state_t> pointers(a);
    const auto y = write_elements<state_t>(outputs);
    CudaConvBlocksForward<scalar_t, map_t> p = {};
    pointers.set(p, a);
    p.outputs = y.data();
    p.mean = out_mean.mutable_data_ptr<scalar_t>();
    p.var = out_var.mutable_data_ptr<scalar_t>();
    Scratch scratch(a.inputs[0]);
    const auto stream = c10::cuda::getCurrentCUDAStream(a.inputs[0].get_device());
    launch_conv_blocks(p, std::ref(scratch), stream);
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
  const c10::cuda::OptionalCUDAGuard guard(device_of(inputs));
  const ConvBlocksArguments a =
      check_conv_blocks(op, {inputs, mean, var, gamma, beta, norm, eps, sources, depthwise,
                             pointwise, dilations, stride, groups, active, true});
  const std::vector<Tensor> g = check_conv_blocks_gradients(op, a, grad_outputs, arrives);
  ConvBlocksGradients grads = allocate_conv_blocks_gradients(op, a, output_mask);
  // Without a norm its parameters multiply nothing.
  if (a.norm == Norm::kNone || a.shape.images == 0) {
    grads.gamma.zero_();
    grads.beta.zero_();
  }
  if (a.shape.images == 0) {
    for (auto* list : {&grads.depthwise, &grads.pointwise}) {
      for (Tensor& grad : *list) grad.zero_();
    }
    return grads.result();
  }
  dispatch_maps(a.inputs[0].scalar_type(), [&]<typename scalar_t, typename map_t>() {
    using state_t = StateOf<scalar_t, map_t>;
    const ConvBlocksPointers<scalar_t, state_t> pointers(a);
    const auto gy = read_elements<state_t>(g);
    const auto gx = write_elements<state_t>(grads.inputs);
    const auto grad_depthwise = write_pointers<scalar_t>(grads.depthwise);
    const auto grad_pointwise = write_pointers<scalar_t>(grads.pointwise);
    CudaConvBlocksBackward<scalar_t, map_t> p = {};
    pointers.set(p, a);
    p.grad_outputs = gy.data();
    p.grad_inputs = gx.data();
    p.grad_depthwise = grad_depthwise.data();
    p.grad_pointwise = grad_pointwise.data();
    if (a.norm != Norm::kNone) {
      p.grad_gamma = write_pointer<scalar_t>(grads.gamma);
      p.grad_beta = write_pointer<scalar_t>(grads.beta);
    }
    Scratch scratch(a.inputs[0]);
    const auto stream = c10::cuda::getCurrentCUDAStream(a.inputs[0].get_device());
    launch_conv_blocks(p, std::ref(scratch), stream);
  });
  return grads.result();
}

TORCH_LIBRARY_IMPL(darts_fast, CUDA, m) {
  m.impl("conv_blocks", conv_blocks);
  m.impl("conv_blocks_backward", conv_blocks_backward);
}

}  // namespace
}  // namespace darts_fast::cuda
