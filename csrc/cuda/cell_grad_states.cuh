// SPDX-License-Identifier: Apache-2.0
// The element-wise half of a cell's backward: what the ops that enter a node give to the gradients
// of their sources, that behind a chain's first norm, and the reductions of the norms.
//
// Every gradient is gathered by its own thread: one order of every sum. Nodes are gone
// through last to first, and the ops that enter a node add to their sources' gradients in one
// launch. Depthwise convolutions are transposed here, over what cell_grad_rows wrote: windows of it
// overlap between blocks without a halo in shared memory, for any dilation. Bytes: per convolution
// one map read (its neighbours come from the caches), per pool its map and the node's gradient; the
// gradient of a source read and written once per node that reads it.
#pragma once

#include "cuda/cell_norms.cuh"
#include "cuda/cell_pool.cuh"
#include "cuda/cell_product.cuh"
#include "cuda/cell_products.cuh"

namespace darts_fast::cuda {
namespace {

template <typename T, typename M>
__device__ __forceinline__ const T* grad_rows_of(const Cell<T, M>& c, const BlockRow& b, int group,
                                                 int64_t group_elements) {
  return c.grad_rows + b.rows * c.grad_rows_slot + group * group_elements;
}

// sum += what a block gives to its input at a spot of `plane`, before the ReLU's mask, from what
// grad_rows_tile wrote; `out` is the plane of its outputs.
template <typename T, int V>
__device__ __forceinline__ void add_rows(const BlockWeights<T>& w, const T* rows,
                                         const Plane& plane, const Plane& out, int stride,
                                         const Spot& at, int ch, Vec<T, V>& sum) {
  const BlockRow& b = w.row;
  const int channels = w.inputs;
  if (!is_kind(b, ConvKind::kSeparable)) {
    const int64_t position = at.image * plane.size() + at.h * plane.width + at.w;
    add_scaled(sum, T(1), load<T, V>(rows + position * channels + ch));
    return;
  }
  rows += at.image * out.size() * channels + ch;
  const int taps = b.kernel * b.kernel;
  const T* weight = w.first + static_cast<int64_t>(ch) * taps;
  const int pad = b.dilation * (b.kernel - 1) / 2;
  for (int i = 0; i < b.kernel; ++i) {
    const int h = at.h + pad - i * b.dilation;
    if (h < 0 || h % stride != 0 || h / stride >= out.height) continue;
    for (int j = 0; j < b.kernel; ++j) {
      const int w = at.w + pad - j * b.dilation;
      if (w < 0 || w % stride != 0 || w / stride >= out.width) continue;
      const Vec<T, V> g =
          load<T, V>(rows + (h / stride * out.width + w / stride) * static_cast<int64_t>(channels));
#pragma unroll
      for (int lane = 0; lane < V; ++lane) {
        sum.lane[lane] += g.lane[lane] * weight[lane * taps + i * b.kernel + j];
      }
    }
  }
}

template <typename T, typename M, int V>
__device__ __forceinline__ void add_block(const Cell<T, M>& c, int block, int group,
                                          const Plane& plane, int stride, const Spot& at, int ch,
                                          Vec<T, V>& sum) {
  const BlockWeights<T> w = block_weights(c, block);
  const Plane out = node_plane(c);
  const Plane& of_rows = is_kind(w.row, ConvKind::kSeparable) ? out : plane;
  const T* rows = grad_rows_of(c, w.row, group, c.images * of_rows.size() * w.inputs);
  add_rows(w, rows, plane, out, stride, at, ch, sum);
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

// What the ops of a list give to dL/d state at one position.
template <typename T, typename M, int V>
__device__ __forceinline__ Vec<T, V> state_gradient(const Cell<T, M>& c, int state, int group,
                                                    int list, int count, const Spot& at, int ch) {
  const Plane plane = state_plane(c, state);
  const int channels = state_channels(c, state);
  const int stride = is_input(c, state) ? c.stride : 1;
  const StateOf<T, M>* x = state_of(c, state, group) + at.image * plane.size() * channels;
  const int pixel = at.h * plane.width + at.w;
  const Vec<T, V> value = load_wide<T, V>(x + pixel * static_cast<int64_t>(channels) + ch);
  Vec<T, V> behind_relu = zeros<T, V>(), sum = zeros<T, V>();
  for (int i = 0; i < count; ++i) {
    const int k = c.table.lists[list + i];
    if (!op_runs(c, group, k)) continue;
    const OpRow& op = c.table.ops[k];
    if (op.block >= 0) {
      add_block<T, M, V>(c, op.block, group, plane, stride, at, ch, behind_relu);
    } else if (op.pool >= 0) {
      add_pool<T, M, V>(c, op, group, plane, stride, at, ch, x, value, sum);
    } else {
      const int64_t element = (at.image * plane.size() + pixel) * channels + ch;
      add_scaled(sum, op_weight(c, group, k),
                 load<T, V>(grad_node_of(c, op.node, group) + element));
    }
  }
#pragma unroll
  for (int lane = 0; lane < V; ++lane) {
    if (!(value.lane[lane] <= T(0))) sum.lane[lane] += behind_relu.lane[lane];
  }
  return sum;
}

// The sources of the ops that enter a node, at most so many in a launch, each with its ops.
constexpr int kSources = 8;
struct Sources {
  int size = 0;
  int state[kSources];
  int list[kSources];
  int count[kSources];
  bool first[kSources];  // nothing was added to its gradient yet
  bool last[kSources];   // nothing will be added any more
  // The source whose gradient is complete then, a node, and the ops that enter it, whose products
  // are made at once; -1: none.
  int complete = -1;
  int products_list = 0, products_count = 0;
};

// Of source z: blocks are (tiles, groups * chunks of channels).
template <typename T, typename M, int V>
__device__ __forceinline__ void grad_state(const Cell<T, M>& c, const Sources& sources, int z,
                                           ProductSums<T, V>& shared) {
  const int state = sources.state[z];
  const Plane plane = state_plane(c, state);
  const int channels = state_channels(c, state);
  const StripPlace<V> at(channels, c.images * plane.size());
  if (at.group >= c.groups || at.count == 0) return;
  T* out = grad_state_of(c, state, at.group);
  const Positions tile(plane, c.images, at.begin, at.strip.positions());
  for (int j = 0; j < kItems; ++j) {
    if (!at.has(j)) continue;
    const int64_t position = at.begin + at.position(j);
    T* to = out + position * channels + at.ch;
    Vec<T, V> grad = state_gradient<T, M, V>(c, state, at.group, sources.list[z], sources.count[z],
                                             spot(tile, at.position(j)), at.ch);
    const int64_t all = at.group * c.images * plane.size() + position;
    add_scaled(
        grad, T(1),
        sources.first[z] ? arriving_gradient<T, M, V>(c, state, all, at.ch) : load<T, V>(to));
    if constexpr (!std::is_same_v<T, StateOf<T, M>>) {
      if (is_input(c, state) && sources.last[z]) {
        StateOf<T, M>* given = c.table.grad_states[state] + input_begin(c, at.group);
        store_narrow<V>(given + position * channels + at.ch, grad);
        continue;
      }
    }
    store_narrow<V>(to, grad);
  }
  if (z != sources.complete) return;
  // Every thread reads back what it wrote: four copies of the loop's body, to keep it in registers,
  // would not fit them.
  Vec<T, V> grad[kItems];
#pragma unroll
  for (int j = 0; j < kItems; ++j) {
    const int64_t position = at.begin + at.position(j);
    grad[j] = at.has(j) ? load<T, V>(out + position * channels + at.ch) : zeros<T, V>();
  }
  for (int first = 0; first < sources.products_count; first += kTermsPerBlock) {
    node_products<T, M, V>(c, at, sources.products_list, sources.products_count, first, grad,
                           shared);
    __syncthreads();
  }
}

// The gradient behind a norm, in front of the ReLU of blocks, at a tile: add(spot, sum) adds what
// they give. shared has the sums of it and of it times (y - mean). `out` may be null. All threads
// of the block.
template <int V, typename T, typename M, typename Add>
__device__ __forceinline__ void behind_norm_tile(const BlockInput<T, M>& in, int64_t images,
                                                 const StripPlace<V>& at, T* out,
                                                 Vec<T, V> (&shared)[2][kThreads], Add add) {
  const Positions tile(in.plane, images, at.begin, at.strip.positions());
  Vec<T, V> sums[2] = {zeros<T, V>(), zeros<T, V>()};
  for (int j = 0; j < kItems; ++j) {
    if (!at.has(j)) continue;
    const Spot spot_of = spot(tile, at.position(j));
    const int64_t element = (at.begin + at.position(j)) * in.channels + at.ch;
    Vec<T, V> grad = zeros<T, V>();
    add(spot_of, grad);
    const Vec<T, V> before =
        load_before_relu<T, M, V>(in, spot_of.image, spot_of.h, spot_of.w, at.ch);
    const Vec<T, V> y = load_wide<T, V>(in.map + element);
#pragma unroll
    for (int lane = 0; lane < V; ++lane) {
      if (before.lane[lane] <= T(0)) grad.lane[lane] = T(0);
      sums[0].lane[lane] += grad.lane[lane];
      sums[1].lane[lane] += grad.lane[lane] * (y.lane[lane] - in.center[at.ch + lane]);
    }
    if (out != nullptr) store_narrow<V>(out + element, grad);
  }
  sum_rows(sums, shared, at.strip.columns, at.strip.rows);
}

// Of a chain's first norm, where its second block begins.
template <typename T, typename M, int V>
__device__ __forceinline__ void inner_tile(const Cell<T, M>& c, int block, const StripPlace<V>& at,
                                           Vec<T, V> (&shared)[2][kThreads]) {
  const Plane plane = node_plane(c);
  T* out =
      c.grad_inner + c.table.blocks[block].inner * c.slot + at.group * c.images * node_image(c);
  const auto add = [&](const Spot& spot_of, Vec<T, V>& grad) {
    add_block<T, M, V>(c, block, at.group, plane, 1, spot_of, at.ch, grad);
  };
  behind_norm_tile<V>(block_input(c, block, at.group), c.images, at, out, shared, add);
}

// For every chain of the list, some of which may be idle: the gradient behind its first norm, and
// what passes that norm, by the last of its blocks. partial is [G, tiles, 2 * chains, C], counters
// [blocks, chunks]. grid = (tiles, groups * chunks of channels, chains).
template <typename T, typename M, int V>
__global__ __launch_bounds__(kThreads, kResident<T>) void cell_grad_inner(
    const __grid_constant__ Cell<T, M> c, int list) {
  __shared__ Vec<T, V> shared[2][kThreads];
  const int chain = static_cast<int>(blockIdx.z);
  const int k = c.table.lists[list + chain];
  const OpRow& op = c.table.ops[k];
  const StripPlace<V> at(c.channels, c.images * node_plane(c).size());
  const int64_t slots = 2 * gridDim.z, tiles = gridDim.x;
  if (op_runs(c, at.group, k)) {
    inner_tile(c, op.block + 1, at, shared);
    T* partial = c.partial + ((at.group * tiles + blockIdx.x) * slots + 2 * chain) * c.channels;
    store_sums<T, V, 2>(shared, at, c.channels, 0, 2, partial);
  }
  const int chunk = static_cast<int>(blockIdx.y) - at.group * at.strip.chunks;
  if (!arrives_last(c.counters + op.block * at.strip.chunks + chunk, gridDim.x * c.groups)) return;
  const int width = at.strip.columns * V;
  const int end = least(c.channels, (chunk + 1) * width);
  for (int ch = chunk * width + static_cast<int>(threadIdx.x) / kWarp; ch < end; ch += kNormWarps) {
    for (int group = 0; group < c.groups; ++group) {
      Sums sums = {0, 0};
      if (op_runs(c, group, k)) {
        sums = sum_tiles(c.partial, c.channels, slots, 2 * chain, 2 * chain + 1, group, tiles, ch);
      }
      if (threadIdx.x % kWarp == 0) norm_gradients(c, k, op.norm - 1, 1.0, group, ch, sums);
    }
  }
}

}  // namespace
}  // namespace darts_fast::cuda
