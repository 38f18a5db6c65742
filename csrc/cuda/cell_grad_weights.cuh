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
  const T* rows;  // what grad_rows_tile wrote for a separable block
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

template <typename T, int V, typename F = T>
union SourcesShared {
  ProductSums<T, V> products;
  GradOperands<T, F> operands;
  T taps[kMostTaps * kThreads / 7];  // [lines, K, K, kDepth]: at most kThreads * K elements
};

// Number `at` of a block's pieces: the matrices', then the taps'.
template <int V, typename T, typename M, typename Outer, typename F>
__device__ __forceinline__ void weight_piece(const WeightPiece<T, M, Outer>& piece, int at,
                                             SourcesShared<T, V, F>& s) {
  const BlockRow& b = piece.weights.row;
  const int inputs = piece.weights.inputs, outputs = piece.weights.outputs;
  const int in_pieces = (inputs + kDepth - 1) / kDepth;
  const int out_pieces = (outputs + kWidth - 1) / kWidth;
  const int matrix_pieces = matrices(b) * in_pieces * out_pieces;
  if (at < matrix_pieces) {
    const int tap = at / (in_pieces * out_pieces);
    const int rest = at - tap * in_pieces * out_pieces;
    matrix_piece<V>(piece, tap, rest / in_pieces * kWidth, rest % in_pieces * kDepth, s.operands);
    return;
  }
  const int ch = (at - matrix_pieces) * kDepth;
  if (!is_kind(b, ConvKind::kSeparable) || ch >= inputs) return;
  T* out = piece.out + weight_sizes(b, inputs, outputs).matrix;
  if (b.kernel == 3) taps_piece<3>(piece, ch, s.taps, out);
  if (b.kernel == 5) taps_piece<5>(piece, ch, s.taps, out);
  if (b.kernel == 7) taps_piece<7>(piece, ch, s.taps, out);
}

// Of one block: blocks of threads are (groups * chunks, pieces).
template <typename T, typename M, int V>
__device__ __forceinline__ void grad_weights(const Cell<T, M>& c, int block, int chunks,
                                             SourcesShared<T, V, FactorOf<T, M>>& s) {
  const int group = static_cast<int>(blockIdx.x) / chunks;
  if (group >= c.groups || !op_runs(c, group, c.table.blocks[block].op)) return;
  const BlockWeights<T> w = block_weights(c, block);
  const Plane plane = node_plane(c);
  const int64_t positions = c.images * plane.size();
  const int64_t share = chunk_positions(positions);
  const int64_t begin = (static_cast<int>(blockIdx.x) - group * chunks) * share;
  const WeightPiece<T, M, OuterGradient<T, M>> piece = {
      w,
      block_input(c, block, group),
      block_gradient(c, block, group),
      grad_rows_of(c, w.row, group, positions * w.inputs),
      plane,
      c.images,
      begin,
      begin + share < positions ? begin + share : positions,
      c.partial_weights +
          (static_cast<int64_t>(block) * c.groups * chunks + blockIdx.x) * c.partial_weights_row};
  weight_piece<V>(piece, static_cast<int>(blockIdx.y), s);
}

// grid.z = sources, then blocks of the list; the others have room for the largest of them.
template <typename T, typename M, int V>
__global__ __launch_bounds__(kThreads, kResident<T>) void cell_grad_sources(
    const __grid_constant__ Cell<T, M> c, const __grid_constant__ Sources sources, int list,
    int chunks) {
  __shared__ SourcesShared<T, V, FactorOf<T, M>> s;
  const int z = static_cast<int>(blockIdx.z);
  if (z < sources.size) {
    grad_state<T, M, V>(c, sources, z, s.products);
  } else {
    grad_weights<T, M, V>(c, c.table.lists[list + z - sources.size], chunks, s);
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

// The sum of an element over the groups that run and their chunks.
template <typename T, typename Runs>
__device__ __forceinline__ T sum_chunks(const T* partial, int64_t row, int groups, int chunks,
                                        Runs runs) {
  double sum = 0;
  for (int group = 0; group < groups; ++group) {
    if (!runs(group)) continue;
    for (int chunk = 0; chunk < chunks; ++chunk) {
      sum += partial[static_cast<int64_t>(group * chunks + chunk) * row];
    }
  }
  return static_cast<T>(sum);
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
  const int64_t e = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  T* out = weight_place(b, inputs, c.channels, e, entry(c.table.grad_first, block),
                        entry(c.table.grad_second, block));
  if (out == nullptr) return;
  const T* in = c.partial_weights +
                static_cast<int64_t>(block) * c.groups * chunks * c.partial_weights_row + e;
  *out = sum_chunks(in, c.partial_weights_row, c.groups, chunks,
                    [&](int group) { return op_runs(c, group, b.op); });
}

}  // namespace
}  // namespace darts_fast::cuda
