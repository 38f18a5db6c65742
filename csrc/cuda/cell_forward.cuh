// SPDX-License-Identifier: Apache-2.0
// The launches of a cell's forward, node by node, as the plan gives out its slots: the first blocks
// of the ops that enter the node, with the pools of the states that were completed before it; the
// second blocks of chains; each followed by the norms' merge; then the node is summed. A DARTS cell
// of 4 nodes takes 1 + 4 * 5 launches.
#pragma once

#include "cuda/cell_combine.cuh"
#include "cuda/cell_convolve.cuh"
#include "cuda/cell_norms.cuh"
#include "cuda/cell_plan.cuh"

namespace darts_fast::cuda {
namespace {

// Blocks, or pools, and then norms.
struct Pass {
  ListRange items, norms;
};

struct NodeStep {
  Pass first, second;
  ListRange entering;
};

template <typename T, typename M>
std::vector<NodeStep> forward_steps(CellTablesBuilder<T, M>& builder,
                                    const CellArguments<T, M>& p) {
  const CellShape& s = p.plan.shape;
  std::vector<NodeStep> steps;
  for (int64_t state = s.inputs; state < s.inputs + s.nodes; ++state) {
    std::vector<int64_t> items, second_items, norms, second_norms;
    const std::vector<int64_t> entering = builder.ops_of(p.plan.entering, state);
    for (const int64_t k : entering) {
      const CellOp& op = builder.op(k);
      const bool chain = op.inner_map >= 0;
      if (op.norm >= 0) norms.push_back(chain ? op.norm - 1 : op.norm);
      if (chain) second_norms.push_back(op.norm);
      if (op.block < 0 || !builder.runs(k)) continue;
      items.push_back(op.block);
      if (chain) second_items.push_back(op.block + 1);
    }
    const CellList& pools = p.plan.state_pools;
    const int64_t from = state == s.inputs ? 0 : state - 1;
    for (int64_t i = pools.at[from]; i < pools.at[state]; ++i) {
      items.push_back(s.blocks + pools.entries[i]);
    }
    steps.push_back({{builder.lists.add(items), builder.lists.add(norms)},
                     {builder.lists.add(second_items), builder.lists.add(second_norms)},
                     builder.lists.add(entering)});
  }
  return steps;
}

template <typename T, typename M>
void launch_norms(const Cell<T, M>& cell, const ListRange& norms, cudaStream_t stream) {
  if (norms.count == 0) return;
  const Micro micro(cell.channels);
  launch("cell_norms", cell_norms<T, M>,
         dim3(grid_size(ceil_divide(cell.channels, kNormWarps)), norms.count, cell.groups),
         kThreads, stream, cell, norms.at, micro.positions());
}

template <typename T, typename M, int V>
void launch_pass(const Cell<T, M>& cell, const Pass& pass, bool merges, cudaStream_t stream) {
  const Micro micro(cell.channels);
  const int64_t positions = cell.images * cell.node_height * cell.node_width;
  if (pass.items.count > 0) {
    launch("cell_convolve", cell_convolve<T, M, V>,
           dim3(grid_size(ceil_divide(positions, micro.positions())), cell.groups * micro.chunks,
                pass.items.count),
           kThreads, stream, cell, pass.items.at);
  }
  if (merges) launch_norms(cell, pass.norms, stream);
}

// `all_norms`: every norm, where none of them waits for a batch's statistics.
template <typename T, typename M, int V>
void launch_forward(const Cell<T, M>& cell, const std::vector<NodeStep>& steps,
                    const ListRange& all_norms, cudaStream_t stream) {
  const bool merges = all_norms.count == 0;
  const Strip strip(cell.channels, V);
  const int64_t positions = cell.images * cell.node_height * cell.node_width;
  launch_norms(cell, all_norms, stream);
  for (size_t i = 0; i < steps.size(); ++i) {
    const NodeStep& step = steps[i];
    launch_pass<T, M, V>(cell, step.first, merges, stream);
    launch_pass<T, M, V>(cell, step.second, merges, stream);
    launch("cell_combine", cell_combine<T, M, V>,
           dim3(grid_size(ceil_divide(positions, strip.positions())), cell.groups * strip.chunks),
           kThreads, stream, cell, step.entering.at, step.entering.count, static_cast<int>(i));
  }
}

// Whether V channels can be read and written at once.
template <typename T, typename M>
bool takes_vectors(const CellArguments<T, M>& p, int64_t in_channels,
                   std::initializer_list<const void*> others) {
  constexpr int lanes = kLanes<T>;
  const auto aligned = [](const void* pointer) {
    return reinterpret_cast<uintptr_t>(pointer) % 16 == 0;
  };
  bool all = p.plan.shape.channels % lanes == 0 && in_channels % lanes == 0 && p.slot % 8 == 0 &&
             aligned(p.maps) && aligned(p.raw) && aligned(p.mean) && aligned(p.var);
  for (int64_t i = 0; i < p.plan.shape.inputs; ++i) all = all && aligned(p.states[i]);
  for (const void* pointer : others) all = all && aligned(pointer);
  return all;
}

}  // namespace

template <typename T, typename M>
void launch_cell(const CudaCellForward<T, M>& p, const Allocate& allocate, cudaStream_t stream) {
  const CellShape& s = p.plan.shape;
  CellTablesBuilder<T, M> builder(p, p.in_channels);
  Cell<T, M>& cell = builder.cell;
  cell.output = p.output;
  bool batch = false;
  std::vector<int64_t> norms(s.norms);
  for (int64_t b = 0; b < s.norms; ++b) {
    batch = batch || p.norms[b] == Norm::kBatch;
    norms[b] = b;
  }
  const CellArguments<T, M>& arguments = p;
  const std::vector<NodeStep> steps = forward_steps(builder, arguments);
  const ListRange all_norms = batch ? ListRange{} : builder.lists.add(norms);
  const auto running = [&](CellTables<T>& t, auto& put) {
    put(t.running_mean, p.running_mean, s.norms);
    put(t.running_var, p.running_var, s.norms);
  };
  const int64_t tiles =
      ceil_divide(s.images * s.node_height * s.node_width, Micro(cell.channels).positions());
  const auto place = [&](ScratchArrays& arrays) {
    char* table = arrays.take<char>(builder.size(running));
    cell.scale = arrays.take<T>(s.groups * s.norms * s.channels);
    cell.partial =
        arrays.take<T>(batch ? (s.blocks + s.pools) * s.groups * tiles * 3 * s.channels : 0);
    return table;
  };
  ScratchArrays sizes;
  place(sizes);
  ScratchArrays arrays = {reinterpret_cast<uintptr_t>(allocate(sizes.next))};
  builder.upload(place(arrays), stream, running);
  if (takes_vectors(p, p.in_channels, {p.output})) {
    launch_forward<T, M, kLanes<T>>(cell, steps, all_norms, stream);
  } else {
    launch_forward<T, M, 1>(cell, steps, all_norms, stream);
  }
}

}  // namespace darts_fast::cuda
