// SPDX-License-Identifier: Apache-2.0
// Stands in for CUDA's <cuda_fp16.h>: storage and conversions. Arithmetic is in float only: kernels
// accumulate there, and an operator on the narrow type would round where nobody sees it.
#pragma once

#include "cuda_runtime.h"
#include "half.h"

struct __half {
  uint16_t bits;

  __half() = default;
  __half(float value) : bits(simt::float_to_half(value)) {}
  operator float() const { return simt::half_to_float(bits); }
};
struct alignas(4) __half2 {
  __half x, y;
};
using half = __half;
using half2 = __half2;

void operator+(__half, __half) = delete;
void operator-(__half, __half) = delete;
void operator*(__half, __half) = delete;
void operator/(__half, __half) = delete;

inline __half __float2half(float value) { return __half(value); }
inline __half __float2half_rn(float value) { return __half(value); }
inline float __half2float(__half value) { return value; }
inline __half2 __floats2half2_rn(float x, float y) { return {x, y}; }
inline float2 __half22float2(__half2 value) { return {value.x, value.y}; }
inline unsigned short __half_as_ushort(__half value) { return value.bits; }
inline __half __ushort_as_half(unsigned short bits) {
  __half value;
  value.bits = bits;
  return value;
}
