// SPDX-License-Identifier: Apache-2.0
// Binary formats of 16 bits, converted as CUDA's _rn functions do: to the nearest, ties to even.
#pragma once

#include <cstdint>
#include <cstring>

namespace simt {

inline uint32_t bits_of(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof(bits));
  return bits;
}

inline float float_of(uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, sizeof(value));
  return value;
}

// `bits` without its lowest `count` bits, rounded.
inline uint32_t shift_rounded(uint32_t bits, unsigned count) {
  const uint32_t odd = bits >> count & 1;
  return (bits + (1u << (count - 1)) - 1 + odd) >> count;
}

inline uint16_t float_to_half(float value) {
  constexpr uint32_t kInfinity = 0x7c00, kNan = 0x7fff;
  const uint32_t bits = bits_of(value), sign = bits >> 16 & 0x8000, size = bits & 0x7fffffff;
  uint32_t half;
  if (size > 0x7f800000) {
    return static_cast<uint16_t>(kNan);  // the one NaN that the hardware gives
  }
  const uint32_t exponent = size >> 23;  // of float, biased by 127; of half, by 15
  if (exponent > 142) {
    half = kInfinity;  // 65536 and more
  } else if (exponent >= 113) {
    half = shift_rounded(size - (112u << 23), 13);  // may carry into the exponent, and to infinity
  } else if (exponent >= 102) {
    half = shift_rounded((size & 0x7fffff) | 0x800000, 126 - exponent);  // subnormal
  } else {
    half = 0;  // less than half of the smallest
  }
  return static_cast<uint16_t>(sign | half);
}

inline float half_to_float(uint16_t half) {
  const uint32_t sign = (half & 0x8000u) << 16, exponent = half >> 10 & 31, fraction = half & 0x3ff;
  if (exponent == 31) return float_of(sign | 0x7f800000 | fraction << 13);
  if (exponent > 0) return float_of(sign | (exponent + 112) << 23 | fraction << 13);
  const float size = static_cast<float>(fraction) / (1 << 24);  // exact
  return float_of(sign | bits_of(size));
}

inline uint16_t float_to_bfloat16(float value) {
  const uint32_t bits = bits_of(value);
  if ((bits & 0x7fffffff) > 0x7f800000) return 0x7fff;
  return static_cast<uint16_t>(shift_rounded(bits, 16));
}

inline float bfloat16_to_float(uint16_t value) { return float_of(uint32_t{value} << 16); }

// A number kept in 16 bits. Arithmetic is in float only: kernels accumulate there, and an operator
// on the narrow type would round where nobody sees it.
template <uint16_t (*Narrow)(float), float (*Widen)(uint16_t)>
struct Float16 {
  uint16_t bits;

  Float16() = default;
  Float16(float value) : bits(Narrow(value)) {}
  operator float() const { return Widen(bits); }

  static Float16 of(uint16_t bits) {
    Float16 value;
    value.bits = bits;
    return value;
  }

  friend void operator+(Float16, Float16) = delete;
  friend void operator-(Float16, Float16) = delete;
  friend void operator*(Float16, Float16) = delete;
  friend void operator/(Float16, Float16) = delete;
};

template <typename T>
struct alignas(4) Pair {
  T x, y;
};

}  // namespace simt
