// SPDX-License-Identifier: Apache-2.0
// output = BN(convolution(ReLU x)): one sweep that writes the raw map with its moments, a barrier,
// one sweep that normalises it. With running statistics there is no barrier, and one sweep does
// both. Where nobody keeps the raw map it is normalised in its place.
#pragma once

#include <cmath>

#include "cpu/items.h"
#include "cpu/kernels/relu_conv_norm_strips.h"

namespace darts_fast::cpu::DARTS_CPU_CAPABILITY {

template <typename T>
static inline Tile relu_conv_tile(const ReluConvNorm<T>& p) {
  return make_tile(p.shape, block_pad(p.block), pattern_period<T>(p.shape.channels));
}

static inline int64_t image_size(const BlockShape& s) { return s.height * s.width * s.channels; }

static inline int64_t output_size(const BlockShape& s) {
  return s.out_height * s.out_width * s.out_channels;
}

template <typename T>
struct ReluConvScratch {
  T* tile;
  BlockForwardScratch<T> block;
  StripScratch<T> strips;  // in the place of both
};

template <typename T>
static ReluConvScratch<T> relu_conv_parts(const ReluConvNorm<T>& p, Scratch<T>* scratch) {
  ReluConvScratch<T> parts = {};
  if (goes_by_strips(p.shape, p.block)) {
    parts.strips = strip_parts(p.shape, scratch);
    return parts;
  }
  parts.tile = scratch->take(relu_conv_tile(p).size);
  parts.block = block_forward_scratch(p.shape, scratch);
  return parts;
}

template <typename T>
static int64_t relu_conv_forward_scratch(const ReluConvNorm<T>& p) {
  Scratch<T> measure = {nullptr};
  relu_conv_parts(p, &measure);
  return measure.used;
}

template <typename T>
static int64_t relu_conv_packed_size(const ReluConvNorm<T>& p) {
  return packed_block_size<T>(p.shape, p.block);
}

template <typename T>
static void relu_conv_pack(const ReluConvNormForward<T>& p, int64_t begin, int64_t end) {
  if (begin < end) pack_block(p.shape, p.block, p.first, p.second, p.packed);
}

// Items: groups.
template <typename T>
static void relu_conv_merge(const ReluConvNormForward<T>& p, int64_t begin, int64_t end) {
  const BlockShape& s = p.shape;
  const int64_t channels = s.out_channels;
  const int64_t period = pattern_period<T>(channels);
  for (int64_t group = begin; group < end; ++group) {
    T* mean = p.mean + group * channels;
    T* var = p.var + group * channels;
    if (p.norm == Norm::kBatch) {
      const int64_t at = group * p.images * channels;
      merge_image_moments(p.partial_mean + at, p.partial_square + at, p.images,
                          static_cast<double>(s.out_height * s.out_width), channels, mean, var);
    }
    T* center = p.coefficients + group * 3 * period;
    expand_pattern(center, channels, period, [&](int64_t c) { return mean[c]; });
    expand_pattern(center + period, channels, period, [&](int64_t c) {
      return static_cast<T>((p.gamma == nullptr ? 1.0 : p.gamma[c]) / std::sqrt(var[c] + p.eps));
    });
    expand_pattern(center + 2 * period, channels, period,
                   [&](int64_t c) { return p.beta == nullptr ? T(0) : p.beta[c]; });
  }
}

// Items: images.
template <typename T>
static void relu_conv_normalise(const ReluConvNormForward<T>& p, int64_t begin, int64_t end) {
  const int64_t size = output_size(p.shape);
  const int64_t period = pattern_period<T>(p.shape.out_channels);
  const int64_t whole = size / period * period;
  for (int64_t n = begin; n < end; ++n) {
    const T* y = p.raw + n * size;
    T* out = p.output + n * size;
    const T* center = p.coefficients + n / p.images * 3 * period;
    const T* scale = center + period;
    const T* shift = scale + period;
    for_each_vector<T>(
        whole, period,
        [=](int64_t offset) {
          return InputNormVectors<T>{load(center + offset), load(scale + offset),
                                     load(shift + offset)};
        },
        [=](int64_t i, const InputNormVectors<T>& v) {
          store(out + i, (load(y + i) - v.center) * v.scale + v.shift);
        });
    for (int64_t i = whole; i < size; ++i) {
      const int64_t j = i - whole;
      out[i] = (y[i] - center[j]) * scale[j] + shift[j];
    }
  }
}

// Items: images.
template <typename T>
static void relu_conv_convolve(const ReluConvNormForward<T>& p, Items items) {
  const BlockShape& s = p.shape;
  const bool strips = goes_by_strips(s, p.block), batch = p.norm == Norm::kBatch;
  const Tile tile = relu_conv_tile(p);
  Scratch<T> cut = {p.scratch + items.share * p.scratch_stride};
  const ReluConvScratch<T> scratch = relu_conv_parts(p, &cut);
  if (!strips) std::memset(scratch.tile, 0, tile.size * sizeof(T));
  const PackedBlock<T> packed = packed_block<T>(s, p.block, p.packed);
  for (int64_t n = next_item(items); n >= 0; n = next_item(items)) {
    const T* image = p.input + n * image_size(s);
    T* raw = p.raw + n * output_size(s);
    double* mean = batch ? p.partial_mean + n * s.out_channels : nullptr;
    double* square = p.partial_square + n * s.out_channels;
    if (strips) {
      convolve_strips<T>(p, packed, image, scratch.strips, raw, mean, square);
    } else {
      load_tile<T>(s, tile, image, pattern_period<T>(s.channels), nullptr, scratch.tile,
                   relu_floor(p));
      block_forward(s, tile, p.block, packed, scratch.tile, scratch.block, raw, mean, square);
    }
    if (!batch) relu_conv_normalise(p, n, n + 1);
  }
}

}  // namespace darts_fast::cpu::DARTS_CPU_CAPABILITY
