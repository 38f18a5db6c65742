// SPDX-License-Identifier: Apache-2.0
// CUDA binding of relu_conv_norm: it is a cell of one node and one op, of weight 1, whose input may
// have another number of channels.
#include <ATen/core/List.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#include <torch/library.h>

#include <optional>
#include <tuple>
#include <vector>

#include "cuda/mixed_cell_launch.h"
#include "device_allocation.h"
#include "dispatch_maps.h"
#include "pointers.h"
#include "relu_conv_norm_checks.h"

namespace darts_fast::cuda {
namespace {

using at::Tensor;
using OptionalTensor = std::optional<Tensor>;
constexpr auto kChannelsLast = at::MemoryFormat::ChannelsLast;

// The plan of such a cell. State 0 is the input, state 1 the node.
struct OneOpPlan {
  CellOp op;
  ConvBlock block;
  int64_t block_op = 0, node_map = -1, entry = 0;
  int64_t leaving_at[3] = {0, 1, 1}, entering_at[3] = {0, 0, 1}, none_at[3] = {0, 0, 0};
  CellShape shape = {};

  explicit OneOpPlan(const ReluConvNormArguments& a) : block(a.block) {
    const BlockShape& s = a.shape;
    const bool reduce = a.block.kind == ConvKind::kReduce;
    op = {0, 1, reduce ? CellOpKind::kFactorizedReduce : CellOpKind::kDense, 0, 0, 0, -1, -1, -1};
    shape.groups = a.groups;
    shape.images = a.images;
    shape.inputs = shape.nodes = shape.ops = shape.norms = shape.blocks = shape.multiplier = 1;
    shape.channels = s.out_channels;
    shape.height = s.height;
    shape.width = s.width;
    shape.node_height = s.out_height;
    shape.node_width = s.out_width;
    shape.stride = s.stride;
  }

  CellPlan view() const {
    CellPlan plan = {};
    plan.shape = shape;
    plan.ops = &op;
    plan.blocks = &block;
    plan.block_op = &block_op;
    plan.node_map = &node_map;
    plan.leaving = {&entry, leaving_at};
    plan.entering = {&entry, entering_at};
    plan.chains = plan.state_pools = {&entry, none_at};
    return plan;
  }
};

// Owns the tables of one entry.
template <typename T, typename M>
struct Tables {
  using State = StateOf<T, M>;

  OneOpPlan plan;
  const State* input;
  const T* first;
  const T* second;
  const T* gamma;
  const T* beta;
  std::vector<uint8_t> all_active;

  explicit Tables(const ReluConvNormArguments& a)
      : plan(a),
        input(static_cast<const State*>(a.input.const_data_ptr())),
        first(read_pointer<T>(a.first)),
        second(read_pointer<T>(a.second)),
        gamma(read_pointer<T>(a.gamma)),
        beta(read_pointer<T>(a.beta)),
        all_active(a.groups, 1) {}

  // `raw` is the only map.
  void set(CudaCellArguments<T, M>& p, const ReluConvNormArguments& a, const Tensor& raw,
           const Tensor& mean, const Tensor& var) const {
    p.plan = plan.view();
    p.states = &input;
    p.first = &first;
    p.second = &second;
    p.gamma = &gamma;
    p.beta = &beta;
    p.norms = &a.norm;
    p.eps = &a.eps;
    p.active = all_active.data();
    const CellShape& s = plan.shape;
    p.slot = (s.groups * s.images * s.node_height * s.node_width * s.channels + 15) / 16 * 16;
    // The backward only reads them; the forward writes them through the same struct.
    p.raw = static_cast<RawOf<T, M>*>(const_cast<void*>(raw.const_data_ptr()));
    p.mean = const_cast<T*>(mean.const_data_ptr<T>());
    p.var = const_cast<T*>(var.const_data_ptr<T>());
  }
};

// A stem, which has no ReLU in front, is PyTorch's own there.
void check_relu(const char* op, bool relu) {
  TORCH_CHECK_NOT_IMPLEMENTED(relu, op, ": relu must be True on a CUDA device, got False");
}

Tensor kept(const Tensor& raw, bool save) { return save ? raw : at::empty({0}, raw.options()); }

std::tuple<Tensor, Tensor, Tensor, Tensor> relu_conv_norm(
    const Tensor& input, at::TensorList weights, const OptionalTensor& gamma,
    const OptionalTensor& beta, const OptionalTensor& running_mean,
    const OptionalTensor& running_var, int64_t norm, double eps, int64_t stride, int64_t groups,
    bool relu, bool save) {
  static constexpr char op[] = "relu_conv_norm";
  const c10::cuda::OptionalCUDAGuard guard(input.device());
  const ReluConvNormArguments a =
      check_relu_conv_norm(op, input, weights, gamma, beta, norm, eps, stride, groups, relu, true);
  check_relu(op, relu);
  const BlockShape& s = a.shape;
  const auto options = a.input.options().memory_format(std::nullopt);
  const auto given_mean = check_optional(op, "running_mean", running_mean, {s.out_channels}, input);
  const auto given_var = check_optional(op, "running_var", running_var, {s.out_channels}, input);
  TORCH_CHECK_VALUE(a.norm != Norm::kRunning || (given_mean.has_value() && given_var.has_value()),
                    op, ": a running norm needs running_mean and running_var, got none");
  Tensor output = empty_maps(a.output_sizes(), options);
  Tensor raw = empty_maps(a.output_sizes(), options);
  Tensor mean = at::empty({groups, s.out_channels}, a.first.options());
  Tensor var = at::empty_like(mean);
  if (a.images == 0) {
    if (a.norm == Norm::kRunning) {
      mean.copy_(given_mean->expand({groups, s.out_channels}));
      var.copy_(given_var->expand({groups, s.out_channels}));
    } else {
      mean.zero_();
      var.fill_(1);
    }
    return {output, kept(raw, save), mean, var};
  }
  dispatch_maps(input.scalar_type(), [&]<typename scalar_t, typename map_t>() {
    const Tables<scalar_t, map_t> tables(a);
    const scalar_t* running[2] = {read_pointer<scalar_t>(given_mean),
                                  read_pointer<scalar_t>(given_var)};
    CudaCellForward<scalar_t, map_t> p = {};
    tables.set(p, a, raw, mean, var);
    p.in_channels = s.channels;
    p.running_mean = running;
    p.running_var = running + 1;
    p.output = static_cast<StateOf<scalar_t, map_t>*>(output.mutable_data_ptr());
    Scratch scratch(output);
    launch_cell(p, std::ref(scratch), c10::cuda::getCurrentCUDAStream(output.get_device()));
  });
  return {output, kept(raw, save), mean, var};
}

using Backward = std::tuple<Tensor, std::vector<Tensor>, Tensor, Tensor>;

// output_mask: input, every weight, gamma, beta.
Backward relu_conv_norm_backward(const Tensor& grad_output, const Tensor& input, const Tensor& raw,
                                 const Tensor& mean, const Tensor& var, at::TensorList weights,
                                 const OptionalTensor& gamma, const OptionalTensor& beta,
                                 int64_t norm, double eps, int64_t stride, int64_t groups,
                                 bool relu, c10::List<bool> output_mask) {
  static constexpr char op[] = "relu_conv_norm_backward";
  const c10::cuda::OptionalCUDAGuard guard(input.device());
  const ReluConvNormArguments a =
      check_relu_conv_norm(op, input, weights, gamma, beta, norm, eps, stride, groups, relu, true);
  check_relu(op, relu);
  check_relu_conv_norm_backward(op, a, grad_output, raw, mean, var, weights.size(), output_mask);
  const BlockShape& s = a.shape;
  const auto options = a.first.options();  // of parameters
  const Tensor g = grad_output.contiguous(kChannelsLast), y = raw.contiguous(kChannelsLast);
  const Tensor given_mean = mean.contiguous(), given_var = var.contiguous();
  const auto wanted = [&](size_t index, at::IntArrayRef sizes) {
    return at::empty(output_mask[index] ? sizes : at::IntArrayRef{0}, options);
  };
  const auto map_options = a.input.options().memory_format(std::nullopt);
  Tensor grad_input =
      output_mask[0] ? empty_maps(input.sizes(), map_options) : at::empty({0}, map_options);
  std::vector<Tensor> grad_weights;
  for (size_t i = 0; i < weights.size(); ++i) {
    grad_weights.push_back(wanted(1 + i, weights[i].sizes()));
  }
  Tensor grad_gamma = wanted(weights.size() + 1, {s.out_channels});
  Tensor grad_beta = wanted(weights.size() + 2, {s.out_channels});
  if (a.images == 0) {
    for (Tensor& grad : grad_weights) grad.zero_();
    return {grad_input, grad_weights, grad_gamma.zero_(), grad_beta.zero_()};
  }
  dispatch_maps(input.scalar_type(), [&]<typename scalar_t, typename map_t>() {
    using state_t = StateOf<scalar_t, map_t>;
    const Tables<scalar_t, map_t> tables(a);
    const auto state_grads = write_elements<state_t>({grad_input});
    scalar_t* const grads[4] = {
        write_pointer<scalar_t>(grad_weights[0]),
        weights.size() == 2 ? write_pointer<scalar_t>(grad_weights[1]) : nullptr,
        write_pointer<scalar_t>(grad_gamma), write_pointer<scalar_t>(grad_beta)};
    CudaCellBackward<scalar_t, map_t> p = {};
    tables.set(p, a, y, given_mean, given_var);
    p.in_channels = s.channels;
    p.grad_output = static_cast<const state_t*>(g.const_data_ptr());
    p.grad_states = state_grads.data();
    p.grad_first = grads;
    p.grad_second = grads + 1;
    p.grad_gamma = grads + 2;
    p.grad_beta = grads + 3;
    Scratch scratch(g);
    launch_cell(p, std::ref(scratch), c10::cuda::getCurrentCUDAStream(g.get_device()));
  });
  return {grad_input, grad_weights, grad_gamma, grad_beta};
}

TORCH_LIBRARY_IMPL(darts_fast, CUDA, m) {
  m.impl("relu_conv_norm", relu_conv_norm);
  m.impl("relu_conv_norm_backward", relu_conv_norm_backward);
}

}  // namespace
}  // namespace darts_fast::cuda
