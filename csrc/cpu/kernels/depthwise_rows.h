// SPDX-License-Identifier: Apache-2.0
// The inner loops of a depthwise convolution and of its weight gradient, a row of an image at a
// time. Rows are flat, channels innermost, and weights are expanded to the pattern of channels
// (channel_pattern.h), so every lane works at every number of channels. Accumulators stay in
// registers over the taps.
#pragma once

#include "cpu/kernels/depthwise_grid.h"

namespace darts_fast::cpu::DARTS_CPU_CAPABILITY {

// x[u * step] for a compile-time u. A step that the compiler knows costs no registers; of another
// one, four bases and three multiples are all the registers that the addresses of a block need, and
// one register per u would spill.
template <typename T, int kCount, int kStep = 0>
struct Stepped {
  const T* base;

  Stepped(const T* from, int64_t) : base(from) {}

  const T* at(int u) const { return base + u * kStep; }

  void advance(int64_t elements) { base += elements; }
};

template <typename T, int kCount>
struct Stepped<T, kCount, 0> {
  const T* base[(kCount + 3) / 4];
  int64_t step, twice, thrice;

  Stepped(const T* from, int64_t s) : step(s), twice(2 * s), thrice(3 * s) {
    for (int j = 0; j < (kCount + 3) / 4; ++j) base[j] = from + j * 4 * s;
  }

  const T* at(int u) const {
    const T* from = base[u / 4];
    return u % 4 == 0 ? from : from + (u % 4 == 1 ? step : u % 4 == 2 ? twice : thrice);
  }

  void advance(int64_t elements) {
    for (const T*& from : base) from += elements;
  }
};

template <typename T, int kCount>
static inline void depthwise_block(const T* base, const Tap* taps, int64_t count_taps,
                                   const T* weights, int64_t period, T* out, bool accumulate) {
  Vec<T> sum[kCount];
#pragma GCC unroll 16
  for (int u = 0; u < kCount; ++u) sum[u] = accumulate ? load(out + u * period) : Vec<T>{};
  for (int64_t t = 0; t < count_taps; ++t) {
    const Vec<T> w = load(weights + taps[t].weight);
    const Stepped<T, kCount> x(base + taps[t].input, period);
#pragma GCC unroll 16
    for (int u = 0; u < kCount; ++u) sum[u] += w * load(x.at(u));
  }
#pragma GCC unroll 16
  for (int u = 0; u < kCount; ++u) store(out + u * period, sum[u]);
}

// The taps of a depthwise convolution, and the loop for them.
template <typename T>
struct DepthwiseTaps {
  const Tap* taps;
  int64_t count;
  int64_t period;
  GridRows<T>* grid;  // null where they are no grid that one is compiled for
};

template <typename T>
static inline DepthwiseTaps<T> depthwise_taps(const Tap* taps, int64_t count, int64_t period) {
  return {taps, count, period, grid_for<T>(taps, count, period)};
}

// out[i] (+)= sum_t weights[taps[t].weight + i mod C] * input[taps[t].input + i] for i < count, in
// every row.
template <typename T>
static void depthwise_rows(const DepthwiseRows<T>& r, const DepthwiseTaps<T>& d, const T* weights) {
  if (d.grid != nullptr) return d.grid(r, d.taps, weights);
  const int64_t period = d.period;
  for (int64_t h = 0; h < r.rows; ++h) {
    const T* base = r.input + h * r.input_row;
    T* out = r.out + h * r.out_row;
    for (int64_t lane = 0; lane < period; lane += kLanes<T>) {
      const T* w = weights + lane;
      int64_t i = lane;
      if (kManyRegisters) {
        for (; i + 15 * period < r.count; i += 16 * period) {
          depthwise_block<T, 16>(base + i, d.taps, d.count, w, period, out + i, r.accumulate);
        }
      }
      for (; i + 7 * period < r.count; i += 8 * period) {
        depthwise_block<T, 8>(base + i, d.taps, d.count, w, period, out + i, r.accumulate);
      }
      for (; i + 3 * period < r.count; i += 4 * period) {
        depthwise_block<T, 4>(base + i, d.taps, d.count, w, period, out + i, r.accumulate);
      }
      for (; i < r.count; i += period) {
        depthwise_block<T, 1>(base + i, d.taps, d.count, w, period, out + i, r.accumulate);
      }
    }
  }
}

// Rows of an image's input and of the gradient of its depthwise outputs.
template <typename T>
struct DepthwiseGradRows {
  const T* input;
  int64_t input_row;  // elements from the input of one output row to that of the next
  const T* grad;
  int64_t grad_row;
  int64_t rows;
  int64_t count;  // elements of a row of outputs
};

template <typename T, int kTaps>
static inline void depthwise_grad_taps(const DepthwiseGradRows<T>& r, const Tap* taps,
                                       int64_t period, T* acc) {
  for (int64_t lane = 0; lane < period; lane += kLanes<T>) {
    Vec<T> sum[kTaps];
#pragma GCC unroll 25
    for (int t = 0; t < kTaps; ++t) sum[t] = load(acc + t * period + lane);
    for (int64_t h = 0; h < r.rows; ++h) {
      const T* g = r.grad + h * r.grad_row;
      const T* base = r.input + h * r.input_row;
      int64_t i = lane;
      for (; i + kLanes<T> <= r.count; i += period) {
        const Vec<T> grad = load(g + i);
#pragma GCC unroll 25
        for (int t = 0; t < kTaps; ++t) sum[t] += grad * load(base + taps[t].input + i);
      }
      if (i < r.count) {
        Vec<T> grad = {};
        std::memcpy(&grad, g + i, (r.count - i) * sizeof(T));
#pragma GCC unroll 25
        for (int t = 0; t < kTaps; ++t) sum[t] += grad * load(base + taps[t].input + i);
      }
    }
#pragma GCC unroll 25
    for (int t = 0; t < kTaps; ++t) store(acc + t * period + lane, sum[t]);
  }
}

// acc[t][i mod period] += sum over the rows and their elements i of grad[i] * input[taps[t] + i].
template <typename T>
static void depthwise_grad(const DepthwiseGradRows<T>& r, const Tap* taps, int64_t count_taps,
                           int64_t period, T* acc) {
  int64_t t = 0;
  if (kManyRegisters) {
    for (; t + 25 <= count_taps; t += 25) {
      depthwise_grad_taps<T, 25>(r, taps + t, period, acc + t * period);
    }
  }
  for (; t + 9 <= count_taps; t += 9) {
    depthwise_grad_taps<T, 9>(r, taps + t, period, acc + t * period);
  }
  for (; t + 4 <= count_taps; t += 4) {
    depthwise_grad_taps<T, 4>(r, taps + t, period, acc + t * period);
  }
  for (; t < count_taps; ++t) depthwise_grad_taps<T, 1>(r, taps + t, period, acc + t * period);
}

// All taps of a 5x5 kernel for two rows of outputs that are a dilation apart: an input row that
// both reach is read once. Stride 1, where the taps of a kernel row stand `column` elements apart
// and kernel rows `kernel_row`; the accumulators and two gradients are 27 registers.
template <typename T>
struct DepthwiseGradPair {
  const T* input;  // of the first tap of the first row
  int64_t kernel_row;
  int64_t column;
  const T* grad[2];
  int64_t count;
};

template <typename T>
static inline void depthwise_grad_pair(const DepthwiseGradPair<T>& r, int64_t period, T* acc) {
  constexpr int kKernel = 5;
  constexpr int kTaps = kKernel * kKernel;
  for (int64_t lane = 0; lane < period; lane += kLanes<T>) {
    Vec<T> sum[kTaps];
#pragma GCC unroll 25
    for (int t = 0; t < kTaps; ++t) sum[t] = load(acc + t * period + lane);
    const auto add = [&](const T* x, Vec<T> first, Vec<T> second) {
      const Stepped<T, kKernel + 1> rows(x, r.kernel_row);
#pragma GCC unroll 6
      for (int ky = 0; ky <= kKernel; ++ky) {
#pragma GCC unroll 5
        for (int kx = 0; kx < kKernel; ++kx) {
          const Vec<T> value = load(rows.at(ky) + kx * r.column);
          if (ky < kKernel) sum[ky * kKernel + kx] += first * value;
          if (ky > 0) sum[(ky - 1) * kKernel + kx] += second * value;
        }
      }
    };
    int64_t i = lane;
    for (; i + kLanes<T> <= r.count; i += period) {
      add(r.input + i, load(r.grad[0] + i), load(r.grad[1] + i));
    }
    if (i < r.count) {
      Vec<T> first = {}, second = {};
      std::memcpy(&first, r.grad[0] + i, (r.count - i) * sizeof(T));
      std::memcpy(&second, r.grad[1] + i, (r.count - i) * sizeof(T));
      add(r.input + i, first, second);
    }
#pragma GCC unroll 25
    for (int t = 0; t < kTaps; ++t) store(acc + t * period + lane, sum[t]);
  }
}

}  // namespace darts_fast::cpu::DARTS_CPU_CAPABILITY
