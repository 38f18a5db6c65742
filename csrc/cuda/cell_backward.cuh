// SPDX-License-Identifier: Apache-2.0
// The launches of a cell's backward, last node first. Per node: the norms' reductions and what they
// give (the architecture gradient among it); the second blocks of chains, and their first norms;
// the first blocks with the gradients of the sources. Each has the gradients of its weights.
#pragma once

#include <algorithm>

#include "cuda/cell_forward.cuh"
#include "cuda/cell_grad_inner.cuh"
#include "cuda/cell_grad_weights.cuh"

namespace darts_fast::cuda {
namespace {

struct NodeGradients {
  bool unread = false;        // no op reads the node
  bool has_products = false;  // made by the launch of the node behind it
  ListRange entering;
  ListRange chains;              // of which something is wanted behind the first norm or further
  ListRange weights;             // blocks, but separable ones, whose weights' gradients are wanted
  std::vector<Sources> sources;  // one launch each
};

template <typename T, typename M>
struct BackwardPlan {
  std::vector<NodeGradients> nodes;
  int64_t most_chains = 0, most_slots = 0;
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
  const auto is_separable = [&](int64_t b) {
    return p.plan.blocks[b].kind == ConvKind::kSeparable;
  };
  for (int64_t node = s.nodes - 1; node >= 0; --node) {
    NodeGradients& n = plan.nodes[node];
    const int64_t state = s.inputs + node;
    n.unread = !reached[state];
    const std::vector<int64_t> entering = builder.ops_of(p.plan.entering, state);
    std::vector<int64_t> chains, weights;
    int16_t inner = 0;
    for (const int64_t k : entering) {
      const CellOp& op = builder.op(k);
      // Of an idle chain they are zeros.
      const bool wants_inner_norm = op.inner_map >= 0 && wants_norm(op.norm - 1);
      if (wants_inner_norm && !builder.runs(k)) chains.push_back(k);
      if (op.block < 0 || !builder.runs(k)) continue;
      const bool wants_state = op.source >= s.inputs || p.grad_states[op.source] != nullptr;
      const bool wants_first = wants_weights(op.block);
      if (wants_first && !is_separable(op.block)) weights.push_back(op.block);
      if (op.inner_map < 0) continue;
      if (wants_state || wants_first || wants_inner_norm || wants_weights(op.block + 1)) {
        builder.blocks[op.block].inner = builder.blocks[op.block + 1].inner = inner++;
        chains.push_back(k);
      }
    }
    most(plan.most_chains, inner);
    most(plan.most_slots, 1 + static_cast<int64_t>(entering.size()));
    most(plan.most_slots, 2 * static_cast<int64_t>(chains.size()));
    n.entering = builder.lists.add(entering);
    n.chains = builder.lists.add(chains);
    n.weights = builder.lists.add(weights);
    // `entering` is in the order of the sources.
    for (size_t i = 0; i < entering.size();) {
      const int64_t source = builder.op(entering[i]).source;
      const bool wanted = source >= s.inputs || p.grad_states[source] != nullptr;
      bool weighs = false;
      size_t end = i;
      for (; end < entering.size() && builder.op(entering[end]).source == source; ++end) {
        const int64_t b = builder.op(entering[end]).block;
        weighs = weighs || (b >= 0 && is_separable(b) && wants_weights(b));
      }
      if (wanted || weighs) {
        if (n.sources.empty() || n.sources.back().size == kSources) n.sources.emplace_back();
        Sources& sources = n.sources.back();
        const int at = sources.size++;
        sources.state[at] = static_cast<int>(source);
        sources.list[at] = n.entering.at + static_cast<int>(i);
        sources.count[at] = static_cast<int>(end - i);
        sources.wanted[at] = wanted;
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
           n.entering.at, n.has_products ? c_.node_boxes.boxes : tiles);
    if (n.chains.count > 0) {
      launch("cell_grad_inner", cell_grad_inner<T, M, V>,
             dim3(c_.node_boxes.chunks, c_.groups * box_micro<StateOf<T, M>>(c_.channels, V).chunks,
                  n.chains.count),
             kThreads, stream_, c_, n.chains.at);
    }
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
  void sources(const Sources& sources, const ListRange& weights) const {
    unsigned x = 0, y = 0;
    for (int i = 0; i < sources.size; ++i) {
      const bool input = sources.state[i] < c_.inputs;
      const Micro micro = box_micro<StateOf<T, M>>(input ? c_.in_channels : c_.channels, V);
      x = std::max(x, grid_size((input ? c_.input_boxes : c_.node_boxes).chunks));
      y = std::max(y, grid_size(c_.groups * micro.chunks));
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

// Shares of boxes: as many as keep a row of weights' sums, `row` elements, to a sixth of the map's
// values that it sums; but 64, where there are so many boxes, or few blocks of threads would run.
inline void cut_shares(BoxGrid& grid, int64_t values, int64_t row) {
  const int64_t most = std::max<int64_t>(64, values / (6 * row));
  grid.share = static_cast<int>(ceil_divide(grid.boxes, most));
  grid.chunks = static_cast<int>(ceil_divide(grid.boxes, grid.share));
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
  bool aligned = takes_vectors<T, M>(p, p.in_channels, {p.grad_output});
  for (int64_t i = 0; i < s.inputs; ++i) {
    aligned = aligned && is_aligned(p.grad_states[i]);
  }
  const int lanes = aligned ? kLanes<T> : 1;
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
  const Plane out = {cell.node_height, cell.node_width};
  const int64_t positions = s.images * out.size();
  const Micro micro = box_micro<StateOf<T, M>>(cell.channels, lanes);
  cell.node_boxes = box_grid(out, 1, s.images, micro.positions());
  cell.input_boxes = box_grid(out, cell.stride, s.images,
                              box_micro<StateOf<T, M>>(cell.in_channels, lanes).positions());
  // Whole vectors, so that every row is aligned.
  cell.partial_weights_row = ceil_divide(limits.row, 16) * 16;
  for (BoxGrid* grid : {&cell.node_boxes, &cell.input_boxes}) {
    cut_shares(*grid, positions * s.channels, cell.partial_weights_row + 1);
  }
  const int64_t chunks = ceil_divide(positions, chunk_positions(positions));
  cell.partial_weights_rows =
      std::max({cell.node_boxes.chunks, cell.input_boxes.chunks, static_cast<int>(chunks)});
  const int64_t tiles = std::max(ceil_divide(positions, Strip(cell.channels, lanes).positions()),
                                 cell.node_boxes.boxes);
  const int64_t norm_values = s.groups * s.norms * s.channels;
  // Of one node no sum is left for another.
  const bool sums_inputs = !std::is_same_v<T, StateOf<T, M>> && s.nodes > 1;
  cell.grad_inputs_slot =
      ceil_divide(s.groups * s.images * s.height * s.width * p.in_channels, 16) * 16;
  const auto place = [&](ScratchArrays& arrays) {
    char* table = builder.take(arrays, s.blocks * micro.chunks, grads);
    cell.scale = arrays.take<T>(norm_values);
    cell.grad_scale = arrays.take<T>(norm_values);
    cell.grad_mean = arrays.take<T>(norm_values);
    cell.grad_slope = arrays.take<T>(norm_values);
    cell.partial = arrays.take<T>(plan.most_slots * s.groups * tiles * s.channels);
    cell.grad_nodes = arrays.take<T>(s.nodes * p.slot);
    cell.grad_inputs = arrays.take<T>(sums_inputs ? s.inputs * cell.grad_inputs_slot : 0);
    cell.grad_inner = arrays.take<T>(plan.most_chains * p.slot);
    cell.partial_weights = arrays.take<T>(
        plan.weights ? s.blocks * s.groups * cell.partial_weights_rows * cell.partial_weights_row
                     : 0);
    return table;
  };
  ScratchArrays sizes;
  place(sizes);
  ScratchArrays arrays = {reinterpret_cast<uintptr_t>(allocate(sizes.next))};
  builder.upload(place(arrays), stream, grads);
  if (aligned) {
    launch_backward<T, M, kLanes<T>>(cell, plan, limits, stream);
  } else {
    launch_backward<T, M, 1>(cell, plan, limits, stream);
  }
}

}  // namespace darts_fast::cuda
