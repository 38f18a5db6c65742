// SPDX-License-Identifier: Apache-2.0
// Sweep 2 of the backward: gradients of the maps.
#pragma once

#include "cuda/node_sum_place.cuh"

namespace darts_fast::cuda {
namespace {

constexpr int kGradItems = 4;  // at once in the backward, which keeps three vectors of each

template <typename T, typename Map, int V, int Items, bool Whole>
__device__ __forceinline__ void grad_items(const Backward<T, Map>& f, int group, const Place& at,
                                           int first) {
  const int start = at.first + first * at.step;
  const int count = Whole ? kNoEnd : at.count;
  const int64_t width = f.tiling.repeats * f.p.shape.channels;
  const Map* g = f.p.grad_node + at.base;
  const Vec<T, V> shift = load<T, V>(f.shift + group * width + at.slot);
  Vec<Map, V> grad[Items];
#pragma unroll
  for (int j = 0; j < Items; ++j) grad[j] = load<Map, V>(g, start + j * at.step, count);
  for (int i = 0; i < f.terms.count; ++i) {
    if (f.terms.grads[i] == nullptr) continue;
    Map* out = f.terms.grads[i] + at.base;
    Vec<T, V> result[Items];
    if (!bit(f.terms.active[group], i)) {
#pragma unroll
      for (int j = 0; j < Items; ++j) result[j] = zeros<T, V>();
    } else {
      const int64_t row = (static_cast<int64_t>(group) * f.terms.count + i) * width + at.slot;
      const Vec<T, V> scale = load<T, V>(f.scale + row);
#pragma unroll
      for (int j = 0; j < Items; ++j) result[j] = widen_lanes<T, V>(grad[j]);
      if (bit(f.terms.batch, i)) {
        const Map* y = f.terms.maps[i] + at.base;
        Vec<Map, V> value[Items];
#pragma unroll
        for (int j = 0; j < Items; ++j) value[j] = load<Map, V>(y, start + j * at.step, count);
        const Vec<T, V> slope = load<T, V>(f.slope + row);
        const Vec<T, V> center = load<T, V>(f.center + row);
#pragma unroll
        for (int j = 0; j < Items; ++j) {
#pragma unroll
          for (int lane = 0; lane < V; ++lane) {
            const T d = widen(value[j].lane[lane]) - center.lane[lane];
            result[j].lane[lane] = (result[j].lane[lane] - shift.lane[lane]) - slope.lane[lane] * d;
          }
        }
      }
#pragma unroll
      for (int j = 0; j < Items; ++j) {
#pragma unroll
        for (int lane = 0; lane < V; ++lane) result[j].lane[lane] *= scale.lane[lane];
      }
    }
#pragma unroll
    for (int j = 0; j < Items; ++j) {
      store<Map, V>(out, start + j * at.step, count, narrow_lanes<Map, V>(result[j]));
    }
  }
}

// dL/dy = scale * (g - shift - slope * (y - center)) under batch statistics, scale * g under given
// ones or none, 0 for an inactive term.
//
// grid = (tiles, chunks of columns, groups), kGradItems vectors of g in registers while the terms
// pass by: of all kItems some architectures spill. The last tile of a group goes item by item.
// Memory: g read once, every batch-normalised map read once, every wanted gradient written once.
template <typename T, typename Map, int V>
__global__ __launch_bounds__(kThreads, 2) void node_sum_grad_maps(
    const __grid_constant__ Backward<T, Map> f) {
  const int group = static_cast<int>(blockIdx.z);
  const Place at = place<V>(f.p.shape, f.tiling, f.terms.first_group + group);
  if (at.count == 0) return;
  if (is_whole(f.p.shape, blockIdx.x)) {
#pragma unroll 1
    for (int j = 0; j < kItems<Map>; j += kGradItems)
      grad_items<T, Map, V, kGradItems, true>(f, group, at, j);
  } else {
    for (int j = 0; j < kItems<Map>; ++j) grad_items<T, Map, V, 1, false>(f, group, at, j);
  }
}

}  // namespace
}  // namespace darts_fast::cuda
