// SPDX-License-Identifier: Apache-2.0
// Kernels with one planted bug each, and their correct twins: what the emulation must report, and
// what it must not. Usage: planted CASE ORDER SEED; prints the result, or the error and exits 1.
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <exception>
#include <string>
#include <utility>
#include <vector>

#include "cuda/common.cuh"
#include "cuda/fragments.cuh"
#include "cuda/last_block.cuh"

extern "C" void simt_set_order(int order, unsigned seed);
extern "C" __attribute__((weak)) const char* simt_counts();  // in the build that counts

namespace {

using darts_fast::cuda::kWholeWarp;
using darts_fast::cuda::launch;

constexpr int kBlock = 96;

enum Bug { kNone, kFirst, kSecond, kThird };

// out = sum of `count` = kBlock elements, through shared memory. kFirst: no barrier between write
// and read. With a larger count: reads behind the shared array.
template <Bug bug>
__global__ void block_sum(const float* x, float* out, int count) {
  __shared__ float shared[kBlock];
  const int thread = threadIdx.x;
  shared[thread] = x[blockIdx.x * kBlock + thread];
  if (bug != kFirst) __syncthreads();
  if (thread != 0) return;
  const float* from = shared;
  float sum = 0;
  for (int i = 0; i < count; ++i) {
    sum += from[i];
  }
  out[blockIdx.x] = sum;
}

// out[i] = x[i ^ 31], through shared memory. kFirst: no __syncwarp.
template <Bug bug>
__global__ void warp_reverse(const float* x, float* out) {
  __shared__ float shared[kBlock];
  const int thread = threadIdx.x;
  shared[thread] = x[thread];
  if (bug != kFirst) __syncwarp();
  out[thread] = shared[thread ^ 31];
}

// kFirst: half of the threads return before the barrier. kSecond: the two halves wait at two lines.
template <Bug bug>
__global__ void divergent(const float* x, float* out) {
  const bool first = threadIdx.x < 32;
  if (bug == kFirst && first) return;
  if (bug == kSecond && first) {
    __syncthreads();
  } else {
    __syncthreads();
  }
  out[threadIdx.x] = x[threadIdx.x];
}

// kFirst: lanes 17 and up have returned. kSecond: odd lanes are not in the mask that they pass.
template <Bug bug>
__global__ void shuffle(const float* x, float* out) {
  const int thread = threadIdx.x;
  if (bug == kFirst && thread % 32 >= 17) return;
  const unsigned mask = bug == kSecond ? 0x55555555u : kWholeWarp;
  out[thread] = __shfl_xor_sync(mask, x[thread], 1);
}

// The halves of a warp shuffle apart, each with its own mask. kFirst: with two masks that overlap.
template <Bug bug>
__global__ void half_warps(const float* x, float* out) {
  const int thread = threadIdx.x;
  const bool low = thread % 32 < 16;
  const unsigned mask = low ? 0x0000ffffu : (bug == kFirst ? kWholeWarp : 0xffff0000u);
  float sum = x[thread];
  for (int offset = 8; offset > 0; offset /= 2) sum += __shfl_xor_sync(mask, sum, offset, 16);
  out[thread] = sum;
}

// Every shuffle with a width: out = 1 where lanes got what hardware gives them.
__global__ void shuffle_widths(float* out) {
  const int lane = threadIdx.x % 32;
  const int down = __shfl_down_sync(kWholeWarp, lane, 3, 8);
  const int other = __shfl_xor_sync(kWholeWarp, lane, 5, 8);
  const int outside = __shfl_xor_sync(kWholeWarp, lane, 8, 8);
  const int up = __shfl_up_sync(kWholeWarp, lane, 3, 8);
  const double from = __shfl_sync(kWholeWarp, lane + 0.5, 10, 8);
  const bool good = up == (lane % 8 >= 3 ? lane - 3 : lane) &&
                    down == (lane % 8 < 5 ? lane + 3 : lane) && other == (lane ^ 5) &&
                    outside == lane && from == lane / 8 * 8 + 2 + 0.5;
  out[threadIdx.x] = good ? 1.f : 0.f;
}

// kFirst: reads shared memory that nobody wrote.
template <Bug bug>
__global__ void unwritten(const float* x, float* out) {
  __shared__ float shared[kBlock];
  if (bug != kFirst || threadIdx.x > 0) shared[threadIdx.x] = x[threadIdx.x];
  __syncthreads();
  out[threadIdx.x] = shared[threadIdx.x];
}

// out[0] = sum of x. kFirst: threads add without atomics.
template <Bug bug>
__global__ void sum_of_threads(const float* x, float* out) {
  const float value = x[threadIdx.x];
  if (bug == kFirst) {
    out[0] += value;
  } else {
    atomicAdd(out, value);
  }
}

// The same over blocks, one thread each. kSecond: in the next place, which every block reads.
template <Bug bug>
__global__ void sum_of_blocks(const float* x, float* out) {
  const float value = x[blockIdx.x];
  if (bug == kNone) {
    atomicAdd(out, value);
  } else if (bug == kFirst) {
    out[0] += value;
  } else {
    out[1 + blockIdx.x] = out[blockIdx.x] + value - value;
  }
}

// out[0] = sum of what all blocks left, by the last of them. kFirst: no fence before the counter.
// kSecond: none behind it. kThird: no barrier before it.
template <Bug bug>
__global__ void last_block_sum(const float* x, float* left, unsigned* counter, float* out) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  left[i] = x[i];
  bool last = false;
  if (bug == kNone) {
    last = darts_fast::cuda::arrives_last(counter, gridDim.x);
  } else {
    if (bug != kThird) __syncthreads();
    if (threadIdx.x == 0) {
      if (bug != kFirst) __threadfence();
      last = atomicAdd(counter, 1u) + 1 == gridDim.x;
      if (bug != kSecond) __threadfence();
    }
    last = __syncthreads_or(last) != 0;
  }
  if (!last || threadIdx.x != 0) return;
  float sum = 0;
  for (unsigned from = 0; from < gridDim.x * blockDim.x; ++from) sum += left[from];
  out[0] = sum;
}

// Votes of a warp and of the block: out = 1 where threads got what hardware gives them.
__global__ void votes(float* out) {
  const int thread = threadIdx.x, lane = thread % 32;
  const bool low = lane < 16;
  const unsigned half = low ? 0x0000ffffu : 0xffff0000u;
  const unsigned odd = __ballot_sync(half, lane % 2);
  const bool good = odd == (0xaaaaaaaau & half) && __any_sync(kWholeWarp, lane == 7) != 0 &&
                    __any_sync(kWholeWarp, lane > 31) == 0 &&
                    __all_sync(kWholeWarp, lane < 32) != 0 &&
                    __all_sync(kWholeWarp, lane != 9) == 0;
  const int count = __syncthreads_count(thread % 3 == 0);
  const bool some = __syncthreads_or(thread == 95) != 0 && __syncthreads_or(thread > 95) == 0;
  const bool all = __syncthreads_and(thread < 96) != 0 && __syncthreads_and(thread != 1) == 0;
  out[thread] = good && count == 32 && some && all ? 1.f : 0.f;
}

// kFirst: one thread too many. kSecond: 128-bit loads from an address that is a float's.
template <Bug bug>
__global__ void copy(const float* x, float* out, int count) {
  using darts_fast::cuda::Vec;
  const int i = 4 * threadIdx.x;
  if (i >= count + (bug == kFirst ? 4 : 0)) return;
  const auto* from = reinterpret_cast<const Vec<float, 4>*>(x + i + (bug == kSecond ? 1 : 0));
  *reinterpret_cast<Vec<float, 4>*>(out + i) = *from;
}

// out [16, 8] = A B of a warp, where A [16, 16] holds x and B [16, 8] every second element of it.
// kFirst: lanes 17 and up have returned. kSecond: two registers of A are in each other's place.
// kThird: the halves of the warp multiply at two lines.
template <Bug bug>
__global__ void product(const float* x, float* out) {
  using namespace darts_fast::cuda;
  using darts_fast::Half;
  __shared__ Half a[16][16], b[8][16];
  const int lane = threadIdx.x;
  for (int i = lane; i < 256; i += 32) {
    a[i / 16][i % 16] = narrow<Half>(x[i % (2 * kBlock)]);
    if (i < 128) b[i / 16][i % 16] = narrow<Half>(x[(2 * i) % (2 * kBlock)]);
  }
  __syncthreads();
  if (bug == kFirst && lane >= 17) return;
  const FragmentPlace at;
  uint32_t left[4], right[2];
  load_rows(left, at, &a[0][0], 16);
  load_columns(right, at, &b[0][0], 16);
  if (bug == kSecond) std::swap(left[1], left[2]);
  float sum[4] = {};
  if (bug == kThird && lane < 16) {
    multiply_fragments<Half>(sum, left, right);
  } else {
    mma_m16n8k16<Half>(sum, left, right);
  }
  for (int i = 0; i < 4; ++i) out[(at.row + i / 2 * 8) * 8 + at.pair + i % 2] = sum[i];
}

struct Parameters {
  char bytes[32765];
};
__global__ void large_parameters(Parameters, float*) {}

double run(const std::string& name) {
  constexpr int count = 2 * kBlock;
  // Powers of two of both signs: sums are exact in every order, and a missing one shows.
  std::vector<float> x(count), out(count, 0.f);
  for (int i = 0; i < count; ++i) x[i] = static_cast<float>((i % 7 + 1) * (i % 2 == 0 ? 1 : -2));
  std::vector<unsigned> counter(1, 0);
  const float* in = x.data();
  float *to = out.data(), *left = to + kBlock;
#define DARTS_CASE(NAME, GRID, BLOCK, KERNEL, ...) \
  if (name == NAME) launch(NAME, KERNEL, GRID, BLOCK, nullptr, __VA_ARGS__)
  DARTS_CASE("block_sum", 2, kBlock, block_sum<kNone>, in, to, kBlock);
  DARTS_CASE("missing_barrier", 2, kBlock, block_sum<kFirst>, in, to, kBlock);
  DARTS_CASE("shared_out_of_bounds", 2, kBlock, block_sum<kNone>, in, to, kBlock + 1);
  DARTS_CASE("warp_reverse", 1, kBlock, warp_reverse<kNone>, in, to);
  DARTS_CASE("missing_syncwarp", 1, kBlock, warp_reverse<kFirst>, in, to);
  DARTS_CASE("barrier", 1, kBlock, divergent<kNone>, in, to);
  DARTS_CASE("barrier_after_return", 1, kBlock, divergent<kFirst>, in, to);
  DARTS_CASE("barrier_at_two_lines", 1, kBlock, divergent<kSecond>, in, to);
  DARTS_CASE("shuffle", 1, kBlock, shuffle<kNone>, in, to);
  DARTS_CASE("absent_lanes", 1, kBlock, shuffle<kFirst>, in, to);
  DARTS_CASE("partial_warp", 1, kBlock - 4, shuffle<kNone>, in, to);
  DARTS_CASE("lane_outside_its_mask", 1, kBlock, shuffle<kSecond>, in, to);
  DARTS_CASE("half_warps", 1, kBlock, half_warps<kNone>, in, to);
  DARTS_CASE("masks_that_differ", 1, kBlock, half_warps<kFirst>, in, to);
  DARTS_CASE("shuffle_widths", 1, kBlock, shuffle_widths, to);
  DARTS_CASE("written", 1, kBlock, unwritten<kNone>, in, to);
  DARTS_CASE("unwritten", 1, kBlock, unwritten<kFirst>, in, to);
  DARTS_CASE("copy", 1, kBlock, copy<kNone>, in, to, count);
  DARTS_CASE("global_out_of_bounds", 1, kBlock, copy<kFirst>, in, to, count);
  DARTS_CASE("misaligned", 1, kBlock, copy<kSecond>, in, to, count - 4);
  DARTS_CASE("sum_of_threads", 1, kBlock, sum_of_threads<kNone>, in, to);
  DARTS_CASE("unsynchronised_sum", 1, kBlock, sum_of_threads<kFirst>, in, to);
  DARTS_CASE("sum_of_blocks", kBlock, 1, sum_of_blocks<kNone>, in, to);
  DARTS_CASE("blocks_that_write", kBlock, 1, sum_of_blocks<kFirst>, in, to);
  DARTS_CASE("block_that_reads", kBlock, 1, sum_of_blocks<kSecond>, in, to);
  DARTS_CASE("last_block", 3, 32, last_block_sum<kNone>, in, left, counter.data(), to);
  DARTS_CASE("no_fence_before", 3, 32, last_block_sum<kFirst>, in, left, counter.data(), to);
  DARTS_CASE("no_fence_behind", 3, 32, last_block_sum<kSecond>, in, left, counter.data(), to);
  DARTS_CASE("no_barrier_before", 3, 32, last_block_sum<kThird>, in, left, counter.data(), to);
  DARTS_CASE("votes", 1, kBlock, votes, to);
  DARTS_CASE("product", 1, 32, product<kNone>, in, to);
  DARTS_CASE("absent_factors", 1, 32, product<kFirst>, in, to);
  DARTS_CASE("swapped_factors", 1, 32, product<kSecond>, in, to);
  DARTS_CASE("product_at_two_lines", 1, 32, product<kThird>, in, to);
  DARTS_CASE("block_too_large", 1, 1025, shuffle_widths, to);
  DARTS_CASE("grid_too_large", dim3(1, 65536), 32, shuffle_widths, to);
  DARTS_CASE("parameters_too_large", 1, 32, large_parameters, Parameters(), to);
#undef DARTS_CASE
  double sum = 0;
  for (int i = 0; i < count; ++i) sum += (i + 1) * static_cast<double>(out[i]);
  return sum;
}

}  // namespace

int main(int, char** arguments) {
  simt_set_order(std::atoi(arguments[2]), static_cast<unsigned>(std::atoi(arguments[3])));
  try {
    std::printf("%.17g\n", run(arguments[1]));
    if (simt_counts != nullptr) std::printf("%s", simt_counts());
  } catch (const std::exception& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 1;
  }
  return 0;
}
