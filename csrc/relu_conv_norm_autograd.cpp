// SPDX-License-Identifier: Apache-2.0
// Autograd of relu_conv_norm, for every backend. A gradient is a call of relu_conv_norm_backward,
// whose own derivative is registered in Python, like the fake kernels of both.
#include <ATen/core/grad_mode.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/csrc/autograd/forward_grad.h>
#include <torch/library.h>

#include <algorithm>
#include <optional>
#include <tuple>
#include <utility>
#include <vector>

#include "operators.h"

namespace darts_fast {
namespace {

using at::Tensor;
using at::TensorList;
using OptionalTensor = std::optional<Tensor>;
using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

using BackwardOp = std::tuple<Tensor, std::vector<Tensor>, Tensor, Tensor>(
    const Tensor&, const Tensor&, const Tensor&, const Tensor&, const Tensor&, TensorList,
    const OptionalTensor&, const OptionalTensor&, int64_t, double, int64_t, int64_t, bool,
    c10::List<bool>);

// The arguments of a forward and what it returns beside its output.
struct Call {
  const Tensor& input;
  TensorList weights;
  const OptionalTensor &gamma, &beta, &running_mean, &running_var;
  int64_t norm;
  double eps;
  int64_t stride, groups;
  bool relu, save;
  Tensor raw, mean, var;
};

// Without autograd.
Tensor run(Call& call) {
  static const auto op = find_op<ReluConvNormOp>("darts_fast::relu_conv_norm");
  const at::AutoDispatchBelowADInplaceOrView below;
  Tensor output;
  std::tie(output, call.raw, call.mean, call.var) =
      op.call(call.input, call.weights, call.gamma, call.beta, call.running_mean, call.running_var,
              call.norm, call.eps, call.stride, call.groups, call.relu, call.save);
  return output;
}

struct ReluConvNorm : torch::autograd::Function<ReluConvNorm> {
  // leaves: input, weights, and of gamma and beta those that there are.
  static Tensor forward(AutogradContext* ctx, Call* call, TensorList leaves) {
    Tensor output = run(*call);
    ctx->saved_data["weights"] = static_cast<int64_t>(call->weights.size());
    ctx->saved_data["norm"] = call->norm;
    ctx->saved_data["eps"] = call->eps;
    ctx->saved_data["stride"] = call->stride;
    ctx->saved_data["groups"] = call->groups;
    ctx->saved_data["relu"] = call->relu;
    ctx->saved_data["save"] = call->save;
    ctx->saved_data["gamma"] = call->gamma.has_value();
    ctx->saved_data["beta"] = call->beta.has_value();
    ctx->set_materialize_grads(false);
    variable_list kept = {call->raw, call->mean, call->var};
    kept.insert(kept.end(), leaves.begin(), leaves.end());
    ctx->save_for_backward(std::move(kept));
    return output;
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& grads) {
    static const auto op = find_op<BackwardOp>("darts_fast::relu_conv_norm_backward");
    const auto& settings = ctx->saved_data;
    const variable_list kept = ctx->get_saved_variables();
    const size_t leaves = kept.size() - 3;
    variable_list found(1 + leaves);  // the first for what has no gradient
    if (!grads[0].defined()) return found;
    TORCH_CHECK(settings.at("save").toBool(),
                "relu_conv_norm: save must be True where a gradient is wanted, got False");
    const size_t weights = settings.at("weights").toInt();
    const bool has_gamma = settings.at("gamma").toBool(), has_beta = settings.at("beta").toBool();
    const Tensor* leaf = kept.data() + 3;
    c10::List<bool> mask;
    for (size_t i = 0; i <= weights; ++i) mask.push_back(ctx->needs_input_grad(i));
    size_t next = 1 + weights;
    OptionalTensor gamma, beta;
    mask.push_back(has_gamma && ctx->needs_input_grad(next));
    if (has_gamma) gamma = leaf[next++];
    mask.push_back(has_beta && ctx->needs_input_grad(next));
    if (has_beta) beta = leaf[next++];
    // With a graph of its own the gradient goes through autograd again.
    std::optional<at::AutoDispatchBelowADInplaceOrView> below;
    if (!at::GradMode::is_enabled()) below.emplace();
    const auto [grad_input, grad_weights, grad_gamma, grad_beta] = op.call(
        grads[0], leaf[0], kept[0], kept[1], kept[2], TensorList(leaf + 1, weights), gamma, beta,
        settings.at("norm").toInt(), settings.at("eps").toDouble(), settings.at("stride").toInt(),
        settings.at("groups").toInt(), settings.at("relu").toBool(), mask);
    next = 1;
    if (mask[0]) found[next] = grad_input;
    ++next;
    for (size_t i = 0; i < weights; ++i, ++next) {
      if (mask[1 + i]) found[next] = grad_weights[i];
    }
    if (has_gamma) {
      if (mask[1 + weights]) found[next] = grad_gamma;
      ++next;
    }
    if (has_beta && mask[2 + weights]) found[next] = grad_beta;
    return found;
  }
};

ReluConvNormResult relu_conv_norm(const Tensor& input, TensorList weights,
                                  const OptionalTensor& gamma, const OptionalTensor& beta,
                                  const OptionalTensor& running_mean,
                                  const OptionalTensor& running_var, int64_t norm, double eps,
                                  int64_t stride, int64_t groups, bool relu, bool save) {
  Call call = {input,  weights, gamma, beta, running_mean, running_var, norm,    eps,
               stride, groups,  relu,  save, Tensor(),     Tensor(),    Tensor()};
  std::vector<Tensor> leaves = {input};
  leaves.insert(leaves.end(), weights.begin(), weights.end());
  for (const OptionalTensor& affine : {gamma, beta}) {
    if (affine.has_value()) leaves.push_back(*affine);
  }
  const bool recorded =
      at::GradMode::is_enabled() &&
      std::any_of(leaves.begin(), leaves.end(), [](const Tensor& x) { return x.requires_grad(); });
  // A forward derivative is refused there, not forgotten.
  const bool forward_mode = torch::autograd::ForwardADLevel::try_get_by_idx(0) != nullptr;
  Tensor output =
      recorded || forward_mode ? ReluConvNorm::apply(&call, TensorList(leaves)) : run(call);
  return {output, call.raw, call.mean, call.var};
}

TORCH_LIBRARY_IMPL(darts_fast, Autograd, m) { m.impl("relu_conv_norm", relu_conv_norm); }

}  // namespace
}  // namespace darts_fast
