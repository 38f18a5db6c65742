// SPDX-License-Identifier: Apache-2.0
// What forward and backward of mixed_cell share: shapes of a state's blocks, places of maps and
// statistics, packing.
#pragma once

#include <cmath>

#include "cpu/kernels/conv_block_backward.h"
#include "cpu/kernels/conv_block_forward.h"
#include "cpu/kernels/mixed_cell_kernels.h"
#include "cpu/kernels/norm_gradient.h"
#include "cpu/kernels/pool_images.h"

namespace darts_fast::cpu::DARTS_CPU_CAPABILITY {

static inline bool is_input(const CellShape& s, int64_t state) { return state < s.inputs; }

static inline bool is_conv(const CellOp& op) { return op.block >= 0; }

static inline bool is_chain(const CellOp& op) { return op.kind == CellOpKind::kSeparableTwice; }

// Of the first blocks that leave a state.
static inline BlockShape first_shape(const CellShape& s, int64_t state) {
  if (is_input(s, state)) {
    return {s.channels, s.channels, s.height, s.width, s.node_height, s.node_width, s.stride};
  }
  return {s.channels, s.channels, s.node_height, s.node_width, s.node_height, s.node_width, 1};
}

// Of the second blocks of chains.
static inline BlockShape second_shape(const CellShape& s) { return first_shape(s, s.inputs); }

static inline PoolShape pool_shape(const CellShape& s, int64_t state) {
  const BlockShape b = first_shape(s, state);
  return {b.channels, b.height, b.width, b.out_height, b.out_width, b.stride};
}

static inline int64_t node_size(const CellShape& s) {
  return s.node_height * s.node_width * s.channels;
}

// The shape of the first blocks that leave a state and the reach of the tile they share. Input
// states and nodes differ at stride 2, where each has a tile of its own; at stride 1 all blocks
// share one.
struct CellGeometry {
  BlockShape shape;
  int64_t pad;
};

static inline int64_t geometry_count(const CellShape& s) { return s.stride == 1 ? 1 : 2; }

static inline int64_t geometry_of(const CellShape& s, int64_t state) {
  return s.stride == 1 || is_input(s, state) ? 0 : 1;
}

static inline CellGeometry cell_geometry(const CellPlan& plan, int64_t index) {
  const CellShape& s = plan.shape;
  const int64_t both = plan.input_pad > plan.node_pad ? plan.input_pad : plan.node_pad;
  if (s.stride == 1) return {first_shape(s, 0), both};
  return {first_shape(s, index == 0 ? 0 : s.inputs), index == 0 ? plan.input_pad : plan.node_pad};
}

// Before its first image: the padding keeps these zeros.
template <typename T>
static void clear_tile(const CellGeometry& geometry, T* tile) {
  const int64_t period = pattern_period<T>(geometry.shape.channels);
  std::memset(tile, 0, make_tile(geometry.shape, geometry.pad, period).size * sizeof(T));
}

// The shape of a block, the first or the second of its op.
static inline BlockShape block_shape(const CellPlan& plan, int64_t block) {
  const CellOp& op = plan.ops[plan.block_op[block]];
  return block == op.block ? first_shape(plan.shape, op.source) : second_shape(plan.shape);
}

template <typename T, typename M>
static inline bool op_runs(const CellArguments<T, M>& p, int64_t group, int64_t k) {
  return p.plan.ops[k].kind != CellOpKind::kNone && p.active[group * p.plan.shape.ops + k];
}

// A slot of a convolution's output.
template <typename T, typename M>
static inline M* raw_image(const CellArguments<T, M>& p, int64_t map, int64_t n) {
  return p.raw + map * p.slot + n * node_size(p.plan.shape);
}

// A slot of a pool or a node.
template <typename T, typename M>
static inline T* map_image(const CellArguments<T, M>& p, int64_t map, int64_t n) {
  return p.maps + map * p.slot + n * node_size(p.plan.shape);
}

// The image of item n of a phase over images, group * N + image. Of shared states the groups of one
// image follow each other, which then find it in a cache.
static inline int64_t image_of_item(const CellShape& s, int64_t item) {
  return s.shared == 0 ? item : item % s.groups * s.images + item / s.groups;
}

// The state as an image, where it is stored: an input, or a node that ops leave.
template <typename T, typename M>
static inline const T* state_image(const CellArguments<T, M>& p, int64_t state, int64_t n) {
  const CellShape& s = p.plan.shape;
  if (is_input(s, state)) {
    const int64_t image = state < s.shared ? n % s.images : n;
    return p.states[state] + image * s.height * s.width * s.channels;
  }
  return map_image(p, p.plan.node_map[state - s.inputs], n);
}

// What an op gives to its last norm, or to the sum, where that is stored as T.
template <typename T, typename M>
static inline const T* term_image(const CellArguments<T, M>& p, const CellOp& op, int64_t n) {
  return op.map >= 0 ? map_image(p, op.map, n) : state_image(p, op.source, n);
}

template <typename T, typename M>
static inline PackedBlock<T> cell_block(const CellArguments<T, M>& p, int64_t block,
                                        int64_t group = 0) {
  return packed_block<T>(block_shape(p.plan, block), p.plan.blocks[block],
                         p.packed + (group * p.plan.shape.blocks + block) * p.packed_stride);
}

template <typename T>
static int64_t cell_packed_size(const CellPlan& plan) {
  int64_t most = 0;
  for (int64_t b = 0; b < plan.shape.blocks; ++b) {
    const int64_t size = packed_block_size<T>(block_shape(plan, b), plan.blocks[b]);
    if (size > most) most = size;
  }
  return most;
}

// `pack` packs every block that some group runs.
template <typename T, typename M, typename Pack>
static void pack_blocks(const CellArguments<T, M>& p, int64_t begin, int64_t end, Pack pack) {
  for (int64_t b = begin; b < end; ++b) {
    bool runs = false;
    for (int64_t g = 0; g < p.plan.shape.groups; ++g) {
      runs = runs || op_runs(p, g, p.plan.block_op[b]);
    }
    if (!runs) continue;
    pack(block_shape(p.plan, b), p.plan.blocks[b], p.first[b], p.second[b],
         p.packed + b * p.packed_stride);
  }
}

template <typename T, typename M>
static void cell_pack(const CellForward<T, M>& p, int64_t begin, int64_t end) {
  pack_blocks(p, begin, end, pack_block<T>);
}

template <typename T, typename M>
static void cell_grad_pack(const CellBackward<T, M>& p, int64_t begin, int64_t end) {
  pack_blocks(p, begin, end, pack_block_transposed<T>);
}

// Pixels [count, C] between a contiguous image and one whose pixels are `stride` elements apart.
template <typename T>
static inline void copy_pixels(const T* from, int64_t from_stride, int64_t count, int64_t channels,
                               T* to, int64_t to_stride) {
  for (int64_t i = 0; i < count; ++i) {
    const T* x = from + i * from_stride;
    T* y = to + i * to_stride;
    int64_t c = 0;
    for (; c + kLanes<T> <= channels; c += kLanes<T>) store(y + c, load(x + c));
    for (; c < channels; ++c) y[c] = x[c];
  }
}

}  // namespace darts_fast::cpu::DARTS_CPU_CAPABILITY
