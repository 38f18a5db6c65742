// SPDX-License-Identifier: Apache-2.0
// The matrix half of a cell's backward: dL/dy, made on load from dL/d node and y, times the
// transposed matrices of the blocks.
//
// A separable block gets the gradient of its depthwise outputs, [node's plane, its input channels];
// a dense one or a reduce that of its input behind the ReLU, [input's plane, input channels].
// grid = (tiles, groups * chunks of input channels, blocks).
//
// Bytes: y and g read once, the result written once and read once by cell_grad_states: kept
// nowhere, it lives until its launch is over. To keep it in shared memory would cost its halo: at a
// reach of 4 (dilated 5x5) and 16 x 16 positions four times the bytes of y and g, and the products.
#pragma once

#include "cuda/cell_fragments.cuh"

namespace darts_fast::cuda {
namespace {

// Channels [ch, ch + depths) of dL/dy where matrix `tap` of the block takes it from for each
// position of the tile; 0 where there is none.
template <int V, typename T, typename Rows, typename Outer>
__device__ __forceinline__ void fill_gradient(Rows& a, const Outer& outer, const BlockRow& b,
                                              const Plane& plane, int stride, const Positions& tile,
                                              int positions, int channels, int tap, int ch,
                                              int depths) {
  const bool dense = is_kind(b, ConvKind::kDense);
  const bool separable = is_kind(b, ConvKind::kSeparable);
  const int pad = b.dilation * (b.kernel - 1) / 2;
  fill_rows<V>(a, positions, tile.count, depths, [&](int p, int d) {
    const Spot at = spot(tile, p);
    int h = at.h, w = at.w;
    if (!separable) {
      h = dense ? h + pad - tap / b.kernel : h - tap;
      w = dense ? w + pad - tap % b.kernel : w - tap;
      if (h < 0 || w < 0 || h % stride != 0 || w % stride != 0) return zeros<T, V>();
      h /= stride;
      w /= stride;
      if (!inside(plane, h, w)) return zeros<T, V>();
    }
    const int64_t position = at.image * plane.size() + h * plane.width + w;
    return load_gradient<V>(outer, position * channels + ch + d, ch + d);
  });
}

// A tile of them, channels [first_input, first_input + kWidth), to `out`. `plane` is that of dL/dy.
template <int V, typename T, typename Outer, typename O>
__device__ __forceinline__ void grad_rows_tile(const BlockWeights<T>& w, const Outer& outer,
                                               const Plane& plane, int stride, const Micro& micro,
                                               const Positions& tile, int first_input, O& operands,
                                               T* out) {
  const MicroPlace place(micro);
  auto& s = factors(operands);
  typename O::Sums sums = {};
  for (int tap = 0; tap < matrices(w.row); ++tap) {
    const BlockMatrix<T> matrix = block_matrix(w, tap);
    for (int ch = 0; ch < w.outputs; ch += kDepth) {
      const int depths = least(w.outputs - ch, kDepth);
      fill_gradient<V, T>(s.a, outer, w.row, plane, stride, tile, micro.positions(), w.outputs, tap,
                          ch, depths);
      fill_matrix<true>(s, depths, least(w.inputs - first_input, kWidth),
                        [&](int d, int i) { return matrix(ch + d, first_input + i); });
      __syncthreads();
      multiply(s, micro, place, sums);
      __syncthreads();
    }
  }
  Accumulator<T> sum;
  take_sums(operands, micro, place, sums, sum);
  store_tile<V>(out, w.inputs, place, tile.count, first_input, sum);
}

template <typename T, typename M, int V>
__global__ __launch_bounds__(kThreads,
                             kResident<T>) void cell_grad_rows(const __grid_constant__ Cell<T, M> c,
                                                               int list) {
  __shared__ OperandsOf<T, FactorOf<T, M>> s;
  const int block = c.table.lists[list + static_cast<int>(blockIdx.z)];
  const BlockWeights<T> w = block_weights(c, block);
  const OpRow& op = c.table.ops[w.row.op];
  const bool from_state = block == op.block;
  const Micro micro(w.inputs);
  const int group = static_cast<int>(blockIdx.y) / micro.chunks;
  const int first_input = (static_cast<int>(blockIdx.y) - group * micro.chunks) * kWidth;
  if (group >= c.groups || !op_runs(c, group, w.row.op)) return;
  const Plane plane = node_plane(c);
  const bool separable = is_kind(w.row, ConvKind::kSeparable);
  const Plane to = separable || !from_state ? plane : state_plane(c, op.source);
  const int stride = from_state && is_input(c, op.source) ? c.stride : 1;
  const int64_t begin = static_cast<int64_t>(blockIdx.x) * micro.positions();
  const Positions tile(to, c.images, begin, micro.positions());
  if (tile.count == 0) return;
  T* out = c.grad_rows + w.row.rows * c.grad_rows_slot +
           (group * c.images * to.size() + begin) * static_cast<int64_t>(w.inputs);
  grad_rows_tile<V>(w, block_gradient(c, block, group), plane, stride, micro, tile, first_input, s,
                    out);
}

}  // namespace
}  // namespace darts_fast::cuda
