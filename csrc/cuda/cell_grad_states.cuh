// SPDX-License-Identifier: Apache-2.0
// What the ops that enter a node give to the gradients of their sources.
//
// Every gradient is gathered by its own thread: one order of every sum. Nodes are gone
// through last to first, and the ops that enter a node add to their sources' gradients in one
// launch, blocks of it by boxes of the source (cell_grad_block.cuh). Bytes: per convolution its y
// and the gradient behind its norm, per pool its map and the node's gradient; the gradient of a
// source read and written once per node that reads it.
#pragma once

#include "cuda/cell_grad_block.cuh"
#include "cuda/cell_pool.cuh"
#include "cuda/cell_products.cuh"

namespace darts_fast::cuda {
namespace {

// A row of partial sums of a block's weights' gradients.
template <typename T, typename M>
__device__ __forceinline__ T* partial_weights_of(const Cell<T, M>& c, int block, int group,
                                                 int64_t chunk) {
  const int64_t row = (static_cast<int64_t>(block) * c.groups + group) * c.partial_weights_rows;
  return c.partial_weights + (row + chunk) * c.partial_weights_row;
}

// The task's group and channels of a state, and the boxes that this block of threads has of it.
template <int V, typename T, typename M>
__device__ __forceinline__ void take_chunk(const Cell<T, M>& c, int state, GradTask<T, M>& task) {
  if (threadIdx.x == 0) {
    task.state = state;
    task.channels = state_channels(c, state);
    task.micro = box_micro<StateOf<T, M>>(task.channels, V);
    task.group = static_cast<int>(blockIdx.y) / task.micro.chunks;
    task.chunk = static_cast<int>(blockIdx.y) - task.group * task.micro.chunks;
    const Strip strip(least(task.channels, kBoxChannels * V), V);
    task.first = task.chunk * kBoxChannels * V;
    task.width = least(task.channels - task.first, kBoxChannels * V);
    task.columns = strip.columns;
    task.rows = strip.rows;
    task.out = node_plane(c);
    task.plane = state_plane(c, state);
    const BoxGrid& grid = is_input(c, state) ? c.input_boxes : c.node_boxes;
    const int64_t begin = static_cast<int64_t>(blockIdx.x) * grid.share;
    const bool runs = task.group < c.groups && begin < grid.boxes;
    task.number = begin - 1;
    task.end = begin + grid.share < grid.boxes ? begin + grid.share : grid.boxes;
    if (!runs) task.end = begin;
  }
  __syncthreads();
}

// The task's next box; whether there is one. All threads of the block.
template <typename T, typename M>
__device__ __forceinline__ bool take_box(const Cell<T, M>& c, GradTask<T, M>& task) {
  __syncthreads();
  if (threadIdx.x == 0 && ++task.number < task.end) {
    const bool input = is_input(c, task.state);
    const BoxGrid& grid = input ? c.input_boxes : c.node_boxes;
    task.own = output_box(grid, task.out, c.images, task.number);
    task.box = input_box(task.own, task.plane, input ? c.stride : 1);
    task.fresh = task.number == static_cast<int64_t>(blockIdx.x) * grid.share;
  }
  __syncthreads();
  return task.number < task.end;
}

// The task's block.
template <typename T, typename M>
__device__ __forceinline__ void take_block(const Cell<T, M>& c, int block, GradTask<T, M>& task) {
  __syncthreads();
  if (threadIdx.x == 0) {
    const BlockWeights<T> w = block_weights(c, block);
    task.row = w.row;
    task.inputs = w.inputs;
    task.outputs = w.outputs;
    task.weights[0] = w.first;
    task.weights[1] = w.second;
    task.in = block_input(c, block, task.group);
    task.outer = block_gradient(c, block, task.group);
    task.region = reached_box(task.box, task.row, task.out, task.in.stride);
    T* partial = partial_weights_of(c, block, task.group, blockIdx.x);
    const int64_t matrix = static_cast<int64_t>(w.inputs) * w.outputs;
    task.matrix = entry(c.table.grad_second, block) == nullptr ? nullptr : partial;
    task.taps = entry(c.table.grad_first, block) == nullptr ? nullptr : partial + matrix;
  }
  __syncthreads();
}

// sum += what a pool with its norm gives to its input at a spot.
template <typename T, typename M, int V>
__device__ __forceinline__ void add_pool(const Cell<T, M>& c, const OpRow& op, int group,
                                         const Plane& plane, int stride, const Spot& at, int ch,
                                         const StateOf<T, M>* x, const Vec<T, V>& value,
                                         Vec<T, V>& sum) {
  const Plane out = node_plane(c);
  const OuterGradient<T, M> outer =
      norm_gradient(c, op.norm, -1, group, grad_node_of(c, op.node, group));
  const StateOf<T, M>* map = map_of(c, op.map, group);
  const bool max = op.kind == static_cast<int16_t>(CellOpKind::kMaxPool);
  const Windows rows(at.h, stride, out.height), columns(at.w, stride, out.width);
  for (int h = rows.begin; h < rows.end; ++h) {
    for (int w = columns.begin; w < columns.end; ++w) {
      const int64_t position = at.image * out.size() + h * out.width + w;
      const int64_t element = position * c.channels + ch;
      const Vec<T, V> y = load_wide<T, V>(map + element);
      const Vec<T, V> g = load_gradient<V>(outer, element, ch, y);
      if (!max) {
        const Reach high(h, stride, plane.height), wide(w, stride, plane.width);
        add_scaled(sum, T(1) / static_cast<T>(high.count() * wide.count()), g);
        continue;
      }
#pragma unroll
      for (int lane = 0; lane < V; ++lane) {
        if (is_winner(x + ch + lane, plane, c.channels, stride, h, w, at.h, at.w, value.lane[lane],
                      y.lane[lane])) {
          sum.lane[lane] += g.lane[lane];
        }
      }
    }
  }
}

// The sources of the ops that enter a node, at most so many in a launch, each with its ops.
constexpr int kSources = 8;
struct Sources {
  int size = 0;
  int state[kSources];
  int list[kSources];
  int count[kSources];
  bool wanted[kSources];  // its gradient; else only those of weights
  bool first[kSources];   // nothing was added to its gradient yet
  bool last[kSources];    // nothing will be added any more
  // The source whose gradient is complete then, a node, and the ops that enter it, whose products
  // are made at once; -1: none.
  int complete = -1;
  int products_list = 0, products_count = 0;
};

// Where a thread keeps its item j in an array of kItems * kThreads vectors.
template <int V, typename T>
__device__ __forceinline__ T* kept_item(T* items, int j) {
  return items + (j * kThreads + static_cast<int>(threadIdx.x)) * V;
}

// What blocks give in front of the ReLU, kept in shared.map, and what they give to the partial sums
// of their weights.
template <typename T, typename M, int V>
__device__ __forceinline__ void source_blocks(const Cell<T, M>& c, const Sources& sources, int z,
                                              GradTask<T, M>& task,
                                              GradShared<T, V, FactorOf<T, M>>& shared) {
  Vec<T, V> behind_relu[kItems];
#pragma unroll
  for (int j = 0; j < kItems; ++j) behind_relu[j] = zeros<T, V>();
  for (int i = 0; i < sources.count[z]; ++i) {
    const int k = c.table.lists[sources.list[z] + i];
    const OpRow& op = c.table.ops[k];
    if (op.block < 0 || !op_runs(c, task.group, k)) continue;
    take_block(c, op.block, task);
    if (!is_kind(task.row, ConvKind::kSeparable)) {
      if (sources.wanted[z]) grad_dense<V>(task, shared, behind_relu);
    } else if (sources.wanted[z] || task.matrix != nullptr || task.taps != nullptr) {
      grad_separable<V>(task, sources.wanted[z], shared, behind_relu);
    }
  }
#pragma unroll
  for (int j = 0; j < kItems; ++j) store_narrow<V>(kept_item<V>(shared.map, j), behind_relu[j]);
}

// What the ops of a list give to dL/d state at one position; `item` has what its blocks give in
// front of the ReLU.
template <typename T, typename M, int V>
__device__ __forceinline__ Vec<T, V> state_gradient(const Cell<T, M>& c, int state, int group,
                                                    int list, int count, const Spot& at, int ch,
                                                    const T* item) {
  const Plane plane = state_plane(c, state);
  const int channels = state_channels(c, state);
  const int stride = is_input(c, state) ? c.stride : 1;
  const StateOf<T, M>* x = state_of(c, state, group) + at.image * plane.size() * channels;
  const int pixel = at.h * plane.width + at.w;
  const Vec<T, V> value = load_wide<T, V>(x + pixel * static_cast<int64_t>(channels) + ch);
  Vec<T, V> sum = zeros<T, V>();
  for (int i = 0; i < count; ++i) {
    const int k = c.table.lists[list + i];
    const OpRow& op = c.table.ops[k];
    if (op.block >= 0 || !op_runs(c, group, k)) continue;
    if (op.pool >= 0) {
      add_pool<T, M, V>(c, op, group, plane, stride, at, ch, x, value, sum);
    } else {
      const int64_t element = (at.image * plane.size() + pixel) * channels + ch;
      add_scaled(sum, op_weight(c, group, k),
                 load<T, V>(grad_node_of(c, op.node, group) + element));
    }
  }
  const Vec<T, V> behind_relu = load<T, V>(item);
#pragma unroll
  for (int lane = 0; lane < V; ++lane) {
    if (!(value.lane[lane] <= T(0))) sum.lane[lane] += behind_relu.lane[lane];
  }
  return sum;
}

// The gradient of source z at the task's box, so far. `items` have what its blocks give to it in
// front of the ReLU.
template <typename T, typename M, int V>
__device__ __forceinline__ void add_to_source(const Cell<T, M>& c, const Sources& sources, int z,
                                              const BoxTask& task, T* items) {
  const BoxPlace<V> at(task);
  const int state = task.state;
#pragma unroll 1  // the registers are full
  for (int j = 0; j < kItems; ++j) {
    if (!at.has(j)) continue;
    T* item = kept_item<V>(items, j);
    store_narrow<V>(item, state_gradient<T, M, V>(c, state, at.group, sources.list[z],
                                                  sources.count[z], at.at(j), at.ch, item));
  }
  T* out = grad_state_of(c, state, at.group);
#pragma unroll 1
  for (int j = 0; j < kItems; ++j) {
    if (!at.has(j)) continue;
    const int64_t position = at.place(j);
    T* to = out + position * task.channels + at.ch;
    Vec<T, V> grad = load<T, V>(kept_item<V>(items, j));
    const int64_t all = at.group * c.images * task.plane.size() + position;
    add_scaled(
        grad, T(1),
        sources.first[z] ? arriving_gradient<T, M, V>(c, state, all, at.ch) : load<T, V>(to));
    if constexpr (!std::is_same_v<T, StateOf<T, M>>) {
      if (is_input(c, state) && sources.last[z]) {
        StateOf<T, M>* given = c.table.grad_states[state] + input_begin(c, at.group);
        store_narrow<V>(given + position * task.channels + at.ch, grad);
        continue;
      }
    }
    store_narrow<V>(to, grad);
  }
}

// Of the node whose gradient is complete at the task's box.
template <typename T, typename M, int V>
__device__ __forceinline__ void complete_products(const Cell<T, M>& c, const Sources& sources,
                                                  const BoxTask& task,
                                                  ProductSums<T, V>& products) {
  const KnownPlaces<V> at(task);
  const T* out = grad_state_of(c, task.state, at.group);
  // Every thread reads back what it wrote.
  Vec<T, V> grad[kItems];
#pragma unroll
  for (int j = 0; j < kItems; ++j) {
    grad[j] = at.has(j) ? load<T, V>(out + at.place(j) * c.channels + at.ch) : zeros<T, V>();
  }
  for (int first = 0; first < sources.products_count; first += kTermsPerBlock) {
    node_products<T, M, V>(c, at, task.number, c.node_boxes.boxes, sources.products_list,
                           sources.products_count, first, grad, products);
    __syncthreads();
  }
}

// Of source z: blocks are (shares of boxes, groups * chunks of channels).
template <typename T, typename M, int V>
__device__ __forceinline__ void grad_state(const Cell<T, M>& c, const Sources& sources, int z,
                                           GradTask<T, M>& task,
                                           GradShared<T, V, FactorOf<T, M>>& shared,
                                           ProductSums<T, V>& products) {
  take_chunk<V>(c, sources.state[z], task);
  while (take_box(c, task)) {
    source_blocks(c, sources, z, task, shared);
    if (!sources.wanted[z]) continue;
    add_to_source<T, M, V>(c, sources, z, task, shared.map);
    if (z != sources.complete) continue;
    __syncthreads();
    complete_products<T, M, V>(c, sources, task, products);
  }
}

}  // namespace
}  // namespace darts_fast::cuda
