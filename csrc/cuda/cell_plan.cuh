// SPDX-License-Identifier: Apache-2.0
// The host's side of a launch: the plan as tables for the device, and what each launch works
// through. Shared by forward and backward.
#pragma once

#include <algorithm>
#include <vector>

#include "cuda/mixed_cell_launch.h"
#include "cuda/tables.cuh"

namespace darts_fast::cuda {
namespace {

// A plan with its tables, under construction.
template <typename T, typename M>
class CellTablesBuilder {
 public:
  CellTablesBuilder(const CudaCellArguments<T, M>& p, int64_t in_channels)
      : p_(p), s_(p.plan.shape) {
    refuse_large("mixed_cell", s_.height, s_.width, std::max(s_.channels, in_channels));
    for (int64_t k = 0; k < s_.ops; ++k) add_op(k);
    for (int64_t b = 0; b < s_.blocks; ++b) {
      const ConvBlock& block = p.plan.blocks[b];
      blocks.push_back({short_of(p.plan.block_op[b]), static_cast<int8_t>(block.kind),
                        static_cast<int8_t>(block.kernel), short_of(block.dilation), 0, 0});
    }
    for (int64_t i = 0; i < s_.pools; ++i) {
      const CellPool& pool = p.plan.pools[i];
      pools_.push_back({short_of(pool.source), short_of(static_cast<int64_t>(pool.kind)),
                        short_of(pool.map), 0});
    }
    for (int64_t i = 0; i < s_.nodes; ++i) node_maps_.push_back(short_of(p.plan.node_map[i]));
    fill_cell(in_channels);
  }

  bool runs(int64_t k) const {
    for (int64_t g = 0; g < s_.groups; ++g) {
      if (active_[g * s_.ops + k] != 0) return true;
    }
    return false;
  }
  bool runs_block(int64_t b) const { return runs(p_.plan.block_op[b]); }

  // Ops of a list of the plan but for `none`.
  std::vector<int64_t> ops_of(const CellList& list, int64_t state) const {
    std::vector<int64_t> ops;
    for (int64_t i = list.at[state]; i < list.at[state + 1]; ++i) {
      if (p_.plan.ops[list.entries[i]].kind != CellOpKind::kNone) ops.push_back(list.entries[i]);
    }
    return ops;
  }

  const CellShape& shape() const { return s_; }
  const CellOp& op(int64_t k) const { return p_.plan.ops[k]; }

  // Norms whose statistics no tiles give in some group: they are given, or their op is idle there.
  std::vector<int64_t> given_norms() const {
    std::vector<int64_t> given;
    for (int64_t b = 0; b < s_.norms; ++b) {
      bool merged = norms_[b].kind == static_cast<int16_t>(Norm::kBatch);
      for (int64_t g = 0; g < s_.groups; ++g) {
        merged = merged && active_[g * s_.ops + norms_[b].op] != 0;
      }
      if (!merged) given.push_back(b);
    }
    return given;
  }
  bool wants_moments() const {
    return std::any_of(flags_.begin(), flags_.end(),
                       [](uint8_t flags) { return (flags & kWantsMoments) != 0; });
  }

  // Room for everything that both directions have, for what `extra` adds, and for counters.
  template <typename Extra>
  char* take(ScratchArrays& arrays, int64_t counters, Extra extra) {
    char* table =
        place_.take(arrays, cell.counters, counters,
                    [&](TableBytes& bytes, uintptr_t to) { place_tables(bytes, to, extra); });
    return table;
  }
  // Puts it there.
  template <typename Extra>
  void upload(char* table, cudaStream_t stream, Extra extra) {
    place_.upload(table, stream,
                  [&](TableBytes& bytes, uintptr_t to) { place_tables(bytes, to, extra); });
  }

  Cell<T, M> cell = {};
  Lists lists;
  std::vector<BlockRow> blocks;

 private:
  static int16_t short_of(int64_t value) { return cuda::short_of("mixed_cell", value); }

  void add_op(int64_t k) {
    const CellOp& op = p_.plan.ops[k];
    ops_.push_back({short_of(op.source), short_of(op.node), short_of(static_cast<int64_t>(op.kind)),
                    short_of(op.norm), short_of(op.block), short_of(op.map), short_of(op.inner_map),
                    short_of(op.pool)});
  }

  void add_norms() {
    for (int64_t k = 0; k < s_.ops; ++k) {
      const CellOp& op = p_.plan.ops[k];
      const bool chain = op.inner_map >= 0;
      for (int64_t b = chain ? op.norm - 1 : op.norm; b >= 0 && b <= op.norm; ++b) {
        const bool inner = b < op.norm;
        const int64_t block = op.block + (chain && !inner ? 1 : 0);
        norms_[b] = {short_of(static_cast<int64_t>(p_.norms[b])), short_of(k),
                     short_of(op.pool >= 0 ? s_.blocks + op.pool : block), inner};
      }
    }
  }

  void list_item_norms() {
    for (int64_t item = 0; item < s_.blocks + s_.pools; ++item) {
      std::vector<int64_t> norms;
      for (int64_t b = 0; b < s_.norms; ++b) {
        if (norms_[b].item == item) norms.push_back(b);
      }
      item_norms_.push_back(lists.add(norms));
    }
  }

  // Which items run, and of which the statistics are wanted.
  void add_flags() {
    const int64_t items = s_.blocks + s_.pools;
    active_.resize(s_.groups * s_.ops);
    flags_.resize(s_.groups * items);
    for (int64_t g = 0; g < s_.groups; ++g) {
      for (int64_t k = 0; k < s_.ops; ++k) {
        const CellOp& op = p_.plan.ops[k];
        active_[g * s_.ops + k] = op.kind != CellOpKind::kNone && p_.active[g * s_.ops + k] != 0;
      }
      for (int64_t b = 0; b < s_.norms; ++b) {
        const NormRow& norm = norms_[b];
        if (active_[g * s_.ops + norm.op] == 0) continue;
        uint8_t& flags = flags_[g * items + norm.item];
        flags |= kRuns;
        if (norm.kind == static_cast<int16_t>(Norm::kBatch)) flags |= kWantsMoments;
      }
    }
  }

  void fill_cell(int64_t in_channels) {
    norms_.resize(s_.norms);
    add_norms();
    list_item_norms();
    add_flags();
    cell.groups = static_cast<int>(s_.groups);
    cell.inputs = static_cast<int>(s_.inputs);
    cell.shared = static_cast<int>(s_.shared);
    cell.nodes = static_cast<int>(s_.nodes);
    cell.ops = static_cast<int>(s_.ops);
    cell.norms = static_cast<int>(s_.norms);
    cell.blocks = static_cast<int>(s_.blocks);
    cell.pools = static_cast<int>(s_.pools);
    cell.multiplier = static_cast<int>(s_.multiplier);
    cell.stride = static_cast<int>(s_.stride);
    cell.channels = static_cast<int>(s_.channels);
    cell.in_channels = static_cast<int>(in_channels);
    cell.height = static_cast<int>(s_.height);
    cell.width = static_cast<int>(s_.width);
    cell.node_height = static_cast<int>(s_.node_height);
    cell.node_width = static_cast<int>(s_.node_width);
    cell.images = s_.images;
    cell.slot = p_.slot;
    cell.weights = p_.weights;
    cell.maps = p_.maps;
    cell.raw = p_.raw;
    cell.mean = p_.mean;
    cell.var = p_.var;
  }

  template <typename Extra>
  void place_tables(TableBytes& bytes, uintptr_t to, Extra extra) {
    auto& t = cell.table;
    const TableWriter put(bytes, to);
    put.rows(t.ops, ops_);
    put.rows(t.blocks, blocks);
    put.rows(t.pools, pools_);
    put.rows(t.norms, norms_);
    put.rows(t.eps, std::vector<double>(p_.eps, p_.eps + s_.norms));
    put.rows(t.active, active_);
    put.rows(t.flags, flags_);
    put.rows(t.lists, lists.entries());
    put.rows(t.item_norms, item_norms_);
    put.rows(t.node_maps, node_maps_);
    put.pointers(t.states, p_.states, s_.inputs);
    put.pointers(t.first, p_.first, s_.blocks);
    put.pointers(t.second, p_.second, s_.blocks);
    put.pointers(t.gamma, p_.gamma, s_.norms);
    put.pointers(t.beta, p_.beta, s_.norms);
    extra(t, put);
  }

  const CudaCellArguments<T, M>& p_;
  const CellShape& s_;
  std::vector<OpRow> ops_;
  std::vector<PoolRow> pools_;
  std::vector<NormRow> norms_;
  std::vector<uint8_t> active_, flags_;
  std::vector<int16_t> node_maps_;
  std::vector<ListRange> item_norms_;
  TablePlace place_;
};

}  // namespace
}  // namespace darts_fast::cuda
