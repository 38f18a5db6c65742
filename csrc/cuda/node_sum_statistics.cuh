// SPDX-License-Identifier: Apache-2.0
// Sweep 1 of the forward: statistics of the maps, and what the sum needs of them.
#pragma once

#include "cuda/moments.cuh"
#include "cuda/node_sum_place.cuh"

namespace darts_fast::cuda {
namespace {

constexpr int kMergeWarps = kThreads / kWarp;

// partial = {c, sum (y - c), sum (y - c)^2} per channel over a tile, c = the rounded mean of y.
//
// grid = (tiles, chunks of columns, groups * terms with batch statistics), one tile per block, kept
// in registers between the mean and the squares. The second sums take the rounding of c back out:
// the difference of two close numbers is exact, so a mean a thousand deviations away costs nothing.
// Memory: every batch-normalised map read once; three values per channel and tile written.
template <typename T, typename Map, int V>
__global__ __launch_bounds__(kThreads, 3) void node_sum_statistics(
    const __grid_constant__ Forward<T, Map> f) {
  __shared__ Vec<T, V> totals[1][kThreads];
  __shared__ Vec<T, V> moments[2][kThreads];
  const NodeSumShape& s = f.p.shape;
  const Tiling& t = f.tiling;
  const int group = static_cast<int>(blockIdx.z) / f.terms.statistics_count;
  const int term =
      f.terms.statistics[static_cast<int>(blockIdx.z) - group * f.terms.statistics_count];
  if (!bit(f.terms.active[group], term)) return;
  const Place at = place<V>(s, t, f.terms.first_group + group);
  const Map* y = f.terms.maps[term] + at.base;
  Vec<Map, V> value[kItems<Map>];
#pragma unroll
  for (int j = 0; j < kItems<Map>; ++j)
    value[j] = load<Map, V>(y, at.first + j * at.step, at.count);
  Vec<T, V> total[1] = {zeros<T, V>()};
#pragma unroll
  for (int j = 0; j < kItems<Map>; ++j) {
#pragma unroll
    for (int lane = 0; lane < V; ++lane) total[0].lane[lane] += widen(value[j].lane[lane]);
  }
  sum_rows(total, totals, t.columns, t.rows);

  const T size = static_cast<T>(positions_in(s, blockIdx.x));
  const Row<T, V> sums(totals[0], s, t);
  const int slot = static_cast<int>(threadIdx.x) % t.columns * V;
  Vec<T, V> moment[2] = {zeros<T, V>(), zeros<T, V>()};
#pragma unroll
  for (int lane = 0; lane < V; ++lane) {
    const T c = sums.channel(slot + lane) / size;
#pragma unroll
    for (int j = 0; j < kItems<Map>; ++j) {
      if (at.first + j * at.step + lane < at.count) {
        const T d = widen(value[j].lane[lane]) - c;
        moment[0].lane[lane] += d;
        moment[1].lane[lane] += d * d;
      }
    }
  }
  sum_rows(moment, moments, t.columns, t.rows);

  const Row<T, V> differences(moments[0], s, t);
  const Row<T, V> squares(moments[1], s, t);
  const int64_t row = static_cast<int64_t>(group) * f.terms.count + term;
  T* out = f.partial + (row * tile_count(s) + blockIdx.x) * 3 * s.channels;
  for (int i = static_cast<int>(threadIdx.x); i < sums.channels; i += kThreads) {
    const int64_t c = static_cast<int64_t>(blockIdx.y) * sums.channels + i;
    if (c >= s.channels) continue;
    out[c] = sums.channel(i) / size;
    out[s.channels + c] = differences.channel(i);
    out[2 * s.channels + c] = squares.channel(i);
  }
}

// mean, var from the partial moments; then what `combine` needs of a term:
//   scale = w * gamma / sqrt(var + eps), center = mean, constant = sum_k w_k * beta_k.
//
// grid = (channels / warps, terms + 1, groups), one warp per channel of a term, its lanes over the
// tiles, merged in double: lane by lane, then by halves. The last y of the grid sums the constant,
// its lanes over the terms. Memory: the partial moments, small beside the maps.
template <typename T, typename Map>
__global__ __launch_bounds__(kThreads) void node_sum_merge(
    const __grid_constant__ Forward<T, Map> f) {
  const NodeSumShape& s = f.p.shape;
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  const int64_t c = static_cast<int64_t>(blockIdx.x) * kMergeWarps + threadIdx.x / kWarp;
  if (c >= s.channels) return;
  const int i = static_cast<int>(blockIdx.y);
  const int group = static_cast<int>(blockIdx.z);
  const uint64_t active = f.terms.active[group];
  const int64_t first_row = (f.terms.first_group + group) * s.terms + f.terms.first_term;
  const int64_t width = f.tiling.repeats * s.channels;
  if (i == f.terms.count) {
    double sum = 0;
    for (int k = lane; k < f.terms.count && f.p.beta != nullptr; k += kWarp) {
      if (!bit(active & f.terms.normalised, k)) continue;
      const T beta = f.p.beta[(f.terms.first_term + k) * s.channels + c];
      sum += static_cast<double>(f.p.weights[first_row + k]) * beta;
    }
    sum = warp_sum(sum);
    if (lane != 0) return;
    for (int64_t at = c; at < width; at += s.channels) {
      f.constant[group * width + at] = static_cast<T>(sum);
    }
    return;
  }

  const int64_t row = first_row + i;
  const int64_t chunk_row = static_cast<int64_t>(group) * f.terms.count + i;
  const bool batch = bit(f.terms.batch, i);
  const bool normalised = bit(f.terms.normalised, i);
  Moments moments = {0, 0, 0};
  if (batch && bit(active, i)) {
    const int64_t tiles = tile_count(s);
    for (int64_t tile = lane; tile < tiles; tile += kWarp) {
      const T* in = f.partial + (chunk_row * tiles + tile) * 3 * s.channels + c;
      const double size = positions_in(s, tile);
      const double sum = in[s.channels];
      moments = merge(moments, {size, in[0] + sum / size, in[2 * s.channels] - sum * sum / size});
    }
    moments = merge_lanes(moments);
  }
  if (lane != 0) return;
  if (batch || !normalised) {
    f.p.mean[row * s.channels + c] = static_cast<T>(moments.mean);
    f.p.var[row * s.channels + c] =
        moments.count > 0 ? static_cast<T>(moments.square / moments.count) : T(1);
  }
  if (!bit(active, i)) return;
  T center = T(0);
  double scale = f.p.weights[row];
  if (normalised) {
    center = f.p.mean[row * s.channels + c];
    if (f.p.gamma != nullptr) scale *= f.p.gamma[(f.terms.first_term + i) * s.channels + c];
    scale /= sqrt(f.p.var[row * s.channels + c] + f.terms.eps[i]);
  }
  for (int64_t at = c; at < width; at += s.channels) {
    f.center[chunk_row * width + at] = center;
    f.scale[chunk_row * width + at] = static_cast<T>(scale);
  }
}

}  // namespace
}  // namespace darts_fast::cuda
