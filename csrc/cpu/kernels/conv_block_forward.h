// SPDX-License-Identifier: Apache-2.0
// One convolution block of one image: y = matrix(depthwise(tile)) or dense(tile), with the moments
// of y. The tile holds the image behind its ReLU; a strip of rows of depthwise outputs feeds the
// matrix out of the first-level cache.
#pragma once

#include "cpu/kernels/conv_pack.h"
#include "cpu/kernels/image_moments.h"

namespace darts_fast::cpu::DARTS_CPU_CAPABILITY {

// Rows that are worked on together, so that accumulators are not put away after every short row;
// one where a row is no whole number of channel patterns and rows cannot stand back to back.
static inline int64_t strip_rows(const BlockShape& s, int64_t period) {
  constexpr int64_t kStripPixels = 64;
  if (s.out_width * s.channels % period != 0) return 1;
  const int64_t rows = kStripPixels / s.out_width;
  return rows < 1 ? 1 : rows < s.out_height ? rows : s.out_height;
}

template <typename T>
struct BlockForwardScratch {
  T* depthwise;  // a strip of depthwise outputs
  T* out;        // a strip of outputs, where they cannot be written in place
  T* about;      // [row] the first strip's mean, about which moments are taken
  T* sum;        // [row] of a strip
  T* square;     // [row]
  double* sums;  // [2, C'] of the image
};

template <typename T>
static BlockForwardScratch<T> block_forward_scratch(const BlockShape& s, Scratch<T>* scratch) {
  const int64_t period = pattern_period<T>(s.channels);
  const int64_t rows = strip_rows(s, period);
  const int64_t row = vectors_of<T>(s.out_channels) * kLanes<T>;
  BlockForwardScratch<T> parts;
  parts.depthwise = scratch->take(rows * round_up(s.out_width * s.channels, period) + kLanes<T>);
  parts.out = scratch->take(rows * s.out_width * s.out_channels + kLanes<T>);
  parts.about = scratch->take(row);
  parts.sum = scratch->take(row);
  parts.square = scratch->take(row);
  parts.sums = scratch->take_doubles(2 * s.out_channels);
  return parts;
}

// Adds a strip's sums to the image's and clears them.
template <typename T>
static void add_strip_moments(int64_t channels, const BlockForwardScratch<T>& scratch) {
  add_wide(scratch.sums, scratch.sum, channels);
  add_wide(scratch.sums + channels, scratch.square, channels);
  std::memset(scratch.sum, 0, channels * sizeof(T));
  std::memset(scratch.square, 0, channels * sizeof(T));
}

// The first strip says about which values the moments of the others are taken.
template <typename T>
static void first_strip_moments(const T* y, int64_t pixels, int64_t channels,
                                const BlockForwardScratch<T>& scratch) {
  double* sums = scratch.sums;
  double* squares = sums + channels;
  tile_moments(y, pixels * channels, channels, pattern_period<T>(channels), scratch.about, sums,
               squares);
  for (int64_t c = 0; c < channels; ++c) {
    const double off = sums[c] - scratch.about[c];
    sums[c] = off * static_cast<double>(pixels);
    squares[c] += off * sums[c];
    scratch.sum[c] = scratch.square[c] = T(0);
  }
  for (int64_t c = channels; c < round_up(channels, kLanes<T>); ++c) {
    scratch.about[c] = scratch.sum[c] = scratch.square[c] = T(0);
  }
}

// Writes y [H', W', C'], and where `mean` is not null mean and centred square sum [C']: of the
// values before they are rounded to the elements M that y is stored in. Measured against those of
// the rounded values, outputs and gradients are as near to the truth, running statistics nearer.
// Unless null, `saved` is given the same y past the caches.
template <typename T, typename M>
static void block_forward(const BlockShape& s, const Tile& tile, const ConvBlock& block,
                          const PackedBlock<T>& packed, const T* image,
                          const BlockForwardScratch<T>& scratch, M* y, double* mean, double* square,
                          M* saved = nullptr) {
  const int64_t period = pattern_period<T>(s.channels);
  const bool separable = block.kind == ConvKind::kSeparable;
  const bool in_place = kSameElement<T, M> && s.out_channels % kLanes<T> == 0;
  const int64_t strip = separable ? strip_rows(s, period) : 1;
  Tap taps[kMaxTaps];
  tile_taps(s, tile, block, separable ? period : packed.matrix, taps);
  const Tap first = {0, 0};
  PointwiseRows<T> rows = {nullptr,           s.channels, separable ? &first : taps,
                           packed.dense_taps, s.channels, packed.matrices,
                           packed.row,        nullptr,    s.out_channels,
                           s.out_channels,    false};
  const RowMoments<T> moments = {scratch.about, scratch.sum, scratch.square};
  for (int64_t h = 0; h < s.out_height; h += strip) {
    const int64_t height = strip < s.out_height - h ? strip : s.out_height - h;
    const T* from = image + h * s.stride * tile.row;
    for (int64_t i = 0; separable && i < height; ++i) {
      depthwise_row(from + i * s.stride * tile.row, taps, block_taps(block), packed.depthwise,
                    period, tile.out_count, scratch.depthwise + i * tile.out_count, false);
    }
    M* to = y + h * s.out_width * s.out_channels;
    const int64_t pixels = height * s.out_width;
    rows.out = scratch.out;
    if constexpr (kSameElement<T, M>) rows.out = in_place ? to : scratch.out;
    const bool fused = mean != nullptr && h > 0;
    if (separable) {
      multiply_rows(rows, as_factors(scratch.depthwise, pixels * s.channels), pixels,
                    fused ? &moments : nullptr);
    } else {
      rows.in = from;
      pointwise_rows<T>(rows, pixels, fused ? &moments : nullptr);
    }
    if (mean != nullptr && h == 0) {
      first_strip_moments(rows.out, pixels, s.out_channels, scratch);
    } else if (fused) {
      add_strip_moments(s.out_channels, scratch);
    }
    if (!in_place) store_map(to, scratch.out, pixels * s.out_channels);
    if (saved != nullptr) {
      stream_map(saved + h * s.out_width * s.out_channels, to, pixels * s.out_channels);
    }
  }
  if (saved != nullptr) fence_streams();
  if (mean == nullptr) return;
  const double count = static_cast<double>(s.out_height * s.out_width);
  for (int64_t c = 0; c < s.out_channels; ++c) {
    const double sum = scratch.sums[c];
    mean[c] = scratch.about[c] + sum / count;
    square[c] = scratch.sums[s.out_channels + c] - sum * sum / count;
  }
}

}  // namespace darts_fast::cpu::DARTS_CPU_CAPABILITY
