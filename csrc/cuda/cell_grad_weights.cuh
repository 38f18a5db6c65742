// SPDX-License-Identifier: Apache-2.0
// The last launch of a node's backward: gradients of convolution weights, and of the sources of the
// ops that enter it. Both need what cell_grad_rows wrote and not each other.
//
// Gradients of weights: a block of threads takes a chunk of a group's positions and a
// piece of a block's weights: kDepth inputs by kWidth outputs of one matrix, with the depthwise
// outputs made again; or the taps of kDepth channels of a depthwise convolution. Its sums go to
// partial_weights [rows, blocks' weights], rows being groups and chunks, which the second kernel
// adds in their order.
//
// Bytes: input, y and g of the block once per piece (one
// of each kind at up to 16 channels), through the second-level cache; the partial sums.
#pragma once

#include "cuda/cell_grad_rows.cuh"
#include "cuda/cell_grad_states.cuh"

namespace darts_fast::cuda {
namespace {

constexpr int kGradPositions = 32;
constexpr int kPadded = kGradPositions + 4;

// Where a block's weights stand in a row: first the matrices (of a dense convolution or a reduce as
// [matrix, output, input]), then the taps [channel, tap] of a depthwise convolution.
struct WeightSizes {
  int64_t matrix;  // all matrices
  int64_t taps;
};

__device__ __forceinline__ WeightSizes weight_sizes(const BlockRow& b, int inputs, int outputs) {
  const int64_t one = static_cast<int64_t>(inputs) * outputs;
  if (is_kind(b, ConvKind::kSeparable))
    return {one, static_cast<int64_t>(inputs) * b.kernel * b.kernel};
  return {one * matrices(b), 0};
}

// A chunk's partial sums are as many as the block has weights, whatever its positions: few of them
// would move more bytes than the maps.
__host__ __device__ inline int64_t chunk_positions(int64_t positions) {
  constexpr int64_t kMostChunks = 64, kLeast = 4 * kGradPositions;
  const int64_t share = (positions + kMostChunks - 1) / kMostChunks;
  if (share <= kLeast) return kLeast;
  return (share + kGradPositions - 1) / kGradPositions * kGradPositions;
}

template <typename T>
struct GradOperands {
  alignas(32) T a[kDepth][kPadded];
  alignas(32) T g[kWidth][kPadded];
  T taps[kMostTaps][kDepth];
};

// What one launch of threads works on.
template <typename T, typename M>
struct WeightPiece {
  int block, group;
  int64_t begin, end;  // positions of the group
  T* out;              // the block's row
};

// [outputs, depths] of one matrix, += over the chunk.
template <typename T, typename M, int V>
__device__ __forceinline__ void matrix_piece(const Cell<T, M>& c, const WeightPiece<T, M>& piece,
                                             int tap, int first_output, int ch, int inputs,
                                             GradOperands<T>& s) {
  const BlockRow& b = c.table.blocks[piece.block];
  const BlockInput<T, M> in = block_input(c, piece.block, piece.group);
  const OuterGradient<T, M> outer = block_gradient(c, piece.block, piece.group);
  const int depths = least(inputs - ch, kDepth);
  const int outputs = least(c.channels - first_output, kWidth);
  const int o = static_cast<int>(threadIdx.x) / 4;
  const int d = static_cast<int>(threadIdx.x) % 4 * 4;
  if (is_kind(b, ConvKind::kSeparable)) {
    fill_taps(s.taps, c.table.first[piece.block], b.kernel * b.kernel, ch, depths);
    __syncthreads();
  }
  T sum[4] = {T(0), T(0), T(0), T(0)};
  for (int64_t begin = piece.begin; begin < piece.end; begin += kGradPositions) {
    const Positions tile(node_plane(c), c.images, begin, kGradPositions);
    fill_input<V>(s.a, s.taps, in, b, tile, kGradPositions, tap, ch, depths);
    constexpr int kVectors = kWidth / V;
    for (int i = static_cast<int>(threadIdx.x); i < kGradPositions * kVectors; i += kThreads) {
      const int p = i / kVectors;
      const int first = (i - p * kVectors) * V;
      Vec<T, V> value = zeros<T, V>();
      if (p < tile.count && first < outputs) {
        const int at = first_output + first;
        value = load_gradient<T, M, V>(outer, (begin + p) * c.channels + at, at);
      }
#pragma unroll
      for (int lane = 0; lane < V; ++lane) s.g[first + lane][p] = value.lane[lane];
    }
    __syncthreads();
    if (o < outputs) {
#pragma unroll 2
      for (int p = 0; p < kGradPositions; p += 4) {
        const Vec<T, 4> g = load<T, 4>(&s.g[o][p]);
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          const Vec<T, 4> a = load<T, 4>(&s.a[d + i][p]);
#pragma unroll
          for (int lane = 0; lane < 4; ++lane) sum[i] += g.lane[lane] * a.lane[lane];
        }
      }
    }
    __syncthreads();
  }
  if (o >= outputs) return;
  const int64_t row = (static_cast<int64_t>(tap) * c.channels + first_output + o) * inputs + ch;
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    if (d + i < depths) piece.out[row + d + i] = sum[i];
  }
}

// The taps of kDepth channels: a thread has a channel and a row of the window, and every so-many-th
// position.
template <int K, typename T, typename M>
__device__ __forceinline__ void taps_piece(const Cell<T, M>& c, const WeightPiece<T, M>& piece,
                                           int ch, int inputs,
                                           T (&shared)[kMostTaps * kThreads / 7], T* out) {
  constexpr int kLines = kThreads / (kDepth * K);
  const BlockRow& b = c.table.blocks[piece.block];
  const BlockInput<T, M> in = block_input(c, piece.block, piece.group);
  const Plane plane = node_plane(c);
  const T* rows =
      c.grad_rows + b.rows * c.grad_rows_slot + piece.group * c.images * plane.size() * inputs;
  const int thread = static_cast<int>(threadIdx.x);
  const int channel = thread % kDepth;
  const int i = thread / kDepth % K;
  const int line = thread / (kDepth * K);
  const bool works = line < kLines && ch + channel < inputs;
  T sum[K];
#pragma unroll
  for (int j = 0; j < K; ++j) sum[j] = T(0);
  const Positions tile(plane, c.images, piece.begin, static_cast<int>(piece.end - piece.begin));
  for (int p = line; works && p < tile.count; p += kLines) {
    const Spot at = spot(tile, p);
    const T g = rows[(piece.begin + p) * inputs + ch + channel];
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

template <typename T, int V>
union SourcesShared {
  ProductSums<T, V> products;
  GradOperands<T> operands;
  T taps[kMostTaps * kThreads / 7];  // [lines, K, K, kDepth]: at most kThreads * K elements
};

// Of one block: blocks of threads are (groups * chunks, pieces).
template <typename T, typename M, int V>
__device__ __forceinline__ void grad_weights(const Cell<T, M>& c, int block, int chunks,
                                             SourcesShared<T, V>& s) {
  WeightPiece<T, M> piece;
  piece.block = block;
  piece.group = static_cast<int>(blockIdx.x) / chunks;
  if (piece.group >= c.groups) return;
  const BlockRow& b = c.table.blocks[piece.block];
  const OpRow& op = c.table.ops[b.op];
  if (!op_runs(c, piece.group, b.op)) return;
  const int64_t positions = c.images * c.node_height * c.node_width;
  const int64_t share = chunk_positions(positions);
  piece.begin = (static_cast<int>(blockIdx.x) - piece.group * chunks) * share;
  piece.end = piece.begin + share < positions ? piece.begin + share : positions;
  const int inputs = piece.block == op.block ? state_channels(c, op.source) : c.channels;
  const int in_pieces = (inputs + kDepth - 1) / kDepth;
  const int out_pieces = (c.channels + kWidth - 1) / kWidth;
  const int matrix_pieces = matrices(b) * in_pieces * out_pieces;
  const WeightSizes sizes = weight_sizes(b, inputs, c.channels);
  piece.out =
      c.partial_weights +
      (static_cast<int64_t>(piece.block) * c.groups * chunks + blockIdx.x) * c.partial_weights_row;
  const int at = static_cast<int>(blockIdx.y);
  if (at < matrix_pieces) {
    const int tap = at / (in_pieces * out_pieces);
    const int rest = at - tap * in_pieces * out_pieces;
    matrix_piece<T, M, V>(c, piece, tap, rest / in_pieces * kWidth, rest % in_pieces * kDepth,
                          inputs, s.operands);
    return;
  }
  const int ch = (at - matrix_pieces) * kDepth;
  if (!is_kind(b, ConvKind::kSeparable) || ch >= inputs) return;
  T* out = piece.out + sizes.matrix;
  if (b.kernel == 3) taps_piece<3>(c, piece, ch, inputs, s.taps, out);
  if (b.kernel == 5) taps_piece<5>(c, piece, ch, inputs, s.taps, out);
  if (b.kernel == 7) taps_piece<7>(c, piece, ch, inputs, s.taps, out);
}

// grid.z = sources, then blocks of the list; the others have room for the largest of them.
template <typename T, typename M, int V>
__global__ __launch_bounds__(kThreads, kResident<T>) void cell_grad_sources(
    const __grid_constant__ Cell<T, M> c, const __grid_constant__ Sources sources, int list,
    int chunks) {
  __shared__ SourcesShared<T, V> s;
  const int z = static_cast<int>(blockIdx.z);
  if (z < sources.size) {
    grad_state<T, M, V>(c, sources, z, s.products);
  } else {
    grad_weights<T, M, V>(c, c.table.lists[list + z - sources.size], chunks, s);
  }
}

// The sums over groups and chunks, in the layout of the weights.
// grid = (elements / threads, blocks).
template <typename T, typename M>
__global__ __launch_bounds__(kThreads) void cell_sum_weights(const __grid_constant__ Cell<T, M> c,
                                                             int chunks) {
  const int block = static_cast<int>(blockIdx.y);
  const BlockRow& b = c.table.blocks[block];
  const OpRow& op = c.table.ops[b.op];
  const int inputs = block == op.block ? state_channels(c, op.source) : c.channels;
  const WeightSizes sizes = weight_sizes(b, inputs, c.channels);
  const int64_t e = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (e >= sizes.matrix + sizes.taps) return;
  // Where it goes.
  T* out = entry(c.table.grad_second, block);
  int64_t to = e;
  if (e >= sizes.matrix) {
    out = entry(c.table.grad_first, block);
    to = e - sizes.matrix;
  } else if (is_kind(b, ConvKind::kDense)) {
    const int64_t one = static_cast<int64_t>(inputs) * c.channels;
    out = entry(c.table.grad_first, block);
    to = e % one * matrices(b) + e / one;
  } else if (is_kind(b, ConvKind::kReduce)) {
    const int64_t one = static_cast<int64_t>(inputs) * c.channels, half = one / 2;
    const int64_t tap = e / one;
    to = e - tap * (one + half);
    if (to < 0 || to >= half) return;  // what a half has no weight for
    out = tap == 0 ? entry(c.table.grad_first, block) : out;
  }
  if (out == nullptr) return;
  double sum = 0;
  const T* in = c.partial_weights +
                static_cast<int64_t>(block) * c.groups * chunks * c.partial_weights_row + e;
  for (int group = 0; group < c.groups; ++group) {
    if (!op_runs(c, group, b.op)) continue;
    for (int chunk = 0; chunk < chunks; ++chunk) {
      sum += in[static_cast<int64_t>(group * chunks + chunk) * c.partial_weights_row];
    }
  }
  out[to] = static_cast<T>(sum);
}

}  // namespace
}  // namespace darts_fast::cuda
