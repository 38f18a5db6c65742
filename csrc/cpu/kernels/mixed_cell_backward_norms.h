// SPDX-License-Identifier: Apache-2.0
// Sums over images in the backward of mixed_cell (see mixed_cell_backward.h): the coefficients of
// the norms' gradients, and the gradients of edge weights, convolutions, gammas and betas.
#pragma once

#include "cpu/kernels/mixed_cell_backward_common.h"
#include "cpu/kernels/weight_sums.h"

namespace darts_fast::cpu::DARTS_CPU_CAPABILITY {

// Items: groups and norms.
template <typename T, typename M>
static void cell_prepare(const CellBackward<T, M>& p, int64_t begin, int64_t end) {
  const CellShape& s = p.plan.shape;
  const int64_t channels = s.channels;
  const int64_t period = pattern_period<T>(channels);
  for (int64_t item = begin; item < end; ++item) {
    const int64_t norm = item % s.norms;
    const bool plain = p.norms[norm] == Norm::kNone;
    const T* mean = p.mean + item * channels;
    const T* var = p.var + item * channels;
    const auto inverse = [&](int64_t c) {
      return plain ? 1.0 : 1.0 / std::sqrt(var[c] + p.eps[norm]);
    };
    expand_pattern(p.center + item * period, channels, period,
                   [&](int64_t c) { return plain ? T(0) : mean[c]; });
    expand_pattern(p.inner_scale + item * period, channels, period, [&](int64_t c) {
      const double gamma = plain || p.gamma[norm] == nullptr ? 1.0 : p.gamma[norm][c];
      return static_cast<T>(gamma * inverse(c));
    });
    expand_pattern(p.inner_shift + item * period, channels, period, [&](int64_t c) {
      return plain || p.beta[norm] == nullptr ? T(0) : p.beta[norm][c];
    });
    double* sums = p.norm_sums + (norm * s.groups + item / s.norms) * 2 * channels;
    for (int64_t i = 0; i < 2 * channels; ++i) sums[i] = 0;
  }
}

// From S1 = sum g and P = sum g * (y - mean): the coefficients of dL/dy, and S1, S2 = P / sigma for
// the gradients of beta and gamma.
template <typename T, typename M>
static void finish_grad_norm(const CellBackward<T, M>& p, int64_t group, int64_t norm,
                             double weight, const double* s1, const double* products) {
  const CellShape& s = p.plan.shape;
  const int64_t channels = s.channels;
  const int64_t period = pattern_period<T>(channels);
  const int64_t row = group * s.norms + norm;
  const T* var = p.var + row * channels;
  const bool plain = p.norms[norm] == Norm::kNone;
  const double count = static_cast<double>(s.images * s.node_height * s.node_width);
  double* sums = p.norm_sums + (norm * s.groups + group) * 2 * channels;
  for (int64_t c = 0; c < channels; ++c) {
    sums[c] = weight * s1[c];
    sums[channels + c] = weight * products[c] / (plain ? 1.0 : std::sqrt(var[c] + p.eps[norm]));
  }
  expand_pattern(p.grad_scale + row * period, channels, period, [&](int64_t c) {
    const double gamma = plain || p.gamma[norm] == nullptr ? 1.0 : p.gamma[norm][c];
    return static_cast<T>(weight * gamma / (plain ? 1.0 : std::sqrt(var[c] + p.eps[norm])));
  });
  if (p.norms[norm] != Norm::kBatch) return;
  expand_pattern(p.grad_mean + row * period, channels, period,
                 [&](int64_t c) { return static_cast<T>(s1[c] / count); });
  expand_pattern(p.grad_slope + row * period, channels, period, [&](int64_t c) {
    return static_cast<T>(products[c] / count / (var[c] + p.eps[norm]));
  });
}

// The sum over a group's images of rows [G * N, stride] of C values, in their order.
static inline void sum_images(const double* partial, int64_t first, int64_t images, int64_t stride,
                              int64_t channels, double* out) {
  for (int64_t c = 0; c < channels; ++c) out[c] = 0;
  for (int64_t n = first; n < first + images; ++n) {
    for (int64_t c = 0; c < channels; ++c) out[c] += partial[n * stride + c];
  }
}

// Items: groups, and within a group the chains of the part.
template <typename T, typename M>
static void cell_inner_norms(const CellStep<CellBackward<T, M>>& step, int64_t begin, int64_t end) {
  const CellBackward<T, M>& p = *step.p;
  const CellPlan& plan = p.plan;
  const CellShape& s = plan.shape;
  const CellPart& part = plan.parts[step.part];
  const int64_t count = part.chains_end - part.chains_begin;
  for (int64_t item = begin; item < end; ++item) {
    const int64_t group = item / count;
    const int64_t k = plan.chains.entries[part.chains_begin + item % count];
    if (!op_runs(p, group, k)) continue;
    // The first image's place takes the sums of all.
    double* sums = p.inner_sums + (k * s.groups + group) * s.images * 2 * s.channels;
    for (int64_t n = 1; n < s.images; ++n) {
      for (int64_t i = 0; i < 2 * s.channels; ++i) sums[i] += sums[n * 2 * s.channels + i];
    }
    finish_grad_norm(p, group, plan.ops[k].norm - 1, 1.0, sums, sums + s.channels);
  }
}

// Items: groups, and within a group the ops of the part.
template <typename T, typename M>
static void cell_node_norms(const CellStep<CellBackward<T, M>>& step, int64_t begin, int64_t end) {
  const CellBackward<T, M>& p = *step.p;
  const CellPlan& plan = p.plan;
  const CellShape& s = plan.shape;
  const int64_t channels = s.channels;
  const int64_t all = s.groups * s.images;
  const CellPart& part = plan.parts[step.part];
  const int64_t count = part.end - part.begin;
  const double* node = p.partial_sums + (s.ops + part.node - s.inputs) * all * channels;
  for (int64_t item = begin; item < end; ++item) {
    const int64_t group = item / count;
    const int64_t k = plan.entering.entries[part.begin + item % count];
    const CellOp& op = plan.ops[k];
    p.op_sums[k * s.groups + group] = 0;
    if (!op_runs(p, group, k)) continue;
    // The first image's place of the op takes the sums of all; S1 is summed into the op's scratch.
    double* products = p.partial_sums + (k * all + group * s.images) * channels;
    for (int64_t n = 1; n < s.images; ++n) {
      for (int64_t c = 0; c < channels; ++c) products[c] += products[n * channels + c];
    }
    double* s1 = p.term_sums + (k * s.groups + group) * channels;
    sum_images(node, group * s.images, s.images, channels, channels, s1);
    const double weight = p.weights[group * s.ops + k];
    double grad = 0;
    const bool plain = op.norm < 0 || p.norms[op.norm] == Norm::kNone;
    for (int64_t c = 0; c < channels; ++c) {
      if (plain) {
        grad += products[c];
        continue;
      }
      const T var = p.var[(group * s.norms + op.norm) * channels + c];
      const double gamma = p.gamma[op.norm] == nullptr ? 1.0 : p.gamma[op.norm][c];
      const double beta = p.beta[op.norm] == nullptr ? 0.0 : p.beta[op.norm][c];
      grad += gamma * products[c] / std::sqrt(var + p.eps[op.norm]) + beta * s1[c];
    }
    p.op_sums[k * s.groups + group] = grad;
    if (op.norm >= 0) finish_grad_norm(p, group, op.norm, weight, s1, products);
  }
}

// Items: blocks.
template <typename T, typename M>
static void cell_weights(const CellBackward<T, M>& p, int64_t begin, int64_t end) {
  const CellPlan& plan = p.plan;
  const int64_t chunks = plan.shape.groups * group_chunks(p);
  for (int64_t b = begin; b < end; ++b) {
    if (p.grad_first[b] == nullptr && p.grad_second[b] == nullptr) continue;
    sum_block_gradients(
        block_shape(plan, b), plan.blocks[b], p.partial_weights + b * chunks * p.partial_stride,
        p.partial_stride, chunks,
        [&](int64_t chunk) { return op_runs(p, chunk / group_chunks(p), plan.block_op[b]); },
        p.grad_first[b], p.grad_second[b]);
  }
}

// Items: norms. dL/d beta = sum over groups of S1, dL/d gamma of S2.
template <typename T, typename M>
static void cell_parameters(const CellBackward<T, M>& p, int64_t begin, int64_t end) {
  const CellShape& s = p.plan.shape;
  for (int64_t norm = begin; norm < end; ++norm) {
    const double* sums = p.norm_sums + norm * s.groups * 2 * s.channels;
    for (int64_t c = 0; c < s.channels; ++c) {
      double beta = 0, gamma = 0;
      for (int64_t group = 0; group < s.groups; ++group) {
        beta += sums[group * 2 * s.channels + c];
        gamma += sums[group * 2 * s.channels + s.channels + c];
      }
      if (p.grad_gamma[norm] != nullptr) p.grad_gamma[norm][c] = static_cast<T>(gamma);
      if (p.grad_beta[norm] != nullptr) p.grad_beta[norm][c] = static_cast<T>(beta);
    }
  }
}

}  // namespace darts_fast::cpu::DARTS_CPU_CAPABILITY
