// SPDX-License-Identifier: Apache-2.0
// The weights' gradients of conv_blocks, piece by piece: of matrices as of a cell's dense
// convolutions, of depthwise convolutions from what conv_blocks_grad_rows wrote.
#pragma once

#include "cuda/cell_grad_weights.cuh"

namespace darts_fast::cuda {
namespace {

// The taps of kDepth channels: a thread has a channel and a row of the window, and every so-many-th
// position.
template <int K, typename T, typename M, typename Outer>
__device__ __forceinline__ void taps_piece(const WeightPiece<T, M, Outer>& piece, int ch,
                                           T (&shared)[kMostTaps * kThreads / 7], T* out) {
  constexpr int kLines = kThreads / (kDepth * K);
  const BlockRow& b = piece.weights.row;
  const BlockInput<T, M>& in = piece.in;
  const int inputs = piece.weights.inputs;
  const int thread = static_cast<int>(threadIdx.x);
  const int channel = thread % kDepth;
  const int i = thread / kDepth % K;
  const int line = thread / (kDepth * K);
  const bool works = line < kLines && ch + channel < inputs;
  T sum[K];
#pragma unroll
  for (int j = 0; j < K; ++j) sum[j] = T(0);
  const Positions tile(piece.plane, piece.images, piece.begin,
                       static_cast<int>(piece.end - piece.begin));
  for (int p = line; works && p < tile.count; p += kLines) {
    const Spot at = spot(tile, p);
    const T g = piece.rows[(piece.begin + p) * inputs + ch + channel];
    const int h = window_start(b, in.stride, at.h) + i * b.dilation;
    if (h < 0 || h >= in.plane.height) continue;
    const int left = window_start(b, in.stride, at.w);
#pragma unroll
    for (int j = 0; j < K; ++j) {
      const int w = left + j * b.dilation;
      if (w < 0 || w >= in.plane.width) continue;
      sum[j] += g * load_input<T, M, 1>(in, at.image, h, w, ch + channel).lane[0];
    }
  }
  if (line < kLines) {
#pragma unroll
    for (int j = 0; j < K; ++j) shared[((line * K + i) * K + j) * kDepth + channel] = sum[j];
  }
  __syncthreads();
  for (int t = thread; t < K * K * kDepth; t += kThreads) {
    if (ch + t % kDepth >= inputs) continue;
    T total = T(0);
    for (int l = 0; l < kLines; ++l) total += shared[l * K * K * kDepth + t];
    out[static_cast<int64_t>(ch + t % kDepth) * K * K + t / kDepth] = total;
  }
}

template <typename T, typename F>
union WeightShared {
  GradOperands<T, F> operands;
  T taps[kMostTaps * kThreads / 7];  // [lines, K, K, kDepth]: at most kThreads * K elements
};

// Number blockIdx.y of a branch's pieces: the matrices', then the taps'.
template <int V, typename T, typename M, typename Outer, typename F>
__device__ __forceinline__ void weight_piece(const WeightPiece<T, M, Outer>& piece,
                                             WeightShared<T, F>& s) {
  const BlockRow& b = piece.weights.row;
  const int inputs = piece.weights.inputs, outputs = piece.weights.outputs;
  const MatrixPieces pieces(b, inputs, outputs);
  const int at = static_cast<int>(blockIdx.y);
  if (at < pieces.all) {
    matrix_piece<V>(piece, pieces, at, s.operands);
    return;
  }
  const int ch = (at - pieces.all) * kDepth;
  if (!is_kind(b, ConvKind::kSeparable) || ch >= inputs) return;
  T* out = piece.out + weight_sizes(b, inputs, outputs).matrix;
  if (b.kernel == 3) taps_piece<3>(piece, ch, s.taps, out);
  if (b.kernel == 5) taps_piece<5>(piece, ch, s.taps, out);
  if (b.kernel == 7) taps_piece<7>(piece, ch, s.taps, out);
}

}  // namespace
}  // namespace darts_fast::cuda
