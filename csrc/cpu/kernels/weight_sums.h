// SPDX-License-Identifier: Apache-2.0
// From the weight gradients of chunks of images to those of a step.
#pragma once

#include "cpu/kernels/conv_block_backward.h"
#include "cpu/kernels/transpose.h"

namespace darts_fast::cpu::DARTS_CPU_CAPABILITY {

// Sums rows of `size` elements in their order, in double, into the first of them. `counts(r)` says
// whether a row was written; at least one was.
template <typename T, typename Counts>
static void sum_rows(T* rows, int64_t stride, int64_t count, int64_t size, Counts counts) {
  if (count == 1) return;
  constexpr int64_t kRun = 128;
  for (int64_t first = 0; first < size; first += kRun) {
    const int64_t run = size - first < kRun ? size - first : kRun;
    double sums[kRun] = {};
    for (int64_t r = 0; r < count; ++r) {
      if (counts(r)) add_wide(sums, rows + r * stride + first, run);
    }
    for (int64_t i = 0; i < run; ++i) rows[first + i] = static_cast<T>(sums[i]);
  }
}

// The weight gradients of a block, in the layout of its weights (pack_block), from `count` rows of
// BlockGradients, which are used up; a null output is one that nobody asked for. Without rows that
// count they are zeros.
template <typename T, typename Counts>
static void sum_block_gradients(const BlockShape& s, const ConvBlock& block, T* rows,
                                int64_t stride, int64_t count, Counts counts, T* first, T* second) {
  bool any = false;
  for (int64_t r = 0; r < count && !any; ++r) any = counts(r);
  if (!any) {
    const WeightSizes sizes = weight_sizes(s, block);
    if (first != nullptr) std::memset(first, 0, sizes.first * sizeof(T));
    if (second != nullptr) std::memset(second, 0, sizes.second * sizeof(T));
    return;
  }
  const PackedBlock<T> p = packed_block<T>(s, block, nullptr);
  const int64_t period = pattern_period<T>(s.channels);
  const int64_t taps = block_taps(block);
  const int64_t depthwise = depthwise_grad_size<T>(s, block);
  const bool separable = block.kind == ConvKind::kSeparable;
  const int64_t begin = separable && first == nullptr ? depthwise : 0;
  const int64_t end =
      separable && second == nullptr ? depthwise : depthwise + p.dense_taps * p.matrix;
  sum_rows(rows + begin, stride, count, end - begin, counts);
  if (separable && first != nullptr) {
    for (int64_t tap = 0; s.channels < period && tap < taps; ++tap) {
      T* pattern = rows + tap * period;
      for (int64_t i = s.channels; i < period; ++i) pattern[i % s.channels] += pattern[i];
    }
    transpose(rows, period, taps, s.channels, first, taps);
  }
  T* matrices = rows + depthwise;
  const TapMatrix<T> one = tap_matrix<T>(s, block, first, second, 0);
  if (one.ci_stride > 1) {  // the taps of a pair of channels follow each other
    for (int64_t ci = 0; one.from != nullptr && ci < s.channels; ++ci) {
      transpose(matrices + ci * p.row, p.matrix, p.dense_taps, s.out_channels,
                one.from + ci * one.ci_stride, one.co_stride);
    }
    return;
  }
  for (int64_t tap = 0; tap < p.dense_taps; ++tap) {
    const TapMatrix<T> m = tap_matrix<T>(s, block, first, second, tap);
    if (m.from == nullptr) continue;
    transpose(matrices + tap * p.matrix + m.begin, p.row, s.channels, m.end - m.begin, m.from,
              m.co_stride);
  }
}

}  // namespace darts_fast::cpu::DARTS_CPU_CAPABILITY
