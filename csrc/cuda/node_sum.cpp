// SPDX-License-Identifier: Apache-2.0
// CUDA binding of node_sum: checks, allocation, launch, registration.
#include <ATen/Dispatch.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#include <torch/library.h>

#include <tuple>
#include <vector>

#include "cuda/node_sum_launch.h"
#include "node_sum_checks.h"

namespace darts_fast::cuda {
namespace {

template <typename Params>
void allocate_and_launch(const Params& p, const Tensor& like) {
  const auto bytes = static_cast<int64_t>(node_sum_scratch(p));
  const Tensor scratch = at::empty({bytes}, like.options().dtype(at::kByte));
  launch_node_sum(p, scratch.data_ptr(), c10::cuda::getCurrentCUDAStream(like.get_device()));
}

std::tuple<Tensor, Tensor, Tensor> node_sum(at::TensorList maps, const Tensor& weights,
                                            const OptionalTensor& gamma, const OptionalTensor& beta,
                                            const OptionalTensor& running_mean,
                                            const OptionalTensor& running_var,
                                            at::IntArrayRef norms, at::ArrayRef<double> eps,
                                            int64_t groups, const OptionalTensor& active) {
  static constexpr char op[] = "node_sum";
  const c10::cuda::OptionalCUDAGuard guard(device_of(maps));
  const NodeSumArguments a =
      check_node_sum(op, maps, weights, gamma, beta, norms, eps, groups, active);
  NodeSumOutputs out = allocate_outputs(op, a, running_mean, running_var);
  if (out.node.numel() == 0) {
    for (int64_t k = 0; k < a.shape.terms; ++k) {
      if (a.norms[k] == Norm::kRunning) continue;
      out.mean.select(1, k).zero_();
      out.var.select(1, k).fill_(1);
    }
    return {out.node, out.mean, out.var};
  }
  AT_DISPATCH_FLOATING_TYPES(out.node.scalar_type(), op, [&] {
    std::vector<const scalar_t*> y;
    NodeSumForward<scalar_t> p;
    set_arguments(p, a, y);
    p.mean = out.mean.data_ptr<scalar_t>();
    p.var = out.var.data_ptr<scalar_t>();
    p.node = out.node.data_ptr<scalar_t>();
    allocate_and_launch(p, out.node);
  });
  return {out.node, out.mean, out.var};
}

std::tuple<std::vector<Tensor>, Tensor, Tensor, Tensor> node_sum_backward(
    const Tensor& grad_node, at::TensorList maps, const Tensor& weights,
    const OptionalTensor& gamma, const OptionalTensor& beta, const Tensor& mean, const Tensor& var,
    at::IntArrayRef norms, at::ArrayRef<double> eps, int64_t groups, const OptionalTensor& active,
    c10::List<bool> output_mask) {
  static constexpr char op[] = "node_sum_backward";
  const c10::cuda::OptionalCUDAGuard guard(device_of(grad_node));
  const NodeSumArguments a =
      check_node_sum(op, maps, weights, gamma, beta, norms, eps, groups, active);
  NodeSumGradients grads = allocate_gradients(op, a, grad_node, mean, var, output_mask);
  if (grad_node.numel() == 0) {
    for (Tensor* grad : {&grads.weights, &grads.gamma, &grads.beta}) grad->zero_();
    return {grads.maps, grads.weights, grads.gamma, grads.beta};
  }
  const Tensor g = grad_node.contiguous(at::MemoryFormat::ChannelsLast);
  const Tensor given_mean = mean.contiguous();
  const Tensor given_var = var.contiguous();
  AT_DISPATCH_FLOATING_TYPES(g.scalar_type(), op, [&] {
    std::vector<const scalar_t*> y;
    std::vector<scalar_t*> grad_y;
    NodeSumBackward<scalar_t> p;
    set_arguments(p, a, y);
    set_gradients(p, grads, grad_y);
    p.grad_node = g.const_data_ptr<scalar_t>();
    p.mean = given_mean.const_data_ptr<scalar_t>();
    p.var = given_var.const_data_ptr<scalar_t>();
    allocate_and_launch(p, g);
  });
  return {grads.maps, grads.weights, grads.gamma, grads.beta};
}

TORCH_LIBRARY_IMPL(darts_fast, CUDA, m) {
  m.impl("node_sum", node_sum);
  m.impl("node_sum_backward", node_sum_backward);
}

}  // namespace
}  // namespace darts_fast::cuda
