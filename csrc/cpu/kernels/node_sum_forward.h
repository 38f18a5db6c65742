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

template <typename T, int kTerms>
struct TermVectors {
  Vec<T> scale[kTerms], center[kTerms];
};

// Adds kTerms maps to a stretch of the node, which stays in the first-level cache between calls.
template <typename T, int kTerms, typename Y>
static void add_terms(T* node, const Y* const* y, const T* const* scale, const T* const* center,
                      int64_t count, int64_t period) {
  const int64_t whole = count / period * period;
  for_each_vector<T>(
      whole, period,
      [&](int64_t offset) {
        TermVectors<T, kTerms> terms;
#pragma GCC unroll 4
        for (int k = 0; k < kTerms; ++k) {
          terms.scale[k] = load(scale[k] + offset);
          terms.center[k] = load(center[k] + offset);
        }
        return terms;
      },
      [&](int64_t i, const TermVectors<T, kTerms>& terms) {
        Vec<T> sum = load(node + i);
#pragma GCC unroll 4
        for (int k = 0; k < kTerms; ++k) {
          sum += (load(y[k] + i) - terms.center[k]) * terms.scale[k];
        }
        store(node + i, sum);
      });
  for (int64_t i = whole; i < count; ++i) {
    for (int k = 0; k < kTerms; ++k) {
      node[i] += (widen(y[k][i]) - center[k][i - whole]) * scale[k][i - whole];
    }
  }
}

// Terms of one stretch that wait to be added, as many at a time as there are streams and registers
// for. Y: what the maps are stored in.
template <typename T, typename Y = T>
struct TermSum {
  T* node;
  int64_t count, period;
  int pending;
  const Y* y[4];
  const T *scale[4], *center[4];
};

template <typename T, typename Y>
static void flush_terms(TermSum<T, Y>* sum) {
  TermSum<T, Y>& s = *sum;
  switch (s.pending) {
    case 4:
      add_terms<T, 4>(s.node, s.y, s.scale, s.center, s.count, s.period);
      break;
    case 3:
      add_terms<T, 3>(s.node, s.y, s.scale, s.center, s.count, s.period);
      break;
    case 2:
      add_terms<T, 2>(s.node, s.y, s.scale, s.center, s.count, s.period);
      break;
    case 1:
      add_terms<T, 1>(s.node, s.y, s.scale, s.center, s.count, s.period);
      break;
    default:
      break;
  }
  s.pending = 0;
}

template <typename T, typename Y>
static void add_term(TermSum<T, Y>* sum, const Y* y, const T* scale, const T* center) {
  sum->y[sum->pending] = y;
  sum->scale[sum->pending] = scale;
  sum->center[sum->pending] = center;
  if (++sum->pending == (sweep_width<T>(sum->period) > 2 ? 2 : 4)) flush_terms(sum);
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
    TermSum<T> sum = {node, count, period, 0, {}, {}, {}};
    for (int64_t k = 0; k < s.terms; ++k) {
      const int64_t row = group * s.terms + k;
      if (!p.active[row]) continue;
      add_term(&sum, p.maps[k] + at, p.scale + row * period, p.center + row * period);
    }
    flush_terms(&sum);
  }
}

}  // namespace darts_fast::cpu::DARTS_CPU_CAPABILITY
