// SPDX-License-Identifier: Apache-2.0
// Stands in for CUDA's <cuda_runtime.h> when g++ compiles a kernel file: the same source runs on
// the CPU, thread by thread, and its mistakes are reported. Used by tests only.
//
// How: every CUDA thread of a block is a fiber; a fiber runs until it waits at a barrier or a warp
// operation, then another one runs. Blocks run one after another. All on the calling thread.
//
// The subset, of CUDA C++ as nvcc has it:
//  - __global__, __device__, __host__, __forceinline__, __launch_bounds__, __grid_constant__,
//  static
//    __shared__ variables; threadIdx, blockIdx, blockDim, gridDim, warpSize;
//  - cudaLaunchKernelEx on a stream that is ignored, cudaGetLastError, cudaGetErrorString;
//  - __syncthreads, __syncthreads_count, _or, _and; __syncwarp; __shfl_sync, _up, _down, _xor with
//  a
//    width; __ballot_sync, __any_sync, __all_sync; atomicAdd, __threadfence, __ldg;
//  - float2, float4, double2, int2, int4, uint2, uint4; rsqrt, rsqrtf, min, max, __popc, __ffs,
//    __clz, the __f*_rn and __fdividef of float; <cuda_fp16.h> and <cuda_bf16.h> beside this file;
//  - mma.sync of m16n8k16 and m16n8k8 by the functions of csrc/cuda/mma_sync.cuh, for which
//    cuda/mma_sync.cuh beside this file stands in.
// Not there: dynamic shared memory (a launch that asks for it is refused), __constant__ and
// __device__ variables, cooperative groups, other shapes of mma, wmma, ldmatrix, cp.async,
// __activemask, inline PTX.
//
// What is checked (simt::Error names kernel, block, place and count of threads):
//  - __syncthreads: every thread of the block must arrive at the same line. One that has returned,
//    or waits elsewhere, is an error, also where hardware would forgive it.
//  - warp operations: the lanes of the mask must exist, must not have returned, and must arrive at
//    the same line with the same mask, the calling lane among them.
//    A matrix product wants all 32 lanes.
//  - launches: limits of grid, block and parameters as on hardware; beyond them the launch returns
//    cudaErrorInvalidConfiguration and runs nothing.
//  - shared memory is filled with NaN before every block; reading what nobody wrote shows.
//  - the order of threads and blocks is ascending, descending or shuffled (simt_set_order): without
//    a barrier that must be there, results differ between orders, or are NaN.
//  - with -fsanitize=address,undefined: accesses out of bounds, of shared memory too, and accesses
//    that are not aligned.
//  - with -fsanitize=thread: two accesses of a block that no barrier orders, one of them a write.
//    Only __syncthreads and __syncwarp order; a shuffle does not.
//  - in the build that counts (traffic.cpp): two blocks of a launch that touch a byte of global
//    memory, one of them writing, other than by atomics, unless an atomic between two fences orders
//    them; and the bytes each kernel moves.
//
// What is not: the memory model beyond that (blocks run one after another, so that a block that
// waits for another never ends), lock-step execution, timing, occupancy. Floating point is the
// host's: fused multiply-adds differ.
//
// A kernel file may have static __shared__ variables in kernels of an unnamed namespace, and no
// other variable: tests/simulator.py moves all of them to the section that is filled with NaN. To
// add a CUDA primitive, add a planted bug first.
#pragma once

#include <cmath>
#include <cstdint>

#include "simt.h"

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline __attribute__((always_inline))
#define __launch_bounds__(...)
#define __grid_constant__
#define __shared__ static
#define __align__(bytes) alignas(bytes)

struct uint3 {
  unsigned x, y, z;
};
struct dim3 {
  unsigned x, y, z;
  constexpr dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};

// Of the running thread.
extern uint3 threadIdx, blockIdx;
extern dim3 blockDim, gridDim;
constexpr int warpSize = 32;

enum cudaError_t { cudaSuccess = 0, cudaErrorInvalidConfiguration = 9 };
using cudaStream_t = struct CUstream_st*;
struct cudaLaunchConfig_t {
  dim3 gridDim;
  dim3 blockDim;
  size_t dynamicSmemBytes;
  cudaStream_t stream;
};
const char* cudaGetErrorString(cudaError_t error);
// The last failed launch, forgotten by the call.
cudaError_t cudaGetLastError();

template <typename... Parameters, typename... Arguments>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t* config, void (*kernel)(Parameters...),
                               Arguments&&... arguments) {
  auto body = [&] { kernel(arguments...); };
  return static_cast<cudaError_t>(simt::run(
      *config, [](void* b) { (*static_cast<decltype(body)*>(b))(); }, &body,
      reinterpret_cast<const void*>(kernel), (sizeof(Parameters) + ... + 0)));
}

inline void __syncthreads(simt::Site site = {}) { simt::barrier(false, site); }
inline int __syncthreads_count(int predicate, simt::Site site = {}) {
  return simt::barrier(predicate != 0, site);
}
inline int __syncthreads_or(int predicate, simt::Site site = {}) {
  return simt::barrier(predicate != 0, site) > 0;
}
inline int __syncthreads_and(int predicate, simt::Site site = {}) {
  return simt::barrier(predicate == 0, site) == 0;
}

inline void __syncwarp(unsigned mask = 0xffffffffu, simt::Site site = {}) {
  simt::synchronise_warp(mask, site);
}
inline unsigned __ballot_sync(unsigned mask, int predicate, simt::Site site = {}) {
  return simt::vote(mask, predicate != 0, site);
}
inline int __any_sync(unsigned mask, int predicate, simt::Site site = {}) {
  return simt::vote(mask, predicate != 0, site) != 0;
}
inline int __all_sync(unsigned mask, int predicate, simt::Site site = {}) {
  return simt::vote(mask, predicate == 0, site) == 0;
}

// A source outside the segment of `width` lanes leaves the lane its own value, as on hardware.
template <typename T>
T __shfl_down_sync(unsigned mask, T value, unsigned delta, int width = 32, simt::Site site = {}) {
  const int lane = simt::lane();
  const int source = lane + static_cast<int>(delta);
  return simt::shuffle(mask, value, source / width == lane / width ? source : lane, site);
}

template <typename T>
T __shfl_up_sync(unsigned mask, T value, unsigned delta, int width = 32, simt::Site site = {}) {
  const int lane = simt::lane();
  const int source = lane - static_cast<int>(delta);
  return simt::shuffle(mask, value, source >= lane / width * width ? source : lane, site);
}

template <typename T>
T __shfl_xor_sync(unsigned mask, T value, int bits, int width = 32, simt::Site site = {}) {
  const int lane = simt::lane();
  const int source = lane ^ bits;
  return simt::shuffle(mask, value, source / width == lane / width ? source : lane, site);
}

template <typename T>
T __shfl_sync(unsigned mask, T value, int source, int width = 32, simt::Site site = {}) {
  const int segment = simt::lane() / width * width;
  return simt::shuffle(mask, value, segment + source % width, site);
}

// Orders nothing else, as on hardware.
template <typename T>
T atomicAdd(T* at, std::type_identity_t<T> value) {
  T before, after;
  __atomic_load(at, &before, __ATOMIC_RELAXED);
  do {
    after = before + value;
  } while (
      !__atomic_compare_exchange(at, &before, &after, false, __ATOMIC_RELAXED, __ATOMIC_RELAXED));
  return before;
}

inline void __threadfence() { simt::fence(); }

template <typename T>
T __ldg(const T* from) {
  return *from;
}

#define SIMT_VECTOR2(NAME, T, ALIGN) \
  struct alignas(ALIGN) NAME {       \
    T x, y;                          \
  };                                 \
  inline NAME make_##NAME(T x, T y) { return {x, y}; }
#define SIMT_VECTOR4(NAME, T) \
  struct alignas(16) NAME {   \
    T x, y, z, w;             \
  };                          \
  inline NAME make_##NAME(T x, T y, T z, T w) { return {x, y, z, w}; }
SIMT_VECTOR2(float2, float, 8)
SIMT_VECTOR2(int2, int, 8)
SIMT_VECTOR2(uint2, unsigned, 8)
SIMT_VECTOR2(double2, double, 16)
SIMT_VECTOR4(float4, float)
SIMT_VECTOR4(int4, int)
SIMT_VECTOR4(uint4, unsigned)
#undef SIMT_VECTOR2
#undef SIMT_VECTOR4

inline float rsqrtf(float x) { return 1.f / std::sqrt(x); }
inline double rsqrt(double x) { return 1 / std::sqrt(x); }
inline float __fadd_rn(float x, float y) { return x + y; }
inline float __fmul_rn(float x, float y) { return x * y; }
inline float __fmaf_rn(float x, float y, float z) { return std::fma(x, y, z); }
inline float __fdividef(float x, float y) { return x / y; }
inline int __popc(unsigned bits) { return __builtin_popcount(bits); }
inline int __ffs(int bits) { return __builtin_ffs(bits); }
inline int __clz(int bits) { return bits == 0 ? 32 : __builtin_clz(static_cast<unsigned>(bits)); }

template <typename T>
constexpr T min(T x, T y) {
  return y < x ? y : x;
}
template <typename T>
constexpr T max(T x, T y) {
  return x < y ? y : x;
}
