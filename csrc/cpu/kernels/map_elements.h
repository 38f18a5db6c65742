// SPDX-License-Identifier: Apache-2.0
// Maps of two bytes an element: bfloat16 in memory, float32 in registers. The functions have
// overloads for maps that are stored as they are computed, so that one loop reads and writes both.
#pragma once

#include "cpu/kernels/vec.h"
#include "half_types.h"

#if defined(__AVX512BF16__)
#include <immintrin.h>
#endif

namespace darts_fast::cpu::DARTS_CPU_CAPABILITY {

typedef uint32_t WordVec __attribute__((vector_size(DARTS_VECTOR_BYTES)));
typedef uint16_t HalfVec __attribute__((vector_size(DARTS_VECTOR_BYTES / 2)));

template <>
struct VecOf<BFloat16> {
  typedef Vec<float> type;
};

static inline Vec<float> load(const BFloat16* from) {
  HalfVec bits;
  std::memcpy(&bits, from, sizeof(bits));
  return reinterpret_cast<Vec<float>>(__builtin_convertvector(bits, WordVec) << 16);
}

// The nearest bfloat16, of two equally near ones the even one; NaN stays NaN.
static inline void store(BFloat16* to, Vec<float> value) {
#if defined(__AVX512BF16__)
  const __m256bh upper = _mm512_cvtneps_pbh(value);
#else
  const WordVec bits = reinterpret_cast<WordVec>(value);
  const WordVec nearest = bits + 0x7fff + (bits >> 16 & 1);
  const WordVec chosen = value == value ? nearest : bits | 0x400000;
  const HalfVec upper = __builtin_convertvector(chosen >> 16, HalfVec);
#endif
  std::memcpy(to, &upper, sizeof(upper));
}

#if defined(__AVX512BF16__)
// sum + the product of the lower halves + that of the upper ones, lane by lane.
static inline Vec<float> add_pairs(Vec<float> sum, WordVec a, WordVec b) {
  return _mm512_dpbf16_ps(sum, (__m512bh)a, (__m512bh)b);
}
#endif

template <typename T>
static inline T widen(T value) {
  return value;
}

static inline float widen(BFloat16 value) {
  const uint32_t bits = static_cast<uint32_t>(value.bits) << 16;
  float wide;
  std::memcpy(&wide, &bits, sizeof(wide));
  return wide;
}

static inline BFloat16 narrow(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof(bits));
  bits = value == value ? bits + 0x7fff + (bits >> 16 & 1) : bits | 0x400000;
  return {static_cast<uint16_t>(bits >> 16)};
}

template <typename T>
static inline void store_map(T* to, const T* from, int64_t count) {
  std::memcpy(to, from, count * sizeof(T));
}

static inline void store_map(BFloat16* to, const float* from, int64_t count) {
  int64_t i = 0;
  for (; i + kLanes<float> <= count; i += kLanes<float>) store(to + i, load(from + i));
  for (; i < count; ++i) to[i] = narrow(from[i]);
}

template <typename T, typename M>
constexpr bool kSameElement = false;
template <typename T>
constexpr bool kSameElement<T, T> = true;

}  // namespace darts_fast::cpu::DARTS_CPU_CAPABILITY
