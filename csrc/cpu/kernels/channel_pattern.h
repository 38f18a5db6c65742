// SPDX-License-Identifier: Apache-2.0
// Channels innermost, any number of them, in whole vectors: after lcm(C, lanes) elements the
// channel of each lane repeats. Sums over positions keep one accumulator vector per lane pattern
// and fold it to channels at the end, so C = 4, 6 or 10 runs at the speed of C = 16.
#pragma once

#include "cpu/kernels/map_elements.h"

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

// How many vectors of a pattern a loop holds the parameters of. Memory is then read in its order,
// and not one vector out of every pattern, which prefetchers do not follow.
template <typename T>
static inline int64_t sweep_width(int64_t period) {
  const int64_t vectors = period / kLanes<T>;
  return vectors % 4 == 0 ? 4 : vectors % 3 == 0 ? 3 : vectors % 2 == 0 ? 2 : 1;
}

template <typename T, int kWidth, typename Prepare, typename Body>
static inline void sweep(int64_t whole, int64_t period, Prepare prepare, Body body) {
  for (int64_t lane = 0; lane < period && whole > 0; lane += kWidth * kLanes<T>) {
    decltype(prepare(lane)) parameters[kWidth];
#pragma GCC unroll 4
    for (int w = 0; w < kWidth; ++w) parameters[w] = prepare(lane + w * kLanes<T>);
    for (int64_t i = lane; i < whole; i += period) {
#pragma GCC unroll 4
      for (int w = 0; w < kWidth; ++w) body(i + w * kLanes<T>, parameters[w]);
    }
  }
}

// body(i, prepare(i mod period)) for every vector of the whole patterns, `whole` elements.
template <typename T, typename Prepare, typename Body>
static inline void for_each_vector(int64_t whole, int64_t period, Prepare prepare, Body body) {
  switch (sweep_width<T>(period)) {
    case 4:
      return sweep<T, 4>(whole, period, prepare, body);
    case 3:
      return sweep<T, 3>(whole, period, prepare, body);
    case 2:
      return sweep<T, 2>(whole, period, prepare, body);
    default:
      return sweep<T, 1>(whole, period, prepare, body);
  }
}

// Adds the lanes of a vector of the pattern to their channels.
template <typename T>
static inline void fold_lanes(T* out, Vec<T> sum, int64_t offset, int64_t channels) {
  if (channels % kLanes<T> == 0) {
    store(out + offset, load(out + offset) + sum);
    return;
  }
  for (int64_t lane = 0; lane < kLanes<T>; ++lane) out[(offset + lane) % channels] += sum[lane];
}

// The same in double.
template <typename T>
static inline void fold_wide(double* out, Vec<T> sum, int64_t offset, int64_t channels) {
  if (channels % kLanes<T> == 0) {
    T lanes[kLanes<T>];
    store(lanes, sum);
    return add_wide(out + offset, lanes, kLanes<T>);
  }
  for (int64_t lane = 0; lane < kLanes<T>; ++lane) out[(offset + lane) % channels] += sum[lane];
}

template <typename T, int kWidth, typename Prepare, typename Vector>
static inline void sum_sweep(T* out, int64_t full, int64_t channels, int64_t period,
                             Prepare prepare, Vector vector) {
  // At least four sums at a time hide the latency of the addition.
  constexpr int kRepeats = kWidth == 1 ? 4 : 2;
  for (int64_t offset = 0; offset < period; offset += kWidth * kLanes<T>) {
    decltype(prepare(offset)) parameters[kWidth];
    Vec<T> sums[kRepeats][kWidth];
#pragma GCC unroll 4
    for (int w = 0; w < kWidth; ++w) {
      parameters[w] = prepare(offset + w * kLanes<T>);
#pragma GCC unroll 4
      for (int r = 0; r < kRepeats; ++r) sums[r][w] = Vec<T>{};
    }
    int64_t repeat = 0;
    int64_t i = offset;
    for (; repeat + kRepeats <= full; repeat += kRepeats, i += kRepeats * period) {
#pragma GCC unroll 4
      for (int r = 0; r < kRepeats; ++r) {
#pragma GCC unroll 4
        for (int w = 0; w < kWidth; ++w) {
          sums[r][w] += vector(i + r * period + w * kLanes<T>, parameters[w]);
        }
      }
    }
    for (; repeat < full; ++repeat, i += period) {
#pragma GCC unroll 4
      for (int w = 0; w < kWidth; ++w) sums[0][w] += vector(i + w * kLanes<T>, parameters[w]);
    }
#pragma GCC unroll 4
    for (int w = 0; w < kWidth; ++w) {
      Vec<T> sum = sums[0][w] + sums[1][w];
      if constexpr (kRepeats == 4) sum += sums[2][w] + sums[3][w];
      fold_lanes(out, sum, offset + w * kLanes<T>, channels);
    }
  }
}

// out[c] = sum over the positions of a tile of term(index of the element, per-lane parameter).
// `prepare(offset)` gives the parameter of the vector at that offset of the pattern, `vector(i, p)`
// the summand of the vector starting at element i, `scalar(i, c)` that of one element of the tail.
// The order of summation depends on count, channels and the capability alone.
template <typename T, typename Prepare, typename Vector, typename Scalar>
static inline void sum_over_positions(T* out, int64_t count, int64_t channels, int64_t period,
                                      Prepare prepare, Vector vector, Scalar scalar) {
  const int64_t full = count / period;
  for (int64_t c = 0; c < channels; ++c) out[c] = T(0);
  switch (full == 0 ? 0 : sweep_width<T>(period)) {
    case 4:
      sum_sweep<T, 4>(out, full, channels, period, prepare, vector);
      break;
    case 3:
      sum_sweep<T, 3>(out, full, channels, period, prepare, vector);
      break;
    case 2:
      sum_sweep<T, 2>(out, full, channels, period, prepare, vector);
      break;
    case 1:
      sum_sweep<T, 1>(out, full, channels, period, prepare, vector);
      break;
    default:
      break;
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
