// SPDX-License-Identifier: Apache-2.0
// What has no map's size: statistics of norms from the partial ones of the tiles, and behind the
// backward's reductions the gradients that pass a norm. The second pass of every reduction: a warp
// per channel, lanes over tiles in a fixed order, in double.
#pragma once

#include "cuda/cell.cuh"
#include "cuda/last_block.cuh"
#include "cuda/moments.cuh"

namespace darts_fast::cuda {
namespace {

constexpr int kNormWarps = kThreads / kWarp;

// The partial statistics of a tile: [blocks + pools, G, tiles, 3, C].
template <typename T, typename M>
__device__ __forceinline__ T* partial_of(const Cell<T, M>& c, int item, int group, int64_t tiles,
                                         int64_t tile) {
  return c.partial +
         ((static_cast<int64_t>(item) * c.groups + group) * tiles + tile) * 3 * c.channels;
}

// Whether a norm has the statistics of its group's tiles.
template <typename T, typename M>
__device__ __forceinline__ bool is_merged(const Cell<T, M>& c, int group, int b) {
  const NormRow& norm = c.table.norms[b];
  return is_batch(norm) && op_runs(c, group, norm.op);
}

// mean, var and scale = gamma / sigma of one channel.
template <typename T, typename M>
__device__ __forceinline__ void store_norm(const Cell<T, M>& c, int group, int b, int ch, T mean,
                                           T var) {
  const int64_t at = norm_row(c, group, b) + ch;
  const bool plain = c.table.norms[b].kind == static_cast<int16_t>(Norm::kNone);
  const T* gamma = entry(c.table.gamma, b);
  const double affine = plain || gamma == nullptr ? 1.0 : gamma[ch];
  c.mean[at] = mean;
  c.var[at] = var;
  c.scale[at] = static_cast<T>(plain ? 1.0 : affine / sqrt(var + c.table.eps[b]));
}

// Of the norms whose statistics are given, and of idle ops: 0 and 1.
// grid = (channels / threads, norms, groups).
template <typename T, typename M>
__global__ __launch_bounds__(kThreads) void cell_given_norms(const __grid_constant__ Cell<T, M> c,
                                                             int list) {
  const int ch = static_cast<int>(blockIdx.x) * kThreads + static_cast<int>(threadIdx.x);
  const int b = c.table.lists[list + static_cast<int>(blockIdx.y)];
  const int group = static_cast<int>(blockIdx.z);
  if (ch >= c.channels || is_merged(c, group, b)) return;
  const NormRow& norm = c.table.norms[b];
  const bool given =
      norm.kind == static_cast<int16_t>(Norm::kRunning) && op_runs(c, group, norm.op);
  store_norm(c, group, b, ch, given ? c.table.running_mean[b][ch] : T(0),
             given ? c.table.running_var[b][ch] : T(1));
}

// Of channel `ch` of a map, from its tiles of `tile` positions, in lane 0 of a warp; partial is
// [tiles, 3, channels]. Bytes: the partial statistics.
template <typename T>
__device__ __forceinline__ Moments merge_tiles(const T* partial, int channels, int64_t positions,
                                               int tile, int ch) {
  const int64_t tiles = (positions + tile - 1) / tile;
  Moments moments = {0, 0, 0};
#pragma unroll 1  // inlined behind a product, several rounds at a time spill its registers
  for (int64_t t = static_cast<int>(threadIdx.x) % kWarp; t < tiles; t += kWarp) {
    const T* in = partial + t * 3 * channels + ch;
    const int64_t left = positions - t * tile;
    const double size = static_cast<double>(left < tile ? left : tile);
    const double sum = in[channels];
    moments = merge(moments, {size, in[0] + sum / size, in[2 * channels] - sum * sum / size});
  }
  return merge_lanes(moments);
}

// Of the norms that normalise an item's map, from its tiles of `tile` positions: channels
// [first, first + channels). All threads of a block.
template <typename T, typename M>
__device__ __forceinline__ void merge_norms(const Cell<T, M>& c, int item, int group, int first,
                                            int channels, int tile) {
  const int warp = static_cast<int>(threadIdx.x) / kWarp;
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  const int64_t positions = c.images * c.node_height * c.node_width;
  const int64_t tiles = (positions + tile - 1) / tile;
  const ListRange norms = c.table.item_norms[item];
  for (int ch = first + warp; ch < first + channels; ch += kNormWarps) {
    const Moments moments =
        merge_tiles(partial_of(c, item, group, tiles, 0), c.channels, positions, tile, ch);
    if (lane != 0) continue;
    for (int i = 0; i < norms.count; ++i) {
      const int b = c.table.lists[norms.at + i];
      if (!is_merged(c, group, b)) continue;
      store_norm(c, group, b, ch, static_cast<T>(moments.mean),
                 static_cast<T>(moments.square / moments.count));
    }
  }
}

// S1 = sum g, and sum g (y - mean).
struct Sums {
  double s1, product;
};

// Over the tiles, of slots `first` and `product` of partial, [G, tiles, slots, C]; in lane 0 of a
// warp.
template <typename T>
__device__ __forceinline__ Sums sum_tiles(const T* partial, int channels, int64_t slots, int first,
                                          int product, int group, int64_t tiles, int ch) {
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  const T* in = partial + group * tiles * slots * channels + ch;
  double s1 = 0, products = 0;
  for (int64_t t = lane; t < tiles; t += kWarp) {
    const T* row = in + t * slots * channels;
    s1 += row[first * channels];
    products += row[product * channels];
  }
  return {warp_sum(s1), warp_sum(products)};
}

// dL/dy = scale * ((g - mean) - slope * (y - center)) behind a norm.
template <typename T>
struct PassingNorm {
  T* scale;
  T* mean;
  T* slope;

  // Of a channel whose norm multiplies by `factor`, over `count` values.
  __device__ __forceinline__ void store(int64_t at, double factor, double variance,
                                        const Sums& sums, double count) const {
    scale[at] = static_cast<T>(factor);
    mean[at] = static_cast<T>(sums.s1 / count);
    slope[at] = static_cast<T>(sums.product / count / variance);
  }
};

// Of norm b of op k (b < 0: of an op without one) in one group and channel, with S2 = sum g y^:
// dL/dgamma = sum_g w S2, dL/dbeta = sum_g w S1, and the coefficients of dL/dy. Groups come in
// their order, the first of them starts the sums. Returns gamma S2 + beta S1.
template <typename T, typename M>
__device__ __forceinline__ double norm_gradients(const Cell<T, M>& c, int k, int b, double weight,
                                                 int group, int ch, const Sums& sums) {
  const bool plain = b < 0 || c.table.norms[b].kind == static_cast<int16_t>(Norm::kNone);
  const T* gammas = plain ? nullptr : entry(c.table.gamma, b);
  const T* betas = plain ? nullptr : entry(c.table.beta, b);
  const double gamma = gammas == nullptr ? 1.0 : gammas[ch];
  const double beta = betas == nullptr ? 0.0 : betas[ch];
  const int64_t at = b < 0 ? 0 : norm_row(c, group, b) + ch;
  const double variance = plain ? 1.0 : c.var[at] + c.table.eps[b];
  const double sigma = plain ? 1.0 : sqrt(variance);
  const double s2 = sums.product / sigma;
  if (b < 0) return gamma * s2 + beta * sums.s1;
  const bool runs = op_runs(c, group, k);
  const auto add = [&](T* out, double grad) {
    if (out == nullptr) return;
    const double before = group == 0 ? 0.0 : out[ch];
    out[ch] = static_cast<T>(before + (runs ? weight * grad : 0.0));
  };
  add(entry(c.table.grad_gamma, b), s2);
  add(entry(c.table.grad_beta, b), sums.s1);
  if (runs) {
    const double count = static_cast<double>(c.images * c.node_height * c.node_width);
    const PassingNorm<T> passing = {c.grad_scale, c.grad_mean, c.grad_slope};
    passing.store(at, weight * gamma / sigma, variance, sums, count);
  }
  return gamma * s2 + beta * sums.s1;
}

// For every op that enters a node: dL/dw = sum_c gamma S2 + beta S1, what passes its norm, and the
// scale by which a chain's second block reads its input. A launch of its own: the reductions are of
// all ops at once, and the last of their blocks would go through them alone.
// grid = entries; a warp per channel at a time, the groups one after the other: the gradients of
// gamma and beta are sums over them.
template <typename T, typename M>
__global__ __launch_bounds__(kThreads) void cell_grad_norms(const __grid_constant__ Cell<T, M> c,
                                                            int list, int64_t tiles) {
  __shared__ double weight_sums[kNormWarps];
  const int i = static_cast<int>(blockIdx.x);
  const int k = c.table.lists[list + i];
  const OpRow& op = c.table.ops[k];
  const int warp = static_cast<int>(threadIdx.x) / kWarp;
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  for (int group = 0; group < c.groups; ++group) {
    const bool runs = op_runs(c, group, k);
    double grad_weight = 0;
    for (int ch = warp; ch < c.channels; ch += kNormWarps) {
      Sums sums = {0, 0};
      if (runs) sums = sum_tiles(c.partial, c.channels, 1 + gridDim.x, 0, 1 + i, group, tiles, ch);
      if (lane != 0) continue;
      grad_weight += norm_gradients(c, k, op.norm, op_weight(c, group, k), group, ch, sums);
      if (!runs || !is_chain(op)) continue;
      const int inner = op.norm - 1;
      const int64_t at = norm_row(c, group, inner) + ch;
      const T* gamma = entry(c.table.gamma, inner);
      const double affine = gamma == nullptr ? 1.0 : gamma[ch];
      c.scale[at] = static_cast<T>(affine / sqrt(c.var[at] + c.table.eps[inner]));
    }
    if (c.grad_weights == nullptr) continue;
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
