// SPDX-License-Identifier: Apache-2.0
// What the kernels of a cell's backward keep in shared memory about a block and a box of its input,
// and how they go through the outputs behind it.
#pragma once

#include "cuda/cell_box.cuh"

namespace darts_fast::cuda {
namespace {

// F is the type of factors of matrix products.
template <typename T, int V, typename F = T>
struct GradShared {
  static constexpr bool kFragments = !std::is_same_v<T, F>;
  static constexpr int kPositions = kBoxThreads * V, kChannels = kBoxChannels * V;
  static constexpr int kMap = (kBoxThreads + kMicro) * kChannels;
  using Products = std::conditional_t<kFragments, Factors<F, kPositions, kChannels>,
                                      Operands<T, kPositions, kChannels>>;

  union {
    Products operands;
    T lines[kMostTaps * kThreads / 7];  // [lines, K, K, kDepth]: at most kThreads * K elements
  };
  // The depthwise outputs of a slab, [channel][position], then their gradient [position][channel].
  union {
    alignas(32) F outputs[kMap * sizeof(T) / sizeof(F)];
    alignas(32) T map[kMap];
  };

  // From channel to channel of `outputs`.
  static __device__ __forceinline__ int outputs_row(int positions) {
    return positions + (kFragments ? kFragmentPadding : kMicro);
  }
};

// A block to make the gradients of at a box of its input.
template <typename T, typename M>
struct GradTask : BoxTask {
  Box own;     // outputs behind the cells of the box
  Box region;  // outputs whose windows see the cells
  Plane out;
  BlockRow row;
  int inputs, outputs;  // channels
  const T* weights[2];  // first, second
  BlockInput<T, M> in;
  OuterGradient<T, M> outer;
  // Where the sums of the weights' gradients go, null = nobody asked, and whether they are the
  // first.
  T* matrix;
  T* taps;
  bool fresh;

  __device__ __forceinline__ BlockMatrix<T> matrix_of(int tap) const {
    return block_matrix(BlockWeights<T>{row, weights[0], weights[1], inputs, outputs}, tap);
  }
};

// Positions [begin, begin + count) of the outputs that windows of a box belong to.
struct Slab {
  const Box& region;
  int begin, count;

  __device__ __forceinline__ Spot at(int p) const { return spot(region, begin + p); }
  // Of the output (h, w) of image `image` of the box; not below `count` if it is not there.
  __device__ __forceinline__ unsigned place(int image, int h, int w) const {
    return static_cast<unsigned>(((image * region.height) + h - region.top) * region.width + w -
                                 region.left - begin);
  }
};

// The output whose window has cell `at` at `offset` along one axis: -1 if there is none.
__device__ __forceinline__ int output_of_cell(int at, int offset, int stride, int size) {
  const int from = at + offset;
  if (stride == 1) return from < size ? from : -1;
  return from >= 0 && from % stride == 0 && from / stride < size ? from / stride : -1;
}

}  // namespace
}  // namespace darts_fast::cuda
