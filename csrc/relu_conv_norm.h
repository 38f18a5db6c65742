// SPDX-License-Identifier: Apache-2.0
// Shapes and pointers of relu_conv_norm and its backward: ReLU, if there is one, a dense
// convolution (or the factorized reduce), batch norm. Torch-free.
#pragma once

#include "conv_block.h"
#include "node_sum.h"

namespace darts_fast {

template <typename T>
struct ReluConvNorm {
  BlockShape shape;
  ConvBlock block;
  bool relu;
  int64_t groups;
  int64_t images;   // per group
  const T* input;   // [G * N, H, W, C]
  const T* first;   // the weight [C', C, k, k], or conv_1 [C' / 2, C]
  const T* second;  // conv_2 [C' / 2, C], or null
  const T* gamma;   // [C'] or null
  const T* beta;    // [C'] or null
  Norm norm;        // kBatch or kRunning
  double eps;
  T* packed;   // scratch
  T* scratch;  // one row per thread
  int64_t scratch_stride;
  T* raw;   // [G * N, H', W', C'] before the norm; a forward's output where it is not kept
  T* mean;  // [G, C']
  T* var;   // [G, C'], biased
};

template <typename T>
struct ReluConvNormForward : ReluConvNorm<T> {
  double* partial_mean;    // [G * N, C'] scratch
  double* partial_square;  // [G * N, C']
  T* coefficients;         // [G, 3, period]: (y - center) * scale + shift
  T* output;               // [G * N, H', W', C']
};

template <typename T>
struct ReluConvNormBackward : ReluConvNorm<T> {
  const T* grad_output;
  double* partial_sums;  // [G * N, 2, C'] scratch: sum g, sum g * (y - mean)
  double* sums;          // [G, 2, C']: S1, S2
  T* coefficients;       // [G, 4, period]: dL/dy = scale * ((g - shift) - slope * (y - center))
  int64_t chunk_images;
  T* partial_weights;  // [G * chunks] rows, null = not wanted
  int64_t partial_stride;
  // outputs; null = nobody asked
  T* grad_input;
  T* grad_first;
  T* grad_second;
  T* grad_gamma;
  T* grad_beta;
};

}  // namespace darts_fast
