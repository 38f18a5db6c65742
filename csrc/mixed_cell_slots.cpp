// SPDX-License-Identifier: Apache-2.0
#include <algorithm>

#include "mixed_cell_checks.h"

namespace darts_fast {

int64_t slot_elements(const MixedCellPlan& plan) {
  constexpr int64_t kStagger = 144;
  const CellShape& s = plan.shape;
  const int64_t size = plan.groups_at_once * s.images * s.node_height * s.node_width * s.channels;
  return (size + 15) / 16 * 16 + kStagger;
}

int64_t buffer_elements(const MixedCellPlan& plan) {
  return (2 * plan.slots + plan.raw_slots) * slot_elements(plan) / 2;
}

void assign_slots(MixedCellPlan& plan, bool save, bool bf16_maps, bool staged) {
  const CellShape& s = plan.shape;
  const int64_t states = s.inputs + s.nodes;
  struct Slots {
    int64_t* count;
    std::vector<int64_t> given_back;

    int64_t take() {
      if (given_back.empty()) return (*count)++;
      const int64_t slot = given_back.back();
      given_back.pop_back();
      return slot;
    }
  };
  plan.slots = plan.raw_slots = 0;
  Slots wide = {&plan.slots, {}}, half = {&plan.raw_slots, {}};
  Slots& raw = bf16_maps ? half : wide;
  const auto give_back = [save](Slots& slots, int64_t slot) {
    if (!save && slot >= 0) slots.given_back.push_back(slot);
  };
  // The last node that reads a state, or one of its pools.
  const auto last_reader = [&](int64_t state, int64_t pool) {
    int64_t last = -1;
    for (int64_t i = plan.leaving_at[state]; i < plan.leaving_at[state + 1]; ++i) {
      const CellOp& op = plan.ops[plan.leaving[i]];
      if (pool < 0 || op.pool == pool) last = std::max(last, op.node);
    }
    return last;
  };
  const bool slotless = staged && !save;
  plan.node_map.assign(s.nodes, -1);
  for (int64_t node = s.inputs; node <= states; ++node) {
    // Phase `first` of this step: the node before, pools, first blocks.
    const int64_t made = node - 1;
    if (made >= s.inputs && plan.leaving_at[made + 1] > plan.leaving_at[made]) {
      plan.node_map[made - s.inputs] = wide.take();
    }
    const int64_t from = node == s.inputs ? 0 : made;
    for (int64_t i = plan.state_pools_at[from]; i < plan.state_pools_at[node]; ++i) {
      plan.pools[plan.state_pools[i]].map = wide.take();
    }
    for (int64_t i = plan.leaving_at[from]; i < plan.leaving_at[node]; ++i) {
      CellOp& op = plan.ops[plan.leaving[i]];
      if (op.pool >= 0) op.map = plan.pools[op.pool].map;
    }
    if (node < states && !slotless) {
      for (int64_t i = plan.entering_at[node]; i < plan.entering_at[node + 1]; ++i) {
        CellOp& op = plan.ops[plan.entering[i]];
        if (op.block < 0) continue;
        (op.kind == CellOpKind::kSeparableTwice ? op.inner_map : op.map) = raw.take();
      }
    }
    if (made >= s.inputs) {
      for (int64_t i = plan.entering_at[made]; i < plan.entering_at[made + 1]; ++i) {
        const CellOp& op = plan.ops[plan.entering[i]];
        if (op.block >= 0) give_back(raw, op.map);
      }
      for (int64_t i = 0; i < s.pools; ++i) {
        const CellPool& pool = plan.pools[i];
        if (last_reader(pool.source, i) == made) give_back(wide, pool.map);
      }
      for (int64_t state = s.inputs; state < made; ++state) {
        if (last_reader(state, -1) == made) give_back(wide, plan.node_map[state - s.inputs]);
      }
    }
    if (node == states || slotless) continue;
    for (int64_t i = plan.chains_at[node]; i < plan.chains_at[node + 1]; ++i) {
      plan.ops[plan.chains[i]].map = raw.take();
    }
    for (int64_t i = plan.chains_at[node]; i < plan.chains_at[node + 1]; ++i) {
      give_back(raw, plan.ops[plan.chains[i]].inner_map);
    }
  }
}

}  // namespace darts_fast
