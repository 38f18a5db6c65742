// SPDX-License-Identifier: Apache-2.0
// Stands in for CUDA's <cuda_bf16.h>: storage and conversions.
#pragma once

#include "cuda_runtime.h"
#include "half.h"

using __nv_bfloat16 = simt::Float16<simt::float_to_bfloat16, simt::bfloat16_to_float>;
using __nv_bfloat162 = simt::Pair<__nv_bfloat16>;

inline __nv_bfloat16 __float2bfloat16(float value) { return value; }
inline __nv_bfloat16 __float2bfloat16_rn(float value) { return value; }
inline float __bfloat162float(__nv_bfloat16 value) { return value; }
inline __nv_bfloat162 __floats2bfloat162_rn(float x, float y) { return {x, y}; }
inline float2 __bfloat1622float2(__nv_bfloat162 value) { return {value.x, value.y}; }
inline unsigned short __bfloat16_as_ushort(__nv_bfloat16 value) { return value.bits; }
inline __nv_bfloat16 __ushort_as_bfloat16(unsigned short bits) { return __nv_bfloat16::of(bits); }
