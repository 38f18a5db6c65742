// SPDX-License-Identifier: Apache-2.0
// The backward of a batch norm over stretches of positions, channels innermost.
#pragma once

#include "cpu/kernels/channel_pattern.h"

namespace darts_fast::cpu::DARTS_CPU_CAPABILITY {

// Whole patterns that stay in the first-level cache while maps pass by.
static inline int64_t stretch_elements(int64_t period) {
  constexpr int64_t kElements = 4096;
  return period > kElements ? period : kElements / period * period;
}

// Patterns of one norm's backward.
template <typename T>
struct GradNorm {
  const T* scale;
  const T* mean;  // null: dL/dy = scale * g
  const T* slope;
  const T* center;
};

template <typename T>
struct GradNormVectors {
  Vec<T> scale, mean, slope, center;
};

// out = scale * ((g - mean) - slope * (y - center)) for `count` elements from channel 0 on.
template <typename T, typename Y>
static void norm_gradient(const GradNorm<T>& n, const T* g, const Y* y, int64_t count,
                          int64_t period, T* out) {
  const int64_t whole = count / period * period;
  if (n.mean == nullptr) {
    for_each_vector<T>(
        whole, period, [&](int64_t offset) { return load(n.scale + offset); },
        [=](int64_t i, Vec<T> scale) { store(out + i, scale * load(g + i)); });
    for (int64_t i = whole; i < count; ++i) out[i] = n.scale[i - whole] * g[i];
    return;
  }
  for_each_vector<T>(
      whole, period,
      [&](int64_t offset) {
        return GradNormVectors<T>{load(n.scale + offset), load(n.mean + offset),
                                  load(n.slope + offset), load(n.center + offset)};
      },
      [=](int64_t i, const GradNormVectors<T>& v) {
        store(out + i, v.scale * ((load(g + i) - v.mean) - v.slope * (load(y + i) - v.center)));
      });
  for (int64_t i = whole; i < count; ++i) {
    const int64_t j = i - whole;
    out[i] = n.scale[j] * ((g[i] - n.mean[j]) - n.slope[j] * (widen(y[i]) - n.center[j]));
  }
}

// Sums of g over an image, per channel, in double.
template <typename T>
static void sum_gradients(const T* g, int64_t size, int64_t channels, int64_t period, T* sums,
                          double* out) {
  const int64_t stretch = 4 * stretch_elements(period);
  for (int64_t c = 0; c < channels; ++c) out[c] = 0;
  for (int64_t from = 0; from < size; from += stretch) {
    const int64_t length = size - from < stretch ? size - from : stretch;
    sum_over_positions(
        sums, length, channels, period, [](int64_t) { return 0; },
        [&](int64_t i, int) { return load(g + from + i); },
        [&](int64_t i, int64_t) { return g[from + i]; });
    for (int64_t c = 0; c < channels; ++c) out[c] += sums[c];
  }
}

// The same of g * (y - center).
template <typename T, typename Y>
static void sum_products(const T* g, const Y* y, const T* center, int64_t size, int64_t channels,
                         int64_t period, T* sums, double* out) {
  const int64_t stretch = 4 * stretch_elements(period);
  for (int64_t c = 0; c < channels; ++c) out[c] = 0;
  for (int64_t from = 0; from < size; from += stretch) {
    const int64_t length = size - from < stretch ? size - from : stretch;
    sum_over_positions(
        sums, length, channels, period, [&](int64_t offset) { return load(center + offset); },
        [&](int64_t i, Vec<T> m) { return load(g + from + i) * (load(y + from + i) - m); },
        [&](int64_t i, int64_t c) { return g[from + i] * (widen(y[from + i]) - center[c]); });
    for (int64_t c = 0; c < channels; ++c) out[c] += sums[c];
  }
}

}  // namespace darts_fast::cpu::DARTS_CPU_CAPABILITY
