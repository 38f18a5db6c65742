// SPDX-License-Identifier: Apache-2.0
// What the steps of mixed_cell's backward share: scratch memory, chunks of images, the rows of a
// norm's gradient.
#pragma once

#include "cpu/kernels/mixed_cell_common.h"
#include "cpu/kernels/norm_gradient.h"

namespace darts_fast::cpu::DARTS_CPU_CAPABILITY {

template <typename T>
struct CellBackwardScratch {
  T* tile[2];  // of each geometry
  T* grad_sum;
  T* pool;
  T* pool_gradient;  // of an image of a pooled map
  T* weights;        // [most identities of a state + 1, period]
  T* sums;           // [C]
  BlockBackwardScratch<T> block[2];
};

static inline int64_t most_identities(const CellPlan& plan) {
  int64_t most = 0;
  for (int64_t state = 0; state < plan.shape.inputs + plan.shape.nodes; ++state) {
    int64_t count = 0;
    for (int64_t i = plan.leaving.at[state]; i < plan.leaving.at[state + 1]; ++i) {
      if (plan.ops[plan.leaving.entries[i]].kind == CellOpKind::kIdentity) ++count;
    }
    if (count > most) most = count;
  }
  return most;
}

template <typename T>
static CellBackwardScratch<T> grad_first_parts(const CellPlan& plan, Scratch<T>* scratch) {
  const int64_t period = pattern_period<T>(plan.shape.channels);
  CellBackwardScratch<T> parts = {};
  for (int64_t i = 0; i < geometry_count(plan.shape); ++i) {
    const CellGeometry geometry = cell_geometry(plan, i);
    parts.tile[i] = scratch->take(make_tile(geometry.shape, geometry.pad, period).size);
    parts.block[i] = block_backward_scratch(geometry.shape, geometry.pad, scratch);
  }
  parts.grad_sum = scratch->take(grad_sum_size(first_shape(plan.shape, 0), period));
  parts.pool = scratch->take(pool_scratch<T>(pool_shape(plan.shape, 0)));
  parts.pool_gradient = scratch->take(node_size(plan.shape));
  parts.weights = scratch->take((1 + most_identities(plan)) * period);
  parts.sums = scratch->take(plan.shape.channels);
  return parts;
}

template <typename T>
static CellBackwardScratch<T> grad_second_parts(const CellPlan& plan, Scratch<T>* scratch) {
  const BlockShape shape = second_shape(plan.shape);
  const int64_t period = pattern_period<T>(shape.channels);
  CellBackwardScratch<T> parts = {};
  parts.tile[0] = scratch->take(make_tile(shape, plan.chain_pad, period).size);
  parts.block[0] = block_backward_scratch(shape, plan.chain_pad, scratch);
  parts.grad_sum = scratch->take(grad_sum_size(shape, period));
  parts.sums = scratch->take(plan.shape.channels);
  return parts;
}

// Clears what must be 0 around the images: the tiles' and the grad tiles' padding.
template <typename T>
static void clear_tiles(const CellGeometry& geometry, T* tile,
                        const BlockBackwardScratch<T>& block) {
  clear_tile(geometry, tile);
  std::memset(block.grad_tile, 0,
              largest_grad_tile<T>(geometry.shape, geometry.pad).size * sizeof(T));
}

template <typename T>
static int64_t cell_backward_scratch(const CellPlan& plan) {
  Scratch<T> first = {nullptr}, second = {nullptr};
  grad_first_parts(plan, &first);
  grad_second_parts(plan, &second);
  return first.used > second.used ? first.used : second.used;
}

template <typename T>
static int64_t cell_partial_size(const CellPlan& plan) {
  int64_t most = 0;
  for (int64_t b = 0; b < plan.shape.blocks; ++b) {
    const int64_t size = block_grad_size<T>(block_shape(plan, b), plan.blocks[b]);
    if (size > most) most = size;
  }
  return most;
}

// Chunks: images of one group, whose weight gradients are summed in one row.
template <typename T, typename M>
static inline int64_t group_chunks(const CellBackward<T, M>& p) {
  return (p.plan.shape.images + p.chunk_images - 1) / p.chunk_images;
}

struct ImageRange {
  int64_t group;
  int64_t begin;
  int64_t end;
};

template <typename T, typename M>
static inline ImageRange chunk_range(const CellBackward<T, M>& p, int64_t chunk) {
  const int64_t images = p.plan.shape.images;
  const int64_t group = chunk / group_chunks(p);
  const int64_t first = chunk % group_chunks(p) * p.chunk_images;
  const int64_t last = first + p.chunk_images < images ? first + p.chunk_images : images;
  return {group, group * images + first, group * images + last};
}

// The row of a chunk's weight gradients of a block, cleared before the chunk's first image; false
// where nobody wants them.
template <typename T, typename M>
static bool chunk_gradients(const CellBackward<T, M>& p, int64_t block, int64_t chunk, bool clear,
                            BlockGradients<T>* grads) {
  if (p.partial_weights == nullptr) return false;
  const int64_t chunks = p.plan.shape.groups * group_chunks(p);
  T* row = p.partial_weights + (block * chunks + chunk) * p.partial_stride;
  const BlockShape shape = block_shape(p.plan, block);
  const ConvBlock& conv = p.plan.blocks[block];
  if (clear) std::memset(row, 0, block_grad_size<T>(shape, conv) * sizeof(T));
  *grads = block_gradients(shape, conv, row);
  return true;
}

template <typename T, typename M>
static inline GradNorm<T> grad_norm(const CellBackward<T, M>& p, int64_t group, int64_t norm) {
  const CellShape& s = p.plan.shape;
  const int64_t period = pattern_period<T>(s.channels);
  const int64_t at = (group * s.norms + norm) * period;
  if (p.norms[norm] != Norm::kBatch) return {p.grad_scale + at, nullptr, nullptr, nullptr};
  return {p.grad_scale + at, p.grad_mean + at, p.grad_slope + at, p.center + at};
}

// Rows of an image's dL/dy. While the convolution works on them the rows that follow come from
// memory; behind the last image nothing is read.
template <typename T, typename M>
static inline void norm_gradient_rows(const GradNorm<T>& n, const T* g, const M* y, int64_t h,
                                      int64_t rows, int64_t row, int64_t period, T* out) {
  norm_gradient<T>(n, g + h * row, y + h * row, rows * row, period, out);
  prefetch(g + (h + rows) * row, rows * row);
  prefetch(y + (h + rows) * row, rows * row);
}

template <typename T, typename M>
static inline T* grad_node_image(const CellBackward<T, M>& p, int64_t state, int64_t n) {
  const CellShape& s = p.plan.shape;
  return p.grad_nodes + (state - s.inputs) * p.slot + n * node_size(s);
}

}  // namespace darts_fast::cpu::DARTS_CPU_CAPABILITY
