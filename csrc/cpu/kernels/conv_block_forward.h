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
  T* about;      // [C'] about which values moments are taken
};

template <typename T>
static BlockForwardScratch<T> block_forward_scratch(const BlockShape& s, Scratch<T>* scratch) {
  const int64_t period = pattern_period<T>(s.channels);
  const int64_t rows = strip_rows(s, period);
  BlockForwardScratch<T> parts;
  parts.depthwise = scratch->take(rows * round_up(s.out_width * s.channels, period) + kLanes<T>);
  parts.out = scratch->take(rows * s.out_width * s.out_channels + kLanes<T>);
  parts.about = scratch->take(s.out_channels);
  return parts;
}

// Moments of an image are taken about the mean of its first few pixels.
static inline int64_t first_pixels(int64_t pixels) {
  constexpr int64_t kFew = 16;
  return pixels < kFew ? pixels : kFew;
}

// Adds a strip of outputs to the moments of the image.
template <typename T>
static void add_strip_moments(const T* y, bool first, int64_t pixels, int64_t channels,
                              int64_t period, T* about, double* sums, double* squares) {
  if (first) {
    plain_mean(y, first_pixels(pixels) * channels, channels, period, about);
    for (int64_t c = 0; c < channels; ++c) sums[c] = squares[c] = 0;
  }
  add_centred(y, pixels * channels, channels, period, about, sums, squares);
}

// A strip of outputs in place, with their moments and what is saved of them. `multiply(rows, begin,
// count)` makes those of some of its pixels.
template <typename T, typename Multiply>
static void multiply_into_sinks(PointwiseRows<T> rows, bool first, int64_t pixels, int64_t period,
                                PointwiseSinks<T> sinks, Multiply multiply) {
  int64_t done = 0;
  if (first) {
    done = first_pixels(pixels);
    const int64_t count = done * rows.out_channels;
    multiply(rows, 0, done);
    add_strip_moments(rows.out, true, done, rows.out_channels, period, sinks.about, sinks.sums,
                      sinks.squares);
    if (sinks.saved != nullptr) {
      stream_map(sinks.saved, rows.out, count);
      sinks.saved += count;
    }
    rows.out += count;
  }
  rows.sinks = &sinks;
  multiply(rows, done, pixels - done);
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
  const int64_t out_period = pattern_period<T>(s.out_channels);
  const bool separable = block.kind == ConvKind::kSeparable;
  const bool in_place = kSameElement<T, M> && s.out_channels % kLanes<T> == 0;
  const bool sinks = kProductsSink && in_place && mean != nullptr &&
                     (saved == nullptr || streams_lines(saved, s.out_channels));
  const int64_t strip = separable ? strip_rows(s, period) : 1;
  Tap taps[kMaxTaps];
  tile_taps(s, tile, block, separable ? period : packed.matrix, taps);
  const DepthwiseTaps<T> depthwise = depthwise_taps<T>(taps, block_taps(block), period);
  const Tap first = {0, 0};
  PointwiseRows<T> rows = {nullptr,           s.channels, separable ? &first : taps,
                           packed.dense_taps, s.channels, packed.matrices,
                           packed.row,        nullptr,    s.out_channels,
                           s.out_channels,    false};
  for (int64_t h = 0; h < s.out_height; h += strip) {
    const int64_t height = strip < s.out_height - h ? strip : s.out_height - h;
    const T* from = image + h * s.stride * tile.row;
    const int64_t pixels = height * s.out_width;
    decltype(as_factors(scratch.depthwise, pixels)) factors = nullptr;
    if (separable) {
      depthwise_rows<T>({from, s.stride * tile.row, scratch.depthwise, tile.out_count, height,
                         tile.out_count, false},
                        depthwise, packed.depthwise);
      factors = as_factors(scratch.depthwise, pixels * s.channels);
    }
    const auto multiply = [&](PointwiseRows<T> part, int64_t begin, int64_t count) {
      if (separable) {
        multiply_rows(part, factors + begin * s.channels, count);
      } else {
        part.in = from + begin * s.channels;
        pointwise_rows<T>(part, count);
      }
    };
    M* to = y + h * s.out_width * s.out_channels;
    rows.out = scratch.out;
    if constexpr (kSameElement<T, M>) {
      rows.out = in_place ? to : scratch.out;
      if (sinks) {
        multiply_into_sinks<T>(
            rows, h == 0, pixels, out_period,
            {scratch.about, mean, square,
             saved == nullptr ? nullptr : saved + h * s.out_width * s.out_channels},
            multiply);
        continue;
      }
    }
    multiply(rows, 0, pixels);
    if (mean != nullptr) {
      add_strip_moments(rows.out, h == 0, pixels, s.out_channels, out_period, scratch.about, mean,
                        square);
    }
    if (!in_place) store_map(to, scratch.out, pixels * s.out_channels);
    if (saved != nullptr) {
      stream_map(saved + h * s.out_width * s.out_channels, to, pixels * s.out_channels);
    }
  }
  if (saved != nullptr) fence_streams();
  if (mean == nullptr) return;
  finish_moments(scratch.about, static_cast<double>(s.out_height * s.out_width), s.out_channels,
                 mean, square);
}

}  // namespace darts_fast::cpu::DARTS_CPU_CAPABILITY
