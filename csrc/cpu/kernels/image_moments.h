// SPDX-License-Identifier: Apache-2.0
// Moments of a stretch of positions, and of a group from those of its images.
#pragma once

#include "cpu/kernels/channel_pattern.h"

namespace darts_fast::cpu::DARTS_CPU_CAPABILITY {

// Mean and centred square sum per channel of one tile, [count / C, C]. `center` is the mean to
// within the rounding of a plain sum; the second pass sums the differences too and takes that
// rounding back out, so that a tile whose mean is a thousand deviations from zero keeps its digits.
template <typename T>
static void tile_moments(const T* y, int64_t count, int64_t channels, int64_t period, T* center,
                         double* mean, double* square) {
  const double size = static_cast<double>(count / channels);
  sum_over_positions(
      center, count, channels, period, [](int64_t) { return 0; },
      [y](int64_t i, int) { return load(y + i); }, [y](int64_t i, int64_t) { return y[i]; });
  for (int64_t c = 0; c < channels; ++c) {
    center[c] /= static_cast<T>(size);
    mean[c] = square[c] = 0;
  }
  const int64_t whole = count / period * period;
  for (int64_t offset = 0; offset < period && whole > 0; offset += kLanes<T>) {
    const Vec<T> m = pattern_vector(center, channels, offset);
    Vec<T> sums[2] = {}, squares[2] = {};
    const auto add = [&](int64_t i, int at) {
      const Vec<T> d = load(y + i) - m;
      sums[at] += d;
      squares[at] += d * d;
    };
    int64_t i = offset;
    for (; i + period < whole; i += 2 * period) {
      add(i, 0);
      add(i + period, 1);
    }
    if (i < whole) add(i, 0);
    const Vec<T> sum = sums[0] + sums[1], both = squares[0] + squares[1];
    for (int64_t lane = 0; lane < kLanes<T>; ++lane) {
      mean[(offset + lane) % channels] += sum[lane];
      square[(offset + lane) % channels] += both[lane];
    }
  }
  for (int64_t i = whole; i < count; ++i) {
    const double d = y[i] - center[i % channels];
    mean[i % channels] += d;
    square[i % channels] += d * d;
  }
  for (int64_t c = 0; c < channels; ++c) {
    square[c] -= mean[c] * mean[c] / size;
    mean[c] = center[c] + mean[c] / size;
  }
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
