// SPDX-License-Identifier: Apache-2.0
// The CPU kernels of relu_conv_norm: one table of functions per capability and element type.
#pragma once

#include <cstdint>

#include "cpu/items.h"
#include "relu_conv_norm.h"

namespace darts_fast::cpu {

// As in node_sum_kernels.h: phases in order, each on work items [begin, end), results independent
// of how the items are shared out. Phases that take `Items` use its share's row of the scratch
// memory.
template <typename T>
struct ReluConvNormKernels {
  using Shared = ReluConvNorm<T>;
  using Forward = ReluConvNormForward<T>;
  using Backward = ReluConvNormBackward<T>;
  // Elements: of a pattern of output channels, of packed weights, of a thread's scratch memory, of
  // a row of weight gradients.
  int64_t (*period)(int64_t channels);
  int64_t (*packed_size)(const Shared& p);
  int64_t (*forward_scratch)(const Shared& p);
  int64_t (*backward_scratch)(const Shared& p);
  int64_t (*partial_size)(const Shared& p);
  // Forward.                                                                         item
  void (*pack)(const Forward& p, int64_t begin, int64_t end);       // one item
  void (*convolve)(const Forward& p, Items items);                  // image
  void (*merge)(const Forward& p, int64_t begin, int64_t end);      // group
  void (*normalise)(const Forward& p, int64_t begin, int64_t end);  // image
  // With running statistics `convolve` comes behind `merge`, and normalises too.
  // Backward.
  void (*grad_pack)(const Backward& p, int64_t begin, int64_t end);   // one item
  void (*reduce)(const Backward& p, Items items);                     // image
  void (*merge_sums)(const Backward& p, int64_t begin, int64_t end);  // group
  void (*grad_convolve)(const Backward& p, Items items);              // chunk
  void (*parameters)(const Backward& p, int64_t begin, int64_t end);  // one item
};

#define DARTS_DECLARE_RELU_CONV_NORM(CAPABILITY)                          \
  namespace CAPABILITY {                                                  \
  extern const ReluConvNormKernels<float> relu_conv_norm_kernels_float;   \
  extern const ReluConvNormKernels<double> relu_conv_norm_kernels_double; \
  }
DARTS_DECLARE_RELU_CONV_NORM(DEFAULT)
DARTS_DECLARE_RELU_CONV_NORM(AVX2)
DARTS_DECLARE_RELU_CONV_NORM(AVX512)
#undef DARTS_DECLARE_RELU_CONV_NORM

}  // namespace darts_fast::cpu
