// SPDX-License-Identifier: Apache-2.0
// The checked arguments of mixed_cell and the plan made from them, for every backend.
#pragma once

#include <ATen/core/Tensor.h>

#include <limits>
#include <optional>
#include <vector>

#include "mixed_cell.h"

namespace darts_fast {

// The arguments of the schema that forward and backward share, as they come in.
struct MixedCellInputs {
  at::TensorList states;
  const at::Tensor& weights;
  at::TensorList convolutions;
  at::TensorList gammas;
  at::TensorList betas;
  at::IntArrayRef ops;
  at::IntArrayRef norms;
  at::ArrayRef<double> eps;
  int64_t nodes;
  int64_t multiplier;
  int64_t stride;
  int64_t groups;
  int64_t shared;  // 0 in a backward
  const std::optional<at::Tensor>& active;
  int64_t precision;
  bool takes_halves = false;  // states of 16 bits, with parameters in float32
};

// Batch norms and weights that an operation has in the lists of the arguments.
int64_t norms_of(CellOpKind kind);
int64_t convolutions_of(CellOpKind kind);

// Owns what a CellPlan points to.
struct MixedCellPlan {
  CellShape shape;
  std::vector<CellOp> ops;
  std::vector<CellPool> pools;
  std::vector<ConvBlock> blocks;
  std::vector<int64_t> block_op;
  std::vector<int64_t> node_map;
  int64_t input_pad = 0, node_pad = 0, chain_pad = 0;
  std::vector<int64_t> leaving, leaving_at;
  std::vector<int64_t> entering, entering_at;
  std::vector<int64_t> chains, chains_at;
  std::vector<int64_t> state_pools, state_pools_at;
  std::vector<CellPart> parts;
  int64_t groups_at_once;  // whose maps there is room for
  // Maps of these groups' nodes that the buffer holds, and behind them those of bfloat16 elements:
  // none where the maps of convolutions are among the others.
  int64_t slots, raw_slots;
  int64_t stage_slots;  // convolutions in the largest part

  CellPlan view() const;

  // At most this many chains are in one part.
  int64_t most_chains() const;
};

// How the ops that enter a node are cut into parts, and whether a part's convolutions leave their
// outputs in slots that the next part uses again. The default: a node is one part.
struct CellStaging {
  int64_t most_bytes = std::numeric_limits<int64_t>::max();  // of the maps of a part
  int64_t chain_maps = 1;  // maps that a chain counts for; other convolutions count for one
  bool staged = false;     // without `save`, convolutions have no slots but those of their part

  // Of how many groups the maps of an edge, about four, are that small; of one at least. Groups
  // know nothing of each other: the next ones use the same memory again.
  int64_t groups(const CellShape& shape, int64_t element_size) const;
};

// Cuts between edges, whose ops share a tile of their source. A part has at least one edge if its
// node has.
void assign_parts(MixedCellPlan& plan, const CellStaging& staging, int64_t map_bytes);

// Slots in the order in which the forward writes them. Without `save` a slot is free again after
// the last phase that reads it: a chain's first map after its second block, the maps that enter a
// node, and pools and nodes that nothing later reads, after the phase that sums the node.
// `bf16_maps`: the outputs of convolutions have slots of their own.
void assign_slots(MixedCellPlan& plan, bool save, bool bf16_maps, bool staged);

struct MixedCellArguments {
  MixedCellPlan plan;
  std::vector<at::Tensor> states;  // channels_last
  at::Tensor weights;              // [G, K]
  std::vector<at::Tensor> first;   // per block, contiguous: depthwise, dense or first half
  std::vector<at::Tensor> second;  // per block: pointwise or second half, undefined for dense ones
  std::vector<at::Tensor> gammas;  // per norm, undefined where there is none
  std::vector<at::Tensor> betas;
  std::vector<Norm> norms;
  std::vector<double> eps;
  at::Tensor active;  // bool [G, K] on the CPU
  Precision precision;
};

// Raises with the op's name where anything does not fit. `save`: every map keeps a slot of its own;
// otherwise a slot is used again once nothing reads it, and where convolutions are staged, by the
// next groups.
MixedCellArguments check_mixed_cell(const char* op, const MixedCellInputs& inputs, bool save,
                                    const CellStaging& staging = {});

// Elements from one slot of a buffer of maps to the next. Slots do not begin at equal places of a
// memory page, where streams of several maps would compete for the same lines of a cache.
int64_t slot_elements(const MixedCellPlan& plan);

// Elements of T in the buffer of all slots, those of convolutions in bfloat16 at its end. A slot is
// an even number of elements.
int64_t buffer_elements(const MixedCellPlan& plan);

// The tensors of a list that is empty or has one entry [C] or [0] per norm; undefined for [0].
std::vector<at::Tensor> check_per_norm(const char* op, const char* name, at::TensorList values,
                                       const MixedCellPlan& plan, const at::Tensor& like);

}  // namespace darts_fast
