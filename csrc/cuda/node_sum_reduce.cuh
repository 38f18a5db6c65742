// SPDX-License-Identifier: Apache-2.0
// Sweep 1 of the backward: the reductions of batch norm.
#pragma once

#include "cuda/node_sum_place.cuh"

namespace darts_fast::cuda {
namespace {

constexpr int kTermsPerBlock = 4;  // of the backward's reduction

// partial = sum g and, per term, sum g * (y - mean), over a tile.
//
// grid = (tiles, chunks of columns, groups * ceil(terms / kTermsPerBlock)): a block reads its tile
// of g once for kTermsPerBlock maps, and adds its rows up once for all of them. A term whose sums
// nobody needs stands in with g itself, which is cached, so that the loads have no branch between
// them. Memory: every map read once; g once from memory, then from the second-level cache. Without
// the bound of two blocks the compiler spills registers of doubles on sm_100.
template <typename T, int V>
__global__ __launch_bounds__(kThreads,
                             2) void node_sum_reduce(const __grid_constant__ Backward<T> f) {
  __shared__ Vec<T, V> shared[1 + kTermsPerBlock][kThreads];
  const NodeSumShape& s = f.p.shape;
  const Tiling& t = f.tiling;
  const int blocks = (f.terms.count + kTermsPerBlock - 1) / kTermsPerBlock;
  const int group = static_cast<int>(blockIdx.z) / blocks;
  const int first = (static_cast<int>(blockIdx.z) - group * blocks) * kTermsPerBlock;
  const Place at = place<V>(s, t, f.terms.first_group + group);
  const T* g = f.p.grad_node + at.base;
  const uint64_t read = f.terms.active[group] & f.terms.reduced;
  const T* y[kTermsPerBlock];
  Vec<T, V> mean[kTermsPerBlock];
#pragma unroll
  for (int q = 0; q < kTermsPerBlock; ++q) {
    const bool reads = first + q < f.terms.count && bit(read, first + q);
    y[q] = reads ? f.terms.maps[first + q] + at.base : g;
    const int64_t row =
        (f.terms.first_group + group) * s.terms + f.terms.first_term + (reads ? first + q : 0);
#pragma unroll
    for (int lane = 0; lane < V; ++lane) {
      const int c = (at.slot + lane) % static_cast<int>(s.channels);
      mean[q].lane[lane] = f.p.mean[row * s.channels + c];
    }
  }
  Vec<T, V> sum[1 + kTermsPerBlock];
#pragma unroll
  for (int q = 0; q < 1 + kTermsPerBlock; ++q) sum[q] = zeros<T, V>();
#pragma unroll 2
  for (int j = 0; j < kItems; ++j) {
    const int i = at.first + j * at.step;
    const Vec<T, V> grad = load<T, V>(g, i, at.count);
    Vec<T, V> value[kTermsPerBlock];
#pragma unroll
    for (int q = 0; q < kTermsPerBlock; ++q) value[q] = load<T, V>(y[q], i, at.count);
#pragma unroll
    for (int lane = 0; lane < V; ++lane) {
      sum[0].lane[lane] += grad.lane[lane];
      // Behind the end of the tile the gradient is 0, and so is the product.
#pragma unroll
      for (int q = 0; q < kTermsPerBlock; ++q) {
        sum[1 + q].lane[lane] += grad.lane[lane] * (value[q].lane[lane] - mean[q].lane[lane]);
      }
    }
  }
  sum_rows(sum, shared, t.columns, t.rows);

  T* out = f.partial + (group * tile_count(s) + blockIdx.x) * (1 + f.terms.count) * s.channels;
#pragma unroll
  for (int q = 0; q < 1 + kTermsPerBlock; ++q) {
    const bool wanted =
        q == 0 ? first == 0 : first + q - 1 < f.terms.count && bit(read, first + q - 1);
    if (!wanted) continue;
    const Row<T, V> sums(shared[q], s, t);
    for (int i = static_cast<int>(threadIdx.x); i < sums.channels; i += kThreads) {
      const int64_t c = static_cast<int64_t>(blockIdx.y) * sums.channels + i;
      if (c < s.channels) out[(q == 0 ? 0 : first + q) * s.channels + c] = sums.channel(i);
    }
  }
}

}  // namespace
}  // namespace darts_fast::cuda
