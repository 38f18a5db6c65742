// SPDX-License-Identifier: Apache-2.0
// Stands in for CUDA's <cuda_runtime.h> when g++ compiles a kernel file: the same source runs on
// the CPU, thread by thread, and its mistakes are reported. Used by tests only.
//
// How: every CUDA thread of a block is a fiber; a fiber runs until it waits at a barrier or a warp
// operation, then another one runs. Blocks run one after another. All on the calling thread.
//
// What is checked (simt::Error names kernel, block, place and count of threads):
//  - __syncthreads: every thread of the block must arrive at the same line. One that has returned,
//    or waits elsewhere, is an error, also where hardware would forgive it.
//  - warp operations: the lanes of the mask must exist, must not have returned, and must arrive at
//    the same line with the same mask, the calling lane among them.
//  - launches: limits of grid, block and parameters as on hardware; beyond them the launch returns
//    cudaErrorInvalidConfiguration and runs nothing.
//  - shared memory is filled with NaN before every block; reading what nobody wrote shows.
//  - the order of threads and blocks is ascending, descending or shuffled (simt_set_order): without
//    a barrier that must be there, results differ between orders, or are NaN.
//  - with -fsanitize=address,undefined: accesses out of bounds, of shared memory too, and accesses
//    that are not aligned.
//
// What is not: races between blocks except through their order, the memory model, lock-step
// execution, timing, occupancy. Floating point is the host's: fused multiply-adds differ.
//
// A kernel file may have static __shared__ variables in kernels of an unnamed namespace, and no
// other variable: tests/simulator.py moves all of them to the section that is filled with NaN. To
// add a CUDA primitive, add a planted bug first.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <stdexcept>
#include <type_traits>

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline __attribute__((always_inline))
#define __launch_bounds__(...)
#define __grid_constant__
#define __shared__ static

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

namespace simt {

struct Error : std::runtime_error {
  using std::runtime_error::runtime_error;
};

// The line of device code that waits.
struct Site {
  const char* file = __builtin_FILE();
  int line = __builtin_LINE();
};

using Body = void (*)(void*);

// Runs `body(argument)` once per thread of the grid; `parameters` is their size in bytes.
cudaError_t run(const cudaLaunchConfig_t& config, Body body, void* argument, size_t parameters);

void barrier(Site site);

// Exchanges 64 bits between the lanes of a warp: returns what lane `source` gave.
uint64_t exchange(unsigned mask, uint64_t value, int source, Site site);

// Lane of the running thread in its warp.
int lane();

template <typename T>
T shuffle(unsigned mask, T value, int source, Site site) {
  static_assert(std::is_trivially_copyable_v<T> && sizeof(T) <= sizeof(uint64_t));
  uint64_t bits = 0;
  std::memcpy(&bits, &value, sizeof(T));
  bits = exchange(mask, bits, source, site);
  std::memcpy(&value, &bits, sizeof(T));
  return value;
}

}  // namespace simt

template <typename... Parameters, typename... Arguments>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t* config, void (*kernel)(Parameters...),
                               Arguments&&... arguments) {
  auto body = [&] { kernel(arguments...); };
  return simt::run(
      *config, [](void* b) { (*static_cast<decltype(body)*>(b))(); }, &body,
      (sizeof(Parameters) + ... + 0));
}

inline void __syncthreads(simt::Site site = {}) { simt::barrier(site); }

inline void __syncwarp(unsigned mask = 0xffffffffu, simt::Site site = {}) {
  simt::exchange(mask, 0, simt::lane(), site);
}

// A source outside the segment of `width` lanes leaves the lane its own value, as on hardware.
template <typename T>
T __shfl_down_sync(unsigned mask, T value, unsigned delta, int width = 32, simt::Site site = {}) {
  const int lane = simt::lane();
  const int source = lane + static_cast<int>(delta);
  return simt::shuffle(mask, value, source / width == lane / width ? source : lane, site);
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
