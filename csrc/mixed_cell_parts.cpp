// SPDX-License-Identifier: Apache-2.0
#include <algorithm>

#include "mixed_cell_checks.h"

namespace darts_fast {

int64_t MixedCellPlan::most_chains() const {
  int64_t most = 0;
  for (const CellPart& part : parts) most = std::max(most, part.chains_end - part.chains_begin);
  return most;
}

int64_t CellStaging::groups(const CellShape& s, int64_t element_size) const {
  constexpr int64_t kMapsOfEdge = 4;
  const int64_t map = s.images * s.node_height * s.node_width * s.channels * element_size;
  const int64_t fit = most_bytes / std::max<int64_t>(kMapsOfEdge * map, 1);
  return std::clamp<int64_t>(fit, std::min<int64_t>(s.groups, 1), s.groups);
}

void assign_parts(MixedCellPlan& plan, const CellStaging& staging, int64_t map_bytes) {
  const CellShape& s = plan.shape;
  const int64_t most = staging.most_bytes / map_bytes;
  const auto op_of = [&](int64_t entry) -> CellOp& { return plan.ops[plan.entering[entry]]; };
  const auto is_chain = [](const CellOp& op) { return op.kind == CellOpKind::kSeparableTwice; };
  const auto maps_of = [&](const CellOp& op) {
    return op.block < 0 ? 0 : is_chain(op) ? staging.chain_maps : 1;
  };
  plan.parts.clear();
  plan.stage_slots = 0;
  int64_t chain = 0;
  for (int64_t node = s.inputs; node < s.inputs + s.nodes; ++node) {
    const int64_t last = plan.entering_at[node + 1];
    CellPart part = {node, plan.entering_at[node], plan.entering_at[node], chain, chain};
    int64_t maps = 0, slots = 0;
    while (part.end < last) {
      const int64_t source = op_of(part.end).source;
      int64_t edge = part.end, edge_maps = 0;
      for (; edge < last && op_of(edge).source == source; ++edge) edge_maps += maps_of(op_of(edge));
      if (maps > 0 && maps + edge_maps > most) {
        plan.parts.push_back(part);
        part = {node, part.end, part.end, chain, chain};
        maps = slots = 0;
      }
      maps += edge_maps;
      for (; part.end < edge; ++part.end) {
        CellOp& op = op_of(part.end);
        if (op.block >= 0) op.stage = slots++;
        chain += is_chain(op) ? 1 : 0;
      }
      part.chains_end = chain;
      plan.stage_slots = std::max(plan.stage_slots, slots);
    }
    plan.parts.push_back(part);
  }
}

}  // namespace darts_fast
