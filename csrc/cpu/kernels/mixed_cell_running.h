// SPDX-License-Identifier: Apache-2.0
// Forward of mixed_cell where no norm takes statistics of the batch and nothing is kept for a
// backward: no barrier, so that an image goes through the whole cell in one thread's scratch
// memory, and no map is ever written.
//
// The states of an image take turns. A complete state is padded and rectified once for all ops that
// leave it, and each adds to the sum of its node. Of w * ((y - mean) * scale + beta) the factors go
// into the op's last matrix and the rest into a constant that the sum starts from, so that the
// matrices of an edge are one product over the outputs of all their depthwise convolutions.
#pragma once

#include "cpu/kernels/mixed_cell_forward.h"

namespace darts_fast::cpu::DARTS_CPU_CAPABILITY {

// Ops whose matrices share one pass over the node's sum: strips of their depthwise outputs and the
// sum itself stay in the first-level cache.
constexpr int64_t kBranches = 4;

template <typename T>
struct CellRunningScratch {
  T* tile[2];      // of each geometry
  T* chain_tiles;  // of the chains among kBranches ops
  T* nodes;        // [nodes] sums
  T* pool;         // a pooled map
  T* pool_scratch;
  T* strips;  // [kBranches] of depthwise outputs
  BlockForwardScratch<T> block[2];
};

static inline Tile chain_tile(const CellPlan& plan, int64_t period) {
  return make_tile(second_shape(plan.shape), plan.chain_pad, period);
}

template <typename T>
static int64_t strip_size(const BlockShape& s) {
  const int64_t period = pattern_period<T>(s.channels);
  return strip_rows(s, period) * round_up(s.out_width * s.channels, period) + kLanes<T>;
}

// Elements from one node's sum to the next; the last vector of a pixel may reach past an image.
template <typename T>
static inline int64_t node_stride(const CellShape& s) {
  return round_up(node_size(s) + kLanes<T>, 64);
}

template <typename T>
static CellRunningScratch<T> running_parts(const CellPlan& plan, Scratch<T>* scratch) {
  const CellShape& s = plan.shape;
  const int64_t period = pattern_period<T>(s.channels);
  CellRunningScratch<T> parts = {};
  for (int64_t i = 0; i < geometry_count(s); ++i) {
    const CellGeometry geometry = cell_geometry(plan, i);
    parts.tile[i] = scratch->take(make_tile(geometry.shape, geometry.pad, period).size);
    parts.block[i] = block_forward_scratch(geometry.shape, scratch);
  }
  parts.chain_tiles = scratch->take(kBranches * round_up(chain_tile(plan, period).size, 16));
  parts.nodes = scratch->take(s.nodes * node_stride<T>(s));
  parts.pool = scratch->take(node_size(s));
  parts.pool_scratch = scratch->take(pool_scratch<T>(pool_shape(s, 0)));
  parts.strips = scratch->take(kBranches * strip_size<T>(second_shape(s)));
  return parts;
}

template <typename T>
static int64_t cell_running_scratch(const CellPlan& plan) {
  Scratch<T> scratch = {nullptr};
  running_parts(plan, &scratch);
  return scratch.used;
}

// Items: groups and ops.
template <typename T>
static void cell_running_norms(const CellForward<T>& p, int64_t begin, int64_t end) {
  const CellShape& s = p.plan.shape;
  for (int64_t item = begin; item < end; ++item) {
    const int64_t group = item / s.ops;
    const int64_t k = item % s.ops;
    const CellOp& op = p.plan.ops[k];
    const bool runs = op_runs(p, group, k);
    for (int64_t norm = op.norm - (is_chain(op) ? 1 : 0); norm >= 0 && norm <= op.norm; ++norm) {
      const int64_t at = (group * s.norms + norm) * s.channels;
      if (runs) {
        finish_norm(p, group, norm, 0);
      } else {
        neutral_moments(s.channels, p.mean + at, p.var + at);
      }
    }
    if (runs) finish_term(p, group, k);
  }
}

// Items: groups and nodes. What does not depend on the image.
template <typename T>
static void cell_running_constants(const CellForward<T>& p, int64_t begin, int64_t end) {
  const CellPlan& plan = p.plan;
  const CellShape& s = plan.shape;
  const int64_t period = pattern_period<T>(s.channels);
  for (int64_t item = begin; item < end; ++item) {
    const int64_t group = item / s.nodes;
    const int64_t node = s.inputs + item % s.nodes;
    expand_pattern(p.constants + item * period, s.channels, period, [&](int64_t c) {
      double sum = 0;
      for (int64_t j = plan.entering.at[node]; j < plan.entering.at[node + 1]; ++j) {
        const int64_t k = plan.entering.entries[j];
        const int64_t norm = plan.ops[k].norm;
        if (!op_runs(p, group, k) || norm < 0 || p.norms[norm] == Norm::kNone) continue;
        const double mean = p.mean[(group * s.norms + norm) * s.channels + c];
        sum -= mean * p.term_scale[(group * s.ops + k) * period + c];
        if (p.beta[norm] == nullptr) continue;
        sum += static_cast<double>(p.weights[group * s.ops + k]) * p.beta[norm][c];
      }
      return static_cast<T>(sum);
    });
  }
}

// Items: groups and blocks. The last matrix of an op gives what the node adds.
template <typename T>
static void cell_running_pack(const CellForward<T>& p, int64_t begin, int64_t end) {
  const CellPlan& plan = p.plan;
  const CellShape& s = plan.shape;
  const int64_t period = pattern_period<T>(s.channels);
  for (int64_t item = begin; item < end; ++item) {
    const int64_t group = item / s.blocks;
    const int64_t b = item % s.blocks;
    const int64_t k = plan.block_op[b];
    const CellOp& op = plan.ops[k];
    if (!op_runs(p, group, k)) continue;
    T* packed = p.packed + item * p.packed_stride;
    pack_block(block_shape(plan, b), plan.blocks[b], p.first[b], p.second[b], packed);
    if (is_chain(op) && b == op.block) continue;
    const PackedBlock<T> block = cell_block(p, b, group);
    T* matrices = packed + (block.matrices - block.depthwise);
    const T* scale = p.term_scale + (group * s.ops + k) * period;
    for (int64_t row = 0; row < block.dense_taps * s.channels; ++row) {
      for (int64_t c = 0; c < s.channels; ++c) matrices[row * block.row + c] *= scale[c];
    }
  }
}

// A depthwise convolution that stands in front of an op's last matrix.
template <typename T>
struct Branch {
  BlockShape shape;
  Tile tile;
  const T* image;
  PackedBlock<T> packed;
  DepthwiseTaps<T> depthwise;
  Tap taps[kMaxTaps];
};

template <typename T>
static void set_branch(const BlockShape& shape, const Tile& tile, const ConvBlock& block,
                       const PackedBlock<T>& packed, const T* image, Branch<T>* branch) {
  branch->shape = shape;
  branch->tile = tile;
  branch->image = image;
  branch->packed = packed;
  const int64_t period = pattern_period<T>(shape.channels);
  tile_taps(shape, tile, block, period, branch->taps);
  branch->depthwise = depthwise_taps<T>(branch->taps, block_taps(block), period);
}

// Rows [h, h + rows) of the depthwise outputs, back to back.
template <typename T>
static inline void branch_rows(const Branch<T>& b, int64_t h, int64_t rows, T* out) {
  const int64_t row = b.shape.stride * b.tile.row;
  depthwise_rows<T>({b.image + h * row, row, out, b.tile.out_count, rows, b.tile.out_count, false},
                    b.depthwise, b.packed.depthwise);
}

// sum += the matrices of all branches times their depthwise outputs, one image.
template <typename T>
static void add_branches(const Branch<T>* branches, int64_t count, T* strips, T* sum) {
  if (count == 0) return;
  const BlockShape& s = branches[0].shape;
  const int64_t strip = strip_rows(s, pattern_period<T>(s.channels));
  const int64_t size = strip_size<T>(s);
  const PackedBlock<T>& first = branches[0].packed;
  Tap taps[kBranches];
  for (int64_t i = 0; i < count; ++i) {
    taps[i] = {i * size, branches[i].packed.matrices - first.matrices};
  }
  for (int64_t h = 0; h < s.out_height; h += strip) {
    const int64_t rows = strip < s.out_height - h ? strip : s.out_height - h;
    for (int64_t i = 0; i < count; ++i) branch_rows(branches[i], h, rows, strips + i * size);
    pointwise_rows<T>(
        {strips, s.channels, taps, count, s.channels, first.matrices, first.row,
         sum + h * s.out_width * s.out_channels, s.out_channels, s.out_channels, true},
        rows * s.out_width);
  }
}

// The first block of a chain, its norm and the ReLU behind it, into the second block's tile.
template <typename T>
static void first_of_chain(const Branch<T>& b, const BlockForwardScratch<T>& scratch,
                           const InputNorm<T>& norm, const BlockShape& second, const Tile& tile,
                           T* image) {
  const BlockShape& s = b.shape;
  const int64_t period = pattern_period<T>(s.channels);
  const int64_t strip = strip_rows(s, period);
  const int64_t row = s.out_width * s.out_channels;
  const Tap here = {0, 0};
  for (int64_t h = 0; h < s.out_height; h += strip) {
    const int64_t rows = strip < s.out_height - h ? strip : s.out_height - h;
    branch_rows(b, h, rows, scratch.depthwise);
    pointwise_rows<T>({scratch.depthwise, s.channels, &here, 1, s.channels, b.packed.matrices,
                       b.packed.row, scratch.out, s.out_channels, s.out_channels, false},
                      rows * s.out_width);
    for (int64_t i = 0; i < rows; ++i) {
      load_tile_row(scratch.out + i * row, row, period, &norm,
                    image + tile_offset(second, tile, h + i, 0));
    }
  }
}

// sum += a dense convolution, one image.
template <typename T>
static void add_dense(const BlockShape& s, const Tile& tile, const ConvBlock& block,
                      const PackedBlock<T>& packed, const T* image, T* sum) {
  Tap taps[kMaxTaps];
  tile_taps(s, tile, block, packed.matrix, taps);
  for (int64_t h = 0; h < s.out_height; ++h) {
    pointwise_rows<T>(
        {image + h * s.stride * tile.row, s.channels, taps, packed.dense_taps, s.channels,
         packed.matrices, packed.row, sum + h * s.out_width * s.out_channels, s.out_channels,
         s.out_channels, true},
        s.out_width);
  }
}

// sum += scale * y of an op without a convolution, one image.
template <typename T>
static void add_map(const CellForward<T>& p, int64_t group, int64_t k, const T* y, T* sum) {
  const CellShape& s = p.plan.shape;
  const int64_t period = pattern_period<T>(s.channels);
  TermSum<T> term = {sum, node_size(s), period, 0, {}, {}, {}};
  add_term(&term, y, p.term_scale + (group * s.ops + k) * period,
           p.center + s.groups * s.norms * period);
  flush_terms(&term);
}

// The convolutions from a state, whose tile is loaded, to a node.
template <typename T>
static void add_edge(const CellForward<T>& p, int64_t group, int64_t source, int64_t node,
                     const T* image, const CellRunningScratch<T>& scratch, T* sum) {
  const CellPlan& plan = p.plan;
  const CellShape& s = plan.shape;
  const int64_t period = pattern_period<T>(s.channels);
  const int64_t at_geometry = geometry_of(s, source);
  const CellGeometry geometry = cell_geometry(plan, at_geometry);
  const Tile tile = make_tile(geometry.shape, geometry.pad, period);
  const BlockShape second = second_shape(s);
  const Tile behind = chain_tile(plan, period);
  Branch<T> branches[kBranches], first;
  int64_t count = 0;
  for (int64_t j = plan.leaving.at[source]; j < plan.leaving.at[source + 1]; ++j) {
    const int64_t k = plan.leaving.entries[j];
    const CellOp& op = plan.ops[k];
    if (op.node != node || !is_conv(op) || !op_runs(p, group, k)) continue;
    const ConvBlock& block = plan.blocks[op.block];
    const PackedBlock<T> packed = cell_block(p, op.block, group);
    if (block.kind != ConvKind::kSeparable) {
      add_dense(geometry.shape, tile, block, packed, image, sum);
      continue;
    }
    Branch<T>* branch = branches + count;
    if (is_chain(op)) {
      const int64_t row = (group * s.norms + op.norm - 1) * period;
      T* const to = scratch.chain_tiles + count * round_up(behind.size, 16);
      set_branch(geometry.shape, tile, block, packed, image, &first);
      first_of_chain(first, scratch.block[at_geometry],
                     {p.center + row, p.scale + row, p.shift + row}, second, behind, to);
      set_branch<T>(second, behind, plan.blocks[op.block + 1], cell_block(p, op.block + 1, group),
                    to, branch);
    } else {
      set_branch(geometry.shape, tile, block, packed, image, branch);
    }
    if (++count == kBranches) {
      add_branches(branches, count, scratch.strips, sum);
      count = 0;
    }
  }
  add_branches(branches, count, scratch.strips, sum);
}

// One image: adds what leaves a complete state to the sums of the later nodes.
template <typename T>
static void leave_state(const CellForward<T>& p, int64_t state, int64_t group, const T* x,
                        const CellRunningScratch<T>& scratch) {
  const CellPlan& plan = p.plan;
  const CellShape& s = plan.shape;
  const int64_t from = plan.leaving.at[state], to = plan.leaving.at[state + 1];
  const auto sum_of = [&](int64_t node) {
    return scratch.nodes + (node - s.inputs) * node_stride<T>(s);
  };
  int64_t pooled = -1;
  bool convolves = false;
  for (int64_t j = from; j < to; ++j) {
    const int64_t k = plan.leaving.entries[j];
    const CellOp& op = plan.ops[k];
    if (!op_runs(p, group, k)) continue;
    convolves = convolves || is_conv(op);
    if (op.kind == CellOpKind::kIdentity) add_map(p, group, k, x, sum_of(op.node));
  }
  for (int64_t i = plan.state_pools.at[state]; i < plan.state_pools.at[state + 1]; ++i) {
    const int64_t index = plan.state_pools.entries[i];
    for (int64_t j = from; j < to; ++j) {
      const int64_t k = plan.leaving.entries[j];
      if (plan.ops[k].pool != index || !op_runs(p, group, k)) continue;
      if (pooled != index) {
        const PoolShape shape = pool_shape(s, state);
        if (plan.pools[index].kind == CellOpKind::kMaxPool) {
          max_pool_image(shape, x, scratch.pool_scratch, scratch.pool);
        } else {
          avg_pool_image(shape, x, scratch.pool_scratch, scratch.pool);
        }
        pooled = index;
      }
      add_map(p, group, k, scratch.pool, sum_of(plan.ops[k].node));
    }
  }
  if (!convolves) return;
  const int64_t at_geometry = geometry_of(s, state);
  const CellGeometry geometry = cell_geometry(plan, at_geometry);
  const int64_t period = pattern_period<T>(s.channels);
  T* const image = scratch.tile[at_geometry];
  load_tile<T>(geometry.shape, make_tile(geometry.shape, geometry.pad, period), x, period, nullptr,
               image);
  for (int64_t node = state < s.inputs ? s.inputs : state + 1; node < s.inputs + s.nodes; ++node) {
    add_edge(p, group, state, node, image, scratch, sum_of(node));
  }
}

// Items: images.
template <typename T>
static void cell_running(const CellForward<T>& p, Items items) {
  const CellPlan& plan = p.plan;
  const CellShape& s = plan.shape;
  const int64_t period = pattern_period<T>(s.channels);
  const int64_t size = node_size(s);
  Scratch<T> cut = {p.scratch + items.share * p.scratch_stride};
  const CellRunningScratch<T> scratch = running_parts(plan, &cut);
  for (int64_t i = 0; i < geometry_count(s); ++i) {
    clear_tile(cell_geometry(plan, i), scratch.tile[i]);
  }
  std::memset(scratch.chain_tiles, 0,
              kBranches * round_up(chain_tile(plan, period).size, 16) * sizeof(T));
  for (int64_t item = next_item(items); item >= 0; item = next_item(items)) {
    const int64_t n = image_of_item(s, item);
    const int64_t group = n / s.images;
    for (int64_t node = 0; node < s.nodes; ++node) {
      T* sum = scratch.nodes + node * node_stride<T>(s);
      const T* constant = p.constants + (group * s.nodes + node) * period;
      for (int64_t i = 0; i < size; i += period) {
        std::memcpy(sum + i, constant, (size - i < period ? size - i : period) * sizeof(T));
      }
    }
    for (int64_t state = 0; state < s.inputs; ++state) {
      leave_state(p, state, group, state_image(p, state, n), scratch);
    }
    for (int64_t node = 0; node < s.nodes; ++node) {
      const T* sum = scratch.nodes + node * node_stride<T>(s);
      const int64_t place = node - (s.nodes - s.multiplier);
      if (place >= 0) {
        copy_pixels(sum, s.channels, s.node_height * s.node_width, s.channels,
                    p.output + n * size * s.multiplier + place * s.channels,
                    s.multiplier * s.channels);
      }
      leave_state(p, s.inputs + node, group, sum, scratch);
    }
  }
}

}  // namespace darts_fast::cpu::DARTS_CPU_CAPABILITY
