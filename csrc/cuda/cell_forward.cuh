// SPDX-License-Identifier: Apache-2.0
// The launches of a cell's forward, node by node, as the plan gives out its slots: the first blocks
// of the ops that enter the node, with the pools of the states that were completed before it; the
// second blocks of chains; then the node is summed. A DARTS cell of 4 nodes takes 1 + 4 * 3
// launches, and one more where a norm has statistics that are given.
#pragma once

#include "cuda/cell_combine.cuh"
#include "cuda/cell_convolve.cuh"
#include "cuda/cell_norms.cuh"
#include "cuda/cell_plan.cuh"

namespace darts_fast::cuda {
namespace {

struct NodeStep {
  ListRange first, second;  // blocks and pools
  ListRange entering;       // ops
};

template <typename T, typename M>
std::vector<NodeStep> forward_steps(CellTablesBuilder<T, M>& builder,
                                    const CudaCellArguments<T, M>& p) {
  const CellShape& s = p.plan.shape;
  std::vector<NodeStep> steps;
  for (int64_t state = s.inputs; state < s.inputs + s.nodes; ++state) {
    std::vector<int64_t> first, second;
    const std::vector<int64_t> entering = builder.ops_of(p.plan.entering, state);
    for (const int64_t k : entering) {
      const CellOp& op = builder.op(k);
      if (op.block < 0 || !builder.runs(k)) continue;
      first.push_back(op.block);
      if (op.inner_map >= 0) second.push_back(op.block + 1);
    }
    const CellList& pools = p.plan.state_pools;
    const int64_t from = state == s.inputs ? 0 : state - 1;
    for (int64_t i = pools.at[from]; i < pools.at[state]; ++i) {
      first.push_back(s.blocks + pools.entries[i]);
    }
    steps.push_back(
        {builder.lists.add(first), builder.lists.add(second), builder.lists.add(entering)});
  }
  return steps;
}

template <typename T, typename M, int V>
void launch_items(const Cell<T, M>& cell, const ListRange& items, cudaStream_t stream) {
  if (items.count == 0) return;
  const Micro micro = micro_of<StateOf<T, M>>(cell.channels);
  const int64_t positions = cell.images * cell.node_height * cell.node_width;
  launch("cell_convolve", cell_convolve<T, M, V>,
         dim3(grid_size(ceil_divide(positions, micro.positions())), cell.groups * micro.chunks,
              items.count),
         kThreads, stream, cell, items.at);
}

template <typename T, typename M, int V>
void launch_forward(const Cell<T, M>& cell, const std::vector<NodeStep>& steps,
                    const ListRange& given_norms, cudaStream_t stream) {
  const Strip strip(cell.channels, V);
  const int64_t positions = cell.images * cell.node_height * cell.node_width;
  if (given_norms.count > 0) {
    launch("cell_given_norms", cell_given_norms<T, M>,
           dim3(grid_size(ceil_divide(cell.channels, kThreads)), given_norms.count, cell.groups),
           kThreads, stream, cell, given_norms.at);
  }
  for (size_t i = 0; i < steps.size(); ++i) {
    const NodeStep& step = steps[i];
    launch_items<T, M, V>(cell, step.first, stream);
    launch_items<T, M, V>(cell, step.second, stream);
    launch("cell_combine", cell_combine<T, M, V>,
           dim3(grid_size(ceil_divide(positions, strip.positions())), cell.groups * strip.chunks),
           kThreads, stream, cell, step.entering.at, step.entering.count, static_cast<int>(i));
  }
}

// Whether V channels can be read and written at once.
template <typename T, typename M>
bool takes_vectors(const CudaCellArguments<T, M>& p, int64_t in_channels,
                   std::initializer_list<const void*> others) {
  constexpr int lanes = kLanes<T>;
  bool all = p.plan.shape.channels % lanes == 0 && in_channels % lanes == 0 && p.slot % 8 == 0 &&
             is_aligned(p.maps) && is_aligned(p.raw) && is_aligned(p.mean) && is_aligned(p.var);
  for (int64_t i = 0; i < p.plan.shape.inputs; ++i) all = all && is_aligned(p.states[i]);
  for (const void* pointer : others) all = all && is_aligned(pointer);
  return all;
}

}  // namespace

template <typename T, typename M>
void launch_cell(const CudaCellForward<T, M>& p, const Allocate& allocate, cudaStream_t stream) {
  const CellShape& s = p.plan.shape;
  CellTablesBuilder<T, M> builder(p, p.in_channels);
  Cell<T, M>& cell = builder.cell;
  cell.output = p.output;
  const std::vector<NodeStep> steps = forward_steps<T, M>(builder, p);
  const ListRange given_norms = builder.lists.add(builder.given_norms());
  const auto running = [&](CellTables<T, StateOf<T, M>>& t, const TableWriter& put) {
    put.pointers(t.running_mean, p.running_mean, s.norms);
    put.pointers(t.running_var, p.running_var, s.norms);
  };
  const Micro micro = micro_of<StateOf<T, M>>(cell.channels);
  const int64_t tiles = ceil_divide(s.images * s.node_height * s.node_width, micro.positions());
  const int64_t merged = builder.wants_moments() ? (s.blocks + s.pools) * s.groups : 0;
  const auto place = [&](ScratchArrays& arrays) {
    char* table = builder.take(arrays, merged * micro.chunks, running);
    cell.scale = arrays.take<T>(s.groups * s.norms * s.channels);
    cell.partial = arrays.take<T>(merged * tiles * 3 * s.channels);
    return table;
  };
  ScratchArrays sizes;
  place(sizes);
  ScratchArrays arrays = {reinterpret_cast<uintptr_t>(allocate(sizes.next))};
  builder.upload(place(arrays), stream, running);
  if (takes_vectors<T, M>(p, p.in_channels, {p.output})) {
    launch_forward<T, M, kLanes<T>>(cell, steps, given_norms, stream);
  } else {
    launch_forward<T, M, 1>(cell, steps, given_norms, stream);
  }
}

}  // namespace darts_fast::cuda
