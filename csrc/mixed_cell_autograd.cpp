// SPDX-License-Identifier: Apache-2.0
// Autograd of mixed_cell, for every backend. A gradient is a call of mixed_cell_backward, whose own
// derivative is registered in Python, like the fake kernels of both.
#include <ATen/TensorSubclassLikeUtils.h>
#include <ATen/core/grad_mode.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/csrc/autograd/forward_grad.h>
#include <torch/library.h>

#include <algorithm>
#include <optional>
#include <tuple>
#include <vector>

#include "mixed_cell_checks.h"
#include "operators.h"

namespace darts_fast {
namespace {

using at::Tensor;
using at::TensorList;
using OptionalTensor = std::optional<Tensor>;
using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

using Backward = std::tuple<std::vector<Tensor>, Tensor, std::vector<Tensor>, std::vector<Tensor>,
                            std::vector<Tensor>>;
using BackwardOp = Backward(const Tensor&, const Tensor&, const Tensor&, const Tensor&, TensorList,
                            const Tensor&, TensorList, TensorList, TensorList, at::IntArrayRef,
                            at::IntArrayRef, at::ArrayRef<double>, int64_t, int64_t, int64_t,
                            int64_t, const OptionalTensor&, int64_t, c10::List<bool>);

// The arguments that have no gradient, and what a forward returns beside its output.
struct Call {
  TensorList running_means, running_vars;
  at::IntArrayRef ops, norms;
  at::ArrayRef<double> eps;
  int64_t nodes, multiplier, stride, groups, shared;
  const OptionalTensor& active;
  int64_t precision;
  bool save;
  Tensor saved, mean, var;
};

// What a backward needs beside tensors. The numbers of tensors are those of the forward's lists.
struct Settings : torch::CustomClassHolder {
  explicit Settings(const Call& call)
      : ops(call.ops.vec()),
        norms(call.norms.vec()),
        eps(call.eps.vec()),
        nodes(call.nodes),
        multiplier(call.multiplier),
        stride(call.stride),
        groups(call.groups),
        precision(call.precision),
        save(call.save) {}

  std::vector<int64_t> ops, norms;
  std::vector<double> eps;
  int64_t nodes, multiplier, stride, groups, precision;
  bool save;
  size_t states = 0, convolutions = 0, gammas = 0, betas = 0;

  size_t leaves() const { return states + 1 + convolutions + gammas + betas; }
};

// Takes the parameters of operations that no group computes off the list of what is wanted.
void leave_out_inactive(std::vector<bool>& wanted, const Settings& s, const Tensor& active) {
  const bool* table = active.const_data_ptr<bool>();
  const auto runs = [&](int64_t k) {
    for (int64_t group = 0; group < s.groups; ++group) {
      if (table[group * active.stride(0) + k * active.stride(1)]) return true;
    }
    return false;
  };
  size_t convolution = s.states + 1, norm = 0;
  const size_t gammas = convolution + s.convolutions, betas = gammas + s.gammas;
  for (size_t k = 0; 5 * k < s.ops.size(); ++k) {
    const auto kind = static_cast<CellOpKind>(s.ops[5 * k + 2]);
    const size_t next_convolution = convolution + convolutions_of(kind);
    const size_t next_norm = norm + norms_of(kind);
    if (!runs(static_cast<int64_t>(k))) {
      std::fill(wanted.begin() + convolution, wanted.begin() + next_convolution, false);
      for (size_t i = norm; i < next_norm; ++i) {
        if (i < s.gammas) wanted[gammas + i] = false;
        if (i < s.betas) wanted[betas + i] = false;
      }
    }
    convolution = next_convolution;
    norm = next_norm;
  }
}

// Without autograd.
Tensor run(Call& call, TensorList states, const Tensor& weights, TensorList convolutions,
           TensorList gammas, TensorList betas) {
  static const auto op = find_op<MixedCellOp>("darts_fast::mixed_cell");
  const at::AutoDispatchBelowADInplaceOrView below;
  Tensor output;
  std::tie(output, call.saved, call.mean, call.var) =
      op.call(states, weights, convolutions, gammas, betas, call.running_means, call.running_vars,
              call.ops, call.norms, call.eps, call.nodes, call.multiplier, call.stride, call.groups,
              call.shared, call.active, call.precision, call.save);
  return output;
}

struct MixedCell : torch::autograd::Function<MixedCell> {
  static Tensor forward(AutogradContext* ctx, Call* call, TensorList states, const Tensor& weights,
                        TensorList convolutions, TensorList gammas, TensorList betas) {
    Tensor output = run(*call, states, weights, convolutions, gammas, betas);
    const auto settings = c10::make_intrusive<Settings>(*call);
    settings->states = states.size();
    settings->convolutions = convolutions.size();
    settings->gammas = gammas.size();
    settings->betas = betas.size();
    ctx->saved_data["settings"] = c10::IValue::make_capsule(settings);
    ctx->set_materialize_grads(false);
    if (!call->save) return output;
    variable_list kept = {call->saved, call->mean, call->var};
    kept.insert(kept.end(), states.begin(), states.end());
    kept.push_back(weights);
    for (const TensorList list : {convolutions, gammas, betas}) {
      kept.insert(kept.end(), list.begin(), list.end());
    }
    kept.push_back(call->active.value_or(Tensor()));
    ctx->save_for_backward(std::move(kept));
    return output;
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& grads) {
    static const auto op = find_op<BackwardOp>("darts_fast::mixed_cell_backward");
    const auto settings =
        c10::static_intrusive_pointer_cast<Settings>(ctx->saved_data.at("settings").toCapsule());
    const Settings& s = *settings;
    TORCH_CHECK(s.save, "mixed_cell: save must be True where a gradient is wanted, got False");
    variable_list found(1 + s.leaves());  // the first for what has no gradient
    if (!grads[0].defined()) return found;
    const variable_list kept = ctx->get_saved_variables();
    const OptionalTensor active =
        kept.back().defined() ? OptionalTensor(kept.back()) : std::nullopt;
    const Tensor* leaves = kept.data() + 3;
    std::vector<bool> wanted(s.leaves());
    for (size_t i = 0; i < wanted.size(); ++i) {
      // An empty parameter stands for one that is not there.
      wanted[i] = ctx->needs_input_grad(i) && (i <= s.states || leaves[i].sym_numel() > 0);
    }
    // A tracer's tensor has no values: such gradients are zeros in its graph.
    if (active.has_value() && (active->key_set() & at::kTensorSubclassLike).empty()) {
      leave_out_inactive(wanted, s, *active);
    }
    c10::List<bool> mask;
    mask.reserve(wanted.size());
    for (const bool want : wanted) mask.push_back(want);
    const Tensor* next = leaves;
    const auto take = [&](size_t count) {
      next += count;
      return TensorList(next - count, count);
    };
    const TensorList states = take(s.states);
    const Tensor& weights = take(1)[0];
    const TensorList convolutions = take(s.convolutions);
    const TensorList gammas = take(s.gammas), betas = take(s.betas);
    // With a graph of its own the gradient goes through autograd again.
    std::optional<at::AutoDispatchBelowADInplaceOrView> below;
    if (!at::GradMode::is_enabled()) below.emplace();
    auto [grad_states, grad_weights, grad_convolutions, grad_gammas, grad_betas] = op.call(
        grads[0], kept[0], kept[1], kept[2], states, weights, convolutions, gammas, betas, s.ops,
        s.norms, s.eps, s.nodes, s.multiplier, s.stride, s.groups, active, s.precision, mask);
    size_t i = 0;
    const auto give = [&](const Tensor& grad) {
      if (wanted[i]) found[1 + i] = grad;
      ++i;
    };
    for (const Tensor& grad : grad_states) give(grad);
    give(grad_weights);
    for (const auto* list : {&grad_convolutions, &grad_gammas, &grad_betas}) {
      for (const Tensor& grad : *list) give(grad);
    }
    return found;
  }
};

MixedCellResult mixed_cell(TensorList states, const Tensor& weights, TensorList convolutions,
                           TensorList gammas, TensorList betas, TensorList running_means,
                           TensorList running_vars, at::IntArrayRef ops, at::IntArrayRef norms,
                           at::ArrayRef<double> eps, int64_t nodes, int64_t multiplier,
                           int64_t stride, int64_t groups, int64_t shared,
                           const OptionalTensor& active, int64_t precision, bool save) {
  Call call = {running_means, running_vars, ops,    norms,     eps,  nodes, multiplier, stride,
               groups,        shared,       active, precision, save, {},    {},         {}};
  const auto differentiable = [](TensorList list) {
    return std::any_of(list.begin(), list.end(), [](const Tensor& x) { return x.requires_grad(); });
  };
  const bool recorded =
      at::GradMode::is_enabled() &&
      (weights.requires_grad() || differentiable(states) || differentiable(convolutions) ||
       differentiable(gammas) || differentiable(betas));
  // A forward derivative is refused there, not forgotten.
  const bool forward_mode = torch::autograd::ForwardADLevel::try_get_by_idx(0) != nullptr;
  Tensor output = recorded || forward_mode
                      ? MixedCell::apply(&call, states, weights, convolutions, gammas, betas)
                      : run(call, states, weights, convolutions, gammas, betas);
  return {output, call.saved, call.mean, call.var};
}

TORCH_LIBRARY_IMPL(darts_fast, Autograd, m) { m.impl("mixed_cell", mixed_cell); }

}  // namespace
}  // namespace darts_fast
