// SPDX-License-Identifier: Apache-2.0
// The CPU kernels of mixed_cell: one table of functions per capability and element type.
#pragma once

#include <cstdint>

#include "cpu/items.h"
#include "mixed_cell.h"

namespace darts_fast::cpu {

// One step of a cell: a part of the ops that enter a node. In the last step of a forward and the
// first of a backward it is one behind the last part.
template <typename Params>
struct CellStep {
  const Params* p;
  int64_t part;
  bool chains;  // norm phase of a forward: the chains' last norms, not the first blocks' norms
};

// As in node_sum_kernels.h: phases in the order of the steps, each on work items [begin, end),
// results independent of how the items are shared out. Phases that take `Items` use its share's row
// of the scratch memory. "op" and "chain" count those of the step's part.
template <typename T, typename M = T>
struct MixedCellKernels {
  using Forward = CellForward<T, M>;
  using Backward = CellBackward<T, M>;
  using ForwardStep = CellStep<Forward>;
  using BackwardStep = CellStep<Backward>;
  // Elements: of a pattern of channels, of a block's packed weights, of a thread's scratch memory,
  // of a row of a block's weight gradients.
  int64_t (*period)(int64_t channels);
  int64_t (*packed_size)(const CellPlan& plan);
  int64_t (*forward_scratch)(const CellPlan& plan);
  int64_t (*running_scratch)(const CellPlan& plan);
  int64_t (*backward_scratch)(const CellPlan& plan);
  int64_t (*partial_size)(const CellPlan& plan);
  // Forward: pack; then for every step first, norms, second, norms of the chains.      item
  void (*pack)(const Forward& p, int64_t begin, int64_t end);       // block
  void (*first)(const ForwardStep& s, Items items);                 // image
  void (*norms)(const ForwardStep& s, int64_t begin, int64_t end);  // group, op
  void (*second)(const ForwardStep& s, Items items);                // image, chain
  // Forward without statistics of the batch and without maps: these in order. Null where M is not
  // T.
  void (*running_norms)(const Forward& p, int64_t begin, int64_t end);      // group, op
  void (*running_constants)(const Forward& p, int64_t begin, int64_t end);  // group, node
  void (*running_pack)(const Forward& p, int64_t begin, int64_t end);       // group, block
  void (*running)(const Forward& p, Items items);                           // image
  // Backward: grad_pack, prepare; then for every step, last part first, grad_first, node_norms,
  // grad_second, inner_norms, of which the last three are about the part before that of grad_first;
  // then weights and parameters.
  void (*grad_pack)(const Backward& p, int64_t begin, int64_t end);        // block
  void (*prepare)(const Backward& p, int64_t begin, int64_t end);          // group, norm
  void (*grad_first)(const BackwardStep& s, Items items);                  // chunk
  void (*node_norms)(const BackwardStep& s, int64_t begin, int64_t end);   // group, op
  void (*grad_second)(const BackwardStep& s, Items items);                 // chunk, chain
  void (*inner_norms)(const BackwardStep& s, int64_t begin, int64_t end);  // group, chain
  void (*weights)(const Backward& p, int64_t begin, int64_t end);          // block
  void (*parameters)(const Backward& p, int64_t begin, int64_t end);       // norm
};

#define DARTS_DECLARE_MIXED_CELL(CAPABILITY)                              \
  namespace CAPABILITY {                                                  \
  extern const MixedCellKernels<float> mixed_cell_kernels_float;          \
  extern const MixedCellKernels<double> mixed_cell_kernels_double;        \
  extern const MixedCellKernels<float, BFloat16> mixed_cell_kernels_bf16; \
  }
DARTS_DECLARE_MIXED_CELL(DEFAULT)
DARTS_DECLARE_MIXED_CELL(AVX2)
DARTS_DECLARE_MIXED_CELL(AVX512)
DARTS_DECLARE_MIXED_CELL(AVX512BF16)
#undef DARTS_DECLARE_MIXED_CELL

}  // namespace darts_fast::cpu
