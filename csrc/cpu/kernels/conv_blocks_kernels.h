// SPDX-License-Identifier: Apache-2.0
// The CPU kernels of conv_blocks: one table of functions per capability and element type.
#pragma once

#include <cstdint>

#include "conv_blocks.h"
#include "cpu/items.h"

namespace darts_fast::cpu {

// As in node_sum_kernels.h: phases in order, each on work items [begin, end), results independent
// of how the items are shared out. Phases that take `Items` use its share's row of the scratch
// memory.
template <typename T>
struct ConvBlocksKernels {
  // Elements of a branch's packed weights, of a thread's scratch memory, and of a branch's and
  // image's weight gradients.
  int64_t (*packed_size)(const ConvBlocksShape& shape, const ConvBranch* branches);
  int64_t (*forward_scratch)(const ConvBlocksShape& shape, const ConvBranch* branches);
  int64_t (*backward_scratch)(const ConvBlocksShape& shape, const ConvBranch* branches);
  int64_t (*partial_size)(const ConvBlocksShape& shape, const ConvBranch* branches);
  // Forward.                                                                          item
  void (*pack)(const ConvBlocksForward<T>& p, int64_t begin, int64_t end);  // branch
  void (*run)(const ConvBlocksForward<T>& p, Items items);
  //                                                                                   image, input
  void (*merge)(const ConvBlocksForward<T>& p, int64_t begin, int64_t end);  // group, branch
  // Backward.
  void (*backward_pack)(const ConvBlocksBackward<T>& p, int64_t begin, int64_t end);  // branch
  void (*backward_run)(const ConvBlocksBackward<T>& p, Items items);            // image, input
  void (*weights)(const ConvBlocksBackward<T>& p, int64_t begin, int64_t end);  // branch
  void (*sums)(const ConvBlocksBackward<T>& p, int64_t begin, int64_t end);     // input
  void (*norm)(const ConvBlocksBackward<T>& p, Items items);                    // image, input
};

#define DARTS_DECLARE_CONV_BLOCKS(CAPABILITY)                        \
  namespace CAPABILITY {                                             \
  extern const ConvBlocksKernels<float> conv_blocks_kernels_float;   \
  extern const ConvBlocksKernels<double> conv_blocks_kernels_double; \
  }
DARTS_DECLARE_CONV_BLOCKS(DEFAULT)
DARTS_DECLARE_CONV_BLOCKS(AVX2)
DARTS_DECLARE_CONV_BLOCKS(AVX512)
#undef DARTS_DECLARE_CONV_BLOCKS

}  // namespace darts_fast::cpu
