// SPDX-License-Identifier: Apache-2.0
// Moments of a stretch of positions, and of a group from those of its images.
#pragma once

#include "cpu/kernels/channel_pattern.h"

namespace darts_fast::cpu::DARTS_CPU_CAPABILITY {

// sums [C] += y - center and squares [C] += (y - center)^2 over the positions, center being [C].
template <typename T>
static void add_centred(const T* y, int64_t count, int64_t channels, int64_t period,
                        const T* center, double* sums, double* squares) {
  constexpr int kChains = 4;  // hide the latency of the sums
  const int64_t whole = channels == period ? count : count / period * period;
  for (int64_t offset = 0; offset < period && whole > 0; offset += kLanes<T>) {
    const Vec<T> m = pattern_vector(center, channels, offset);
    Vec<T> sum[kChains] = {}, square[kChains] = {};
    const auto add = [&](int64_t i, int at) {
      const Vec<T> d = load(y + i) - m;
      sum[at] += d;
      square[at] += d * d;
    };
    int64_t i = offset;
    for (; i + (kChains - 1) * period < whole; i += kChains * period) {
#pragma GCC unroll 4
      for (int at = 0; at < kChains; ++at) add(i + at * period, at);
    }
    for (; i < whole; i += period) add(i, 0);
    const Vec<T> first = (sum[0] + sum[1]) + (sum[2] + sum[3]);
    const Vec<T> second = (square[0] + square[1]) + (square[2] + square[3]);
    fold_wide<T>(sums, first, offset, channels);
    fold_wide<T>(squares, second, offset, channels);
  }
  for (int64_t i = whole; i < count; ++i) {
    const double d = y[i] - center[i % channels];
    sums[i % channels] += d;
    squares[i % channels] += d * d;
  }
}

// center [C]: the mean over the positions, to within the rounding of a plain sum.
template <typename T>
static void plain_mean(const T* y, int64_t count, int64_t channels, int64_t period, T* center) {
  sum_over_positions(
      center, count, channels, period, [](int64_t) { return 0; },
      [y](int64_t i, int) { return load(y + i); }, [y](int64_t i, int64_t) { return y[i]; });
  const T size = static_cast<T>(count / channels);
  for (int64_t c = 0; c < channels; ++c) center[c] /= size;
}

// From sums of y - center and of its square to mean and centred square sum, in place.
template <typename T>
static void finish_moments(const T* center, double size, int64_t channels, double* mean,
                           double* square) {
  for (int64_t c = 0; c < channels; ++c) {
    square[c] -= mean[c] * mean[c] / size;
    mean[c] = center[c] + mean[c] / size;
  }
}

// Mean and centred square sum per channel of one tile, [count / C, C]. The second pass sums the
// differences too and takes the rounding of `center` back out, so that a tile whose mean is a
// thousand deviations from zero keeps its digits.
template <typename T>
static void tile_moments(const T* y, int64_t count, int64_t channels, int64_t period, T* center,
                         double* mean, double* square) {
  plain_mean(y, count, channels, period, center);
  for (int64_t c = 0; c < channels; ++c) mean[c] = square[c] = 0;
  add_centred(y, count, channels, period, center, mean, square);
  finish_moments(center, static_cast<double>(count / channels), channels, mean, square);
}

// Merges the moments [images, C] of images of `size` values each, in their order, into the mean and
// the biased variance [C] of all of them.
template <typename T>
static void merge_image_moments(const double* means, const double* squares, int64_t images,
                                double size, int64_t channels, T* mean, T* var) {
  constexpr int64_t kRun = 64;
  for (int64_t first = 0; first < channels; first += kRun) {
    const int64_t run = channels - first < kRun ? channels - first : kRun;
    double merged_mean[kRun], merged_square[kRun];
    for (int64_t c = 0; c < run; ++c) {
      merged_mean[c] = means[first + c];
      merged_square[c] = squares[first + c];
    }
    double seen = size;
    for (int64_t n = 1; n < images; ++n) {
      merge_moments(merged_mean, merged_square, seen, means + n * channels + first,
                    squares + n * channels + first, size, run);
      seen += size;
    }
    for (int64_t c = 0; c < run; ++c) {
      mean[first + c] = static_cast<T>(merged_mean[c]);
      var[first + c] = static_cast<T>(merged_square[c] / seen);
    }
  }
}

// Where there are none: nothing is subtracted, nothing divided.
template <typename T>
static inline void neutral_moments(int64_t channels, T* mean, T* var) {
  for (int64_t c = 0; c < channels; ++c) {
    mean[c] = T(0);
    var[c] = T(1);
  }
}

}  // namespace darts_fast::cpu::DARTS_CPU_CAPABILITY
