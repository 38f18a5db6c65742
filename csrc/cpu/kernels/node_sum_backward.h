// SPDX-License-Identifier: Apache-2.0
// Backward of node_sum. With g = dL/d node and x^ = (y - mean) / sigma, per group and channel:
//   S1 = sum g,  S2_k = sum g * x^_k                 (BatchNorm's own reductions)
//   dL/dw_k = sum_c gamma_k S2_k + beta_k S1         (the architecture gradient comes with them)
//   dL/dgamma_k = w_k S2_k,  dL/dbeta_k = w_k S1     (summed over groups)
//   dL/dy_k = w_k gamma_k / sigma_k * (g - S1 / M - x^_k S2_k / M)
// Given statistics (kRunning) have no S1 and S2 terms in dL/dy; kNone has x^ = y, sigma = 1.
//
// Two sweeps: `reduce` reads g and every map, `grad_maps` reads both again and writes every
// gradient. Bytes: (3 K + 2) maps.
#pragma once

#include <cmath>

#include "cpu/kernels/channel_pattern.h"
#include "cpu/kernels/node_sum_kernels.h"

namespace darts_fast::cpu::DARTS_CPU_CAPABILITY {

template <typename T>
static void node_sum_center(const NodeSumBackward<T>& p, int64_t begin, int64_t end) {
  const NodeSumShape& s = p.shape;
  const int64_t period = pattern_period<T>(s.channels);
  for (int64_t row = begin; row < end; ++row) {
    const bool normalised = p.norms[row % s.terms] != Norm::kNone;
    expand_pattern(p.center + row * period, s.channels, period,
                   [&](int64_t c) { return normalised ? p.mean[row * s.channels + c] : T(0); });
  }
}

template <typename T>
static void node_sum_reduce(const NodeSumBackward<T>& p, int64_t begin, int64_t end) {
  const NodeSumShape& s = p.shape;
  const int64_t period = pattern_period<T>(s.channels);
  for (int64_t item = begin; item < end; ++item) {
    const int64_t tile = item % tiles(s);
    const int64_t group = item / tiles(s);
    const int64_t at = (group * s.positions + tile * s.tile) * s.channels;
    const int64_t count = tile_size(s, tile) * s.channels;
    const T* g = p.grad_node + at;
    T* out = p.partial + item * (s.terms + 1) * s.channels;
    sum_over_positions(
        out, count, s.channels, period, [](int64_t) { return 0; },
        [g](int64_t i, int) { return load(g + i); }, [g](int64_t i, int64_t) { return g[i]; });
    for (int64_t k = 0; k < s.terms; ++k) {
      const int64_t row = group * s.terms + k;
      if (!p.active[row]) continue;
      const T* y = p.maps[k] + at;
      const T* center = p.center + row * period;
      sum_over_positions(
          out + (k + 1) * s.channels, count, s.channels, period,
          [center](int64_t offset) { return load(center + offset); },
          [g, y](int64_t i, Vec<T> m) { return load(g + i) * (load(y + i) - m); },
          [g, y, center](int64_t i, int64_t c) { return g[i] * (y[i] - center[c]); });
    }
  }
}

// Sums over the tiles in their order, in double, and turns sum g * (y - mean) into S2.
template <typename T>
static void node_sum_merge_sums(const NodeSumBackward<T>& p, int64_t begin, int64_t end) {
  const NodeSumShape& s = p.shape;
  const int64_t slots = s.terms + 1;
  for (int64_t item = begin; item < end; ++item) {
    const int64_t slot = item % slots;
    const int64_t group = item / slots;
    const int64_t k = slot - 1;
    const int64_t row = group * s.terms + k;
    double* out = p.sums + item * s.channels;
    for (int64_t c = 0; c < s.channels; ++c) out[c] = 0;
    if (slot > 0 && !p.active[row]) continue;
    for (int64_t tile = 0; tile < tiles(s); ++tile) {
      const T* part = p.partial + ((group * tiles(s) + tile) * slots + slot) * s.channels;
      for (int64_t c = 0; c < s.channels; ++c) out[c] += part[c];
    }
    if (slot == 0 || p.norms[k] == Norm::kNone) continue;
    for (int64_t c = 0; c < s.channels; ++c) {
      out[c] /= std::sqrt(p.var[row * s.channels + c] + p.eps[k]);
    }
  }
}

template <typename T>
static void node_sum_coefficients(const NodeSumBackward<T>& p, int64_t begin, int64_t end) {
  const NodeSumShape& s = p.shape;
  const int64_t period = pattern_period<T>(s.channels);
  const double count = static_cast<double>(s.positions);
  for (int64_t row = begin; row < end; ++row) {
    const int64_t group = row / s.terms;
    const int64_t k = row % s.terms;
    const bool normalised = p.norms[k] != Norm::kNone;
    const bool batch = p.norms[k] == Norm::kBatch;
    const T* var = p.var + row * s.channels;
    const double* s1 = p.sums + group * (s.terms + 1) * s.channels;
    const double* s2 = s1 + (k + 1) * s.channels;
    const auto sigma = [&](int64_t c) { return std::sqrt(var[c] + p.eps[k]); };
    expand_pattern(p.grad_scale + row * period, s.channels, period, [&](int64_t c) {
      double scale = p.weights[row];
      if (normalised && p.gamma != nullptr) scale *= p.gamma[k * s.channels + c];
      return static_cast<T>(normalised ? scale / sigma(c) : scale);
    });
    expand_pattern(p.grad_shift + row * period, s.channels, period,
                   [&](int64_t c) { return batch ? static_cast<T>(s1[c] / count) : T(0); });
    expand_pattern(p.grad_slope + row * period, s.channels, period, [&](int64_t c) {
      return batch ? static_cast<T>(s2[c] / count / sigma(c)) : T(0);
    });
  }
}

template <typename T>
static void node_sum_parameters(const NodeSumBackward<T>& p, int64_t begin, int64_t end) {
  const NodeSumShape& s = p.shape;
  for (int64_t k = begin; k < end; ++k) {
    const bool normalised = p.norms[k] != Norm::kNone;
    const T* gamma = normalised && p.gamma != nullptr ? p.gamma + k * s.channels : nullptr;
    const T* beta = normalised && p.beta != nullptr ? p.beta + k * s.channels : nullptr;
    const auto group_sums = [&](int64_t group) {
      return p.sums + group * (s.terms + 1) * s.channels;
    };
    for (int64_t group = 0; group < s.groups && p.grad_weights != nullptr; ++group) {
      const double* s1 = group_sums(group);
      const double* s2 = s1 + (k + 1) * s.channels;
      double sum = 0;
      if (p.active[group * s.terms + k]) {
        for (int64_t c = 0; c < s.channels; ++c) {
          sum += (gamma != nullptr ? gamma[c] * s2[c] : s2[c]);
          if (beta != nullptr) sum += beta[c] * s1[c];
        }
      }
      p.grad_weights[group * s.terms + k] = static_cast<T>(sum);
    }
    for (int64_t c = 0; c < s.channels; ++c) {
      double sum_gamma = 0, sum_beta = 0;
      for (int64_t group = 0; group < s.groups && normalised; ++group) {
        if (!p.active[group * s.terms + k]) continue;
        const double w = p.weights[group * s.terms + k];
        sum_gamma += w * group_sums(group)[(k + 1) * s.channels + c];
        sum_beta += w * group_sums(group)[c];
      }
      if (p.grad_gamma != nullptr) p.grad_gamma[k * s.channels + c] = static_cast<T>(sum_gamma);
      if (p.grad_beta != nullptr) p.grad_beta[k * s.channels + c] = static_cast<T>(sum_beta);
    }
  }
}

// out = scale * g
template <typename T>
static void scale_gradient(T* out, const T* g, const T* scale, int64_t count, int64_t period) {
  const int64_t whole = count / period * period;
  for_each_vector<T>(
      whole, period, [scale](int64_t offset) { return load(scale + offset); },
      [=](int64_t i, Vec<T> a) { store(out + i, a * load(g + i)); });
  for (int64_t i = whole; i < count; ++i) out[i] = scale[i - whole] * g[i];
}

template <typename T>
static void node_sum_grad_maps(const NodeSumBackward<T>& p, int64_t begin, int64_t end) {
  const NodeSumShape& s = p.shape;
  const int64_t period = pattern_period<T>(s.channels);
  for (int64_t item = begin; item < end; ++item) {
    const int64_t tile = item % tiles(s);
    const int64_t group = item / tiles(s);
    const int64_t at = (group * s.positions + tile * s.tile) * s.channels;
    const int64_t count = tile_size(s, tile) * s.channels;
    const int64_t full = count / period;
    const T* g = p.grad_node + at;
    for (int64_t k = 0; k < s.terms; ++k) {
      if (p.grad_maps[k] == nullptr) continue;
      const int64_t row = group * s.terms + k;
      T* out = p.grad_maps[k] + at;
      const T* scale = p.grad_scale + row * period;
      if (!p.active[row]) {
        std::memset(out, 0, count * sizeof(T));
        continue;
      }
      if (p.norms[k] != Norm::kBatch) {
        scale_gradient(out, g, scale, count, period);
        continue;
      }
      const T* y = p.maps[k] + at;
      const T* center = p.center + row * period;
      const T* shift = p.grad_shift + row * period;
      const T* slope = p.grad_slope + row * period;
      for (int64_t offset = 0; offset < period && full > 0; offset += kLanes<T>) {
        const Vec<T> a = load(scale + offset), m = load(center + offset);
        const Vec<T> b = load(shift + offset), q = load(slope + offset);
        for (int64_t i = offset; i < full * period; i += period) {
          store(out + i, a * ((load(g + i) - b) - q * (load(y + i) - m)));
        }
      }
      for (int64_t i = full * period; i < count; ++i) {
        const int64_t j = i % period;
        out[i] = scale[j] * ((g[i] - shift[j]) - slope[j] * (y[i] - center[j]));
      }
    }
  }
}

}  // namespace darts_fast::cpu::DARTS_CPU_CAPABILITY
