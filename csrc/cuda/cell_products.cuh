// SPDX-License-Identifier: Apache-2.0
// The reductions of a node's norms in the backward: sums of g = dL/d node, and of g * (y - mean)
// for every op that enters it. partial is [G, tiles, 1 + ops, C]; cell_grad_norms adds it up.
#pragma once

#include "cuda/cell_strip.cuh"

namespace darts_fast::cuda {
namespace {

template <typename T, int V>
__device__ __forceinline__ void add_scaled(Vec<T, V>& sum, T factor, const Vec<T, V>& value) {
#pragma unroll
  for (int lane = 0; lane < V; ++lane) sum.lane[lane] += factor * value.lane[lane];
}

// A block's sums of Q vectors per thread, over its rows: out[q * C + channel].
template <typename T, int V, int Q, typename Place>
__device__ __forceinline__ void store_sums(const Vec<T, V> (&shared)[Q][kThreads], const Place& at,
                                           int channels, int first, int last, T* out) {
  if (at.row != 0 || !at.works) return;
  for (int q = first; q < last; ++q) {
#pragma unroll
    for (int lane = 0; lane < V; ++lane) {
      out[static_cast<int64_t>(q) * channels + at.ch + lane] = shared[q][at.column].lane[lane];
    }
  }
}

// What dL/d node starts from: the gradient that arrives at its place in the output, if it has one.
// `position` counts all images.
template <typename T, typename M, int V>
__device__ __forceinline__ Vec<T, V> arriving_gradient(const Cell<T, M>& c, int state,
                                                       int64_t position, int ch) {
  const int place = state - c.inputs - (c.nodes - c.multiplier);
  if (is_input(c, state) || place < 0) return zeros<T, V>();
  return load_wide<T, V>(c.grad_output + (position * c.multiplier + place) * c.channels + ch);
}

constexpr int kTermsPerBlock = 4;

template <typename T, int V>
using ProductSums = Vec<T, V>[1 + kTermsPerBlock][kThreads];

// Of ops [first, first + kTermsPerBlock) of the list, over a tile of `tiles`, whose g is given;
// with the first also the sum of g. All threads of the block.
template <typename T, typename M, int V, typename Place>
__device__ __forceinline__ void node_products(const Cell<T, M>& c, const Place& at, int64_t tile,
                                              int64_t tiles, int list, int count, int first,
                                              const Vec<T, V> (&g)[kItems],
                                              ProductSums<T, V>& shared) {
  Vec<T, V> sums[1 + kTermsPerBlock];
#pragma unroll
  for (int q = 0; q < 1 + kTermsPerBlock; ++q) sums[q] = zeros<T, V>();
#pragma unroll
  for (int j = 0; j < kItems; ++j) add_scaled(sums[0], T(1), g[j]);
#pragma unroll
  for (int q = 0; q < kTermsPerBlock; ++q) {
    if (first + q >= count) continue;
    const int k = c.table.lists[list + first + q];
    if (!op_runs(c, at.group, k)) continue;
    const OpRow& op = c.table.ops[k];
    const TermMap<T, M> y = term_map(c, op, at.group);
    const T* mean = op.norm < 0 ? nullptr : c.mean + norm_row(c, at.group, op.norm) + at.ch;
    const Vec<T, V> center = mean == nullptr || !at.works ? zeros<T, V>() : load<T, V>(mean);
#pragma unroll
    for (int j = 0; j < kItems; ++j) {
      if (!at.has(j)) continue;
      const Vec<T, V> value = load_term<T, M, V>(y, at.place(j) * c.channels + at.ch);
#pragma unroll
      for (int lane = 0; lane < V; ++lane) {
        sums[1 + q].lane[lane] += g[j].lane[lane] * (value.lane[lane] - center.lane[lane]);
      }
    }
  }
  sum_rows(sums, shared, at.strip.columns, at.strip.rows);
  T* out = c.partial + ((at.group * tiles + tile) * (1 + count) + first) * c.channels;
  const int last = count - first < kTermsPerBlock ? count - first : kTermsPerBlock;
  store_sums<T, V, 1 + kTermsPerBlock>(shared, at, c.channels, first == 0 ? 0 : 1, 1 + last, out);
}

// Of a node whose gradient no other launch had in registers. Of one that no op reads (`unread`) it
// is the arriving gradient, and is stored here. A block reads g once for kTermsPerBlock maps.
// grid = (tiles, groups * chunks of channels, ceil(ops / kTermsPerBlock)).
template <typename T, typename M, int V>
__global__ __launch_bounds__(kThreads) void cell_products(const __grid_constant__ Cell<T, M> c,
                                                          int list, int count, int node,
                                                          bool unread) {
  __shared__ ProductSums<T, V> shared;
  const Plane plane = node_plane(c);
  const StripPlace<V> at(c.channels, c.images * plane.size());
  const int first = static_cast<int>(blockIdx.z) * kTermsPerBlock;
  T* grad = grad_node_of(c, c.inputs + node, at.group);
  Vec<T, V> g[kItems];
#pragma unroll
  for (int j = 0; j < kItems; ++j) {
    g[j] = zeros<T, V>();
    if (!at.has(j)) continue;
    const int64_t position = at.place(j);
    const int64_t element = position * c.channels + at.ch;
    if (!unread) {
      g[j] = load<T, V>(grad + element);
      continue;
    }
    g[j] = arriving_gradient<T, M, V>(c, c.inputs + node,
                                      at.group * c.images * plane.size() + position, at.ch);
    if (first == 0) store_narrow<V>(grad + element, g[j]);
  }
  node_products<T, M, V>(c, at, blockIdx.x, gridDim.x, list, count, first, g, shared);
}

}  // namespace
}  // namespace darts_fast::cuda
