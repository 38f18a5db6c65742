// SPDX-License-Identifier: Apache-2.0
// A branch's weights in the order in which the inner loops read them.
#pragma once

#include <cmath>

#include "cpu/kernels/conv_tile.h"

namespace darts_fast::cpu::DARTS_CPU_CAPABILITY {

constexpr int64_t kMaxTaps = 49;

// One row of `packed`: depthwise [taps, period], the same with the taps reversed, pointwise
// [C, vectors of C'], its transpose [C', vectors of C].
template <typename T>
struct PackedBranch {
  T* depthwise;
  T* reversed;
  T* pointwise;
  T* transposed;
};

template <typename T>
static inline int64_t vectors_of(int64_t channels) {
  return (channels + kLanes<T> - 1) / kLanes<T>;
}

template <typename T>
static int64_t conv_packed_size(const ConvBlocksShape& s) {
  const int64_t period = pattern_period<T>(s.channels);
  return 2 * kMaxTaps * period + s.channels * vectors_of<T>(s.out_channels) * kLanes<T> +
         s.out_channels * vectors_of<T>(s.channels) * kLanes<T>;
}

template <typename T>
static inline PackedBranch<T> packed_branch(const ConvBlocksShape& s, T* packed, int64_t stride,
                                            int64_t branch) {
  const int64_t taps = kMaxTaps * pattern_period<T>(s.channels);
  T* row = packed + branch * stride;
  T* pointwise = row + 2 * taps;
  return {row, row + taps, pointwise,
          pointwise + s.channels * vectors_of<T>(s.out_channels) * kLanes<T>};
}

template <typename T>
static void pack_branch(const ConvBlocksShape& s, const ConvBranch& branch, const T* depthwise,
                        const T* pointwise, PackedBranch<T> to) {
  const int64_t period = pattern_period<T>(s.channels);
  const int64_t taps = branch_taps(branch);
  for (int64_t t = 0; t < taps; ++t) {
    const auto weight = [&](int64_t c) { return depthwise[c * taps + t]; };
    expand_pattern(to.depthwise + t * period, s.channels, period, weight);
    expand_pattern(to.reversed + (taps - 1 - t) * period, s.channels, period, weight);
  }
  const int64_t row = vectors_of<T>(s.out_channels) * kLanes<T>;
  for (int64_t ci = 0; ci < s.channels; ++ci) {
    for (int64_t co = 0; co < row; ++co) {
      to.pointwise[ci * row + co] = co < s.out_channels ? pointwise[co * s.channels + ci] : T(0);
    }
  }
  const int64_t back = vectors_of<T>(s.channels) * kLanes<T>;
  for (int64_t co = 0; co < s.out_channels; ++co) {
    for (int64_t ci = 0; ci < back; ++ci) {
      to.transposed[co * back + ci] = ci < s.channels ? pointwise[co * s.channels + ci] : T(0);
    }
  }
}

// center, scale, shift [C] of one input and group, in the caller's scratch of 3 C elements.
template <typename T>
static InputNorm<T> input_norm(const ConvBlocksShape& s, const ConvBlocksNorm<T>& norm,
                               int64_t source, int64_t group, T* scratch) {
  const int64_t channels = s.channels;
  const T* var = norm.var + (source * s.groups + group) * channels;
  T* scale = scratch + channels;
  T* shift = scale + channels;
  for (int64_t c = 0; c < channels; ++c) {
    scratch[c] = norm.mean[(source * s.groups + group) * channels + c];
    const double gamma = norm.gamma == nullptr ? 1.0 : norm.gamma[source * channels + c];
    scale[c] = static_cast<T>(gamma / std::sqrt(var[c] + norm.eps));
    shift[c] = norm.beta == nullptr ? T(0) : norm.beta[source * channels + c];
  }
  return {scratch, scale, shift};
}

}  // namespace darts_fast::cpu::DARTS_CPU_CAPABILITY
