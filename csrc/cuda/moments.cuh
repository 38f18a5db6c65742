// SPDX-License-Identifier: Apache-2.0
// Merging of means and centred squares.
#pragma once

#include "cuda/common.cuh"

namespace darts_fast::cuda {
namespace {

struct Moments {
  double count;
  double mean;
  double square;  // sum of squares about the mean
};

// Chan, Golub and LeVeque's pairwise update.
__device__ __forceinline__ Moments merge(const Moments& a, const Moments& b) {
  if (a.count == 0) return b;  // both may be
  const double count = a.count + b.count;
  const double share = b.count / count;
  const double delta = b.mean - a.mean;
  return {count, a.mean + delta * share, a.square + b.square + delta * delta * a.count * share};
}

// Of all lanes of a warp, by halves, in lane 0.
__device__ __forceinline__ Moments merge_lanes(Moments moments) {
#pragma unroll
  for (int offset = kWarp / 2; offset > 0; offset /= 2) {
    const Moments other = {__shfl_down_sync(kWholeWarp, moments.count, offset),
                           __shfl_down_sync(kWholeWarp, moments.mean, offset),
                           __shfl_down_sync(kWholeWarp, moments.square, offset)};
    moments = merge(moments, other);
  }
  return moments;
}

}  // namespace
}  // namespace darts_fast::cuda
