// SPDX-License-Identifier: Apache-2.0
// Backward of conv_blocks: for every image of an input the backward of its branches
// (conv_block_backward.h), then the mask of the ReLU. Weight gradients are summed over the images
// in their order, in double. Behind a batch norm, dL/dx is first that of its output; its sums S1
// and S2 need the whole batch (a barrier), and `conv_backward_norm` finishes it in place.
#pragma once

#include "cpu/items.h"
#include "cpu/kernels/conv_block_backward.h"
#include "cpu/kernels/conv_blocks_forward.h"
#include "cpu/kernels/weight_sums.h"

namespace darts_fast::cpu::DARTS_CPU_CAPABILITY {

template <typename T>
struct ConvBackwardScratch {
  T* image;  // tile of the input behind its ReLU
  T* grad_sum;
  T* coefficients;  // [5, period]
  BlockBackwardScratch<T> block;
};

template <typename T>
static ConvBackwardScratch<T> conv_backward_parts(const ConvBlocksShape& s,
                                                  const ConvBranch* branches, Scratch<T>* scratch) {
  const int64_t period = pattern_period<T>(s.channels);
  ConvBackwardScratch<T> parts;
  parts.image = scratch->take(conv_tile<T>(s, branches).size);
  parts.grad_sum = scratch->take(grad_sum_size(s, period));
  parts.coefficients = scratch->take(5 * period);
  parts.block = block_backward_scratch(s, largest_pad(s, branches), scratch);
  return parts;
}

template <typename T>
static int64_t conv_backward_scratch(const ConvBlocksShape& s, const ConvBranch* branches) {
  Scratch<T> measure = {nullptr};
  conv_backward_parts(s, branches, &measure);
  return measure.used;
}

// Elements of a row of partial weight gradients.
template <typename T>
static int64_t conv_partial_size(const ConvBlocksShape& s, const ConvBranch* branches) {
  int64_t most = 0;
  for (int64_t b = 0; b < s.branches; ++b) {
    const int64_t size = block_grad_size<T>(s, branches[b].block);
    if (size > most) most = size;
  }
  return most;
}

template <typename T>
static void conv_backward_pack(const ConvBlocksBackward<T>& p, int64_t begin, int64_t end) {
  for (int64_t b = begin; b < end; ++b) {
    if (p.grad_outputs[b] == nullptr) continue;
    const bool separable = p.branches[b].block.kind == ConvKind::kSeparable;
    pack_block_transposed(p.shape, p.branches[b].block, separable ? p.depthwise[b] : p.pointwise[b],
                          p.pointwise[b], p.packed + b * p.packed_stride);
  }
}

// The mask of the ReLU on the sum over branches, and behind a batch norm the image's part of S1,
// S2.
template <typename T>
static void conv_backward_input(const ConvBlocksBackward<T>& p, const Tile& tile,
                                const InputNorm<T>* norm, int64_t source, int64_t n,
                                const ConvBackwardScratch<T>& scratch) {
  const ConvBlocksShape& s = p.shape;
  const int64_t channels = s.channels;
  const int64_t size = s.height * s.width * channels;
  const int64_t group = n / s.images;
  T* out = p.grad_inputs[source] + n * size;
  for (int64_t h = 0; h < s.height; ++h) {
    masked_gradient_row<T, false>(s, tile, scratch.image, scratch.grad_sum, h,
                                  out + h * s.width * channels);
  }
  if (norm == nullptr) return;
  double* sums = p.partial_sums + (source * s.groups * s.images + n) * 2 * channels;
  const T* x = p.inputs[source] + n * size;
  const T* var = p.norm.var + (source * s.groups + group) * channels;
  const int64_t period = pattern_period<T>(channels);
  T* part = scratch.coefficients + 3 * period;
  const T* center = norm->center;
  sum_over_positions(
      part, size, channels, period, [](int64_t) { return 0; },
      [&](int64_t i, int) { return load(out + i); }, [&](int64_t i, int64_t) { return out[i]; });
  for (int64_t c = 0; c < channels; ++c) sums[c] = part[c];
  sum_over_positions(
      part, size, channels, period, [&](int64_t offset) { return load(center + offset); },
      [&](int64_t i, Vec<T> m) { return load(out + i) * (load(x + i) - m); },
      [&](int64_t i, int64_t c) { return out[i] * (x[i] - center[c]); });
  for (int64_t c = 0; c < channels; ++c) {
    sums[channels + c] = part[c] / std::sqrt(var[c] + p.norm.eps);
  }
}

template <typename T>
static void conv_backward_run(const ConvBlocksBackward<T>& p, Items items) {
  const ConvBlocksShape& s = p.shape;
  const int64_t period = pattern_period<T>(s.channels);
  const int64_t pad = largest_pad(s, p.branches);
  const Tile tile = conv_tile<T>(s, p.branches);
  const int64_t row = s.out_width * s.out_channels;
  Scratch<T> cut = {p.scratch + items.share * p.scratch_stride};
  const ConvBackwardScratch<T> scratch = conv_backward_parts(s, p.branches, &cut);
  std::memset(scratch.image, 0, tile.size * sizeof(T));
  std::memset(scratch.block.grad_tile, 0, largest_grad_tile<T>(s, pad).size * sizeof(T));
  for (int64_t item = next_item(items); item >= 0; item = next_item(items)) {
    const int64_t source = item % s.sources;
    const int64_t n = item / s.sources;
    const int64_t group = n / s.images;
    const bool want_input = p.grad_inputs[source] != nullptr;
    InputNorm<T> norm;
    if (p.norm.mean != nullptr) norm = input_norm(s, p.norm, source, group, scratch.coefficients);
    const InputNorm<T>* used = p.norm.mean != nullptr ? &norm : nullptr;
    load_tile(s, tile, p.inputs[source] + n * s.height * s.width * s.channels, period, used,
              scratch.image);
    std::memset(scratch.grad_sum, 0, grad_sum_size(s, period) * sizeof(T));
    for (int64_t b = 0; b < s.branches; ++b) {
      if (p.branches[b].source != source || p.grad_outputs[b] == nullptr ||
          !p.active[group * s.branches + b]) {
        continue;
      }
      const ConvBlock& block = p.branches[b].block;
      BlockGradients<T> grads;
      if (p.partial_weights != nullptr) {
        T* partial = p.partial_weights + (b * s.groups * s.images + n) * p.partial_stride;
        std::memset(partial, 0, p.partial_stride * sizeof(T));
        grads = block_gradients(s, block, partial);
      }
      const T* g = p.grad_outputs[b] + n * s.out_height * row;
      block_backward(s, tile, pad, block, packed_block<T>(s, block, p.packed + b * p.packed_stride),
                     scratch.image, scratch.block, p.partial_weights != nullptr ? &grads : nullptr,
                     false, want_input ? scratch.grad_sum : nullptr,
                     [&](int64_t h, int64_t rows, T* to) {
                       std::memcpy(to, g + h * row, rows * row * sizeof(T));
                     });
    }
    if (want_input) conv_backward_input(p, tile, used, source, n, scratch);
  }
}

// Items are branches: sums the images' weight gradients in their order.
template <typename T>
static void conv_backward_weights(const ConvBlocksBackward<T>& p, int64_t begin, int64_t end) {
  const ConvBlocksShape& s = p.shape;
  const int64_t all_images = s.groups * s.images;
  for (int64_t b = begin; b < end; ++b) {
    const bool separable = p.branches[b].block.kind == ConvKind::kSeparable;
    sum_block_gradients(
        s, p.branches[b].block, p.partial_weights + b * all_images * p.partial_stride,
        p.partial_stride, p.grad_outputs[b] != nullptr ? all_images : 0,
        [&](int64_t n) { return p.active[n / s.images * s.branches + b] != 0; },
        separable ? p.grad_depthwise[b] : p.grad_pointwise[b], p.grad_pointwise[b]);
  }
}

// Items are inputs: S1 and S2 of every group, and with them the gradients of gamma and beta.
template <typename T>
static void conv_backward_sums(const ConvBlocksBackward<T>& p, int64_t begin, int64_t end) {
  const ConvBlocksShape& s = p.shape;
  const int64_t channels = s.channels;
  for (int64_t source = begin; source < end; ++source) {
    for (int64_t group = 0; group < s.groups; ++group) {
      double* sums = p.sums + (source * s.groups + group) * 2 * channels;
      for (int64_t i = 0; i < 2 * channels; ++i) sums[i] = 0;
      for (int64_t n = group * s.images; n < (group + 1) * s.images; ++n) {
        const double* part = p.partial_sums + (source * s.groups * s.images + n) * 2 * channels;
        for (int64_t i = 0; i < 2 * channels; ++i) sums[i] += part[i];
      }
    }
    for (int64_t c = 0; c < channels; ++c) {
      double beta = 0, gamma = 0;
      for (int64_t group = 0; group < s.groups; ++group) {
        const double* sums = p.sums + (source * s.groups + group) * 2 * channels;
        beta += sums[c];
        gamma += sums[channels + c];
      }
      if (p.grad_gamma != nullptr) p.grad_gamma[source * channels + c] = static_cast<T>(gamma);
      if (p.grad_beta != nullptr) p.grad_beta[source * channels + c] = static_cast<T>(beta);
    }
  }
}

// Items are images of inputs: dL/dx = gamma / sigma * (g - S1 / M - x^ S2 / M), in place.
template <typename T>
static void conv_backward_norm(const ConvBlocksBackward<T>& p, Items items) {
  const ConvBlocksShape& s = p.shape;
  const int64_t channels = s.channels;
  const double count = static_cast<double>(s.images * s.height * s.width);
  Scratch<T> cut = {p.scratch + items.share * p.scratch_stride};
  const ConvBackwardScratch<T> scratch = conv_backward_parts(s, p.branches, &cut);
  T* mean_part = scratch.coefficients + 3 * pattern_period<T>(channels);
  T* slope = mean_part + pattern_period<T>(channels);
  for (int64_t item = next_item(items); item >= 0; item = next_item(items)) {
    const int64_t source = item % s.sources;
    const int64_t n = item / s.sources;
    const int64_t group = n / s.images;
    if (p.grad_inputs[source] == nullptr) continue;
    const InputNorm<T> norm = input_norm(s, p.norm, source, group, scratch.coefficients);
    const double* sums = p.sums + (source * s.groups + group) * 2 * channels;
    const T* var = p.norm.var + (source * s.groups + group) * channels;
    const bool batch = p.norm.kind == Norm::kBatch;
    for (int64_t c = 0; c < channels; ++c) {
      const double sigma = std::sqrt(var[c] + p.norm.eps);
      mean_part[c] = batch ? static_cast<T>(sums[c] / count) : T(0);
      slope[c] = batch ? static_cast<T>(sums[channels + c] / count / sigma) : T(0);
    }
    const int64_t at = n * s.height * s.width * channels;
    for (int64_t pixel = 0; pixel < s.height * s.width; ++pixel) {
      const T* __restrict__ raw = p.inputs[source] + at + pixel * channels;
      T* __restrict__ out = p.grad_inputs[source] + at + pixel * channels;
      for (int64_t c = 0; c < channels; ++c) {
        out[c] = norm.scale[c] * ((out[c] - mean_part[c]) - slope[c] * (raw[c] - norm.center[c]));
      }
    }
  }
}

}  // namespace darts_fast::cpu::DARTS_CPU_CAPABILITY
