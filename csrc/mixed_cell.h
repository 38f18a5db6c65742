// SPDX-License-Identifier: Apache-2.0
// Shapes, plan and pointers of mixed_cell and mixed_cell_backward. Torch-free.
//
// A cell has S input states and `nodes` nodes, all of C channels; node i is the sum over candidate
// operations k on edges (source, i) of w_k * op_k(source). Ops that leave an input state share one
// stride, ops that leave a node have stride 1, so that every map of an op has the size of a node.
#pragma once

#include <cstdint>

#include "conv_block.h"
#include "half_types.h"
#include "node_sum.h"

namespace darts_fast {

enum class CellOpKind : int64_t {
  kNone = 0,
  kIdentity = 1,
  kMaxPool = 2,
  kAvgPool = 3,
  kSeparable = 4,
  kSeparableTwice = 5,
  kDense = 6,
  kFactorizedReduce = 7,
};

struct CellShape {
  int64_t groups;
  int64_t images;  // per group
  int64_t inputs;  // S
  int64_t shared;  // of the inputs, the first ones: one map of N images that all groups read
  int64_t nodes;
  int64_t ops;     // K
  int64_t norms;   // B
  int64_t blocks;  // convolution blocks of all ops
  int64_t pools;   // distinct pairs of a state and a kind of pool
  int64_t channels;
  int64_t height;  // of the input states
  int64_t width;
  int64_t node_height;  // of nodes and maps
  int64_t node_width;
  int64_t stride;      // of the ops that leave an input state
  int64_t multiplier;  // nodes in the output, the last ones
};

// -1 stands for "has none".
struct CellOp {
  int64_t source;
  int64_t node;  // as a state, S or more
  CellOpKind kind;
  int64_t norm;       // slot of the last batch norm
  int64_t block;      // the first convolution block; the second of a chain follows it
  int64_t map;        // slot of what the last batch norm is given
  int64_t inner_map;  // slot of the first block's output in a chain
  int64_t pool;
  int64_t stage;  // slot, among those of its part, of a convolution's output
};

struct CellPool {
  int64_t source;
  CellOpKind kind;
  int64_t map;
};

// A stretch of the ops that enter a node, worked on together: as many as leave their maps in a
// cache.
struct CellPart {
  int64_t node;
  int64_t begin, end;                // of `entering`
  int64_t chains_begin, chains_end;  // of `chains`
};

// Ops by state, or pools by state: of state s the entries [at[s], at[s + 1]).
struct CellList {
  const int64_t* entries;
  const int64_t* at;
};

struct CellPlan {
  CellShape shape;
  const CellOp* ops;        // [K]
  const CellPool* pools;    // [pools]
  const ConvBlock* blocks;  // [blocks]
  const int64_t* block_op;  // [blocks] the op of a block
  const int64_t* node_map;  // [nodes] slot of a node that ops leave
  int64_t input_pad;        // reach of the first blocks that leave an input state
  int64_t node_pad;         // reach of the first blocks that leave a node
  int64_t chain_pad;        // reach of the second blocks
  CellList leaving;         // by source
  CellList entering;        // by node, and within a node in the order of the sources
  CellList chains;          // those of `entering` that are chains of two blocks
  CellList state_pools;     // by source
  const CellPart* parts;    // at least one of every node, by node
  int64_t part_count;
};

// How much is done in bfloat16; the numbers are those of the schema.
enum class Precision : int64_t {
  kFull = 0,
  kMaps = 1,      // the outputs of convolutions are stored so
  kProducts = 2,  // and pointwise products multiply so, where the CPU does
};

// What forward and backward share. Maps and nodes are slots of [G * N, H', W', C] in one buffer, or
// in two where the outputs of convolutions have elements of their own, M. States have elements S.
template <typename T, typename M = T, typename S = T>
struct CellArguments {
  CellPlan plan;
  const S* const* states;  // [S] -> [G * N, H, W, C], of a shared one [N, H, W, C]
  const T* weights;        // [G, K]
  const T* const* first;   // [blocks] depthwise, dense or first half
  const T* const* second;  // [blocks] pointwise or second half
  const T* const* gamma;   // [B] -> [C] or null
  const T* const* beta;    // [B] -> [C] or null
  const Norm* norms;       // [B]
  const double* eps;       // [B]
  const uint8_t* active;   // [G, K]
  S* maps;                 // slots: pools, and nodes that ops leave
  M* raw;                  // slots: what convolutions give to their norms; `maps` where M is S
  int64_t slot;            // elements of a slot
  T* packed;               // scratch: one row of packed weights per block, or group and block
  int64_t packed_stride;
  T* scratch;  // scratch: one row per thread
  int64_t scratch_stride;
  T* mean;  // [G, B, C]
  T* var;   // [G, B, C], biased
};

template <typename T, typename M = T>
struct CellForward : CellArguments<T, M> {
  const T* const* running_mean;  // [B] -> [C]; read where norms is kRunning
  const T* const* running_var;
  M* stage;                // slots of a part's convolutions; null: `raw` itself
  bool save;               // every convolution's output has a slot of its own in `raw`
  T* passing;              // slot of the node in work, if no op leaves it
  double* partial_mean;    // [blocks + pools, G, N, C]
  double* partial_square;  // [blocks + pools, G, N, C]
  T* center;               // [G, B, period] of the norms: (y - center) * scale + shift; and a row
                           // of zeros for terms without a norm
  T* scale;                // [G, B, period]
  T* shift;                // [G, B, period]
  T* term_scale;           // [G, K, period]: w * scale of the op's last norm
  T* constants;            // [G, nodes, period] what a node's sum starts from, without maps
  T* output;               // [G * N, H', W', multiplier * C]
};

template <typename T, typename M = T>
struct CellBackward : CellArguments<T, M> {
  const T* grad_output;  // [G * N, H', W', multiplier * C]
  int64_t chunk_images;  // images of one group whose weight gradients share a row
  T* partial_weights;    // [blocks, G * chunks] rows; null = not wanted
  int64_t partial_stride;
  T* center;             // [G, B, period], and a row of zeros for terms without a norm
  T* grad_scale;         // [G, B, period]: dL/dy = grad_scale * ((g - grad_mean)
  T* grad_mean;          // [G, B, period]                        - grad_slope * (y - center))
  T* grad_slope;         // [G, B, period]
  T* inner_scale;        // [G, B, period] of chains: the first norm's scale and shift, for the
  T* inner_shift;        // [G, B, period] second block's input
  double* partial_sums;  // [K + nodes, G * N, C]: sum g * (y - center) per op, sum g per node
  double* inner_sums;    // [K, G * N, 2, C]: the same of a chain's first norm
  double* term_sums;     // [K, G, C]: sum g of the op's node
  double* norm_sums;     // [B, G, 2, C]: S1 and S2 of every norm
  double* op_sums;       // [K, G]: dL/dw
  T* grad_inner;         // [chains into a node] slots: gradient behind a chain's first norm
  T* grad_nodes;         // [nodes] slots
  // outputs; null = nobody asked
  T* const* grad_states;  // [S]
  T* grad_weights;        // [G, K]
  T* const* grad_first;   // [blocks]
  T* const* grad_second;  // [blocks]
  T* const* grad_gamma;   // [B]
  T* const* grad_beta;    // [B]
};

}  // namespace darts_fast
