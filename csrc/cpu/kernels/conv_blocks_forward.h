// SPDX-License-Identifier: Apache-2.0
// y_b = convolution_b(ReLU([BN] x_source(b))) for all branches b of a call, with the moments of
// every y_b for the batch norm that follows.
//
// An item is one image of one input: it is read once, stands padded in scratch memory of about
// (H + 2 P)(W + 2 P) C elements, and each of its branches goes over it (conv_block_forward.h).
// Bytes: each input once, each output once.
#pragma once

#include <cmath>

#include "cpu/items.h"
#include "cpu/kernels/conv_block_forward.h"
#include "cpu/kernels/image_moments.h"

namespace darts_fast::cpu::DARTS_CPU_CAPABILITY {

static inline int64_t largest_pad(const ConvBlocksShape& s, const ConvBranch* branches) {
  int64_t pad = 0;
  for (int64_t b = 0; b < s.branches; ++b) {
    const int64_t reach = block_pad(branches[b].block);
    if (reach > pad) pad = reach;
  }
  return pad;
}

template <typename T>
static Tile conv_tile(const ConvBlocksShape& s, const ConvBranch* branches) {
  return make_tile(s, largest_pad(s, branches), pattern_period<T>(s.channels));
}

template <typename T>
static int64_t conv_packed_size(const ConvBlocksShape& s, const ConvBranch* branches) {
  int64_t most = 0;
  for (int64_t b = 0; b < s.branches; ++b) {
    const int64_t size = packed_block_size<T>(s, branches[b].block);
    if (size > most) most = size;
  }
  return most;
}

template <typename T>
struct ConvForwardScratch {
  T* image;
  T* coefficients;  // [3, period]
  BlockForwardScratch<T> block;
};

template <typename T>
static ConvForwardScratch<T> conv_forward_parts(const ConvBlocksShape& s,
                                                const ConvBranch* branches, Scratch<T>* scratch) {
  ConvForwardScratch<T> parts;
  parts.image = scratch->take(conv_tile<T>(s, branches).size);
  parts.coefficients = scratch->take(3 * pattern_period<T>(s.channels));
  parts.block = block_forward_scratch(s, scratch);
  return parts;
}

template <typename T>
static int64_t conv_forward_scratch(const ConvBlocksShape& s, const ConvBranch* branches) {
  Scratch<T> measure = {nullptr};
  conv_forward_parts(s, branches, &measure);
  return measure.used;
}

template <typename T>
static void conv_forward_pack(const ConvBlocksForward<T>& p, int64_t begin, int64_t end) {
  for (int64_t b = begin; b < end; ++b) {
    const bool separable = p.branches[b].block.kind == ConvKind::kSeparable;
    pack_block(p.shape, p.branches[b].block, separable ? p.depthwise[b] : p.pointwise[b],
               p.pointwise[b], p.packed + b * p.packed_stride);
  }
}

// Patterns of center, scale and shift of one input and group, in the caller's 3 periods.
template <typename T>
static InputNorm<T> input_norm(const ConvBlocksShape& s, const ConvBlocksNorm<T>& norm,
                               int64_t source, int64_t group, T* scratch) {
  const int64_t channels = s.channels;
  const int64_t period = pattern_period<T>(channels);
  const T* mean = norm.mean + (source * s.groups + group) * channels;
  const T* var = norm.var + (source * s.groups + group) * channels;
  T* scale = scratch + period;
  T* shift = scale + period;
  expand_pattern(scratch, channels, period, [&](int64_t c) { return mean[c]; });
  expand_pattern(scale, channels, period, [&](int64_t c) {
    const double gamma = norm.gamma == nullptr ? 1.0 : norm.gamma[source * channels + c];
    return static_cast<T>(gamma / std::sqrt(var[c] + norm.eps));
  });
  expand_pattern(shift, channels, period, [&](int64_t c) {
    return norm.beta == nullptr ? T(0) : norm.beta[source * channels + c];
  });
  return {scratch, scale, shift};
}

template <typename T>
static void conv_forward_run(const ConvBlocksForward<T>& p, Items items) {
  const ConvBlocksShape& s = p.shape;
  const int64_t period = pattern_period<T>(s.channels);
  const Tile tile = conv_tile<T>(s, p.branches);
  const int64_t all_images = s.groups * s.images;
  const int64_t out_size = s.out_height * s.out_width * s.out_channels;
  Scratch<T> cut = {p.scratch + items.share * p.scratch_stride};
  const ConvForwardScratch<T> scratch = conv_forward_parts(s, p.branches, &cut);
  std::memset(scratch.image, 0, tile.size * sizeof(T));
  for (int64_t item = next_item(items); item >= 0; item = next_item(items)) {
    const int64_t source = item % s.sources;
    const int64_t n = item / s.sources;
    const int64_t group = n / s.images;
    InputNorm<T> norm;
    if (p.norm.mean != nullptr) norm = input_norm(s, p.norm, source, group, scratch.coefficients);
    load_tile(s, tile, p.inputs[source] + n * s.height * s.width * s.channels, period,
              p.norm.mean != nullptr ? &norm : nullptr, scratch.image);
    for (int64_t b = 0; b < s.branches; ++b) {
      if (p.branches[b].source != source) continue;
      T* y = p.outputs[b] + n * out_size;
      if (!p.active[group * s.branches + b]) {
        std::memset(y, 0, out_size * sizeof(T));
        continue;
      }
      const int64_t at = (b * all_images + n) * s.out_channels;
      const ConvBlock& block = p.branches[b].block;
      block_forward(s, tile, block, packed_block(s, block, p.packed + b * p.packed_stride),
                    scratch.image, scratch.block, y, p.partial_mean + at, p.partial_square + at);
    }
  }
}

template <typename T>
static void conv_forward_merge(const ConvBlocksForward<T>& p, int64_t begin, int64_t end) {
  const ConvBlocksShape& s = p.shape;
  for (int64_t item = begin; item < end; ++item) {
    const int64_t b = item % s.branches;
    const int64_t group = item / s.branches;
    T* mean = p.mean + item * s.out_channels;
    T* var = p.var + item * s.out_channels;
    if (!p.active[item] || s.images == 0) {
      neutral_moments(s.out_channels, mean, var);
      continue;
    }
    const int64_t at = (b * s.groups + group) * s.images * s.out_channels;
    merge_image_moments(p.partial_mean + at, p.partial_square + at, s.images,
                        static_cast<double>(s.out_height * s.out_width), s.out_channels, mean, var);
  }
}

}  // namespace darts_fast::cpu::DARTS_CPU_CAPABILITY
