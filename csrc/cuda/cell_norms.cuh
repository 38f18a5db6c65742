// SPDX-License-Identifier: Apache-2.0
// Statistics of norms from the partial ones of the tiles; and behind the backward's reductions, all
// that has no map's size. The second pass of every reduction: lanes over tiles in a fixed order, in
// double, without atomics.
#pragma once

#include "cuda/cell.cuh"
#include "cuda/moments.cuh"

namespace darts_fast::cuda {
namespace {

constexpr int kNormWarps = kThreads / kWarp;

// mean, var and scale = gamma / sigma. grid = (channels / warps, norms, groups), a warp per
// channel. Bytes: the partial statistics.
template <typename T, typename M>
__global__ __launch_bounds__(kThreads) void cell_norms(const __grid_constant__ Cell<T, M> c,
                                                       int list, int tile) {
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  const int ch = static_cast<int>(blockIdx.x) * kNormWarps + static_cast<int>(threadIdx.x) / kWarp;
  if (ch >= c.channels) return;
  const int b = c.table.lists[list + static_cast<int>(blockIdx.y)];
  const int group = static_cast<int>(blockIdx.z);
  const NormRow& norm = c.table.norms[b];
  const bool runs = op_runs(c, group, norm.op);
  const int64_t at = norm_row(c, group, b) + ch;
  Moments moments = {0, 0, 0};
  if (runs && is_batch(norm)) {
    const int64_t positions = c.images * c.node_height * c.node_width;
    const int64_t tiles = (positions + tile - 1) / tile;
    const T* partial =
        c.partial + (static_cast<int64_t>(norm.item) * c.groups + group) * tiles * 3 * c.channels;
    for (int64_t t = lane; t < tiles; t += kWarp) {
      const T* in = partial + t * 3 * c.channels + ch;
      const int64_t left = positions - t * tile;
      const double size = static_cast<double>(left < tile ? left : tile);
      const double sum = in[c.channels];
      moments = merge(moments, {size, in[0] + sum / size, in[2 * c.channels] - sum * sum / size});
    }
    moments = merge_lanes(moments);
  }
  if (lane != 0) return;
  T mean = T(0), var = T(1);
  if (runs && is_batch(norm)) {
    mean = static_cast<T>(moments.mean);
    var = static_cast<T>(moments.square / moments.count);
  } else if (runs && norm.kind == static_cast<int16_t>(Norm::kRunning)) {
    mean = c.table.running_mean[b][ch];
    var = c.table.running_var[b][ch];
  }
  c.mean[at] = mean;
  c.var[at] = var;
  const bool plain = norm.kind == static_cast<int16_t>(Norm::kNone);
  const T* gamma = entry(c.table.gamma, b);
  const double affine = plain || gamma == nullptr ? 1.0 : gamma[ch];
  c.scale[at] = static_cast<T>(plain ? 1.0 : affine / sqrt(var + c.table.eps[b]));
}

// Where the partial sums of entry i stand: [G, tiles, slots, C].
struct SumSlots {
  int slots;
  int first, first_step;      // sum g: first + i * first_step
  int product, product_step;  // sum g * (y - mean)
};

struct Sums {
  double s1, product;
};

// In all lanes of a warp.
template <typename T, typename M>
__device__ __forceinline__ Sums sum_tiles(const Cell<T, M>& c, const SumSlots& slots, int i,
                                          int group, int64_t tiles, int ch) {
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  const T* in = c.partial + group * tiles * slots.slots * c.channels + ch;
  double s1 = 0, product = 0;
  for (int64_t t = lane; t < tiles; t += kWarp) {
    const T* row = in + t * slots.slots * c.channels;
    s1 += row[(slots.first + i * slots.first_step) * c.channels];
    product += row[(slots.product + i * slots.product_step) * c.channels];
  }
  return {warp_sum(s1), warp_sum(product)};
}

// For every op that enters a node, or (`inner`) the first norm of every chain that does:
//   dL/dw = sum_c gamma S2 + beta S1, dL/dgamma = sum_g w S2, dL/dbeta = sum_g w S1,
//   the coefficients of dL/dy, and the scale by which a chain's second block reads its input.
// grid = entries; a warp per channel at a time, the groups one after the other: the gradients of
// gamma and beta are sums over them.
template <typename T, typename M>
__global__ __launch_bounds__(kThreads) void cell_grad_norms(const __grid_constant__ Cell<T, M> c,
                                                            int list, bool inner,
                                                            const SumSlots slots, int64_t tiles) {
  __shared__ double weight_sums[kNormWarps];
  const int i = static_cast<int>(blockIdx.x);
  const int k = c.table.lists[list + i];
  const OpRow& op = c.table.ops[k];
  const int warp = static_cast<int>(threadIdx.x) / kWarp;
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  const int b = inner ? op.norm - 1 : op.norm;
  const bool plain = b < 0 || c.table.norms[b].kind == static_cast<int16_t>(Norm::kNone);
  const T* gammas = plain ? nullptr : entry(c.table.gamma, b);
  const T* betas = plain ? nullptr : entry(c.table.beta, b);
  const double count = static_cast<double>(c.images * c.node_height * c.node_width);
  for (int group = 0; group < c.groups; ++group) {
    const bool runs = op_runs(c, group, k);
    double grad_weight = 0;
    for (int ch = warp; ch < c.channels; ch += kNormWarps) {
      Sums sums = {0, 0};
      if (runs) sums = sum_tiles(c, slots, i, group, tiles, ch);
      if (lane != 0) continue;
      const double weight = inner ? 1.0 : op_weight(c, group, k);
      const double gamma = gammas == nullptr ? 1.0 : gammas[ch];
      const double beta = betas == nullptr ? 0.0 : betas[ch];
      const int64_t at = b < 0 ? 0 : norm_row(c, group, b) + ch;
      const double variance = plain ? 1.0 : c.var[at] + c.table.eps[b];
      const double sigma = plain ? 1.0 : sqrt(variance);
      grad_weight += gamma * sums.product / sigma + beta * sums.s1;
      const double grad_gamma = runs ? weight * sums.product / sigma : 0;
      const double grad_beta = runs ? weight * sums.s1 : 0;
      if (b >= 0) {
        T* gamma_out = entry(c.table.grad_gamma, b);
        T* beta_out = entry(c.table.grad_beta, b);
        if (gamma_out != nullptr) {
          gamma_out[ch] = static_cast<T>(group == 0 ? grad_gamma : gamma_out[ch] + grad_gamma);
        }
        if (beta_out != nullptr) {
          beta_out[ch] = static_cast<T>(group == 0 ? grad_beta : beta_out[ch] + grad_beta);
        }
      }
      if (b < 0 || !runs) continue;
      c.grad_scale[at] = static_cast<T>(weight * gamma / sigma);
      c.grad_mean[at] = static_cast<T>(sums.s1 / count);
      c.grad_slope[at] = static_cast<T>(sums.product / count / variance);
      if (inner || !is_chain(op)) continue;
      const int64_t before = norm_row(c, group, b - 1) + ch;
      const T* first_gamma = entry(c.table.gamma, b - 1);
      const double first = first_gamma == nullptr ? 1.0 : first_gamma[ch];
      c.scale[before] = static_cast<T>(first / sqrt(c.var[before] + c.table.eps[b - 1]));
    }
    if (inner || c.grad_weights == nullptr) continue;
    if (lane == 0) weight_sums[warp] = grad_weight;
    __syncthreads();
    if (threadIdx.x == 0) {
      double sum = 0;
      for (int w = 0; w < kNormWarps; ++w) sum += weight_sums[w];
      c.grad_weights[group * c.ops + k] = static_cast<T>(sum);
    }
    __syncthreads();
  }
}

}  // namespace
}  // namespace darts_fast::cuda
