// SPDX-License-Identifier: Apache-2.0
// Channels innermost, any number of them, in whole vectors: after lcm(C, lanes) elements the
// channel of each lane repeats. Sums over positions keep one accumulator vector per lane pattern
// and fold it to channels at the end, so C = 4, 6 or 10 runs at the speed of C = 16.
#pragma once

#include "cpu/kernels/vec.h"

namespace darts_fast::cpu::DARTS_CPU_CAPABILITY {

template <typename T>
static int64_t pattern_period(int64_t channels) {
  int64_t a = channels, b = kLanes<T>;
  while (b != 0) {
    const int64_t rest = a % b;
    a = b;
    b = rest;
  }
  return channels / a * kLanes<T>;
}

// pattern[i] = value(i mod C) for i < period.
template <typename T, typename Value>
static inline void expand_pattern(T* pattern, int64_t channels, int64_t period, Value value) {
  for (int64_t i = 0; i < channels; ++i) pattern[i] = value(i);
  for (int64_t i = channels; i < period; ++i) pattern[i] = pattern[i - channels];
}

template <typename T>
static inline Vec<T> pattern_vector(const T* per_channel, int64_t channels, int64_t offset) {
  if (channels % kLanes<T> == 0) return load(per_channel + offset);
  Vec<T> value;
  for (int64_t lane = 0; lane < kLanes<T>; ++lane) {
    value[lane] = per_channel[(offset + lane) % channels];
  }
  return value;
}

// out[c] = sum over the positions of a tile of term(index of the element, per-lane parameter).
// `prepare(offset)` gives the parameter of the vector at that offset of the pattern, `vector(i, p)`
// the summand of the vector starting at element i, `scalar(i, c)` that of one element of the tail.
// Four accumulators hide the latency of the addition; their order is part of the result.
template <typename T, typename Prepare, typename Vector, typename Scalar>
static inline void sum_over_positions(T* out, int64_t count, int64_t channels, int64_t period,
                                      Prepare prepare, Vector vector, Scalar scalar) {
  const int64_t full = count / period;
  for (int64_t c = 0; c < channels; ++c) out[c] = T(0);
  for (int64_t offset = 0; offset < period && full > 0; offset += kLanes<T>) {
    const auto parameter = prepare(offset);
    Vec<T> sum0 = {}, sum1 = {}, sum2 = {}, sum3 = {};
    int64_t repeat = 0;
    int64_t i = offset;
    for (; repeat + 4 <= full; repeat += 4, i += 4 * period) {
      sum0 += vector(i, parameter);
      sum1 += vector(i + period, parameter);
      sum2 += vector(i + 2 * period, parameter);
      sum3 += vector(i + 3 * period, parameter);
    }
    for (; repeat < full; ++repeat, i += period) sum0 += vector(i, parameter);
    const Vec<T> sum = (sum0 + sum1) + (sum2 + sum3);
    if (channels % kLanes<T> == 0) {
      store(out + offset, sum);
      continue;
    }
    for (int64_t lane = 0; lane < kLanes<T>; ++lane) out[(offset + lane) % channels] += sum[lane];
  }
  for (int64_t i = full * period; i < count; ++i) out[i % channels] += scalar(i, i % channels);
}

// Merges the moments of `size` more values into the running ones of `seen`: the pairwise update of
// Chan, Golub and LeVeque, in double. Plain sums of squares in single precision lose the variance
// when the mean is a thousand deviations away.
static inline void merge_moments(double* mean, double* square, double seen, const double* more_mean,
                                 const double* more_square, double size, int64_t channels) {
  const double share = size / (seen + size);
  for (int64_t c = 0; c < channels; ++c) {
    const double delta = more_mean[c] - mean[c];
    mean[c] += delta * share;
    square[c] += more_square[c] + delta * delta * seen * share;
  }
}

}  // namespace darts_fast::cpu::DARTS_CPU_CAPABILITY
