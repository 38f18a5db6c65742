// SPDX-License-Identifier: Apache-2.0
// One image in a thread's scratch memory: padded, behind its ReLU, and at stride 2 cut into even
// and odd columns, so that every tap of a depthwise convolution reads a row of outputs in one
// stretch.
#pragma once

#include "conv_blocks.h"
#include "cpu/kernels/channel_pattern.h"

namespace darts_fast::cpu::DARTS_CPU_CAPABILITY {

struct ConvTile {
  int64_t pad;
  int64_t columns;    // of a plane
  int64_t row;        // elements from one row to the next
  int64_t plane;      // elements of a plane
  int64_t size;       // elements of the tile, and what a last row's whole patterns reach past it
  int64_t out_count;  // elements of a row of depthwise outputs, rounded up to whole patterns
};

static inline int64_t round_up(int64_t value, int64_t unit) {
  return (value + unit - 1) / unit * unit;
}

// The padding of "same" convolution; output sizes round up at stride 2.
static inline int64_t branch_pad(const ConvBranch& branch) {
  return branch.kernel == 0 ? 0 : branch.dilation * (branch.kernel - 1) / 2;
}

static inline int64_t branch_taps(const ConvBranch& branch) {
  return branch.kernel * branch.kernel;
}

static inline ConvTile make_tile(const ConvBlocksShape& s, const ConvBranch* branches,
                                 int64_t period) {
  ConvTile t;
  t.pad = 0;
  for (int64_t b = 0; b < s.branches; ++b) {
    const int64_t pad = branch_pad(branches[b]);
    if (pad > t.pad) t.pad = pad;
  }
  t.columns = (s.width + 2 * t.pad + s.stride - 1) / s.stride;
  t.row = t.columns * s.channels;
  t.plane = (s.height + 2 * t.pad) * t.row;
  t.out_count = round_up(s.out_width * s.channels, period);
  t.size = round_up(s.stride * t.plane + t.out_count + period, 16);
  return t;
}

// Where the pixel (h, w) of the image, or of the padding around it, stands in the tile.
static inline int64_t tile_offset(const ConvBlocksShape& s, const ConvTile& t, int64_t h,
                                  int64_t w) {
  const int64_t column = w + t.pad;
  return column % s.stride * t.plane + (h + t.pad) * t.row + column / s.stride * s.channels;
}

// offsets[tap] from the start of the tile for the output (0, 0); the output row h adds
// h * stride * tile.row.
static inline void tap_offsets(const ConvBlocksShape& s, const ConvTile& t,
                               const ConvBranch& branch, int64_t* offsets) {
  const int64_t pad = branch_pad(branch);
  for (int64_t ky = 0; ky < branch.kernel; ++ky) {
    for (int64_t kx = 0; kx < branch.kernel; ++kx) {
      offsets[ky * branch.kernel + kx] =
          tile_offset(s, t, ky * branch.dilation - pad, kx * branch.dilation - pad);
    }
  }
}

// Per-channel coefficients of the batch norm in front of the ReLU: x -> (x - center) * scale +
// shift.
template <typename T>
struct InputNorm {
  const T* center;
  const T* scale;
  const T* shift;
};

// Fills the interior; the padding keeps the zeros it was given when the scratch was cleared.
template <typename T>
static void load_tile(const ConvBlocksShape& s, const ConvTile& t, const T* image,
                      const InputNorm<T>* norm, T* tile) {
  const int64_t channels = s.channels;
  for (int64_t h = 0; h < s.height; ++h) {
    for (int64_t w = 0; w < s.width; ++w) {
      const T* __restrict__ x = image + (h * s.width + w) * channels;
      T* __restrict__ to = tile + tile_offset(s, t, h, w);
      if (norm == nullptr) {
        for (int64_t c = 0; c < channels; ++c) to[c] = x[c] < T(0) ? T(0) : x[c];
      } else {
        for (int64_t c = 0; c < channels; ++c) {
          const T v = (x[c] - norm->center[c]) * norm->scale[c] + norm->shift[c];
          to[c] = v < T(0) ? T(0) : v;
        }
      }
    }
  }
}

}  // namespace darts_fast::cpu::DARTS_CPU_CAPABILITY
