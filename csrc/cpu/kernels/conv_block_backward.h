// SPDX-License-Identifier: Apache-2.0
// Backward of one convolution block of one image, g = dL/dy:
//   d = depthwise(tile) again (it was not stored)
//   dL/d matrix[ci, co] = sum_p d[p, ci] g[p, co]
//   gd = matrix^T g, into a padded tile
//   dL/d depthwise[t, c] = sum_p gd[p, c] tile[p + t, c]
//   dL/d tile[q, c] = sum_t depthwise[t, c] gd[q - t, c]
// A dense block has g itself in the padded tile, and the matrices of its taps. At stride 2 the
// input gradient is gathered for each parity of rows and columns from the taps that reach it.
#pragma once

#include "cpu/kernels/conv_block_forward.h"

namespace darts_fast::cpu::DARTS_CPU_CAPABILITY {

// Gradients of one block, summed over images; pointers of the caller's.
template <typename T>
struct BlockGradients {
  T* depthwise;  // [taps, period], lanes to be folded to channels
  T* matrices;   // [dense taps, C, row], lanes behind C' hold nothing of use
};

template <typename T>
static int64_t depthwise_grad_size(const BlockShape& s, const ConvBlock& block) {
  return block.kind == ConvKind::kSeparable
             ? round_up(block_taps(block) * pattern_period<T>(s.channels), 16)
             : 0;
}

template <typename T>
static int64_t block_grad_size(const BlockShape& s, const ConvBlock& block) {
  const PackedBlock<T> p = packed_block<T>(s, block, nullptr);
  return round_up(depthwise_grad_size<T>(s, block) + p.dense_taps * p.matrix, 64);
}

template <typename T>
static BlockGradients<T> block_gradients(const BlockShape& s, const ConvBlock& block, T* at) {
  return {at, at + depthwise_grad_size<T>(s, block)};
}

template <typename T>
struct BlockBackwardScratch {
  T* depthwise;  // all depthwise outputs: the tile streams past once
  T* grad;       // a strip of g
  T* grad_tile;  // gd or g, padded with zeros
};

template <typename T>
static Tile largest_grad_tile(const BlockShape& s, int64_t pad) {
  const int64_t most = s.channels > s.out_channels ? s.channels : s.out_channels;
  return make_grad_tile(s, pad, most, pattern_period<T>(s.channels));
}

template <typename T>
static BlockBackwardScratch<T> block_backward_scratch(const BlockShape& s, int64_t pad,
                                                      Scratch<T>* scratch) {
  const int64_t period = pattern_period<T>(s.channels);
  const int64_t rows = strip_rows(s, period);
  BlockBackwardScratch<T> parts;
  parts.depthwise =
      scratch->take(s.out_height * round_up(s.out_width * s.channels, period) + kLanes<T>);
  parts.grad = scratch->take(rows * s.out_width * s.out_channels + kLanes<T>);
  parts.grad_tile = scratch->take(largest_grad_tile<T>(s, pad).size);
  return parts;
}

// The sum of input gradients over a tile's blocks, before the mask of the ReLU: column planes as
// the tile has them, rows of whole patterns.
static inline int64_t grad_sum_row(const BlockShape& s, int64_t period) {
  return round_up((s.width + s.stride - 1) / s.stride * s.channels, period);
}

static inline int64_t grad_sum_size(const BlockShape& s, int64_t period) {
  return s.stride * s.height * grad_sum_row(s, period) + period;
}

// grad_sum += what the grad tile gives to the input; with `first` whatever stands there counts as
// 0.
template <typename T>
static void gather_input_gradient(const BlockShape& s, const Tile& grad_tile,
                                  const ConvBlock& block, const PackedBlock<T>& packed,
                                  const T* gradients, bool first, T* grad_sum) {
  const int64_t period = pattern_period<T>(s.channels);
  const bool separable = block.kind == ConvKind::kSeparable;
  const int64_t sum_row = grad_sum_row(s, period);
  Tap taps[kMaxTaps];
  // At stride 2 some inputs may be out of every tap's reach.
  const bool clears = first && s.stride != 1;
  if (clears) std::memset(grad_sum, 0, grad_sum_size(s, period) * sizeof(T));
  const bool accumulate = !first || clears;
  for (int64_t row = 0; row < s.stride; ++row) {
    for (int64_t column = 0; column < s.stride; ++column) {
      const int64_t pixels = (s.width - column + s.stride - 1) / s.stride;
      const int64_t count =
          separable ? gather_taps(s, grad_tile, s.channels, block, period, row, column, taps)
                    : gather_taps(s, grad_tile, s.out_channels, block, packed.transpose, row,
                                  column, taps);
      if (count == 0 || pixels < 1) continue;
      const DepthwiseTaps<T> depthwise = depthwise_taps<T>(taps, count, period);
      T* plane = grad_sum + column * s.height * sum_row;
      if (separable) {
        depthwise_rows<T>({gradients, grad_tile.row, plane + row * sum_row, s.stride * sum_row,
                           (s.height - row + s.stride - 1) / s.stride,
                           round_up(pixels * s.channels, period), accumulate},
                          depthwise, packed.depthwise);
        continue;
      }
      for (int64_t h = row; h < s.height; h += s.stride) {
        pointwise_rows<T>({gradients + h / s.stride * grad_tile.row, s.out_channels, taps, count,
                           s.out_channels, packed.transposed, packed.back_row, plane + h * sum_row,
                           s.channels, s.channels, accumulate},
                          pixels);
      }
    }
  }
}

// acc[t] += sum_p gd[p] tile[p + t].
template <typename T>
static void depthwise_weight_gradient(const BlockShape& s, const Tile& tile, const Tile& grad_tile,
                                      const ConvBlock& block, const Tap* taps, const T* image,
                                      const T* interior, T* acc) {
  const int64_t period = pattern_period<T>(s.channels);
  const int64_t row = s.stride * tile.row;
  const int64_t count = s.out_width * s.channels;
  int64_t done = 0;
  if (kManyRegisters && block.kernel == 5 && s.stride == 1) {
    // Of 2 d rows, row i goes with row i + d.
    const int64_t d = block.dilation;
    for (; done + 2 * d <= s.out_height; done += 2 * d) {
      for (int64_t h = done; h < done + d; ++h) {
        const T* g = interior + h * grad_tile.row;
        depthwise_grad_pair<T>({image + h * row + taps[0].input,
                                d * tile.row,
                                d * s.channels,
                                {g, g + d * grad_tile.row},
                                count},
                               period, acc);
      }
    }
  }
  depthwise_grad<T>({image + done * row, row, interior + done * grad_tile.row, grad_tile.row,
                     s.out_height - done, count},
                    taps, block_taps(block), period, acc);
}

// `grad_rows(h, rows, to)` writes rows of g [rows * W', C'] back to back. Weight gradients are
// added to `grads` unless null, the input gradient to `grad_sum` unless null, or written there if
// it is the first one.
template <typename T, typename GradRows>
static void block_backward(const BlockShape& s, const Tile& tile, int64_t pad,
                           const ConvBlock& block, const PackedBlock<T>& packed, const T* image,
                           const BlockBackwardScratch<T>& scratch, const BlockGradients<T>* grads,
                           bool first, T* grad_sum, GradRows grad_rows) {
  const int64_t period = pattern_period<T>(s.channels);
  const bool separable = block.kind == ConvKind::kSeparable;
  const int64_t strip = separable ? strip_rows(s, period) : 1;
  const int64_t in_tile = separable ? s.channels : s.out_channels;
  const Tile grad_tile = make_grad_tile(s, pad, in_tile, period);
  T* const interior = scratch.grad_tile + grad_tile.pad * (grad_tile.row + in_tile);
  if (s.channels != s.out_channels) {  // another block's rows may stand in this one's padding
    std::memset(scratch.grad_tile, 0, grad_tile.size * sizeof(T));
  }
  Tap taps[kMaxTaps];
  tile_taps(s, tile, block, separable ? period : packed.matrix, taps);
  const DepthwiseTaps<T> depthwise = depthwise_taps<T>(taps, block_taps(block), period);
  const Tap here = {0, 0};
  if (separable && grads != nullptr) {
    depthwise_rows<T>({image, s.stride * tile.row, scratch.depthwise, tile.out_count, s.out_height,
                       tile.out_count, false},
                      depthwise, packed.depthwise);
  }
  for (int64_t h = 0; h < s.out_height; h += strip) {
    const int64_t height = strip < s.out_height - h ? strip : s.out_height - h;
    T* const tile_row = interior + h * grad_tile.row;
    if (!separable) {
      grad_rows(h, height, tile_row);
      continue;
    }
    grad_rows(h, height, scratch.grad);
    if (grads != nullptr) {
      pointwise_grad<T>({scratch.depthwise + h * tile.out_count, 0, s.channels, scratch.grad, 0,
                         s.out_channels, 1, height * s.out_width},
                        s.channels, packed.row, grads->matrices);
    }
    PointwiseRows<T> product = {
        nullptr,         s.out_channels, &here,      1,          s.out_channels, packed.transposed,
        packed.back_row, tile_row,       s.channels, s.channels, false};
    const auto* factors = as_factors(scratch.grad, height * s.out_width * s.out_channels);
    for (int64_t i = 0; i < height; ++i) {
      multiply_rows(product, factors + i * s.out_width * s.out_channels, s.out_width);
      product.out += grad_tile.row;
    }
  }
  if (grads != nullptr && separable) {
    depthwise_weight_gradient(s, tile, grad_tile, block, taps, image, interior, grads->depthwise);
  }
  for (int64_t t = 0; grads != nullptr && !separable && t < packed.dense_taps; ++t) {
    pointwise_grad<T>({image + taps[t].input, s.stride * tile.row, s.channels, interior,
                       grad_tile.row, s.out_channels, s.out_height, s.out_width},
                      s.channels, packed.row, grads->matrices + t * packed.matrix);
  }
  if (grad_sum != nullptr) {
    gather_input_gradient(s, grad_tile, block, packed, scratch.grad_tile, first, grad_sum);
  }
}

// dL/dx (added to what is there, or not): g where x, the input behind a ReLU, is above its floor.
template <typename T, bool kAdd>
static inline void mask_gradient(const T* x, const T* g, int64_t count, T floor, T* out) {
  const Vec<T> least = Vec<T>{} + floor;
  int64_t i = 0;
  for (; i + kLanes<T> <= count; i += kLanes<T>) {
    const Vec<T> value = load(x + i) <= least ? Vec<T>{} : load(g + i);
    store(out + i, kAdd ? load(out + i) + value : value);
  }
  for (; i < count; ++i) {
    const T value = x[i] <= floor ? T(0) : g[i];
    out[i] = kAdd ? out[i] + value : value;
  }
}

// A row of dL/dx from the sum of the tile's blocks.
template <typename T, bool kAdd>
static void masked_gradient_row(const BlockShape& s, const Tile& tile, const T* image,
                                const T* grad_sum, int64_t h, T* out, T floor = 0) {
  const int64_t row = grad_sum_row(s, pattern_period<T>(s.channels));
  if (s.stride == 1) {
    mask_gradient<T, kAdd>(image + tile_offset(s, tile, h, 0), grad_sum + h * row,
                           s.width * s.channels, floor, out);
    return;
  }
  for (int64_t w = 0; w < s.width; ++w) {
    mask_gradient<T, kAdd>(
        image + tile_offset(s, tile, h, w),
        grad_sum + (w % s.stride * s.height + h) * row + w / s.stride * s.channels, s.channels,
        floor, out + w * s.channels);
  }
}

}  // namespace darts_fast::cpu::DARTS_CPU_CAPABILITY
