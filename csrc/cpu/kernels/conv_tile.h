// SPDX-License-Identifier: Apache-2.0
// One image in a thread's scratch memory: padded, behind its ReLU, and at stride 2 cut into even
// and odd columns, so that every tap of a convolution reads a row of outputs in one stretch.
#pragma once

#include "conv_blocks.h"
#include "cpu/kernels/channel_pattern.h"
#include "cpu/kernels/depthwise_rows.h"
#include "cpu/kernels/scratch.h"

namespace darts_fast::cpu::DARTS_CPU_CAPABILITY {

struct Tile {
  int64_t pad;
  int64_t columns;    // of a plane
  int64_t row;        // elements from one row to the next
  int64_t plane;      // elements of a plane
  int64_t size;       // elements of the tile, and what a last row's whole patterns reach past it
  int64_t out_count;  // elements of a row of depthwise outputs, rounded up to whole patterns
};

// How far a block's taps reach; sizes round up at stride 2.
static inline int64_t block_pad(const ConvBlock& block) {
  return block.kind == ConvKind::kReduce ? 0 : block.dilation * (block.kernel - 1) / 2;
}

static inline int64_t block_taps(const ConvBlock& block) {
  return block.kind == ConvKind::kReduce ? 2 : block.kernel * block.kernel;
}

// Displacement of a tap's input from the place of its output. The factorized reduce is the dense
// convolution of the two taps (0, 0) and (1, 1).
static inline int64_t tap_row(const ConvBlock& block, int64_t tap) {
  if (block.kind == ConvKind::kReduce) return tap;
  return tap / block.kernel * block.dilation - block_pad(block);
}

static inline int64_t tap_column(const ConvBlock& block, int64_t tap) {
  if (block.kind == ConvKind::kReduce) return tap;
  return tap % block.kernel * block.dilation - block_pad(block);
}

// `pad` is the largest reach of the blocks that read the tile.
static inline Tile make_tile(const BlockShape& s, int64_t pad, int64_t period) {
  Tile t;
  t.pad = pad;
  t.columns = (s.width + 2 * pad + s.stride - 1) / s.stride;
  t.row = t.columns * s.channels;
  t.plane = (s.height + 2 * pad) * t.row;
  t.out_count = round_up(s.out_width * s.channels, period);
  t.size = s.stride * t.plane + t.out_count + 2 * period;
  return t;
}

// Where the pixel (h, w) of the image, or of the padding around it, stands in the tile.
static inline int64_t tile_offset(const BlockShape& s, const Tile& t, int64_t h, int64_t w) {
  const int64_t column = w + t.pad;
  return column % s.stride * t.plane + (h + t.pad) * t.row + column / s.stride * s.channels;
}

// Taps from the start of the tile for the output (0, 0); the output row h adds
// h * stride * tile.row. Weights of a tap stand `weights` elements apart.
static inline void tile_taps(const BlockShape& s, const Tile& t, const ConvBlock& block,
                             int64_t weights, Tap* taps) {
  for (int64_t i = 0; i < block_taps(block); ++i) {
    taps[i] = {tile_offset(s, t, tap_row(block, i), tap_column(block, i)), i * weights};
  }
}

// The gradient of a block's inner maps in scratch memory, padded for the gradient of the input,
// which is gathered from it.
static inline Tile make_grad_tile(const BlockShape& s, int64_t pad, int64_t channels,
                                  int64_t period) {
  Tile t;
  t.pad = s.stride == 1 ? pad : pad / 2 + 1;
  t.columns = s.out_width + 2 * t.pad;
  t.row = t.columns * channels;
  t.plane = (s.out_height + 2 * t.pad) * t.row;
  t.out_count = round_up((s.width + s.stride - 1) / s.stride * channels, period);
  t.size = t.plane + t.out_count + 2 * period;
  return t;
}

// The taps that reach the input pixels (stride h' + row, stride w' + column), from the place of
// (h', w') = (0, 0) in the grad tile; returns how many.
static inline int64_t gather_taps(const BlockShape& s, const Tile& t, int64_t channels,
                                  const ConvBlock& block, int64_t weights, int64_t row,
                                  int64_t column, Tap* taps) {
  int64_t count = 0;
  // Backwards, so that the places of the inputs go forwards.
  for (int64_t i = block_taps(block) - 1; i >= 0; --i) {
    const int64_t h = row - tap_row(block, i);
    const int64_t w = column - tap_column(block, i);
    if (h % s.stride != 0 || w % s.stride != 0) continue;
    taps[count++] = {(h / s.stride + t.pad) * t.row + (w / s.stride + t.pad) * channels,
                     i * weights};
  }
  return count;
}

// Per-channel coefficients of the batch norm in front of the ReLU, as patterns:
// x -> (x - center) * scale + shift.
template <typename T>
struct InputNorm {
  const T* center;
  const T* scale;
  const T* shift;
};

template <typename T>
struct InputNormVectors {
  Vec<T> center, scale, shift;
};

template <typename T>
static inline Vec<T> rectified(Vec<T> x, T floor = 0) {
  const Vec<T> least = Vec<T>{} + floor;
  return x < least ? least : x;  // NaN stays
}

// Fills a row of pixels of the interior from `count` elements: ReLU, behind the norm if there is
// one. Without a norm the ReLU may have another floor; one of -infinity lets everything through.
template <typename T, typename Y>
static inline void load_tile_row(const Y* x, int64_t count, int64_t period,
                                 const InputNorm<T>* norm, T* to, T floor = 0) {
  const int64_t whole = count / period * period;
  if (norm == nullptr) {
    for (int64_t i = 0; i < whole; i += kLanes<T>) store(to + i, rectified<T>(load(x + i), floor));
  } else {
    for_each_vector<T>(
        whole, period,
        [&](int64_t offset) {
          return InputNormVectors<T>{load(norm->center + offset), load(norm->scale + offset),
                                     load(norm->shift + offset)};
        },
        [=](int64_t i, const InputNormVectors<T>& v) {
          store(to + i, rectified<T>((load(x + i) - v.center) * v.scale + v.shift));
        });
  }
  for (int64_t i = whole; i < count; ++i) {
    const int64_t c = i - whole;
    const T y = widen(x[i]);
    const T v = norm == nullptr ? y : (y - norm->center[c]) * norm->scale[c] + norm->shift[c];
    to[i] = v < floor ? floor : v;
  }
}

// Fills the interior of the tile; the padding keeps the zeros it was given when it was cleared.
template <typename T, typename Y>
static void load_tile(const BlockShape& s, const Tile& t, const Y* image, int64_t period,
                      const InputNorm<T>* norm, T* tile, T floor = 0) {
  const int64_t row = s.width * s.channels;
  for (int64_t h = 0; h < s.height; ++h) {
    const Y* x = image + h * row;
    if (s.stride == 1) {
      load_tile_row(x, row, period, norm, tile + tile_offset(s, t, h, 0), floor);
      continue;
    }
    for (int64_t w = 0; w < s.width; ++w) {
      load_tile_row(x + w * s.channels, s.channels, period, norm, tile + tile_offset(s, t, h, w),
                    floor);
    }
  }
}

}  // namespace darts_fast::cpu::DARTS_CPU_CAPABILITY
