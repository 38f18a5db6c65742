// SPDX-License-Identifier: Apache-2.0
// The matrix product inside the convolution kernels: positions times channels, in shared memory.
//
// A block of kThreads threads makes `rows * 4` positions by `columns * 4` channels, a thread 4 x 4
// of them in registers. The contracted channels pass by kDepth at a time. Below about 64 channels,
// where the cells of a search live, a library's product would read the depthwise outputs back from
// memory, four times the bytes of this one; wider cells are cut into kWidth channels per block, and
// make the depthwise outputs again for each.
#pragma once

#include "cuda/cell_input.cuh"

namespace darts_fast::cuda {
namespace {

constexpr int kDepth = 16;
constexpr int kWidth = 64;
constexpr int kMostPositions = 256;
constexpr int kMostTaps = 49;
constexpr int kMicro = 4;

// A thread's sums.
template <typename T>
using Accumulator = Vec<T, kMicro>[kMicro];  // [position].lane[channel]

// Rows are padded by a vector: threads that fill neighbouring channels hit other banks.
template <typename T, int Positions = kMostPositions, int Width = kWidth>
struct Operands {
  using Sums = Accumulator<T>;

  alignas(32) T a[kDepth][Positions + kMicro];
  alignas(32) T w[kDepth][Width + kMicro];
  T taps[kMostTaps][kDepth];
};

__host__ __device__ constexpr int least(int a, int b) { return a < b ? a : b; }

// How a product of `channels` outputs is cut: at most `most` at a time, by so many threads.
struct Micro {
  int columns, rows, chunks;

  Micro() = default;
  __host__ __device__ constexpr explicit Micro(int channels, int most = kWidth,
                                               int threads = kThreads, bool fragments = false)
      : columns(((channels < most ? channels : most) + kMicro - 1) / kMicro),
        rows(least(threads / columns, kMostPositions / kMicro * threads / kThreads)),
        chunks((channels + most - 1) / most) {
    // Four pieces of 16 positions by 8 channels for each warp, as many sums as without.
    if (fragments) rows = least(rows, 4 * kThreads / kWarp / ((columns + 1) / 2) * 4);
  }
  __host__ __device__ constexpr int positions() const { return rows * kMicro; }
  __host__ __device__ constexpr int width() const { return columns * kMicro; }
};

// The same of a cell's states of type S, that may be multiplied on tensor cores.
template <typename S>
__host__ __device__ constexpr Micro micro_of(int channels, int most = kWidth,
                                             int threads = kThreads) {
  return Micro(channels, most, threads, sizeof(S) == 2);
}

// Where a thread works: positions [p, p + 4) of the tile, channels [o, o + 4) of the chunk.
struct MicroPlace {
  int row, column, p, o;
  bool works;

  __device__ __forceinline__ explicit MicroPlace(const Micro& m) {
    row = static_cast<int>(threadIdx.x) / m.columns;
    column = static_cast<int>(threadIdx.x) - row * m.columns;
    works = row < m.rows;
    p = row * kMicro;
    o = column * kMicro;
  }
};

// Of operands that may be laid out in another way (cell_fragments.cuh): what is filled and
// multiplied, and at the end the sums of the thread.
template <typename T>
__device__ __forceinline__ Operands<T>& factors(Operands<T>& s) {
  return s;
}

template <typename T>
__device__ __forceinline__ void take_sums(Operands<T>&, const Micro&, const MicroPlace&,
                                          const Accumulator<T>& sums, Accumulator<T>& sum) {
#pragma unroll
  for (int i = 0; i < kMicro; ++i) sum[i] = sums[i];
}

template <typename T, int Positions, int Width>
__device__ __forceinline__ void multiply(const Operands<T, Positions, Width>& s, const Micro&,
                                         const MicroPlace& at, Accumulator<T>& sum) {
  if (!at.works) return;
#pragma unroll 4
  for (int d = 0; d < kDepth; ++d) {
    const Vec<T, kMicro> a = load<T, kMicro>(&s.a[d][at.p]);
    const Vec<T, kMicro> w = load<T, kMicro>(&s.w[d][at.o]);
#pragma unroll
    for (int i = 0; i < kMicro; ++i) {
#pragma unroll
      for (int j = 0; j < kMicro; ++j) sum[i].lane[j] += a.lane[i] * w.lane[j];
    }
  }
}

// Into a map of `channels`, the tile's first position at `to`.
template <int V, typename T, typename M>
__device__ __forceinline__ void store_tile(M* to, int channels, const MicroPlace& place, int count,
                                           int first_channel, const Accumulator<T>& value) {
  if (!place.works) return;
#pragma unroll
  for (int i = 0; i < kMicro; ++i) {
    if (place.p + i >= count) continue;
    M* at = to + (place.p + i) * static_cast<int64_t>(channels);
#pragma unroll
    for (int j = 0; j < kMicro; j += V) {
      const int ch = first_channel + place.o + j;
      if (ch >= channels) continue;
      Vec<T, V> part;
#pragma unroll
      for (int lane = 0; lane < V; ++lane) part.lane[lane] = value[i].lane[j + lane];
      store_narrow<V>(at + ch, part);
    }
  }
}

// a[d][p] = value(p, d) for the tile's positions and V depths at once; 0 behind `depths`.
template <int V, int Row, typename F, typename Value>
__device__ __forceinline__ void fill_rows(F (&a)[kDepth][Row], int positions, int count, int depths,
                                          Value value) {
  constexpr int kVectors = kDepth / V;
  for (int i = static_cast<int>(threadIdx.x); i < positions * kVectors; i += kThreads) {
    const int p = i / kVectors;
    const int d = (i - p * kVectors) * V;
    using Values = decltype(value(p, d));
    const Values v = p < count && d < depths ? value(p, d) : Values{};
#pragma unroll
    for (int lane = 0; lane < V; ++lane) a[d + lane][p] = narrow<F>(v.lane[lane]);
  }
}

// w[d][o] = value(d, o), 0 behind `depths` and `outputs`. Neighbouring threads have neighbouring
// depths, or outputs where kAlongOutputs: as the weights lie in memory.
template <bool kAlongOutputs, typename T, int Positions, int Width, typename Value>
__device__ __forceinline__ void fill_matrix(Operands<T, Positions, Width>& s, int depths,
                                            int outputs, Value value) {
  for (int i = static_cast<int>(threadIdx.x); i < kDepth * Width; i += kThreads) {
    const int d = kAlongOutputs ? i / Width : i % kDepth;
    const int o = kAlongOutputs ? i % Width : i / kDepth;
    s.w[d][o] = d < depths && o < outputs ? value(d, o) : T(0);
  }
}

// taps[t][d] of channels [ch, ch + depths).
template <typename T>
__device__ __forceinline__ void fill_taps(T (&taps)[kMostTaps][kDepth], const T* weight, int count,
                                          int ch, int depths) {
  for (int i = static_cast<int>(threadIdx.x); i < count * kDepth; i += kThreads) {
    const int d = i / count;
    const int t = i - d * count;
    taps[t][d] = d < depths ? weight[static_cast<int64_t>(ch + d) * count + t] : T(0);
  }
}

// Channels [ch, ch + depths) of the rows that block b multiplies with matrix `tap`: its depthwise
// outputs, or the pixels that a tap of a dense convolution sees. Into a[][0 .. positions).
template <int V, typename T, typename M, typename Rows>
__device__ __forceinline__ void fill_input(Rows& a, const T (&taps)[kMostTaps][kDepth],
                                           const BlockInput<T, M>& in, const BlockRow& b,
                                           const Positions& tile, int positions, int tap, int ch,
                                           int depths) {
  if (is_kind(b, ConvKind::kSeparable)) {
    fill_rows<V>(a, positions, tile.count, depths, [&](int p, int d) {
      return depthwise<T, M, V>(in, b, spot(tile, p), ch + d, &taps[0][d], kDepth);
    });
    return;
  }
  const bool dense = is_kind(b, ConvKind::kDense);
  fill_rows<V>(a, positions, tile.count, depths, [&](int p, int d) {
    const Spot at = spot(tile, p);
    const int h = dense ? window_start(b, in.stride, at.h) + tap / b.kernel : 2 * at.h + tap;
    const int w = dense ? window_start(b, in.stride, at.w) + tap % b.kernel : 2 * at.w + tap;
    if (!inside(in.plane, h, w)) return zeros<T, V>();
    return load_input<T, M, V>(in, at.image, h, w, ch + d);
  });
}

// A convolution block and its weights.
template <typename T>
struct BlockWeights {
  const BlockRow& row;
  const T* first;       // depthwise, dense or first half
  const T* second;      // pointwise or second half
  int inputs, outputs;  // channels
};

template <typename T, typename M>
__device__ __forceinline__ BlockWeights<T> block_weights(const Cell<T, M>& c, int block) {
  const BlockRow& b = c.table.blocks[block];
  const OpRow& op = c.table.ops[b.op];
  return {b, c.table.first[block], entry(c.table.second, block),
          block == op.block ? state_channels(c, op.source) : c.channels, c.channels};
}

// Matrices of a block: one, one per tap of a dense convolution, or one per half of a reduce.
__device__ __forceinline__ int matrices(const BlockRow& b) {
  if (is_kind(b, ConvKind::kSeparable)) return 1;
  return is_kind(b, ConvKind::kReduce) ? 2 : b.kernel * b.kernel;
}

// Element [o, i] of a block's matrix; of a reduce each half has rows of its own, the others are 0.
template <typename T>
struct BlockMatrix {
  const T* weight;
  int64_t row;   // elements from output to output
  int64_t step;  // from input to input
  int begin, end;

  __device__ __forceinline__ T operator()(int o, int i) const {
    return o >= begin && o < end ? weight[(o - begin) * row + i * step] : T(0);
  }
};

template <typename T>
__device__ __forceinline__ BlockMatrix<T> block_matrix(const BlockWeights<T>& w, int tap) {
  if (is_kind(w.row, ConvKind::kSeparable)) return {w.second, w.inputs, 1, 0, w.outputs};
  if (is_kind(w.row, ConvKind::kReduce)) {
    const int half = w.outputs / 2;
    return {tap == 0 ? w.first : w.second, w.inputs, 1, tap * half, (tap + 1) * half};
  }
  const int taps = w.row.kernel * w.row.kernel;
  return {w.first + tap, static_cast<int64_t>(w.inputs) * taps, taps, 0, w.outputs};
}

}  // namespace
}  // namespace darts_fast::cuda
