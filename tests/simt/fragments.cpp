// SPDX-License-Identifier: Apache-2.0
// The warp's matrix product behind tests/simt/cuda/mma_sync.cuh.
#include "half.h"
#include "scheduler.h"

namespace simt {
namespace {

constexpr int kRows = 16, kColumns = 8, kMostDepth = 16;

// What a lane gives.
struct Fragments {
  Factors factors;
  float* d;
  const uint32_t* a;
  const uint32_t* b;
  int depth;
};

// Factor `half` of a register: 0 the lower, 1 the upper.
float factor(Factors factors, uint32_t word, int half) {
  const auto bits = static_cast<uint16_t>(word >> 16 * half);
  return factors == Factors::kHalf ? half_to_float(bits) : bfloat16_to_float(bits);
}

// All lanes have arrived: puts the matrices together, multiplies, and hands the sums out.
void multiply(void* const* given) {
  const auto of = [&](int lane) -> const Fragments& {
    return *static_cast<const Fragments*>(given[lane]);
  };
  const int depth = of(0).depth;
  float a[kRows][kMostDepth], b[kMostDepth][kColumns];
  for (int lane = 0; lane < kWarp; ++lane) {
    const Fragments& own = of(lane);
    const int g = lane / 4, q = 2 * (lane % 4);
    for (int part = 0; part < depth / 8; ++part) {
      for (int half = 0; half < 2; ++half) {
        const int k = 8 * part + q + half;
        a[g][k] = factor(own.factors, own.a[2 * part], half);
        a[g + 8][k] = factor(own.factors, own.a[2 * part + 1], half);
        b[k][g] = factor(own.factors, own.b[part], half);
      }
    }
  }
  for (int lane = 0; lane < kWarp; ++lane) {
    for (int i = 0; i < 4; ++i) {
      const int row = lane / 4 + i / 2 * 8, column = 2 * (lane % 4) + i % 2;
      for (int k = 0; k < depth; ++k) of(lane).d[i] += a[row][k] * b[k][column];
    }
  }
}

}  // namespace

void multiply_fragments(Factors factors, float* d, const uint32_t* a, const uint32_t* b, int depth,
                        Site site) {
  Fragments own = {factors, d, a, b, depth};
  meet(&own, multiply, site);
}

}  // namespace simt
