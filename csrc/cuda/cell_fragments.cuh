// SPDX-License-Identifier: Apache-2.0
// The matrix product of cell_product.cuh on tensor cores: under autocast, where maps have 16 bits,
// its two factors are rounded to them, as PyTorch's own autocast rounds what its convolutions give
// and are given. Sums stay float32.
//
// The tile of positions and channels is that of the float32 product. Its 16 x 8 pieces are dealt to
// the warps, neighbours to one; the sums go through shared memory to the threads that store them
// and make their statistics. That is 8 bytes per output of a bandwidth that the factors, two bytes
// each and read once per piece, leave idle.
#pragma once

#include "cuda/cell_product.cuh"
#include "cuda/fragments.cuh"

namespace darts_fast::cuda {
namespace {

constexpr int kWarps = kThreads / kWarp;
constexpr int kFactorRow = kDepth + kFragmentPadding;
static_assert(kDepth == kFragmentDepth);

// The pieces of a product, row by row. A warp has `each` of them; the last warps may have none.
struct Pieces {
  int rows, columns, each;

  __host__ __device__ constexpr explicit Pieces(const Micro& m)
      : rows((m.positions() + kFragmentRows - 1) / kFragmentRows),
        columns((m.width() + kFragmentColumns - 1) / kFragmentColumns),
        each((rows * columns + kWarps - 1) / kWarps) {}
};

// Between rows of sums in shared memory: a vector more than they have.
__host__ __device__ constexpr int sums_row(const Micro& m) { return m.width() + kMicro; }

// The most that any number of channels asks for.
constexpr int most_pieces() {
  int most = 0;
  for (int c = 1; c <= kWidth; ++c) {
    const int each = Pieces(micro_of<Half>(c)).each;
    most = each > most ? each : most;
  }
  return most;
}
constexpr int most_sums() {
  int most = 0;
  for (int c = 1; c <= kWidth; ++c) {
    const Micro micro = micro_of<Half>(c);
    const int size = micro.positions() * sums_row(micro);
    most = size > most ? size : most;
  }
  return most;
}
constexpr int kMostPieces = most_pieces();
static_assert(kMostPieces == 4);

// The factors of a product, and what is filled and multiplied in place of `Operands`.
template <typename H, int Positions = kMostPositions, int Width = kWidth>
struct Factors {
  using Sums = float[kMostPieces][4];

  alignas(16) H a[Positions][kFactorRow];
  alignas(16) H w[Width][kFactorRow];
  float taps[kMostTaps][kDepth];
};

template <typename H>
union FragmentOperands {
  using Sums = float[kMostPieces][4];

  Factors<H> factors;
  alignas(16) float sums[most_sums()];
};

__device__ __forceinline__ int whole_pieces(int positions) {
  return (positions + kFragmentRows - 1) / kFragmentRows * kFragmentRows;
}

// As the other `fill_rows`, for positions up to a whole number of pieces.
template <int V, int Positions, typename H, typename Value>
__device__ __forceinline__ void fill_rows(H (&a)[Positions][kFactorRow], int positions, int count,
                                          int depths, Value value) {
  constexpr int kVectors = kDepth / V;
  for (int i = static_cast<int>(threadIdx.x); i < whole_pieces(positions) * kVectors;
       i += kThreads) {
    const int p = i / kVectors;
    const int d = (i - p * kVectors) * V;
    store_narrow<V>(&a[p][d], p < count && d < depths ? value(p, d) : zeros<float, V>());
  }
}

template <bool kAlongOutputs, typename H, int Positions, int Width, typename Value>
__device__ __forceinline__ void fill_matrix(Factors<H, Positions, Width>& s, int depths,
                                            int outputs, Value value) {
  for (int i = static_cast<int>(threadIdx.x); i < kDepth * Width; i += kThreads) {
    const int d = kAlongOutputs ? i / Width : i % kDepth;
    const int o = kAlongOutputs ? i % Width : i / kDepth;
    s.w[o][d] = narrow<H>(d < depths && o < outputs ? value(d, o) : 0.f);
  }
}

template <typename H>
__device__ __forceinline__ Factors<H>& factors(FragmentOperands<H>& s) {
  return s.factors;
}

// All threads of the block.
template <typename H, int Positions, int Width>
__device__ __forceinline__ void multiply(const Factors<H, Positions, Width>& s, const Micro& micro,
                                         const MicroPlace&, float (&sums)[kMostPieces][4]) {
  const Pieces pieces(micro);
  const FragmentPlace lane;
  const int first = static_cast<int>(threadIdx.x) / kWarp * pieces.each;
  int row = first / pieces.columns;
  int column = first - row * pieces.columns;
  uint32_t a[4] = {}, b[2];
#pragma unroll
  for (int i = 0; i < kMostPieces; ++i) {
    if (i >= pieces.each || row >= pieces.rows) continue;
    if (i == 0 || column == 0) load_rows(a, lane, &s.a[row * kFragmentRows][0], kFactorRow);
    load_columns(b, lane, &s.w[column * kFragmentColumns][0], kFactorRow);
    multiply_fragments<H>(sums[i], a, b);
    if (++column < pieces.columns) continue;
    column = 0;
    ++row;
  }
}

// Sums of pieces to rows [position][row] in shared memory. All threads of the block.
__device__ __forceinline__ void store_rows(const Micro& micro, const float (&sums)[kMostPieces][4],
                                           float* rows, int row) {
  const Pieces pieces(micro);
  const FragmentPlace lane;
  const int first = static_cast<int>(threadIdx.x) / kWarp * pieces.each;
#pragma unroll
  for (int i = 0; i < kMostPieces; ++i) {
    if (i >= pieces.each) continue;
    const int tile = (first + i) / pieces.columns;
    const int channel = (first + i - tile * pieces.columns) * kFragmentColumns + lane.pair;
    if (channel >= micro.width()) continue;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int p = tile * kFragmentRows + half * 8 + lane.row;
      if (p >= micro.positions()) continue;
      *reinterpret_cast<Vec<float, 2>*>(rows + p * row + channel) = {sums[i][2 * half],
                                                                     sums[i][2 * half + 1]};
    }
  }
}

// Sums of pieces as those of positions and channels. All threads of the block, before and behind
// which nobody reads the operands.
template <typename H>
__device__ __forceinline__ void take_sums(FragmentOperands<H>& s, const Micro& micro,
                                          const MicroPlace& place,
                                          const float (&sums)[kMostPieces][4],
                                          Accumulator<float>& sum) {
  const int row = sums_row(micro);
  store_rows(micro, sums, s.sums, row);
  __syncthreads();
  if (place.works) {
#pragma unroll
    for (int i = 0; i < kMicro; ++i) {
      sum[i] = load<float, kMicro>(&s.sums[(place.p + i) * row + place.o]);
    }
  }
  __syncthreads();
}

// What a product of maps M is made of.
template <typename T, typename M>
using FactorOf = std::conditional_t<kHasFragments<StateOf<T, M>>, StateOf<T, M>, T>;
template <typename T, typename F>
using OperandsOf = std::conditional_t<std::is_same_v<T, F>, Operands<T>, FragmentOperands<F>>;

}  // namespace
}  // namespace darts_fast::cuda
