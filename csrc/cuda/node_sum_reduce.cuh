// SPDX-License-Identifier: Apache-2.0
// Sweep 1 of the backward: the reductions of batch norm.
#pragma once

#include "cuda/node_sum_place.cuh"

namespace darts_fast::cuda {
namespace {

// Terms whose sums a block adds up: of more of 16 bits some architectures spill registers.
template <typename Map>
constexpr int kTermsPerBlock = sizeof(Map) == 2 ? 3 : 4;

// partial = sum g and, per term, sum g * (y - mean), over a tile.
//
// grid = (tiles, chunks of columns, groups * ceil(terms / kTermsPerBlock)): a block reads its tile
// of g once for kTermsPerBlock maps, and adds its rows up once for all of them. A term whose sums
// nobody needs stands in with g itself, which is cached, so that the loads have no branch between
// them. Memory: every map read once; g once from memory, then from the second-level cache. Without
// the bound of two blocks the compiler spills registers of doubles on sm_100.
template <typename T, typename Map, int V>
__global__ __launch_bounds__(kThreads,
                             2) void node_sum_reduce(const __grid_constant__ Backward<T, Map> f) {
  constexpr int kTogether = kTermsPerBlock<Map>;
  constexpr int kAtOnce = sizeof(Map) == 2 ? 1 : 2;  // vectors of each map
  static_assert(kItems<Map> % kAtOnce == 0);
  __shared__ Vec<T, V> shared[1 + kTogether][kThreads];
  const NodeSumShape& s = f.p.shape;
  const Tiling& t = f.tiling;
  const int blocks = (f.terms.count + kTogether - 1) / kTogether;
  const int group = static_cast<int>(blockIdx.z) / blocks;
  const int first = (static_cast<int>(blockIdx.z) - group * blocks) * kTogether;
  const Place at = place<V>(s, t, f.terms.first_group + group);
  const Map* g = f.p.grad_node + at.base;
  const uint64_t read = f.terms.active[group] & f.terms.reduced;
  const Map* y[kTogether];
  Vec<T, V> mean[kTogether];
#pragma unroll
  for (int q = 0; q < kTogether; ++q) {
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
  Vec<T, V> sum[1 + kTogether];
#pragma unroll
  for (int q = 0; q < 1 + kTogether; ++q) sum[q] = zeros<T, V>();
#pragma unroll kAtOnce
  for (int j = 0; j < kItems<Map>; ++j) {
    const int i = at.first + j * at.step;
    const Vec<T, V> grad = widen_lanes<T, V>(load<Map, V>(g, i, at.count));
    Vec<Map, V> value[kTogether];
#pragma unroll
    for (int q = 0; q < kTogether; ++q) value[q] = load<Map, V>(y[q], i, at.count);
#pragma unroll
    for (int lane = 0; lane < V; ++lane) {
      sum[0].lane[lane] += grad.lane[lane];
      // Behind the end of the tile the gradient is 0, and so is the product.
#pragma unroll
      for (int q = 0; q < kTogether; ++q) {
        sum[1 + q].lane[lane] +=
            grad.lane[lane] * (widen(value[q].lane[lane]) - mean[q].lane[lane]);
      }
    }
  }
  sum_rows(sum, shared, t.columns, t.rows);

  T* out = f.partial + (group * tile_count(s) + blockIdx.x) * (1 + f.terms.count) * s.channels;
#pragma unroll
  for (int q = 0; q < 1 + kTogether; ++q) {
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
