// SPDX-License-Identifier: Apache-2.0
// The launches of a cell's backward, last node first. Per node: the norms' reductions and what they
// give (the architecture gradient among it); the second blocks of chains, and their first norms;
// the first blocks; the gradients of the weights; the gradients of the sources.
#pragma once

#include <algorithm>

#include "cuda/cell_forward.cuh"
#include "cuda/cell_grad_rows.cuh"
#include "cuda/cell_grad_states.cuh"
#include "cuda/cell_grad_weights.cuh"

namespace darts_fast::cuda {
namespace {

struct NodeGradients {
  bool unread = false;        // no op reads the node
  bool has_products = false;  // made by the launch of the node behind it
  ListRange entering;
  ListRange chains;              // of whose first norm a gradient, or what is behind it, is wanted
  ListRange second, first;       // blocks whose dL/dy is multiplied
  ListRange weights;             // blocks whose weights' gradients are wanted
  std::vector<Sources> sources;  // one launch each
};

template <typename T, typename M>
struct BackwardPlan {
  std::vector<NodeGradients> nodes;
  int64_t most_rows = 0, most_chains = 0, most_partial = 0;
  bool weights = false;
};

template <typename T, typename M>
BackwardPlan<T, M> backward_plan(CellTablesBuilder<T, M>& builder,
                                 const CudaCellBackward<T, M>& p) {
  const CellShape& s = p.plan.shape;
  BackwardPlan<T, M> plan;
  plan.nodes.resize(s.nodes);
  std::vector<bool> reached(s.inputs + s.nodes, false);
  const auto wants_weights = [&](int64_t b) {
    return p.grad_first[b] != nullptr || p.grad_second[b] != nullptr;
  };
  const auto wants_norm = [&](int64_t b) {
    return p.grad_gamma[b] != nullptr || p.grad_beta[b] != nullptr;
  };
  const auto most = [](int64_t& value, int64_t other) { value = other > value ? other : value; };
  const int64_t positions = s.images * s.node_height * s.node_width;
  for (int64_t node = s.nodes - 1; node >= 0; --node) {
    NodeGradients& n = plan.nodes[node];
    const int64_t state = s.inputs + node;
    n.unread = !reached[state];
    const std::vector<int64_t> entering = builder.ops_of(p.plan.entering, state);
    std::vector<int64_t> chains, second, first, weights;
    int16_t inner = 0;
    for (const int64_t k : entering) {
      const CellOp& op = builder.op(k);
      // Of an idle chain they are zeros.
      const bool wants_inner_norm = op.inner_map >= 0 && wants_norm(op.norm - 1);
      if (wants_inner_norm && !builder.runs(k)) chains.push_back(k);
      if (op.block < 0 || !builder.runs(k)) continue;
      const bool wants_state = op.source >= s.inputs || p.grad_states[op.source] != nullptr;
      const bool separable = p.plan.blocks[op.block].kind == ConvKind::kSeparable;
      const bool wants_first = wants_weights(op.block);
      if (wants_state || (separable && wants_first)) first.push_back(op.block);
      if (wants_first) weights.push_back(op.block);
      if (op.inner_map < 0) continue;
      const bool wants_second = wants_weights(op.block + 1);
      const bool wants_inner = wants_state || wants_first || wants_inner_norm;
      if (wants_inner) {
        builder.blocks[op.block].inner = builder.blocks[op.block + 1].inner = inner++;
        chains.push_back(k);
      }
      if (wants_inner || wants_second) second.push_back(op.block + 1);
      if (wants_second) weights.push_back(op.block + 1);
    }
    int16_t place = 0;
    for (const auto* blocks : {&second, &first}) {
      for (const int64_t b : *blocks) builder.blocks[b].rows = place++;
    }
    most(plan.most_rows, place);
    most(plan.most_chains, inner);
    most(plan.most_partial, 1 + static_cast<int64_t>(entering.size()));
    most(plan.most_partial, 2 * static_cast<int64_t>(chains.size()));
    n.entering = builder.lists.add(entering);
    n.chains = builder.lists.add(chains);
    n.second = builder.lists.add(second);
    n.first = builder.lists.add(first);
    n.weights = builder.lists.add(weights);
    // `entering` is in the order of the sources.
    for (size_t i = 0; i < entering.size();) {
      const int64_t source = builder.op(entering[i]).source;
      size_t end = i;
      while (end < entering.size() && builder.op(entering[end]).source == source) ++end;
      if (source >= s.inputs || p.grad_states[source] != nullptr) {
        if (n.sources.empty() || n.sources.back().size == kSources) n.sources.emplace_back();
        Sources& sources = n.sources.back();
        const int at = sources.size++;
        sources.state[at] = static_cast<int>(source);
        sources.list[at] = n.entering.at + static_cast<int>(i);
        sources.count[at] = static_cast<int>(end - i);
        sources.first[at] = !reached[source];
        // Only later nodes read it, and they are done.
        if (node > 0 && source == state - 1) {
          const std::vector<int64_t> products = builder.ops_of(p.plan.entering, source);
          sources.complete = products.empty() ? -1 : at;
          sources.products_count = static_cast<int>(products.size());
          sources.products_list = builder.lists.add(products).at;
          plan.nodes[node - 1].has_products = true;
        }
      }
      reached[source] = true;
      i = end;
    }
  }
  // The first node that reads an input is the last to add to its gradient.
  std::vector<bool> complete(s.inputs, false);
  for (NodeGradients& n : plan.nodes) {
    for (Sources& sources : n.sources) {
      for (int i = 0; i < sources.size; ++i) {
        const int state = sources.state[i];
        sources.last[i] = state < s.inputs && !complete[state];
        if (state < s.inputs) complete[state] = true;
      }
    }
  }
  for (int64_t b = 0; b < s.blocks; ++b) plan.weights = plan.weights || wants_weights(b);
  plan.most_partial *=
      s.groups * s.channels * ceil_divide(positions, Strip(builder.cell.channels, 1).positions());
  return plan;
}

template <typename T, typename M, int V>
class BackwardLaunches {
 public:
  BackwardLaunches(const Cell<T, M>& cell, const WeightLimits& limits, cudaStream_t stream)
      : c_(cell), limits_(limits), stream_(stream) {
    positions_ = c_.images * c_.node_height * c_.node_width;
    chunks_ = static_cast<int>(ceil_divide(positions_, chunk_positions(positions_)));
  }

  void node(const NodeGradients& n, int node) const {
    if (n.entering.count == 0) return;
    const Strip strip(c_.channels, V);
    const int64_t tiles = ceil_divide(positions_, strip.positions());
    const dim3 sweep(grid_size(tiles), c_.groups * strip.chunks);
    if (!n.has_products) {
      launch("cell_products", cell_products<T, M, V>,
             dim3(sweep.x, sweep.y, grid_size(ceil_divide(n.entering.count, kTermsPerBlock))),
             kThreads, stream_, c_, n.entering.at, n.entering.count, node, n.unread);
    }
    launch("cell_grad_norms", cell_grad_norms<T, M>, n.entering.count, kThreads, stream_, c_,
           n.entering.at, tiles);
    rows(n.second, positions_);
    if (n.chains.count > 0) {
      launch("cell_grad_inner", cell_grad_inner<T, M, V>, dim3(sweep.x, sweep.y, n.chains.count),
             kThreads, stream_, c_, n.chains.at);
    }
    const int64_t input_positions = c_.images * c_.height * c_.width;
    rows(n.first, input_positions > positions_ ? input_positions : positions_);
    if (n.sources.empty() && n.weights.count > 0) sources({}, n.weights);
    for (size_t i = 0; i < n.sources.size(); ++i) {
      sources(n.sources[i], i == 0 ? n.weights : ListRange{});
    }
  }

  void sum_weights() const {
    launch("cell_sum_weights", cell_sum_weights<T, M>,
           dim3(grid_size(ceil_divide(limits_.row, kThreads)), c_.blocks), kThreads, stream_, c_,
           chunks_);
  }

 private:
  void rows(const ListRange& blocks, int64_t most_positions) const {
    if (blocks.count == 0) return;
    const Micro in(c_.in_channels), own(c_.channels);
    const int tile = in.positions() < own.positions() ? in.positions() : own.positions();
    const int chunks = in.chunks > own.chunks ? in.chunks : own.chunks;
    launch("cell_grad_rows", cell_grad_rows<T, M, V>,
           dim3(grid_size(ceil_divide(most_positions, tile)), c_.groups * chunks, blocks.count),
           kThreads, stream_, c_, blocks.at);
  }

  void sources(const Sources& sources, const ListRange& weights) const {
    unsigned x = 0, y = 0;
    for (int i = 0; i < sources.size; ++i) {
      const bool input = sources.state[i] < c_.inputs;
      const Strip strip(input ? c_.in_channels : c_.channels, V);
      const int64_t positions = input ? c_.images * c_.height * c_.width : positions_;
      x = std::max(x, grid_size(ceil_divide(positions, strip.positions())));
      y = std::max(y, grid_size(c_.groups * strip.chunks));
    }
    if (weights.count > 0) {
      x = std::max(x, grid_size(c_.groups * chunks_));
      y = std::max(y, grid_size(limits_.pieces));
    }
    launch("cell_grad_sources", cell_grad_sources<T, M, V>,
           dim3(x, y, static_cast<unsigned>(sources.size + weights.count)), kThreads, stream_, c_,
           sources, weights.at, chunks_);
  }

  const Cell<T, M>& c_;
  WeightLimits limits_;
  cudaStream_t stream_;
  int64_t positions_;
  int chunks_;
};

template <typename T, typename M, int V>
void launch_backward(const Cell<T, M>& cell, const BackwardPlan<T, M>& plan,
                     const WeightLimits& limits, cudaStream_t stream) {
  const BackwardLaunches<T, M, V> launches(cell, limits, stream);
  for (int node = cell.nodes - 1; node >= 0; --node) launches.node(plan.nodes[node], node);
  if (plan.weights) launches.sum_weights();
}

}  // namespace

template <typename T, typename M>
void launch_cell(const CudaCellBackward<T, M>& p, const Allocate& allocate, cudaStream_t stream) {
  const CellShape& s = p.plan.shape;
  CellTablesBuilder<T, M> builder(p, p.in_channels);
  Cell<T, M>& cell = builder.cell;
  cell.grad_output = p.grad_output;
  cell.grad_weights = p.grad_weights;
  const BackwardPlan<T, M> plan = backward_plan(builder, p);
  const int64_t most_in = p.in_channels > s.channels ? p.in_channels : s.channels;
  const WeightLimits limits =
      weight_limits(builder.blocks, static_cast<int>(most_in), cell.channels);
  const auto grads = [&](CellTables<T, StateOf<T, M>>& t, const TableWriter& put) {
    put.pointers(t.grad_states, p.grad_states, s.inputs);
    put.pointers(t.grad_first, p.grad_first, s.blocks);
    put.pointers(t.grad_second, p.grad_second, s.blocks);
    put.pointers(t.grad_gamma, p.grad_gamma, s.norms);
    put.pointers(t.grad_beta, p.grad_beta, s.norms);
  };
  const int64_t images = s.groups * s.images;
  const int64_t node_pixels = images * s.node_height * s.node_width;
  const int64_t state_pixels = images * s.height * s.width;
  const int64_t positions = s.images * s.node_height * s.node_width;
  const int64_t weight_rows = s.groups * ceil_divide(positions, chunk_positions(positions));
  // Whole vectors, so that every slot is aligned.
  cell.grad_rows_slot =
      ceil_divide((node_pixels > state_pixels ? node_pixels : state_pixels) * most_in, 16) * 16;
  cell.partial_weights_row = ceil_divide(limits.row, 16) * 16;
  const int64_t norm_values = s.groups * s.norms * s.channels;
  // Of one node no sum is left for another.
  const bool sums_inputs = !std::is_same_v<T, StateOf<T, M>> && s.nodes > 1;
  cell.grad_inputs_slot = ceil_divide(state_pixels * p.in_channels, 16) * 16;
  const auto place = [&](ScratchArrays& arrays) {
    char* table = builder.take(arrays, s.blocks * Strip(cell.channels, 1).chunks, grads);
    cell.scale = arrays.take<T>(norm_values);
    cell.grad_scale = arrays.take<T>(norm_values);
    cell.grad_mean = arrays.take<T>(norm_values);
    cell.grad_slope = arrays.take<T>(norm_values);
    cell.partial = arrays.take<T>(plan.most_partial);
    cell.grad_nodes = arrays.take<T>(s.nodes * p.slot);
    cell.grad_inputs = arrays.take<T>(sums_inputs ? s.inputs * cell.grad_inputs_slot : 0);
    cell.grad_inner = arrays.take<T>(plan.most_chains * p.slot);
    cell.grad_rows = arrays.take<T>(plan.most_rows * cell.grad_rows_slot);
    cell.partial_weights =
        arrays.take<T>(plan.weights ? s.blocks * weight_rows * cell.partial_weights_row : 0);
    return table;
  };
  ScratchArrays sizes;
  place(sizes);
  ScratchArrays arrays = {reinterpret_cast<uintptr_t>(allocate(sizes.next))};
  builder.upload(place(arrays), stream, grads);
  bool aligned = takes_vectors<T, M>(p, p.in_channels, {p.grad_output});
  for (int64_t i = 0; i < s.inputs; ++i) {
    aligned = aligned && is_aligned(p.grad_states[i]);
  }
  if (aligned) {
    launch_backward<T, M, kLanes<T>>(cell, plan, limits, stream);
  } else {
    launch_backward<T, M, 1>(cell, plan, limits, stream);
  }
}

}  // namespace darts_fast::cuda
