// SPDX-License-Identifier: Apache-2.0
// Backward of relu_conv_norm: S1 = sum g and sum g * (y - mean), a barrier, then image by image
// dL/dy row by row into the backward of the convolution.
#pragma once

#include "cpu/items.h"
#include "cpu/kernels/relu_conv_norm_forward.h"
#include "cpu/kernels/weight_sums.h"

namespace darts_fast::cpu::DARTS_CPU_CAPABILITY {

template <typename T>
struct ReluConvGradScratch {
  T* center;  // a pattern of output channels
  T* sums;    // [C']
  T* tile;
  T* grad_sum;
  BlockBackwardScratch<T> block;
  StripScratch<T> strips;  // in the place of the three
};

template <typename T>
static ReluConvGradScratch<T> relu_conv_grad_parts(const ReluConvNorm<T>& p, Scratch<T>* scratch) {
  ReluConvGradScratch<T> parts = {};
  parts.center = scratch->take(pattern_period<T>(p.shape.out_channels));
  parts.sums = scratch->take(p.shape.out_channels);
  if (goes_by_strips(p.shape, p.block)) {
    parts.strips = strip_parts(p.shape, scratch);
    return parts;
  }
  parts.tile = scratch->take(relu_conv_tile(p).size);
  parts.grad_sum = scratch->take(grad_sum_size(p.shape, pattern_period<T>(p.shape.channels)));
  parts.block = block_backward_scratch(p.shape, block_pad(p.block), scratch);
  return parts;
}

template <typename T>
static int64_t relu_conv_backward_scratch(const ReluConvNorm<T>& p) {
  Scratch<T> measure = {nullptr};
  relu_conv_grad_parts(p, &measure);
  return measure.used;
}

template <typename T>
static int64_t relu_conv_partial_size(const ReluConvNorm<T>& p) {
  return block_grad_size<T>(p.shape, p.block);
}

// Items: images.
template <typename T>
static void relu_conv_reduce(const ReluConvNormBackward<T>& p, Items items) {
  const int64_t channels = p.shape.out_channels;
  const int64_t period = pattern_period<T>(channels);
  const int64_t size = output_size(p.shape);
  Scratch<T> cut = {p.scratch + items.share * p.scratch_stride};
  const ReluConvGradScratch<T> scratch = relu_conv_grad_parts(p, &cut);
  for (int64_t n = next_item(items); n >= 0; n = next_item(items)) {
    const T* g = p.grad_output + n * size;
    const T* mean = p.mean + n / p.images * channels;
    expand_pattern(scratch.center, channels, period, [&](int64_t c) { return mean[c]; });
    double* sums = p.partial_sums + n * 2 * channels;
    sum_gradients(g, size, channels, period, scratch.sums, sums);
    sum_products(g, p.raw + n * size, scratch.center, size, channels, period, scratch.sums,
                 sums + channels);
  }
}

// Items: groups.
template <typename T>
static void relu_conv_merge_sums(const ReluConvNormBackward<T>& p, int64_t begin, int64_t end) {
  const BlockShape& s = p.shape;
  const int64_t channels = s.out_channels;
  const int64_t period = pattern_period<T>(channels);
  const double count = static_cast<double>(p.images * s.out_height * s.out_width);
  const bool batch = p.norm == Norm::kBatch;
  for (int64_t group = begin; group < end; ++group) {
    double* sums = p.sums + group * 2 * channels;
    for (int64_t i = 0; i < 2 * channels; ++i) sums[i] = 0;
    for (int64_t n = group * p.images; n < (group + 1) * p.images; ++n) {
      for (int64_t i = 0; i < 2 * channels; ++i) sums[i] += p.partial_sums[n * 2 * channels + i];
    }
    const T* mean = p.mean + group * channels;
    const T* var = p.var + group * channels;
    T* scale = p.coefficients + group * 4 * period;
    expand_pattern(scale, channels, period, [&](int64_t c) {
      return static_cast<T>((p.gamma == nullptr ? 1.0 : p.gamma[c]) / std::sqrt(var[c] + p.eps));
    });
    expand_pattern(scale + period, channels, period,
                   [&](int64_t c) { return batch ? static_cast<T>(sums[c] / count) : T(0); });
    expand_pattern(scale + 2 * period, channels, period, [&](int64_t c) {
      return batch ? static_cast<T>(sums[channels + c] / count / (var[c] + p.eps)) : T(0);
    });
    expand_pattern(scale + 3 * period, channels, period, [&](int64_t c) { return mean[c]; });
    for (int64_t c = 0; c < channels; ++c) sums[channels + c] /= std::sqrt(var[c] + p.eps);
  }
}

template <typename T>
static void relu_conv_grad_pack(const ReluConvNormBackward<T>& p, int64_t begin, int64_t end) {
  if (begin < end) pack_block_transposed(p.shape, p.block, p.first, p.second, p.packed);
}

// Items: chunks of images of one group.
template <typename T>
static void relu_conv_grad_convolve(const ReluConvNormBackward<T>& p, Items items) {
  const BlockShape& s = p.shape;
  const Tile tile = relu_conv_tile(p);
  const int64_t pad = block_pad(p.block);
  const int64_t period = pattern_period<T>(s.channels);
  const int64_t out_period = pattern_period<T>(s.out_channels);
  const int64_t row = s.out_width * s.out_channels;
  const int64_t chunks = (p.images + p.chunk_images - 1) / p.chunk_images;
  Scratch<T> cut = {p.scratch + items.share * p.scratch_stride};
  const ReluConvGradScratch<T> scratch = relu_conv_grad_parts(p, &cut);
  const bool strips = goes_by_strips(s, p.block);
  if (!strips) {
    std::memset(scratch.tile, 0, tile.size * sizeof(T));
    std::memset(scratch.block.grad_tile, 0, largest_grad_tile<T>(s, pad).size * sizeof(T));
  }
  const PackedBlock<T> packed = packed_block<T>(s, p.block, p.packed);
  for (int64_t chunk = next_item(items); chunk >= 0; chunk = next_item(items)) {
    const int64_t group = chunk / chunks;
    const int64_t first = chunk % chunks * p.chunk_images;
    const int64_t last = first + p.chunk_images < p.images ? first + p.chunk_images : p.images;
    const T* scale = p.coefficients + group * 4 * out_period;
    const GradNorm<T> norm = {scale, p.norm == Norm::kBatch ? scale + out_period : nullptr,
                              scale + 2 * out_period, scale + 3 * out_period};
    BlockGradients<T> grads;
    const bool want = p.partial_weights != nullptr;
    if (want) {
      T* partial = p.partial_weights + chunk * p.partial_stride;
      std::memset(partial, 0, p.partial_stride * sizeof(T));
      grads = block_gradients(s, p.block, partial);
    }
    for (int64_t n = group * p.images + first; n < group * p.images + last; ++n) {
      const T* g = p.grad_output + n * output_size(s);
      const T* y = p.raw + n * output_size(s);
      const T* image = p.input + n * image_size(s);
      T* grad_input = p.grad_input == nullptr ? nullptr : p.grad_input + n * image_size(s);
      if (strips) {
        gradient_strips(p, packed, norm, image, y, g, scratch.strips, want ? &grads : nullptr,
                        grad_input);
        continue;
      }
      load_tile<T>(s, tile, image, period, nullptr, scratch.tile, relu_floor(p));
      block_backward(
          s, tile, pad, p.block, packed, scratch.tile, scratch.block, want ? &grads : nullptr, true,
          grad_input != nullptr ? scratch.grad_sum : nullptr, [&](int64_t h, int64_t rows, T* to) {
            norm_gradient<T>(norm, g + h * row, y + h * row, rows * row, out_period, to);
          });
      for (int64_t h = 0; grad_input != nullptr && h < s.height; ++h) {
        masked_gradient_row<T, false>(s, tile, scratch.tile, scratch.grad_sum, h,
                                      grad_input + h * s.width * s.channels, relu_floor(p));
      }
    }
  }
}

template <typename T>
static void relu_conv_parameters(const ReluConvNormBackward<T>& p, int64_t begin, int64_t end) {
  if (begin == end) return;
  const int64_t channels = p.shape.out_channels;
  if (p.partial_weights != nullptr) {
    const int64_t chunks = p.groups * ((p.images + p.chunk_images - 1) / p.chunk_images);
    sum_block_gradients(
        p.shape, p.block, p.partial_weights, p.partial_stride, chunks, [](int64_t) { return true; },
        p.grad_first, p.grad_second);
  }
  for (int64_t c = 0; c < channels; ++c) {
    double beta = 0, gamma = 0;
    for (int64_t group = 0; group < p.groups; ++group) {
      beta += p.sums[group * 2 * channels + c];
      gamma += p.sums[group * 2 * channels + channels + c];
    }
    if (p.grad_gamma != nullptr) p.grad_gamma[c] = static_cast<T>(gamma);
    if (p.grad_beta != nullptr) p.grad_beta[c] = static_cast<T>(beta);
  }
}

}  // namespace darts_fast::cpu::DARTS_CPU_CAPABILITY
