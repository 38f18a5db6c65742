// SPDX-License-Identifier: Apache-2.0
// A warp's product of csrc/cuda/fragments.cuh, as a library for tests/test_simt_fragments.py.
#include "cuda/fragments.cuh"

namespace {

using namespace darts_fast;
using namespace darts_fast::cuda;

constexpr int kRow = kFragmentDepth + kFragmentPadding;

// sums [16, 8] += a [16, 16] * b, whose transpose [8, 16] is given.
template <typename H>
__global__ void product(const H* a, const H* b, float* sums) {
  __shared__ H rows[kFragmentRows][kRow], columns[kFragmentColumns][kRow];
  for (int i = static_cast<int>(threadIdx.x); i < kFragmentRows * kFragmentDepth; i += kWarp) {
    const int row = i / kFragmentDepth, k = i % kFragmentDepth;
    rows[row][k] = a[i];
    if (row < kFragmentColumns) columns[row][k] = b[i];
  }
  __syncthreads();
  const FragmentPlace at;
  uint32_t left[4], right[2];
  load_rows(left, at, &rows[0][0], kRow);
  load_columns(right, at, &columns[0][0], kRow);
  float* own = sums + at.row * kFragmentColumns + at.pair;
  float sum[4] = {own[0], own[1], own[8 * kFragmentColumns], own[8 * kFragmentColumns + 1]};
  multiply_fragments<H>(sum, left, right);
  own[0] = sum[0];
  own[1] = sum[1];
  own[8 * kFragmentColumns] = sum[2];
  own[8 * kFragmentColumns + 1] = sum[3];
}

}  // namespace

extern "C" void multiply_half(const Half* a, const Half* b, float* sums) {
  launch("product", product<Half>, 1, kWarp, nullptr, a, b, sums);
}

#if !defined(__CUDA_ARCH__)
extern "C" void multiply_bfloat16(const BFloat16* a, const BFloat16* b, float* sums) {
  launch("product", product<BFloat16>, 1, kWarp, nullptr, a, b, sums);
}
#endif
