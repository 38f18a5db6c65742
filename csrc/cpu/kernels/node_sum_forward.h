// SPDX-License-Identifier: Apache-2.0
// node = sum_k w_k * (gamma_k * (y_k - mean_k) / sqrt(var_k + eps_k) + beta_k), per group.
//
// Two sweeps: `statistics` reads every batch-normalised map once (a tile stays in the first-level
// cache between its mean and its centred squares), `combine` reads every map once and writes the
// node once. Bytes: (2 K + 1) maps.
#pragma once

#include <cmath>

#include "cpu/kernels/image_moments.h"
#include "cpu/kernels/node_sum_kernels.h"

namespace darts_fast::cpu::DARTS_CPU_CAPABILITY {

template <typename T>
static void node_sum_statistics(const NodeSumForward<T>& p, int64_t begin, int64_t end) {
  const NodeSumShape& s = p.shape;
  const int64_t period = pattern_period<T>(s.channels);
  for (int64_t item = begin; item < end; ++item) {
    const int64_t term = item % s.terms;
    const int64_t tile = item / s.terms % tiles(s);
    const int64_t group = item / s.terms / tiles(s);
    if (p.norms[term] != Norm::kBatch || !p.active[group * s.terms + term]) continue;
    const T* y = p.maps[term] + (group * s.positions + tile * s.tile) * s.channels;
    const int64_t at = ((term * s.groups + group) * tiles(s) + tile) * s.channels;
    tile_moments(y, tile_size(s, tile) * s.channels, s.channels, period, p.partial_center + at,
                 p.partial_mean + at, p.partial_square + at);
  }
}

// The moments of the tiles, merged in their order.
template <typename T>
static void node_sum_merge(const NodeSumForward<T>& p, int64_t begin, int64_t end) {
  const NodeSumShape& s = p.shape;
  for (int64_t item = begin; item < end; ++item) {
    const int64_t term = item % s.terms;
    const int64_t group = item / s.terms;
    T* out_mean = p.mean + item * s.channels;
    T* out_var = p.var + item * s.channels;
    if (p.norms[term] == Norm::kRunning) continue;
    if (p.norms[term] != Norm::kBatch || !p.active[item] || s.positions == 0) {
      for (int64_t c = 0; c < s.channels; ++c) {
        out_mean[c] = T(0);
        out_var[c] = T(1);
      }
      continue;
    }
    // The first tile's moments are the running ones; the others are merged into them.
    double* mean = p.partial_mean + (term * s.groups + group) * tiles(s) * s.channels;
    double* square = p.partial_square + (term * s.groups + group) * tiles(s) * s.channels;
    double seen = static_cast<double>(tile_size(s, 0));
    for (int64_t tile = 1; tile < tiles(s); ++tile) {
      const double size = static_cast<double>(tile_size(s, tile));
      merge_moments(mean, square, seen, mean + tile * s.channels, square + tile * s.channels, size,
                    s.channels);
      seen += size;
    }
    for (int64_t c = 0; c < s.channels; ++c) {
      out_mean[c] = static_cast<T>(mean[c]);
      out_var[c] = static_cast<T>(square[c] / seen);
    }
  }
}

template <typename T>
static void node_sum_prepare(const NodeSumForward<T>& p, int64_t begin, int64_t end) {
  const NodeSumShape& s = p.shape;
  const int64_t period = pattern_period<T>(s.channels);
  for (int64_t group = begin; group < end; ++group) {
    T* constant = p.constant + group * period;
    expand_pattern(constant, s.channels, period, [&](int64_t c) {
      double sum = 0;
      for (int64_t k = 0; k < s.terms; ++k) {
        if (p.beta == nullptr || p.norms[k] == Norm::kNone || !p.active[group * s.terms + k]) {
          continue;
        }
        sum += static_cast<double>(p.weights[group * s.terms + k]) * p.beta[k * s.channels + c];
      }
      return static_cast<T>(sum);
    });
    for (int64_t k = 0; k < s.terms; ++k) {
      const int64_t row = group * s.terms + k;
      const bool normalised = p.norms[k] != Norm::kNone;
      const T* mean = p.mean + row * s.channels;
      const T* var = p.var + row * s.channels;
      expand_pattern(p.center + row * period, s.channels, period,
                     [&](int64_t c) { return normalised ? mean[c] : T(0); });
      expand_pattern(p.scale + row * period, s.channels, period, [&](int64_t c) {
        double scale = p.weights[row];
        if (normalised && p.gamma != nullptr) scale *= p.gamma[k * s.channels + c];
        if (normalised) scale /= std::sqrt(var[c] + p.eps[k]);
        return static_cast<T>(scale);
      });
    }
  }
}

// Adds kTerms maps to a tile of the node. Four streams at a time leave the prefetchers room; the
// tile of the node stays in the first-level cache between the calls.
template <typename T, int kTerms>
static void add_terms(T* node, const T* const* y, const T* const* scale, const T* const* center,
                      int64_t count, int64_t period) {
  const int64_t full = count / period;
  for (int64_t offset = 0; offset < period && full > 0; offset += kLanes<T>) {
    Vec<T> a[kTerms], m[kTerms];
    for (int k = 0; k < kTerms; ++k) {
      a[k] = load(scale[k] + offset);
      m[k] = load(center[k] + offset);
    }
    for (int64_t i = offset; i < full * period; i += period) {
      Vec<T> sum = load(node + i);
      for (int k = 0; k < kTerms; ++k) sum += (load(y[k] + i) - m[k]) * a[k];
      store(node + i, sum);
    }
  }
  for (int64_t i = full * period; i < count; ++i) {
    for (int k = 0; k < kTerms; ++k) {
      node[i] += (y[k][i] - center[k][i % period]) * scale[k][i % period];
    }
  }
}

template <typename T>
static void node_sum_combine(const NodeSumForward<T>& p, int64_t begin, int64_t end) {
  const NodeSumShape& s = p.shape;
  const int64_t period = pattern_period<T>(s.channels);
  for (int64_t item = begin; item < end; ++item) {
    const int64_t tile = item % tiles(s);
    const int64_t group = item / tiles(s);
    const int64_t at = (group * s.positions + tile * s.tile) * s.channels;
    const int64_t count = tile_size(s, tile) * s.channels;
    T* node = p.node + at;
    const T* constant = p.constant + group * period;
    for (int64_t i = 0; i < count; i += period) {
      const int64_t length = count - i < period ? count - i : period;
      std::memcpy(node + i, constant, length * sizeof(T));
    }
    const T *y[4], *scale[4], *center[4];
    int pending = 0;
    for (int64_t k = 0; k < s.terms; ++k) {
      const int64_t row = group * s.terms + k;
      if (!p.active[row]) continue;
      y[pending] = p.maps[k] + at;
      scale[pending] = p.scale + row * period;
      center[pending] = p.center + row * period;
      if (++pending == 4) {
        add_terms<T, 4>(node, y, scale, center, count, period);
        pending = 0;
      }
    }
    if (pending == 3) add_terms<T, 3>(node, y, scale, center, count, period);
    if (pending == 2) add_terms<T, 2>(node, y, scale, center, count, period);
    if (pending == 1) add_terms<T, 1>(node, y, scale, center, count, period);
  }
}

}  // namespace darts_fast::cpu::DARTS_CPU_CAPABILITY
