// SPDX-License-Identifier: Apache-2.0
// The conversions of <cuda_fp16.h> and <cuda_bf16.h>, as a library for tests/test_simt_half.py.
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>

extern "C" void half_from_float(const float* from, uint16_t* to, int64_t count) {
  for (int64_t i = 0; i < count; ++i) to[i] = __half_as_ushort(__float2half_rn(from[i]));
}

extern "C" void half_to_float(const uint16_t* from, float* to, int64_t count) {
  for (int64_t i = 0; i < count; ++i) to[i] = __half2float(__ushort_as_half(from[i]));
}

extern "C" void bfloat16_from_float(const float* from, uint16_t* to, int64_t count) {
  for (int64_t i = 0; i < count; ++i) to[i] = __bfloat16_as_ushort(__float2bfloat16_rn(from[i]));
}

extern "C" void bfloat16_to_float(const uint16_t* from, float* to, int64_t count) {
  for (int64_t i = 0; i < count; ++i) to[i] = __bfloat162float(__ushort_as_bfloat16(from[i]));
}
