// SPDX-License-Identifier: Apache-2.0
// A block's weights in the order in which the inner loops read them: matrices in a forward, their
// transposes in a backward.
#pragma once

#include "cpu/kernels/conv_tile.h"
#include "cpu/kernels/pointwise_pairs.h"
#include "cpu/kernels/transpose.h"

namespace darts_fast::cpu::DARTS_CPU_CAPABILITY {

// Of one block: depthwise [taps, period] (kSeparable), matrices [dense taps, C, row of C'] and
// their transposes [dense taps, C', row of C], rows being whole vectors.
template <typename T>
struct PackedBlock {
  const T* depthwise;
  const T* matrices;
  const T* transposed;
  int64_t matrix;      // elements of one matrix
  int64_t transpose;   // elements of one transpose
  int64_t row;         // of a matrix
  int64_t back_row;    // of a transpose
  int64_t dense_taps;  // matrices
};

template <typename T>
static PackedBlock<T> packed_block(const BlockShape& s, const ConvBlock& block, const T* packed) {
  PackedBlock<T> p;
  const bool separable = block.kind == ConvKind::kSeparable;
  p.dense_taps = separable ? 1 : block_taps(block);
  p.row = vectors_of<T>(s.out_channels) * kLanes<T>;
  p.back_row = vectors_of<T>(s.channels) * kLanes<T>;
  p.matrix = s.channels * p.row;
  p.transpose = s.out_channels * p.back_row;
  p.depthwise = packed;
  p.matrices = packed + (separable ? block_taps(block) * pattern_period<T>(s.channels) : 0);
  p.transposed = p.matrices + p.dense_taps * p.matrix;
  return p;
}

template <typename T>
static int64_t packed_block_size(const BlockShape& s, const ConvBlock& block) {
  const PackedBlock<T> p = packed_block<T>(s, block, nullptr);
  return round_up(p.transposed - p.depthwise + p.dense_taps * p.transpose, 64);
}

// The matrix of a dense tap where it stands: element (co, ci) of the outputs [begin, end), 0 for
// others. `second` is the factorized reduce's other half.
template <typename T>
struct TapMatrix {
  T* from;
  int64_t begin, end;
  int64_t co_stride, ci_stride;
};

template <typename T>
static TapMatrix<T> tap_matrix(const BlockShape& s, const ConvBlock& block, T* first, T* second,
                               int64_t tap) {
  if (block.kind == ConvKind::kReduce) {
    const int64_t half = s.out_channels / 2;
    return {tap == 0 ? first : second, tap * half, tap * half + half, s.channels, 1};
  }
  if (block.kind == ConvKind::kDense) {
    const int64_t taps = block_taps(block);
    return {first == nullptr ? nullptr : first + tap, 0, s.out_channels, s.channels * taps, taps};
  }
  return {second, 0, s.out_channels, s.channels, 1};
}

// Brings an array into the caches, line by line in its order, which hardware follows ahead of. Not
// so the rows of a matrix that is transposed in squares; and what is asked for by prefetches comes
// as late as they do.
template <typename T>
static inline void read_in_order(const T* from, int64_t count) {
  constexpr int64_t kLine = 64 / static_cast<int64_t>(sizeof(T));
  for (int64_t i = 0; i < count; i += kLine) static_cast<void>(*(const volatile T*)(from + i));
}

// Elements of a block's weights; see pack_block.
struct WeightSizes {
  int64_t first, second;
};

static inline WeightSizes weight_sizes(const BlockShape& s, const ConvBlock& block) {
  const int64_t product = s.channels * s.out_channels, taps = block_taps(block);
  if (block.kind == ConvKind::kSeparable) return {s.channels * taps, product};
  if (block.kind == ConvKind::kDense) return {product * taps, 0};
  return {product / 2, product / 2};
}

template <typename T>
static void read_weights(const BlockShape& s, const ConvBlock& block, const T* first,
                         const T* second) {
  const WeightSizes sizes = weight_sizes(s, block);
  read_in_order(first, sizes.first);
  read_in_order(second, sizes.second);
}

// Depthwise weights [C, k, k] as taps of whole patterns.
template <typename T>
static void pack_depthwise(const BlockShape& s, const ConvBlock& block, const T* first, T* packed) {
  const int64_t period = pattern_period<T>(s.channels);
  const int64_t taps = block_taps(block);
  transpose(first, taps, s.channels, taps, packed, period);
  for (int64_t t = 0; s.channels < period && t < taps; ++t) {
    T* pattern = packed + t * period;
    for (int64_t i = s.channels; i < period; ++i) pattern[i] = pattern[i - s.channels];
  }
}

// For a forward: the depthwise weights and the matrices.
//
// first, second: depthwise [C, k, k] and pointwise [C', C] (kSeparable), the weight [C', C, k, k]
// (kDense), both halves [C' / 2, C] (kReduce).
template <typename T>
static void pack_block(const BlockShape& s, const ConvBlock& block, const T* first, const T* second,
                       T* packed) {
  const PackedBlock<T> p = packed_block<T>(s, block, packed);
  const bool separable = block.kind == ConvKind::kSeparable;
  read_weights(s, block, first, second);
  if (separable) pack_depthwise(s, block, first, packed);
  T* matrices = packed + (p.matrices - p.depthwise);
  if (p.row > s.out_channels || block.kind == ConvKind::kReduce) {
    std::memset(matrices, 0, p.dense_taps * p.matrix * sizeof(T));
  }
  const TapMatrix<const T> one = tap_matrix<const T>(s, block, first, second, 0);
  if (one.ci_stride > 1) {  // the taps of a pair of channels follow each other
    for (int64_t ci = 0; ci < s.channels; ++ci) {
      transpose(one.from + ci * one.ci_stride, one.co_stride, s.out_channels, p.dense_taps,
                matrices + ci * p.row, p.matrix);
    }
    return;
  }
  for (int64_t t = 0; t < p.dense_taps; ++t) {
    const TapMatrix<const T> m = tap_matrix<const T>(s, block, first, second, t);
    transpose(m.from, m.co_stride, m.end - m.begin, s.channels, matrices + t * p.matrix + m.begin,
              p.row);
  }
  if (separable) pack_factors(matrices, s.channels, p.row);
}

// For a backward: the depthwise weights and the transposes.
template <typename T>
static void pack_block_transposed(const BlockShape& s, const ConvBlock& block, const T* first,
                                  const T* second, T* packed) {
  const PackedBlock<T> p = packed_block<T>(s, block, packed);
  const bool separable = block.kind == ConvKind::kSeparable;
  read_weights(s, block, first, second);
  if (separable) pack_depthwise(s, block, first, packed);
  T* transposed = packed + (p.transposed - p.depthwise);
  if (p.back_row > s.channels || block.kind == ConvKind::kReduce) {
    std::memset(transposed, 0, p.dense_taps * p.transpose * sizeof(T));
  }
  const TapMatrix<const T> one = tap_matrix<const T>(s, block, first, second, 0);
  if (one.ci_stride > 1) {
    for (int64_t co = 0; co < s.out_channels; ++co) {
      transpose(one.from + co * one.co_stride, one.ci_stride, s.channels, p.dense_taps,
                transposed + co * p.back_row, p.transpose);
    }
    return;
  }
  for (int64_t t = 0; t < p.dense_taps; ++t) {
    const TapMatrix<const T> m = tap_matrix<const T>(s, block, first, second, t);
    for (int64_t co = m.begin; co < m.end; ++co) {
      std::memcpy(transposed + t * p.transpose + co * p.back_row,
                  m.from + (co - m.begin) * m.co_stride, s.channels * sizeof(T));
    }
  }
  if (separable) pack_factors(transposed, s.out_channels, p.back_row);
}

}  // namespace darts_fast::cpu::DARTS_CPU_CAPABILITY
