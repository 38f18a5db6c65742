// SPDX-License-Identifier: Apache-2.0
// Shapes and pointers of conv_blocks and conv_blocks_backward, shared by every backend. Torch-free.
#pragma once

#include <cstdint>

#include "conv_block.h"
#include "node_sum.h"

namespace darts_fast {

// [batch norm ->] ReLU -> convolution of input `source`.
struct ConvBranch {
  int64_t source;
  ConvBlock block;
};

// All inputs of a call have one shape, [G * N, H, W, C] with the channel innermost, and all outputs
// another, [G * N, H', W', C'].
struct ConvBlocksShape : BlockShape {
  int64_t groups;
  int64_t images;  // per group
  int64_t sources;
  int64_t branches;
};

// The batch norm in front of the ReLU, one per input; all null where there is none.
template <typename T>
struct ConvBlocksNorm {
  Norm kind;
  double eps;
  const T* mean;   // [S, G, C]
  const T* var;    // [S, G, C]
  const T* gamma;  // [S, C] or null
  const T* beta;   // [S, C] or null
};

// What forward and backward share. Maps are stored as S.
template <typename T, typename S = T>
struct ConvBlocksCall {
  ConvBlocksShape shape;
  ConvBlocksNorm<T> norm;
  const ConvBranch* branches;  // [B]
  const S* const* inputs;      // [S] -> [G * N, H, W, C]
  const T* const* depthwise;   // [B] -> [C, kernel, kernel], null for a dense block
  const T* const* pointwise;   // [B] -> [C', C]
  const uint8_t* active;       // [G, B]: 0 = not computed, zeros
};

template <typename T>
struct ConvBlocksForward : ConvBlocksCall<T> {
  T* packed;               // scratch, one row of packed weights per branch
  int64_t packed_stride;   // elements of a row
  T* scratch;              // one row per thread
  int64_t scratch_stride;  // elements of a row
  double* partial_mean;    // [B, G, N, C'] moments of every image
  double* partial_square;  // [B, G, N, C']
  // outputs
  T* const* outputs;  // [B] -> [G * N, H', W', C'], before the block's own batch norm
  T* mean;            // [G, B, C']
  T* var;             // [G, B, C'], biased
};

template <typename T>
struct ConvBlocksBackward : ConvBlocksCall<T> {
  const T* const* grad_outputs;  // [B] -> [G * N, H', W', C'], null = no gradient arrives
  T* packed;                     // scratch
  int64_t packed_stride;
  T* scratch;
  int64_t scratch_stride;
  T* partial_weights;      // [B, G * N] rows of every image's weight gradients; null = not wanted
  int64_t partial_stride;  // elements of a row
  double* partial_sums;    // [S, G * N, 2, C]: sum g, sum g * x^ behind the ReLU
  double* sums;            // [S, G, 2, C]
  // outputs; null = nobody asked
  T* const* grad_inputs;     // [S] -> [G * N, H, W, C]
  T* const* grad_depthwise;  // [B] -> [C, kernel, kernel]
  T* const* grad_pointwise;  // [B] -> [C', C]
  T* grad_gamma;             // [S, C]
  T* grad_beta;              // [S, C]
};

}  // namespace darts_fast
