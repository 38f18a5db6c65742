// SPDX-License-Identifier: Apache-2.0
// A block's weights in the order in which the inner loops read them.
#pragma once

#include "cpu/kernels/conv_tile.h"
#include "cpu/kernels/pointwise_pairs.h"

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

// first, second: depthwise [C, k, k] and pointwise [C', C] (kSeparable), the weight [C', C, k, k]
// (kDense), both halves [C' / 2, C] (kReduce).
template <typename T>
static void pack_block(const BlockShape& s, const ConvBlock& block, const T* first, const T* second,
                       T* packed) {
  const PackedBlock<T> p = packed_block<T>(s, block, packed);
  const int64_t period = pattern_period<T>(s.channels);
  const int64_t taps = block_taps(block);
  for (int64_t t = 0; block.kind == ConvKind::kSeparable && t < taps; ++t) {
    expand_pattern(packed + t * period, s.channels, period,
                   [&](int64_t c) { return first[c * taps + t]; });
  }
  T* matrices = packed + (p.matrices - p.depthwise);
  T* transposed = packed + (p.transposed - p.depthwise);
  std::memset(matrices, 0, p.dense_taps * p.matrix * sizeof(T));
  std::memset(transposed, 0, p.dense_taps * p.transpose * sizeof(T));
  for (int64_t t = 0; t < p.dense_taps; ++t) {
    const TapMatrix<const T> m = tap_matrix<const T>(s, block, first, second, t);
    for (int64_t co = m.begin; co < m.end; ++co) {
      const T* from = m.from + (co - m.begin) * m.co_stride;
      T* column = matrices + t * p.matrix + co;
      T* row = transposed + t * p.transpose + co * p.back_row;
      for (int64_t ci = 0; ci < s.channels; ++ci) {
        column[ci * p.row] = row[ci] = from[ci * m.ci_stride];
      }
    }
  }
  if (block.kind != ConvKind::kSeparable) return;
  pack_factors(matrices, s.channels, p.row);
  pack_factors(transposed, s.out_channels, p.back_row);
}

}  // namespace darts_fast::cpu::DARTS_CPU_CAPABILITY
