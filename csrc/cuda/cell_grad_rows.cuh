// SPDX-License-Identifier: Apache-2.0
// dL/dy as rows of a product with the transposed matrices of a block.
//
// Of a separable block the product is the gradient of its depthwise outputs, in the outputs' plane;
// of a dense one or a reduce that of its input behind the ReLU. A cell keeps it in shared memory
// (cell_grad_block.cuh), conv_blocks writes it for its next launch (grad_rows_tile).
#pragma once

#include "cuda/cell_fragments.cuh"

namespace darts_fast::cuda {
namespace {

// Channels [ch, ch + depths) of dL/dy where matrix `tap` of the block takes it from for each
// position of the tile; 0 where there is none.
template <int V, typename T, typename Rows, typename Outer, typename Tile>
__device__ __forceinline__ void fill_gradient(Rows& a, const Outer& outer, const BlockRow& b,
                                              const Plane& plane, int stride, const Tile& tile,
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

}  // namespace
}  // namespace darts_fast::cuda
