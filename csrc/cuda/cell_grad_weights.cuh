// SPDX-License-Identifier: Apache-2.0
// Gradients of convolution weights, and the last launch of a node's backward: gradients of the
// sources of the ops that enter it, and of the weights of its dense convolutions and reduces.
//
// Those of separable blocks come with the gradients of their inputs (cell_grad_block.cuh). For the
// others, and in conv_blocks for all, a block of threads takes a chunk of a group's positions and a
// piece of a block's weights: kDepth inputs by kWidth outputs of one matrix, of a separable block
// with the depthwise outputs made again. All sums go to partial_weights [rows, blocks' weights],
// rows being groups and chunks or shares of boxes, which the last kernel adds in their order.
//
// Bytes: input, y and g of the block once per piece (one at up to 16 channels), through the
// second-level cache; the partial sums.
#pragma once

#include "cuda/cell_grad_product.cuh"
#include "cuda/cell_grad_rows.cuh"
#include "cuda/cell_grad_states.cuh"
#include "cuda/tables.cuh"

namespace darts_fast::cuda {
namespace {

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

// Elements of a row of partial weight gradients, and pieces of a launch, for the largest block.
struct WeightLimits {
  int64_t row = 0, pieces = 0;
};

inline WeightLimits weight_limits(const std::vector<BlockRow>& blocks, int most_in, int outputs) {
  const int64_t one = static_cast<int64_t>(most_in) * outputs;
  const int64_t in_pieces = ceil_divide(most_in, kDepth), out_pieces = ceil_divide(outputs, kWidth);
  WeightLimits limits;
  for (const BlockRow& b : blocks) {
    const int64_t taps = b.kernel * b.kernel;
    const bool separable = b.kind == static_cast<int8_t>(ConvKind::kSeparable);
    const int64_t matrices = separable                                          ? 1
                             : b.kind == static_cast<int8_t>(ConvKind::kReduce) ? 2
                                                                                : taps;
    const int64_t row = matrices * one + (separable ? most_in * taps : 0);
    const int64_t pieces = matrices * in_pieces * out_pieces + (separable ? in_pieces : 0);
    if (row > limits.row) limits.row = row;
    if (pieces > limits.pieces) limits.pieces = pieces;
  }
  return limits;
}

// A chunk of a group's positions, for one block.
template <typename T, typename M, typename Outer>
struct WeightPiece {
  BlockWeights<T> weights;
  BlockInput<T, M> in;
  Outer outer;    // dL/dy
  const T* rows;  // what grad_rows_tile wrote for a separable block, for its taps
  Plane plane;    // of y
  int64_t images;
  int64_t begin, end;  // positions
  T* out;              // the block's row
};

// [outputs, depths] of one matrix, += over the chunk.
template <int V, typename T, typename M, typename Outer, typename F>
__device__ __forceinline__ void matrix_piece(const WeightPiece<T, M, Outer>& piece, int tap,
                                             int first_output, int ch, GradOperands<T, F>& s) {
  const BlockRow& b = piece.weights.row;
  const BlockInput<T, M>& in = piece.in;
  const int inputs = piece.weights.inputs, channels = piece.weights.outputs;
  const int depths = least(inputs - ch, kDepth);
  const int outputs = least(channels - first_output, kWidth);
  const GradPlace<T, F> place;
  if (is_kind(b, ConvKind::kSeparable)) {
    fill_taps(s.taps, piece.weights.first, b.kernel * b.kernel, ch, depths);
    __syncthreads();
  }
  T sum[4] = {T(0), T(0), T(0), T(0)};
  for (int64_t begin = piece.begin; begin < piece.end; begin += kGradPositions) {
    const Positions tile(piece.plane, piece.images, begin, kGradPositions);
    fill_input<V>(s.a, s.taps, in, b, tile, kGradPositions, tap, ch, depths);
    constexpr int kVectors = kWidth / V;
    for (int i = static_cast<int>(threadIdx.x); i < kGradPositions * kVectors; i += kThreads) {
      const int p = i / kVectors;
      const int first = (i - p * kVectors) * V;
      Vec<T, V> value = zeros<T, V>();
      if (p < tile.count && first < outputs) {
        const int at = first_output + first;
        value = load_gradient<V>(piece.outer, (begin + p) * channels + at, at);
      }
#pragma unroll
      for (int lane = 0; lane < V; ++lane) s.g[first + lane][p] = narrow<F>(value.lane[lane]);
    }
    __syncthreads();
    add_products(s, place, outputs, sum);
    __syncthreads();
  }
  if (place.o >= outputs) return;
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const int o = place.output(i), d = place.input(i);
    const int64_t row = (static_cast<int64_t>(tap) * channels + first_output + o) * inputs + ch;
    if ((o == place.o || o < outputs) && d < depths) piece.out[row + d] = sum[i];
  }
}

// Pieces of a block's matrices.
struct MatrixPieces {
  int in, out, all;

  __device__ __forceinline__ MatrixPieces(const BlockRow& b, int inputs, int outputs)
      : in((inputs + kDepth - 1) / kDepth),
        out((outputs + kWidth - 1) / kWidth),
        all(matrices(b) * in * out) {}
};

template <int V, typename T, typename M, typename Outer, typename F>
__device__ __forceinline__ void matrix_piece(const WeightPiece<T, M, Outer>& piece,
                                             const MatrixPieces& pieces, int at,
                                             GradOperands<T, F>& s) {
  const int tap = at / (pieces.in * pieces.out);
  const int rest = at - tap * pieces.in * pieces.out;
  matrix_piece<V>(piece, tap, rest / pieces.in * kWidth, rest % pieces.in * kDepth, s);
}

template <typename T, int V, typename F = T>
union SourcesShared {
  GradShared<T, V, F> block;
  ProductSums<T, V> products;
  GradOperands<T, F> weights;
};

// Of a block that is not separable: blocks of threads are (groups * chunks, pieces).
template <typename T, typename M, int V>
__device__ __forceinline__ void grad_weights(const Cell<T, M>& c, int block, int chunks,
                                             GradOperands<T, FactorOf<T, M>>& s) {
  const int group = static_cast<int>(blockIdx.x) / chunks;
  if (group >= c.groups || !op_runs(c, group, c.table.blocks[block].op)) return;
  const Plane plane = node_plane(c);
  const int64_t positions = c.images * plane.size();
  const int64_t share = chunk_positions(positions);
  const int chunk = static_cast<int>(blockIdx.x) - group * chunks;
  const int64_t begin = chunk * share;
  const WeightPiece<T, M, OuterGradient<T, M>> piece = {
      block_weights(c, block),
      block_input(c, block, group),
      block_gradient(c, block, group),
      nullptr,
      plane,
      c.images,
      begin,
      begin + share < positions ? begin + share : positions,
      partial_weights_of(c, block, group, chunk)};
  const MatrixPieces pieces(piece.weights.row, piece.weights.inputs, piece.weights.outputs);
  const int at = static_cast<int>(blockIdx.y);
  if (at < pieces.all) matrix_piece<V>(piece, pieces, at, s);
}

// One channel at a time, and with 16 bits at a time on tensor cores, the registers of two blocks at
// a multiprocessor do not do.
template <typename T, typename M, int V>
constexpr int kSourcesResident = V == 1 || sizeof(StateOf<T, M>) == 2 ? 1 : kResident<T>;

// grid.z = sources, then blocks of the list; the others have room for the largest of them.
template <typename T, typename M, int V>
__global__ __launch_bounds__(kThreads, kSourcesResident<T, M, V>) void cell_grad_sources(
    const __grid_constant__ Cell<T, M> c, const __grid_constant__ Sources sources, int list,
    int chunks) {
  __shared__ GradTask<T, M> task;
  __shared__ SourcesShared<T, V, FactorOf<T, M>> s;
  const int z = static_cast<int>(blockIdx.z);
  if (z < sources.size) {
    grad_state<T, M, V>(c, sources, z, task, s.block, s.products);
  } else {
    grad_weights<T, M, V>(c, c.table.lists[list + z - sources.size], chunks, s.weights);
  }
}

// Where element e of a block's row goes; null: nowhere.
template <typename T>
__device__ __forceinline__ T* weight_place(const BlockRow& b, int inputs, int outputs, int64_t e,
                                           T* first, T* second) {
  const WeightSizes sizes = weight_sizes(b, inputs, outputs);
  if (e >= sizes.matrix + sizes.taps) return nullptr;
  T* out = second;
  int64_t to = e;
  if (e >= sizes.matrix) {
    out = first;
    to = e - sizes.matrix;
  } else if (is_kind(b, ConvKind::kDense)) {
    const int64_t one = static_cast<int64_t>(inputs) * outputs;
    out = first;
    to = e % one * matrices(b) + e / one;
  } else if (is_kind(b, ConvKind::kReduce)) {
    const int64_t one = static_cast<int64_t>(inputs) * outputs, half = one / 2;
    const int64_t tap = e / one;
    to = e - tap * (one + half);
    if (to < 0 || to >= half) return nullptr;  // what a half has no weight for
    out = tap == 0 ? first : out;
  }
  return out == nullptr ? nullptr : out + to;
}

// The sum of an element over the groups that run and their chunks, of which a group has `rows` at
// most.
template <typename T, typename Runs>
__device__ __forceinline__ T sum_chunks(const T* partial, int64_t row, int rows, int groups,
                                        int chunks, Runs runs) {
  double sum = 0;
  for (int group = 0; group < groups; ++group) {
    if (!runs(group)) continue;
    for (int chunk = 0; chunk < chunks; ++chunk) {
      sum += partial[(static_cast<int64_t>(group) * rows + chunk) * row];
    }
  }
  return static_cast<T>(sum);
}

// The sums over groups and chunks, in the layout of the weights; `chunks` of a block that is not
// separable. grid = (elements / threads, blocks).
template <typename T, typename M>
__global__ __launch_bounds__(kThreads) void cell_sum_weights(const __grid_constant__ Cell<T, M> c,
                                                             int chunks) {
  const int block = static_cast<int>(blockIdx.y);
  const BlockRow& b = c.table.blocks[block];
  const OpRow& op = c.table.ops[b.op];
  const bool input = block == op.block && is_input(c, op.source);
  const int inputs = input ? c.in_channels : c.channels;
  const int64_t e = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  T* out = weight_place(b, inputs, c.channels, e, entry(c.table.grad_first, block),
                        entry(c.table.grad_second, block));
  if (out == nullptr) return;
  if (is_kind(b, ConvKind::kSeparable)) chunks = (input ? c.input_boxes : c.node_boxes).chunks;
  *out = sum_chunks(partial_weights_of(c, block, 0, 0) + e, c.partial_weights_row,
                    c.partial_weights_rows, c.groups, chunks,
                    [&](int group) { return op_runs(c, group, b.op); });
}

}  // namespace
}  // namespace darts_fast::cuda
