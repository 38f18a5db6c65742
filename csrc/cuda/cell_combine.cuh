// SPDX-License-Identifier: Apache-2.0
// Sweep 3 of a cell's forward: a node is the sum over the ops that enter it of
// w * ((y - mean) * scale + beta).
//
// grid = (tiles, groups * chunks of channels). Bytes: every active map read once, the node written
// once, and once more into its place in the output where later ops read it.
#pragma once

#include "cuda/cell_strip.cuh"

namespace darts_fast::cuda {
namespace {

template <typename T, typename M, int V>
__global__ __launch_bounds__(kThreads,
                             kResident<T>) void cell_combine(const __grid_constant__ Cell<T, M> c,
                                                             int list, int count, int node) {
  const StripPlace<V> at(c.channels, c.images * c.node_height * c.node_width);
  if (!at.works) return;
  const int group = at.group;
  const int64_t first = (at.begin + at.row) * c.channels + at.ch;
  const int64_t step = static_cast<int64_t>(at.strip.rows) * c.channels;
  Vec<T, V> sum[kItems];
#pragma unroll
  for (int j = 0; j < kItems; ++j) sum[j] = zeros<T, V>();
  for (int i = 0; i < count; ++i) {
    const int k = c.table.lists[list + i];
    if (!op_runs(c, group, k)) continue;
    const OpRow& op = c.table.ops[k];
    const TermMap<T, M> y = term_map(c, op, group);
    const T weight = op_weight(c, group, k);
    Vec<T, V> scale, center = zeros<T, V>(), shift = zeros<T, V>();
#pragma unroll
    for (int lane = 0; lane < V; ++lane) scale.lane[lane] = weight;
    if (op.norm >= 0) {
      const int64_t row = norm_row(c, group, op.norm) + at.ch;
      const T* beta = entry(c.table.beta, op.norm);
      const bool affine =
          beta != nullptr && c.table.norms[op.norm].kind != static_cast<int16_t>(Norm::kNone);
      center = load<T, V>(c.mean + row);
      const Vec<T, V> factor = load<T, V>(c.scale + row);
#pragma unroll
      for (int lane = 0; lane < V; ++lane) {
        scale.lane[lane] *= factor.lane[lane];
        if (affine) shift.lane[lane] = weight * beta[at.ch + lane];
      }
    }
    Vec<T, V> value[kItems];
#pragma unroll
    for (int j = 0; j < kItems; ++j) {
      value[j] = at.has(j) ? load_term<T, M, V>(y, first + j * step) : zeros<T, V>();
    }
#pragma unroll
    for (int j = 0; j < kItems; ++j) {
#pragma unroll
      for (int lane = 0; lane < V; ++lane) {
        sum[j].lane[lane] +=
            (value[j].lane[lane] - center.lane[lane]) * scale.lane[lane] + shift.lane[lane];
      }
    }
  }
  const int64_t group_begin = group * c.images * c.node_height * c.node_width;
  const int map = c.table.node_maps[node];
  const int place = node - (c.nodes - c.multiplier);
#pragma unroll
  for (int j = 0; j < kItems; ++j) {
    if (!at.has(j)) continue;
    if (map >= 0) store_narrow<V>(map_of(c, map, group) + first + j * step, sum[j]);
    if (place < 0) continue;
    const int64_t position = group_begin + at.begin + at.position(j);
    store_narrow<V>(c.output + (position * c.multiplier + place) * c.channels + at.ch, sum[j]);
  }
}

}  // namespace
}  // namespace darts_fast::cuda
