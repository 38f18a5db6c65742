// SPDX-License-Identifier: Apache-2.0
// Stands in for CUDA's <cuda_fp16.h>: storage and conversions.
#pragma once

#include "cuda_runtime.h"
#include "half.h"

using __half = simt::Float16<simt::float_to_half, simt::half_to_float>;
using __half2 = simt::Pair<__half>;
using half = __half;
using half2 = __half2;

inline __half __float2half(float value) { return value; }
inline __half __float2half_rn(float value) { return value; }
inline float __half2float(__half value) { return value; }
inline __half2 __floats2half2_rn(float x, float y) { return {x, y}; }
inline float2 __half22float2(__half2 value) { return {value.x, value.y}; }
inline unsigned short __half_as_ushort(__half value) { return value.bits; }
inline __half __ushort_as_half(unsigned short bits) { return __half::of(bits); }
