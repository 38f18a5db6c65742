// SPDX-License-Identifier: Apache-2.0
// What kernels share: 128-bit vectors with a tail, sums in a fixed order, the checked launch.
// Torch-free; plain CUDA of which a host emulation needs only <cuda_runtime.h>.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>
#include <sstream>
#include <stdexcept>
#include <string>

namespace darts_fast::cuda {
namespace {

constexpr int kWarp = 32;
constexpr unsigned kWholeWarp = 0xffffffffu;

template <typename T>
constexpr int kLanes = 16 / static_cast<int>(sizeof(T));

// One memory access: 128 bits for N = kLanes<T>, one element for N = 1. Of more lanes, as beside
// vectors of narrower elements, several accesses of 128 bits.
template <typename T, int N>
struct alignas(N * sizeof(T) < 16 ? N * sizeof(T) : 16) Vec {
  T lane[N];
};

// The end of an array whose elements are known to be there; comparisons with it fold away.
constexpr int kNoEnd = 0x7fffffff;

// Elements [i, i + N) of an array that ends at `count`; those behind the end read as 0. `from + i`
// is aligned to the vector, or i >= count.
template <typename T, int N>
__device__ __forceinline__ Vec<T, N> load(const T* from, int i, int count) {
  if (i + N <= count) return *reinterpret_cast<const Vec<T, N>*>(from + i);
  Vec<T, N> value;
#pragma unroll
  for (int lane = 0; lane < N; ++lane) value.lane[lane] = i + lane < count ? from[i + lane] : T{};
  return value;
}

template <typename T, int N>
__device__ __forceinline__ Vec<T, N> load(const T* from) {
  return *reinterpret_cast<const Vec<T, N>*>(from);
}

template <typename T, int N>
__device__ __forceinline__ void store(T* to, int i, int count, const Vec<T, N>& value) {
  if (i + N <= count) {
    *reinterpret_cast<Vec<T, N>*>(to + i) = value;
    return;
  }
#pragma unroll
  for (int lane = 0; lane < N; ++lane) {
    if (i + lane < count) to[i + lane] = value.lane[lane];
  }
}

template <typename T, int N>
__device__ __forceinline__ Vec<T, N> zeros() {
  Vec<T, N> value;
#pragma unroll
  for (int lane = 0; lane < N; ++lane) value.lane[lane] = T{};
  return value;
}

// The sum over the lanes of a warp, in lane 0.
template <typename T>
__device__ __forceinline__ T warp_sum(T value) {
#pragma unroll
  for (int offset = kWarp / 2; offset > 0; offset /= 2) {
    value += __shfl_down_sync(kWholeWarp, value, offset);
  }
  return value;
}

// Threads stand in rows of `columns`; those behind the last row take part in the barriers only.
// Afterwards shared[q][column] is the sum of value[q] over the rows of that column, visible to the
// block. Rows are added pairwise, so the order depends on their number alone.
template <typename T, int N, int Q, int Threads>
__device__ __forceinline__ void sum_rows(Vec<T, N> (&value)[Q], Vec<T, N> (&shared)[Q][Threads],
                                         int columns, int rows) {
  const int thread = static_cast<int>(threadIdx.x);
  const int row = thread / columns;
#pragma unroll
  for (int q = 0; q < Q; ++q) shared[q][thread] = value[q];
  for (int left = rows; left > 1;) {
    const int half = (left + 1) / 2;
    __syncthreads();
    if (row + half < left) {
#pragma unroll
      for (int q = 0; q < Q; ++q) {
        const Vec<T, N> other = shared[q][thread + half * columns];
#pragma unroll
        for (int lane = 0; lane < N; ++lane) value[q].lane[lane] += other.lane[lane];
        shared[q][thread] = value[q];
      }
    }
    left = half;
  }
  __syncthreads();
}

// The name of a kernel, and the line that launches it.
struct Site {
  const char* kernel;
  const char* file;
  int line;
  Site(const char* kernel, const char* file = __builtin_FILE(), int line = __builtin_LINE())
      : kernel(kernel), file(file), line(line) {}
};

inline std::string text(dim3 size) {
  std::ostringstream out;
  out << "(" << size.x << ", " << size.y << ", " << size.z << ")";
  return out.str();
}

// Launches without waiting. A launch that CUDA refuses throws, with its name, place and reason;
// errors inside a kernel surface later, at the caller's synchronisation, as in all of torch.
template <typename... Parameters, typename... Arguments>
void launch(const Site& site, void (*kernel)(Parameters...), dim3 grid, dim3 block,
            cudaStream_t stream, const Arguments&... arguments) {
  cudaLaunchConfig_t config = {};
  config.gridDim = grid;
  config.blockDim = block;
  config.stream = stream;
  const cudaError_t status = cudaLaunchKernelEx(&config, kernel, Parameters(arguments)...);
  if (status == cudaSuccess) return;
  cudaGetLastError();  // it is reported here, and must not be by the next call that asks
  std::ostringstream message;
  message << site.kernel << ": the launch at " << site.file << ":" << site.line << " failed, "
          << cudaGetErrorString(status) << ", for a grid of " << text(grid) << " blocks of "
          << text(block) << " threads";
  throw std::runtime_error(message.str());
}

}  // namespace
}  // namespace darts_fast::cuda
