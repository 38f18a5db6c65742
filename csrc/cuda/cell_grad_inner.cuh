// SPDX-License-Identifier: Apache-2.0
// The second blocks of chains in the backward: the gradient behind their first norms, the sums of
// those norms and what passes them, and the partial sums of the second blocks' weights.
#pragma once

#include "cuda/cell_grad_states.cuh"
#include "cuda/cell_norms.cuh"

namespace darts_fast::cuda {
namespace {

// The gradient behind a norm at a spot, in front of the ReLU of blocks that give `grad` to it; adds
// it and itself times (y - mean) to the sums, as `out` stores it. `out`, image 0 of the group, may
// be null.
template <int V, typename T, typename M, typename Out>
__device__ __forceinline__ void pass_relu(const BlockInput<T, M>& in, const Spot& at, int ch,
                                          Vec<T, V>& grad, Vec<T, V> (&sums)[2], Out* out) {
  const int64_t position = at.image * in.plane.size() + at.h * in.plane.width + at.w;
  const int64_t element = position * in.channels + ch;
  const Vec<T, V> before = load_before_relu<T, M, V>(in, at.image, at.h, at.w, ch);
  const Vec<T, V> y = load_wide<T, V>(in.map + element);
#pragma unroll
  for (int lane = 0; lane < V; ++lane) {
    grad.lane[lane] = before.lane[lane] <= T(0) ? T(0) : widen(narrow<Out>(grad.lane[lane]));
    sums[0].lane[lane] += grad.lane[lane];
    sums[1].lane[lane] += grad.lane[lane] * (y.lane[lane] - in.center[ch + lane]);
  }
  if (out != nullptr) store_narrow<V>(out + element, grad);
}

template <typename T, int V, typename F>
union InnerShared {
  GradShared<T, V, F> block;
  Vec<T, V> sums[2][kThreads];
};

// Of a chain's first norm, where its second block begins, at the task's box: s.sums has its sums.
template <typename T, typename M, int V>
__device__ __forceinline__ void inner_box(const Cell<T, M>& c, int block, GradTask<T, M>& task,
                                          InnerShared<T, V, FactorOf<T, M>>& s) {
  take_block(c, block, task);
  Vec<T, V> grad[kItems], sums[2] = {zeros<T, V>(), zeros<T, V>()};
#pragma unroll
  for (int j = 0; j < kItems; ++j) grad[j] = zeros<T, V>();
  grad_separable<V>(task, true, s.block, grad);
  const BoxPlace<V> at(task);
  T* out =
      c.grad_inner + c.table.blocks[block].inner * c.slot + at.group * c.images * node_image(c);
#pragma unroll
  for (int j = 0; j < kItems; ++j) {
    if (at.has(j)) pass_relu<V>(task.in, at.at(j), at.ch, grad[j], sums, out);
  }
  sum_rows(sums, s.sums, at.strip.columns, at.strip.rows);
}

// For every chain of the list, some of which may be idle: the gradient behind its first norm, and
// what passes that norm, by the last of its blocks. partial is [G, boxes, 2 * chains, C], counters
// [blocks, chunks]. grid = (shares of boxes, groups * chunks of channels, chains).
template <typename T, typename M, int V>
__global__ __launch_bounds__(kThreads, kResident<T>) void cell_grad_inner(
    const __grid_constant__ Cell<T, M> c, int list) {
  __shared__ GradTask<T, M> task;
  __shared__ InnerShared<T, V, FactorOf<T, M>> s;
  const int chain = static_cast<int>(blockIdx.z);
  const OpRow& op = c.table.ops[c.table.lists[list + chain]];
  const int64_t slots = 2 * gridDim.z, boxes = c.node_boxes.boxes;
  take_chunk<V>(c, c.inputs, task);
  while (op_runs(c, task.group, c.table.lists[list + chain]) && take_box(c, task)) {
    inner_box(c, op.block + 1, task, s);
    const BoxPlace<V> at(task);
    T* partial = c.partial + ((at.group * boxes + task.number) * slots + 2 * chain) * c.channels;
    store_sums<T, V, 2>(s.sums, at, c.channels, 0, 2, partial);
  }
  uint32_t* counter = c.counters + op.block * task.micro.chunks + task.chunk;
  if (!arrives_last(counter, gridDim.x * c.groups)) return;
  const int k = c.table.lists[list + chain];
  const int end = task.first + task.width;
  for (int ch = task.first + static_cast<int>(threadIdx.x) / kWarp; ch < end; ch += kNormWarps) {
    for (int group = 0; group < c.groups; ++group) {
      Sums sums = {0, 0};
      if (op_runs(c, group, k)) {
        sums = sum_tiles(c.partial, c.channels, slots, 2 * chain, 2 * chain + 1, group, boxes, ch);
      }
      if (threadIdx.x % kWarp == 0) norm_gradients(c, k, op.norm - 1, 1.0, group, ch, sums);
    }
  }
}

}  // namespace
}  // namespace darts_fast::cuda
