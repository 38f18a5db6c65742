// SPDX-License-Identifier: Apache-2.0
// Sweep 2 of the forward: the sum.
#pragma once

#include <type_traits>

#include "cuda/node_sum_place.cuh"

namespace darts_fast::cuda {
namespace {

// Where chunks of terms add up; null where there is one chunk and a narrower node.
template <typename T, typename Map>
__device__ __forceinline__ T* sum_so_far(const Forward<T, Map>& f, const Place& at, Map* node) {
  if constexpr (std::is_same_v<T, Map>) {
    return node;
  } else {
    return f.sum == nullptr ? nullptr : f.sum + at.base;
  }
}

// Whether the chunk's sum goes to the node: to be rounded once, only the last one's.
template <typename T, typename Map>
__device__ __forceinline__ bool stores_node(const Forward<T, Map>& f) {
  return std::is_same_v<T, Map> || f.terms.first_term + f.terms.count == f.p.shape.terms;
}

// Items vectors of the node, from item `first` of the thread. With Whole every item lies in the
// tile and nothing is checked.
template <typename T, typename Map, int V, int Items, bool Whole>
__device__ __forceinline__ void combine_items(const Forward<T, Map>& f, int group, const Place& at,
                                              int first) {
  const int start = at.first + first * at.step;
  const int count = Whole ? kNoEnd : at.count;
  const int64_t width = f.tiling.repeats * f.p.shape.channels;
  Map* node = f.p.node + at.base;
  T* so_far = sum_so_far(f, at, node);
  const Vec<T, V> constant = load<T, V>(f.constant + group * width + at.slot);
  Vec<T, V> sum[Items];
#pragma unroll
  for (int j = 0; j < Items; ++j) {
    sum[j] = constant;
    if (f.terms.first_term > 0) {
      const Vec<T, V> before = load<T, V>(so_far, start + j * at.step, count);
#pragma unroll
      for (int lane = 0; lane < V; ++lane) sum[j].lane[lane] += before.lane[lane];
    }
  }
  for (int i = 0; i < f.terms.count; ++i) {
    if (!bit(f.terms.active[group], i)) continue;
    const int64_t row = (static_cast<int64_t>(group) * f.terms.count + i) * width + at.slot;
    const Map* y = f.terms.maps[i] + at.base;
    Vec<Map, V> value[Items];
#pragma unroll
    for (int j = 0; j < Items; ++j) value[j] = load<Map, V>(y, start + j * at.step, count);
    const Vec<T, V> scale = load<T, V>(f.scale + row);
    const Vec<T, V> center = load<T, V>(f.center + row);
#pragma unroll
    for (int j = 0; j < Items; ++j) {
#pragma unroll
      for (int lane = 0; lane < V; ++lane) {
        sum[j].lane[lane] += (widen(value[j].lane[lane]) - center.lane[lane]) * scale.lane[lane];
      }
    }
  }
  if (stores_node(f)) {
#pragma unroll
    for (int j = 0; j < Items; ++j) {
      store<Map, V>(node, start + j * at.step, count, narrow_lanes<Map, V>(sum[j]));
    }
  } else {
#pragma unroll
    for (int j = 0; j < Items; ++j) {
      store<T, V>(so_far, start + j * at.step, count, sum[j]);
    }
  }
}

// node = constant + sum_k scale_k * (y_k - center_k), over the active terms; of later chunks of
// terms, added to what it is so far.
//
// grid = (tiles, chunks of columns, groups), kItems vectors of the node per thread in registers
// while the terms pass by; a term's coefficients are read once per kItems vectors, from the cache.
// The last tile of a group goes item by item. Memory: every active map read once, the node written
// once.
template <typename T, typename Map, int V>
__global__ __launch_bounds__(kThreads,
                             2) void node_sum_combine(const __grid_constant__ Forward<T, Map> f) {
  const int group = static_cast<int>(blockIdx.z);
  const Place at = place<V>(f.p.shape, f.tiling, f.terms.first_group + group);
  if (at.count == 0) return;
  if (is_whole(f.p.shape, blockIdx.x)) {
    combine_items<T, Map, V, kItems<Map>, true>(f, group, at, 0);
  } else {
    for (int j = 0; j < kItems<Map>; ++j) {
      combine_items<T, Map, V, 1, false>(f, group, at, j);
    }
  }
}

}  // namespace
}  // namespace darts_fast::cuda
