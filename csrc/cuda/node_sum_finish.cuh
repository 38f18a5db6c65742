// SPDX-License-Identifier: Apache-2.0
// Between the sweeps of the backward: gradients that have no map's size.
#pragma once

#include "cuda/node_sum_place.cuh"

namespace darts_fast::cuda {
namespace {

constexpr int kFinishWarps = 16;

// S1 and S2 from the partial sums, then everything that has no map's size:
//   dL/dw = sum_c gamma S2 + beta S1, dL/dgamma = sum_g w S2, dL/dbeta = sum_g w S1,
//   and the coefficients of dL/dy.
//
// grid = terms, a block of kFinishWarps warps, one warp per channel at a time, its lanes over the
// tiles in double. A block goes through the groups itself: gradients of gamma and beta are sums
// over them, and more than one group in a backward is rare. Memory: the partial sums.
template <typename T, typename Map>
__global__ __launch_bounds__(kFinishWarps* kWarp) void node_sum_finish(
    const __grid_constant__ Backward<T, Map> f) {
  __shared__ double weight_sums[kGroups][kFinishWarps];
  const NodeSumShape& s = f.p.shape;
  const int i = static_cast<int>(blockIdx.x);
  const int warp = static_cast<int>(threadIdx.x) / kWarp;
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  const int64_t k = f.terms.first_term + i;
  const int64_t tiles = tile_count(s);
  const int64_t slots = 1 + f.terms.count;
  const int64_t width = f.tiling.repeats * s.channels;
  const bool batch = bit(f.terms.batch, i);
  const bool normalised = bit(f.terms.normalised, i);
  const bool reduced = bit(f.terms.reduced, i);
  if (lane == 0) {
    for (int group = 0; group < f.terms.groups; ++group) weight_sums[group][warp] = 0;
  }
  for (int64_t c = warp; c < s.channels; c += kFinishWarps) {
    const double gamma = normalised && f.p.gamma != nullptr ? f.p.gamma[k * s.channels + c] : T(1);
    const double beta = normalised && f.p.beta != nullptr ? f.p.beta[k * s.channels + c] : T(0);
    double grad_gamma = 0, grad_beta = 0;
    for (int group = 0; group < f.terms.groups; ++group) {
      const bool active = bit(f.terms.active[group], i);
      const T* in = f.partial + group * tiles * slots * s.channels + c;
      double s1 = 0, s2 = 0;
      for (int64_t tile = lane; tile < tiles; tile += kWarp) {
        s1 += in[tile * slots * s.channels];
        if (active && reduced) s2 += in[(tile * slots + 1 + i) * s.channels];
      }
      s1 = warp_sum(s1);
      s2 = warp_sum(s2);
      if (lane != 0) continue;
      const int64_t row = (f.terms.first_group + group) * s.terms + k;
      const double size = static_cast<double>(s.positions);
      if (i == 0) {
        for (int64_t at = c; at < width; at += s.channels) {
          f.shift[group * width + at] = static_cast<T>(s1 / size);
        }
      }
      if (!active) continue;
      const double sigma = normalised ? sqrt(f.p.var[row * s.channels + c] + f.terms.eps[i]) : 1.0;
      const double w = f.p.weights[row];
      s2 /= sigma;
      weight_sums[group][warp] += gamma * s2 + beta * s1;
      if (normalised) {
        grad_gamma += w * s2;
        grad_beta += w * s1;
      }
      const int64_t first = (static_cast<int64_t>(group) * f.terms.count + i) * width;
      for (int64_t at = first + c; at < first + width; at += s.channels) {
        f.scale[at] = static_cast<T>(w * gamma / sigma);
        if (!batch) continue;
        f.slope[at] = static_cast<T>(s2 / size / sigma);
        f.center[at] = f.p.mean[row * s.channels + c];
      }
    }
    if (lane != 0) continue;
    const bool add = f.terms.first_group > 0;
    T* gamma_out = f.p.grad_gamma == nullptr ? nullptr : f.p.grad_gamma + k * s.channels + c;
    T* beta_out = f.p.grad_beta == nullptr ? nullptr : f.p.grad_beta + k * s.channels + c;
    if (gamma_out != nullptr)
      *gamma_out = static_cast<T>(add ? *gamma_out + grad_gamma : grad_gamma);
    if (beta_out != nullptr) *beta_out = static_cast<T>(add ? *beta_out + grad_beta : grad_beta);
  }
  __syncthreads();
  if (f.p.grad_weights == nullptr) return;
  for (int group = static_cast<int>(threadIdx.x); group < f.terms.groups;
       group += kFinishWarps * kWarp) {
    double sum = 0;
    for (int w = 0; w < kFinishWarps; ++w) sum += weight_sums[group][w];
    f.p.grad_weights[(f.terms.first_group + group) * s.terms + k] = static_cast<T>(sum);
  }
}

}  // namespace
}  // namespace darts_fast::cuda
