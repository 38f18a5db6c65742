// SPDX-License-Identifier: Apache-2.0
// CUDA binding of node_sum: checks, allocation, launch, registration.
#include <ATen/core/Tensor.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#include <torch/library.h>

#include <tuple>
#include <vector>

#include "cuda/node_sum_launch.h"
#include "device_allocation.h"
#include "dispatch_maps.h"
#include "node_sum_checks.h"

namespace darts_fast::cuda {
namespace {

template <typename Params>
void allocate_and_launch(const Params& p, const Tensor& like) {
  Scratch scratch(like);
  launch_node_sum(p, scratch(node_sum_scratch(p)),
                  c10::cuda::getCurrentCUDAStream(like.get_device()));
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
      check_node_sum(op, maps, weights, gamma, beta, norms, eps, groups, active, true);
  NodeSumOutputs out = allocate_outputs(op, a, running_mean, running_var);
  if (out.node.numel() == 0) {
    for (int64_t k = 0; k < a.shape.terms; ++k) {
      if (a.norms[k] == Norm::kRunning) continue;
      out.mean.select(1, k).zero_();
      out.var.select(1, k).fill_(1);
    }
    return {out.node, out.mean, out.var};
  }
  dispatch_maps(out.node.scalar_type(), [&]<typename scalar_t, typename stored_t>() {
    using map_t = StateOf<scalar_t, stored_t>;
    std::vector<const map_t*> y;
    NodeSumForward<scalar_t, map_t> p;
    set_arguments<scalar_t>(p, a, y);
    p.mean = out.mean.mutable_data_ptr<scalar_t>();
    p.var = out.var.mutable_data_ptr<scalar_t>();
    p.node = static_cast<map_t*>(out.node.mutable_data_ptr());
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
      check_node_sum(op, maps, weights, gamma, beta, norms, eps, groups, active, true);
  NodeSumGradients grads = allocate_gradients(op, a, grad_node, mean, var, output_mask);
  if (grad_node.numel() == 0) {
    for (Tensor* grad : {&grads.weights, &grads.gamma, &grads.beta}) grad->zero_();
    return {grads.maps, grads.weights, grads.gamma, grads.beta};
  }
  const Tensor g = grad_node.contiguous(at::MemoryFormat::ChannelsLast);
  const Tensor given_mean = mean.contiguous();
  const Tensor given_var = var.contiguous();
  dispatch_maps(g.scalar_type(), [&]<typename scalar_t, typename stored_t>() {
    using map_t = StateOf<scalar_t, stored_t>;
    std::vector<const map_t*> y;
    std::vector<map_t*> grad_y;
    NodeSumBackward<scalar_t, map_t> p;
    set_arguments<scalar_t>(p, a, y);
    set_gradients(p, grads, grad_y);
    p.grad_node = static_cast<const map_t*>(g.const_data_ptr());
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
