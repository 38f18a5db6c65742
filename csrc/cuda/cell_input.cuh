// SPDX-License-Identifier: Apache-2.0
// What a convolution block is given: the ReLU of a state, or of a chain's first map behind its
// norm; and what its backward is given, dL/dy made from dL/d node and y. Neither is ever stored.
//
// Neighbouring windows overlap. They are read through the first-level cache, 16 bytes at a time,
// without a copy in shared memory: from main memory a map comes once either way (the blocks that
// read it run together and it stays in the second-level cache), a window of any dilation fits, and
// the shared memory is left to the operands of the matrix product.
#pragma once

#include "cuda/cell.cuh"

namespace darts_fast::cuda {
namespace {

// Of one group.
template <typename T, typename M>
struct BlockInput {
  const StateOf<T, M>* state;  // or
  const RawOf<T, M>* map;      // with
  const T* center;
  const T* scale;
  const T* shift;  // null for zeros
  Plane plane;
  int channels;
  int stride;
};

template <typename T, typename M>
__device__ __forceinline__ BlockInput<T, M> block_input(const Cell<T, M>& c, int block, int group) {
  const OpRow& op = c.table.ops[c.table.blocks[block].op];
  BlockInput<T, M> in = {};
  if (block == op.block) {
    in.state = state_of(c, op.source, group);
    in.plane = state_plane(c, op.source);
    in.channels = state_channels(c, op.source);
    in.stride = is_input(c, op.source) ? c.stride : 1;
    return in;
  }
  const int norm = op.norm - 1;
  in.map = raw_of(c, op.inner_map, group);
  in.center = c.mean + norm_row(c, group, norm);
  in.scale = c.scale + norm_row(c, group, norm);
  in.shift = entry(c.table.beta, norm);
  in.plane = node_plane(c);
  in.channels = c.channels;
  in.stride = 1;
  return in;
}

// Channels [ch, ch + V) before the ReLU.
template <typename T, typename M, int V>
__device__ __forceinline__ Vec<T, V> load_before_relu(const BlockInput<T, M>& in, int64_t image,
                                                      int h, int w, int ch) {
  const int64_t at =
      (image * in.plane.size() + h * in.plane.width + w) * static_cast<int64_t>(in.channels) + ch;
  if (in.map == nullptr) return load_wide<T, V>(in.state + at);
  Vec<T, V> value = load_wide<T, V>(in.map + at);
  const Vec<T, V> center = load<T, V>(in.center + ch);
  const Vec<T, V> scale = load<T, V>(in.scale + ch);
#pragma unroll
  for (int lane = 0; lane < V; ++lane) {
    const T shift = in.shift == nullptr ? T(0) : in.shift[ch + lane];
    value.lane[lane] = (value.lane[lane] - center.lane[lane]) * scale.lane[lane] + shift;
  }
  return value;
}

template <typename T, typename M, int V>
__device__ __forceinline__ Vec<T, V> load_input(const BlockInput<T, M>& in, int64_t image, int h,
                                                int w, int ch) {
  Vec<T, V> value = load_before_relu<T, M, V>(in, image, h, w, ch);
#pragma unroll
  for (int lane = 0; lane < V; ++lane) value.lane[lane] = relu(value.lane[lane]);
  return value;
}

__device__ __forceinline__ bool inside(const Plane& p, int h, int w) {
  return h >= 0 && h < p.height && w >= 0 && w < p.width;
}

// Cells of a window of "same" padding: row = h * stride - pad + i * dilation.
__device__ __forceinline__ int window_start(const BlockRow& b, int stride, int at) {
  return at * stride - b.dilation * (b.kernel - 1) / 2;
}

// The depthwise output at a spot of the node's plane. `taps` is [k * k, row].
template <typename T, typename M, int V>
__device__ __forceinline__ Vec<T, V> depthwise(const BlockInput<T, M>& in, const BlockRow& b,
                                               const Spot& at, int ch, const T* taps, int row) {
  Vec<T, V> sum = zeros<T, V>();
  const int top = window_start(b, in.stride, at.h), left = window_start(b, in.stride, at.w);
  for (int i = 0; i < b.kernel; ++i) {
    const int h = top + i * b.dilation;
    if (h < 0 || h >= in.plane.height) continue;
    for (int j = 0; j < b.kernel; ++j) {
      const int w = left + j * b.dilation;
      if (w < 0 || w >= in.plane.width) continue;
      const Vec<T, V> value = load_input<T, M, V>(in, at.image, h, w, ch);
      const T* tap = taps + (i * b.kernel + j) * row;
#pragma unroll
      for (int lane = 0; lane < V; ++lane) sum.lane[lane] += value.lane[lane] * tap[lane];
    }
  }
  return sum;
}

// Of one norm in one group.
template <typename T, typename M>
struct OuterGradient {
  const T* grad;  // behind the norm, image 0 of the group
  const RawOf<T, M>* map;
  const T* center;
  const T* scale;
  const T* mean;
  const T* slope;
  bool batch;
};

template <typename T, typename M>
__device__ __forceinline__ OuterGradient<T, M> norm_gradient(const Cell<T, M>& c, int norm, int map,
                                                             int group, const T* grad) {
  const int64_t row = norm_row(c, group, norm);
  return {grad,
          map < 0 ? nullptr : raw_of(c, map, group),
          c.mean + row,
          c.grad_scale + row,
          c.grad_mean + row,
          c.grad_slope + row,
          is_batch(c.table.norms[norm])};
}

// Of a block: its map, and the gradient that arrives behind the norm.
template <typename T, typename M>
__device__ __forceinline__ OuterGradient<T, M> block_gradient(const Cell<T, M>& c, int block,
                                                              int group) {
  const OpRow& op = c.table.ops[c.table.blocks[block].op];
  if (!is_chain(op) || block != op.block) {
    return norm_gradient(c, op.norm, op.map, group, grad_node_of(c, op.node, group));
  }
  const int64_t inner = c.table.blocks[block].inner * c.slot + group * c.images * node_image(c);
  return norm_gradient(c, op.norm - 1, op.inner_map, group,
                       static_cast<const T*>(c.grad_inner) + inner);
}

// dL/dy for values y of a map, from the gradient behind the norm.
template <int V, typename T, typename M>
__device__ __forceinline__ Vec<T, V> pass_norm(const OuterGradient<T, M>& o, int ch,
                                               Vec<T, V> value, const Vec<T, V>& y) {
  const Vec<T, V> scale = load<T, V>(o.scale + ch);
  if (o.batch) {
    const Vec<T, V> center = load<T, V>(o.center + ch);
    const Vec<T, V> mean = load<T, V>(o.mean + ch);
    const Vec<T, V> slope = load<T, V>(o.slope + ch);
#pragma unroll
    for (int lane = 0; lane < V; ++lane) {
      value.lane[lane] = (value.lane[lane] - mean.lane[lane]) -
                         slope.lane[lane] * (y.lane[lane] - center.lane[lane]);
    }
  }
#pragma unroll
  for (int lane = 0; lane < V; ++lane) value.lane[lane] *= scale.lane[lane];
  return value;
}

// The same: `at` counts elements of the group.
template <int V, typename T, typename M>
__device__ __forceinline__ Vec<T, V> pass_norm(const OuterGradient<T, M>& o, int64_t at, int ch,
                                               const Vec<T, V>& value) {
  const Vec<T, V> y = o.batch ? load_wide<T, V>(o.map + at) : zeros<T, V>();
  return pass_norm<V>(o, ch, value, y);
}

template <int V, typename T, typename M>
__device__ __forceinline__ Vec<T, V> load_gradient(const OuterGradient<T, M>& o, int64_t at, int ch,
                                                   const Vec<T, V>& y) {
  return pass_norm<V>(o, ch, load<T, V>(o.grad + at), y);
}

template <int V, typename T, typename M>
__device__ __forceinline__ Vec<T, V> load_gradient(const OuterGradient<T, M>& o, int64_t at,
                                                   int ch) {
  return pass_norm<V>(o, at, ch, load<T, V>(o.grad + at));
}

}  // namespace
}  // namespace darts_fast::cuda
