// SPDX-License-Identifier: Apache-2.0
// What a convolution block gives in the backward, box by box: the gradient of its input, and of a
// separable block the partial sums of its weights' gradients.
//
// dL/dy is made on load from dL/d node and y, for the outputs that the windows of the box's cells
// belong to. Times the transposed pointwise matrix it is the gradient of the depthwise outputs,
// which stays in shared memory and is gathered there. From the same dL/dy, the depthwise outputs of
// the box, made again, and the cells of the box come the gradients of the weights.
//
// Bytes: y, the gradient behind its norm, and the input once, and what lies around a box again. A
// window that reaches r beyond 16 x 16 cells makes dL/dy and the product for (1 + r / 8)^2 as many
// positions, or for (1 + r / 16)^2 where an image has four boxes: 1.6 times for 5x5 with
// dilation 2. A map between two launches would be 2 of the 5 maps that a block moves. The outputs
// are gone through by slabs that fit the shared memory, so that any window fits.
#pragma once

#include "cuda/cell_grad_rows.cuh"
#include "cuda/cell_grad_sums.cuh"

namespace darts_fast::cuda {
namespace {

// grad[j] += what the slab's outputs give to the thread's cells. rows is [position][row].
template <int V, typename T, typename M>
__device__ __forceinline__ void gather(const GradTask<T, M>& g, const Slab& slab, const T* rows,
                                       int row, Vec<T, V> (&grad)[kItems]) {
  const BoxPlace<V> at(g);
  if (!at.works) return;
  const BlockRow& b = g.row;
  const int stride = g.in.stride;
  const int taps = b.kernel * b.kernel, pad = b.dilation * (b.kernel - 1) / 2;
  const T* weight = g.weights[0] + static_cast<int64_t>(at.ch) * taps;
  int image[kItems], h[kItems], x[kItems];
#pragma unroll
  for (int j = 0; j < kItems; ++j) {
    const Spot spot_of = at.at(j);
    image[j] = static_cast<int>(spot_of.image - g.box.image);
    h[j] = spot_of.h + pad;
    x[j] = spot_of.w + pad;
  }
  for (int i = 0; i < b.kernel; ++i) {
    for (int k = 0; k < b.kernel; ++k) {
      Vec<T, V> tap;
#pragma unroll
      for (int lane = 0; lane < V; ++lane) tap.lane[lane] = weight[lane * taps + i * b.kernel + k];
#pragma unroll
      for (int j = 0; j < kItems; ++j) {
        if (!at.has(j)) continue;
        const int from_h = output_of_cell(h[j], -i * b.dilation, stride, g.out.height);
        const int from_w = output_of_cell(x[j], -k * b.dilation, stride, g.out.width);
        if (from_h < 0 || from_w < 0) continue;
        const unsigned from = slab.place(image[j], from_h, from_w);
        if (from >= static_cast<unsigned>(slab.count)) continue;
        const Vec<T, V> value = load<T, V>(rows + from * row + at.column * V);
#pragma unroll
        for (int lane = 0; lane < V; ++lane) {
          grad[j].lane[lane] += value.lane[lane] * tap.lane[lane];
        }
      }
    }
  }
}

// The product as [position][row].
__device__ __forceinline__ int row_of(const Micro& micro) { return micro.width(); }

template <typename T>
__device__ __forceinline__ void store_rows(const Micro& micro, const Accumulator<T>& sum, T* rows,
                                           int row) {
  const MicroPlace place(micro);
  if (!place.works) return;
#pragma unroll
  for (int i = 0; i < kMicro; ++i) {
    *reinterpret_cast<Vec<T, kMicro>*>(rows + (place.p + i) * row + place.o) = sum[i];
  }
}

// Of a separable block at its box: the weights' partial sums, and where `gathers`, grad[j] += what
// it gives to the thread's cells, before the ReLU's mask. All threads of the block.
template <int V, typename T, typename M, typename F>
__device__ __forceinline__ void grad_separable(const GradTask<T, M>& g, bool gathers,
                                               GradShared<T, V, F>& s, Vec<T, V> (&grad)[kItems]) {
  const int positions = g.micro.positions();
  const bool multiplies = gathers || g.taps != nullptr;
  for (int begin = 0; begin < g.region.count; begin += positions) {
    const Slab slab = {g.region, begin, least(g.region.count - begin, positions)};
    const bool fresh = g.fresh && begin == 0;
    if (g.matrix != nullptr) fill_outputs<V>(g, slab, positions, s);
    typename GradShared<T, V, F>::Products::Sums sums = {};
    for (int ch = 0; ch < g.outputs; ch += kDepth) {
      const int depths = least(g.outputs - ch, kDepth);
      fill_rows<V>(s.operands.a, positions, slab.count, depths, [&](int p, int d) {
        const Spot from = slab.at(p);
        const int64_t position = from.image * g.out.size() + from.h * g.out.width + from.w;
        return load_gradient<V>(g.outer, position * g.outputs + ch + d, ch + d);
      });
      const BlockMatrix<T> matrix = g.matrix_of(0);
      fill_matrix<true>(s.operands, depths, g.width,
                        [&](int d, int i) { return matrix(ch + d, g.first + i); });
      __syncthreads();
      if (multiplies) multiply(s.operands, g.micro, MicroPlace(g.micro), sums);
      if (g.matrix != nullptr) {
        add_matrix(s.operands.a, s.outputs, positions, slab.count, depths, g.width, g.inputs,
                   g.matrix + static_cast<int64_t>(ch) * g.inputs + g.first, fresh);
      }
      __syncthreads();
    }
    if (!multiplies) continue;
    store_rows(g.micro, sums, s.map, row_of(g.micro));
    __syncthreads();
    if (gathers) gather<V>(g, slab, s.map, row_of(g.micro), grad);
    if (g.taps != nullptr) {
      const auto add = [&]<int K>() {
        add_taps<K>(g, slab, s.map, row_of(g.micro), s.lines, fresh);
      };
      if (g.row.kernel == 3) add.template operator()<3>();
      if (g.row.kernel == 5) add.template operator()<5>();
      if (g.row.kernel == 7) add.template operator()<7>();
    }
    __syncthreads();
  }
}

// grad[j] += what a dense convolution or a reduce gives to the thread's cells, before the ReLU's
// mask. All threads of the block.
template <int V, typename T, typename M, typename F>
__device__ __forceinline__ void grad_dense(const GradTask<T, M>& g, GradShared<T, V, F>& s,
                                           Vec<T, V> (&grad)[kItems]) {
  typename GradShared<T, V, F>::Products::Sums sums = {};
  for (int tap = 0; tap < matrices(g.row); ++tap) {
    for (int ch = 0; ch < g.outputs; ch += kDepth) {
      const int depths = least(g.outputs - ch, kDepth);
      fill_gradient<V, T>(s.operands.a, g.outer, g.row, g.out, g.in.stride, g.box,
                          g.micro.positions(), g.outputs, tap, ch, depths);
      const BlockMatrix<T> matrix = g.matrix_of(tap);
      fill_matrix<true>(s.operands, depths, g.width,
                        [&](int d, int i) { return matrix(ch + d, g.first + i); });
      __syncthreads();
      multiply(s.operands, g.micro, MicroPlace(g.micro), sums);
      __syncthreads();
    }
  }
  store_rows(g.micro, sums, s.map, row_of(g.micro));
  __syncthreads();
  const BoxPlace<V> at(g);
#pragma unroll
  for (int j = 0; j < kItems; ++j) {
    if (!at.has(j)) continue;
    const Vec<T, V> value = load<T, V>(s.map + at.position(j) * row_of(g.micro) + at.column * V);
#pragma unroll
    for (int lane = 0; lane < V; ++lane) grad[j].lane[lane] += value.lane[lane];
  }
  __syncthreads();
}

}  // namespace
}  // namespace darts_fast::cuda
