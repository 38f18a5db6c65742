// SPDX-License-Identifier: Apache-2.0
// The convolution of relu_conv_norm where it sees one pixel at a time, 1x1 at stride 1: an image
// goes by in strips that stay in the first-level cache, forward and backward.
#pragma once

#include <limits>

#include "cpu/kernels/conv_block_backward.h"
#include "cpu/kernels/conv_block_forward.h"
#include "cpu/kernels/norm_gradient.h"
#include "cpu/kernels/relu_conv_norm_kernels.h"

namespace darts_fast::cpu::DARTS_CPU_CAPABILITY {

static inline bool goes_by_strips(const BlockShape& s, const ConvBlock& block) {
  return block.kind == ConvKind::kDense && block.kernel == 1 && s.stride == 1;
}

// Pixels of a strip: a multiple of 16, so that all strips but the last are whole channel patterns.
static inline int64_t strip_pixels(const BlockShape& s) {
  constexpr int64_t kElements = 4096;
  const int64_t pixels = kElements / (s.channels > s.out_channels ? s.channels : s.out_channels);
  return pixels < 16 ? 16 : pixels > 64 ? 64 : pixels / 16 * 16;
}

// The floor of the ReLU in front, which a convolution may be without.
template <typename T>
static inline T relu_floor(const ReluConvNorm<T>& p) {
  return p.relu ? T(0) : -std::numeric_limits<T>::infinity();
}

template <typename T>
struct StripScratch {
  T* input;    // behind its ReLU
  T* output;   // or its gradient
  T* grad;     // of the input
  T* channel;  // [C'] of a sum
};

template <typename T>
static StripScratch<T> strip_parts(const BlockShape& s, Scratch<T>* scratch) {
  const int64_t pixels = strip_pixels(s);
  StripScratch<T> parts;
  parts.input = scratch->take(pixels * s.channels + kLanes<T>);
  parts.output = scratch->take(pixels * s.out_channels + kLanes<T>);
  parts.grad = scratch->take(pixels * s.channels + kLanes<T>);
  parts.channel = scratch->take(s.out_channels);
  return parts;
}

// body(first pixel, pixels) for every strip of an image.
template <typename Body>
static inline void for_each_strip(const BlockShape& s, Body body) {
  const int64_t pixels = s.height * s.width, strip = strip_pixels(s);
  for (int64_t at = 0; at < pixels; at += strip) {
    body(at, strip < pixels - at ? strip : pixels - at);
  }
}

// Writes y [H, W, C'], and where `mean` is not null mean and centred square sum [C'].
template <typename T>
static void convolve_strips(const ReluConvNorm<T>& p, const PackedBlock<T>& packed, const T* image,
                            const StripScratch<T>& scratch, T* y, double* mean, double* square) {
  const BlockShape& s = p.shape;
  const int64_t period = pattern_period<T>(s.channels);
  const int64_t out_period = pattern_period<T>(s.out_channels);
  const bool in_place = s.out_channels % kLanes<T> == 0;
  const Tap here = {0, 0};
  PointwiseRows<T> rows = {scratch.input,  s.channels,      &here,      1,
                           s.channels,     packed.matrices, packed.row, scratch.output,
                           s.out_channels, s.out_channels,  false};
  for_each_strip(s, [&](int64_t at, int64_t pixels) {
    load_tile_row<T>(image + at * s.channels, pixels * s.channels, period, nullptr, scratch.input,
                     relu_floor(p));
    T* to = y + at * s.out_channels;
    if (in_place) rows.out = to;
    pointwise_rows<T>(rows, pixels);
    if (mean != nullptr) {
      add_strip_moments(rows.out, at == 0, pixels, s.out_channels, out_period, scratch.channel,
                        mean, square);
    }
    if (!in_place) store_map(to, scratch.output, pixels * s.out_channels);
  });
  if (mean == nullptr) return;
  finish_moments(scratch.channel, static_cast<double>(s.height * s.width), s.out_channels, mean,
                 square);
}

// The gradients of an image: of the weights, added to `grads` unless null, and of the input,
// unless null.
template <typename T>
static void gradient_strips(const ReluConvNorm<T>& p, const PackedBlock<T>& packed,
                            const GradNorm<T>& norm, const T* image, const T* y,
                            const T* grad_output, const StripScratch<T>& scratch,
                            const BlockGradients<T>* grads, T* grad_input) {
  const BlockShape& s = p.shape;
  const int64_t period = pattern_period<T>(s.channels);
  const int64_t out_period = pattern_period<T>(s.out_channels);
  const Tap here = {0, 0};
  const PointwiseRows<T> rows = {
      scratch.output,  s.out_channels, &here,      1,          s.out_channels, packed.transposed,
      packed.back_row, scratch.grad,   s.channels, s.channels, false};
  for_each_strip(s, [&](int64_t at, int64_t pixels) {
    load_tile_row<T>(image + at * s.channels, pixels * s.channels, period, nullptr, scratch.input,
                     relu_floor(p));
    norm_gradient<T>(norm, grad_output + at * s.out_channels, y + at * s.out_channels,
                     pixels * s.out_channels, out_period, scratch.output);
    if (grads != nullptr) {
      pointwise_grad<T>(
          {scratch.input, 0, s.channels, scratch.output, 0, s.out_channels, 1, pixels}, s.channels,
          packed.row, grads->matrices);
    }
    if (grad_input == nullptr) return;
    pointwise_rows<T>(rows, pixels);
    mask_gradient<T, false>(scratch.input, scratch.grad, pixels * s.channels, relu_floor(p),
                            grad_input + at * s.channels);
  });
}

}  // namespace darts_fast::cpu::DARTS_CPU_CAPABILITY
