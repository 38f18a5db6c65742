// SPDX-License-Identifier: Apache-2.0
// The gradients of states in mixed_cell's backward, but for what convolutions give: where they
// start, and what identities and pools add. Those of all edges that leave a state come together,
// when the gradients of all later nodes are there: a pooled map y, which the edges share, has
//   dL/dy = sum_k a_k (g_k - S1_k / M) - (sum_k a_k slope_k) (y - mean),
// one sweep over y and the nodes' gradients g_k, and its own stays in scratch memory.
#pragma once

#include "cpu/kernels/mixed_cell_backward_common.h"
#include "cpu/kernels/node_sum_forward.h"

namespace darts_fast::cpu::DARTS_CPU_CAPABILITY {

// The gradient of a state's image, or null where nobody wants it.
template <typename T, typename M>
static inline T* grad_state_image(const CellBackward<T, M>& p, int64_t state, int64_t n) {
  const CellShape& s = p.plan.shape;
  if (!is_input(s, state)) return grad_node_image(p, state, n);
  if (p.grad_states[state] == nullptr) return nullptr;
  return p.grad_states[state] + n * s.height * s.width * s.channels;
}

// Before anything is added: 0, and of nodes in the output the gradient that arrives there.
template <typename T, typename M>
static void start_gradients(const CellBackward<T, M>& p, int64_t n) {
  const CellPlan& plan = p.plan;
  const CellShape& s = plan.shape;
  for (int64_t state = 0; state < s.inputs + s.nodes; ++state) {
    T* out = grad_state_image(p, state, n);
    if (out == nullptr) continue;
    const int64_t place = state - s.inputs - (s.nodes - s.multiplier);
    if (is_input(s, state) || place < 0) {
      const BlockShape shape = first_shape(s, state);
      std::memset(out, 0, shape.height * shape.width * shape.channels * sizeof(T));
    } else {
      copy_pixels(p.grad_output + n * node_size(s) * s.multiplier + place * s.channels,
                  s.multiplier * s.channels, s.node_height * s.node_width, s.channels, out,
                  s.channels);
    }
  }
}

// call(k, op) for the ops of a group that leave a state and run.
template <typename T, typename M, typename Call>
static inline void each_leaving_op(const CellBackward<T, M>& p, int64_t group, int64_t state,
                                   Call call) {
  const CellPlan& plan = p.plan;
  for (int64_t i = plan.leaving.at[state]; i < plan.leaving.at[state + 1]; ++i) {
    const int64_t k = plan.leaving.entries[i];
    if (op_runs(p, group, k)) call(k, plan.ops[k]);
  }
}

// One image: out += sum_k w_k g_k over the identities that leave a state.
template <typename T, typename M>
static void add_identity_gradients(const CellBackward<T, M>& p, int64_t state, int64_t n,
                                   const CellBackwardScratch<T>& scratch, T* out) {
  const CellShape& s = p.plan.shape;
  const int64_t period = pattern_period<T>(s.channels);
  const int64_t group = n / s.images;
  const int64_t stretch = stretch_elements(period);
  const T* const zeros = p.center + s.groups * s.norms * period;
  T* weight = scratch.weights;
  each_leaving_op(p, group, state, [&](int64_t k, const CellOp& op) {
    if (op.kind != CellOpKind::kIdentity) return;
    expand_pattern(weight, s.channels, period,
                   [&](int64_t) { return p.weights[group * s.ops + k]; });
    weight += period;
  });
  if (weight == scratch.weights) return;
  for (int64_t from = 0; from < node_size(s); from += stretch) {
    const int64_t length = node_size(s) - from < stretch ? node_size(s) - from : stretch;
    TermSum<T> sum = {out + from, length, period, 0, {}, {}, {}};
    weight = scratch.weights;
    each_leaving_op(p, group, state, [&](int64_t, const CellOp& op) {
      if (op.kind != CellOpKind::kIdentity) return;
      add_term(&sum, grad_node_image(p, op.node, n) + from, weight, zeros);
      weight += period;
    });
    flush_terms(&sum);
  }
}

// One image: the gradient of a pooled map, dL/dy, into scratch memory; false where no op takes it.
template <typename T, typename M>
static bool pool_gradient_image(const CellBackward<T, M>& p, int64_t state, int64_t pool, int64_t n,
                                const CellBackwardScratch<T>& scratch) {
  const CellShape& s = p.plan.shape;
  const int64_t period = pattern_period<T>(s.channels);
  const int64_t group = n / s.images;
  const int64_t stretch = stretch_elements(period);
  const T* const zeros = p.center + s.groups * s.norms * period;
  // What the norms with statistics of the batch, which share those of the map, take of it.
  T* const slope = scratch.weights;
  const T* center = nullptr;
  bool runs = false;
  std::memset(slope, 0, period * sizeof(T));
  each_leaving_op(p, group, state, [&](int64_t, const CellOp& op) {
    if (op.pool != pool) return;
    runs = true;
    const GradNorm<T> norm = grad_norm(p, group, op.norm);
    if (norm.mean == nullptr) return;
    center = norm.center;
    for (int64_t i = 0; i < period; ++i) slope[i] -= norm.scale[i] * norm.slope[i];
  });
  const T* const y = map_image(p, p.plan.pools[pool].map, n);
  for (int64_t from = 0; runs && from < node_size(s); from += stretch) {
    T* const out = scratch.pool_gradient + from;
    const int64_t length = node_size(s) - from < stretch ? node_size(s) - from : stretch;
    std::memset(out, 0, length * sizeof(T));
    TermSum<T> sum = {out, length, period, 0, {}, {}, {}};
    each_leaving_op(p, group, state, [&](int64_t, const CellOp& op) {
      if (op.pool != pool) return;
      const GradNorm<T> norm = grad_norm(p, group, op.norm);
      add_term(&sum, grad_node_image(p, op.node, n) + from, norm.scale,
               norm.mean == nullptr ? zeros : norm.mean);
    });
    if (center != nullptr) add_term(&sum, y + from, static_cast<const T*>(slope), center);
    flush_terms(&sum);
  }
  return runs;
}

// One image: what identities and pools give to the gradient of a state. All nodes behind the state
// must have their gradients.
template <typename T, typename M>
static void add_plain_gradients(const CellBackward<T, M>& p, int64_t state, int64_t n,
                                const CellBackwardScratch<T>& scratch) {
  const CellPlan& plan = p.plan;
  T* const out = grad_state_image(p, state, n);
  if (out == nullptr) return;
  add_identity_gradients(p, state, n, scratch, out);
  const PoolShape shape = pool_shape(plan.shape, state);
  for (int64_t i = plan.state_pools.at[state]; i < plan.state_pools.at[state + 1]; ++i) {
    const int64_t pool = plan.state_pools.entries[i];
    if (!pool_gradient_image(p, state, pool, n, scratch)) continue;
    if (plan.pools[pool].kind == CellOpKind::kMaxPool) {
      max_pool_grad_image(shape, state_image(p, state, n), map_image(p, plan.pools[pool].map, n),
                          scratch.pool_gradient, scratch.pool, out);
    } else {
      avg_pool_grad_image(shape, scratch.pool_gradient, scratch.pool, out);
    }
  }
}

}  // namespace darts_fast::cpu::DARTS_CPU_CAPABILITY
