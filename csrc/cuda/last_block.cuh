// SPDX-License-Identifier: Apache-2.0
// The block that comes last finishes a reduction: no launch of its own for what takes microseconds.
//
// Deterministic: which block is last differs from run to run, what it adds up and in which order
// does not. It never waits for another block.
#pragma once

#include "cuda/common.cuh"

namespace darts_fast::cuda {
namespace {

// Whether this block is the last of `arrivals` to come to the counter, which was 0 before the
// launch. It then sees what all of them wrote before they came: their threads are tied to thread 0
// by the barrier, and its fences and atomic order the blocks. All threads of the block call it.
__device__ __forceinline__ bool arrives_last(uint32_t* counter, uint32_t arrivals) {
  __syncthreads();
  bool last = false;
  if (threadIdx.x == 0) {
    __threadfence();
    last = atomicAdd(counter, 1u) + 1 == arrivals;
    __threadfence();
  }
  return __syncthreads_or(last) != 0;
}

}  // namespace
}  // namespace darts_fast::cuda
