// SPDX-License-Identifier: Apache-2.0
// Transposing matrices in squares of vectors.
#pragma once

#include <utility>

#include "cpu/kernels/vec.h"

namespace darts_fast::cpu::DARTS_CPU_CAPABILITY {

// The lanes kLane of a followed by b.
template <typename T, int64_t... kLane>
static inline Vec<T> pick(Vec<T> a, Vec<T> b) {
#if defined(__clang__)
  return __builtin_shufflevector(a, b, static_cast<int>(kLane)...);
#else
  using Index = std::conditional_t<sizeof(T) == 4, int32_t, int64_t>;
  typedef Index Lanes __attribute__((vector_size(DARTS_VECTOR_BYTES)));
  return __builtin_shuffle(a, b, Lanes{static_cast<Index>(kLane)...});
#endif
}

// Exchanges the lanes of a that have bit kBit in their number with those of b that have not.
template <typename T, int64_t kBit, int64_t... kLane>
static inline void exchange(Vec<T>& a, Vec<T>& b, std::integer_sequence<int64_t, kLane...>) {
  const Vec<T> first = pick<T, ((kLane & kBit) == 0 ? kLane : kLanes<T> + kLane - kBit)...>(a, b);
  b = pick<T, ((kLane & kBit) == 0 ? kLane + kBit : kLanes<T> + kLane)...>(a, b);
  a = first;
}

// Of kLanes vectors.
template <typename T, int64_t kBit = 1>
static inline void transpose_square(Vec<T>* rows) {
  if constexpr (kBit < kLanes<T>) {
#pragma GCC unroll 16
    for (int64_t i = 0; i < kLanes<T>; ++i) {
      if ((i & kBit) == 0) {
        exchange<T, kBit>(rows[i], rows[i + kBit],
                          std::make_integer_sequence<int64_t, kLanes<T>>());
      }
    }
    transpose_square<T, 2 * kBit>(rows);
  }
}

// `count` elements and whatever, of an array that has `left` elements from there on.
template <typename T>
static inline Vec<T> load_some(const T* from, int64_t count, int64_t left) {
  if (left >= kLanes<T>) return load(from);
  Vec<T> value = {};
  std::memcpy(&value, from, count * sizeof(T));
  return value;
}

template <typename T>
static inline void store_some(T* to, Vec<T> value, int64_t count) {
  if (count == kLanes<T>) {
    store(to, value);
  } else {
    std::memcpy(to, &value, count * sizeof(T));
  }
}

// to[j * to_stride + i] = from[i * from_stride + j] for i < rows, j < columns <= from_stride.
template <typename T>
static void transpose(const T* from, int64_t from_stride, int64_t rows, int64_t columns, T* to,
                      int64_t to_stride) {
  constexpr int64_t kSide = kLanes<T>;
  const int64_t size = (rows - 1) * from_stride + columns;
  for (int64_t i = 0; i < rows; i += kSide) {
    const int64_t height = rows - i < kSide ? rows - i : kSide;
    for (int64_t j = 0; j < columns; j += kSide) {
      const int64_t width = columns - j < kSide ? columns - j : kSide;
      Vec<T> square[kSide];
#pragma GCC unroll 16
      for (int64_t k = 0; k < kSide; ++k) {
        const int64_t at = (i + k) * from_stride + j;
        square[k] = k < height ? load_some(from + at, width, size - at) : Vec<T>{};
      }
      transpose_square<T>(square);
#pragma GCC unroll 16
      for (int64_t k = 0; k < kSide; ++k) {
        if (k < width) store_some(to + (j + k) * to_stride + i, square[k], height);
      }
    }
  }
}

}  // namespace darts_fast::cpu::DARTS_CPU_CAPABILITY
