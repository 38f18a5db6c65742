// SPDX-License-Identifier: Apache-2.0
// From the elements of maps as they are stored to those that are computed with, and back.
#pragma once

#include <cuda_fp16.h>

#include "cuda/common.cuh"
#include "half_types.h"

namespace darts_fast::cuda {
namespace {

__device__ __forceinline__ float widen(float x) { return x; }
__device__ __forceinline__ double widen(double x) { return x; }
__device__ __forceinline__ float widen(BFloat16 x) {
  return __builtin_bit_cast(float, static_cast<uint32_t>(x.bits) << 16);
}

__device__ __forceinline__ float widen(Half x) { return __half2float(__ushort_as_half(x.bits)); }

template <typename M, typename T>
__device__ __forceinline__ M narrow(T x) {
  return x;
}
// To nearest, ties to even; a NaN stays one.
template <>
__device__ __forceinline__ BFloat16 narrow<BFloat16, float>(float x) {
  const uint32_t bits = __builtin_bit_cast(uint32_t, x);
  if (x != x) return {static_cast<uint16_t>(bits >> 16 | 0x40)};
  return {static_cast<uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16)};
}
template <>
__device__ __forceinline__ Half narrow<Half, float>(float x) {
  return {__half_as_ushort(__float2half_rn(x))};
}

template <typename T, int V, typename M>
__device__ __forceinline__ Vec<T, V> widen_lanes(const Vec<M, V>& value) {
  Vec<T, V> wide;
#pragma unroll
  for (int lane = 0; lane < V; ++lane) wide.lane[lane] = widen(value.lane[lane]);
  return wide;
}

template <typename M, int V, typename T>
__device__ __forceinline__ Vec<M, V> narrow_lanes(const Vec<T, V>& value) {
  Vec<M, V> stored;
#pragma unroll
  for (int lane = 0; lane < V; ++lane) stored.lane[lane] = narrow<M>(value.lane[lane]);
  return stored;
}

template <typename T, int V, typename M>
__device__ __forceinline__ Vec<T, V> load_wide(const M* from) {
  return widen_lanes<T, V>(load<M, V>(from));
}

template <int V, typename M, typename T>
__device__ __forceinline__ void store_narrow(M* to, const Vec<T, V>& value) {
  *reinterpret_cast<Vec<M, V>*>(to) = narrow_lanes<M, V>(value);
}

}  // namespace
}  // namespace darts_fast::cuda
