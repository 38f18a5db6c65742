// SPDX-License-Identifier: Apache-2.0
// Backward of mixed_cell, part by part as the forward (CellPart), last one first, so that the maps
// of a part come from memory once.
//
// `grad_first` of part i: the first blocks of its ops, added to the gradients of their sources,
//   while one image of a source stands in the cache. Where no later part gives to a state, its
//   identities and pools follow, of all nodes at once. Then G = dL/d node of part i - 1 is
//   complete, and with it the image's part of S1 = sum G and of sum G * (y_k - mean_k) for every
//   term k of that part.
// `node_norms` merges those (a barrier); dL/dw_k = sum_c gamma S2_k + beta S1 is a by-product.
// `grad_second`: second blocks of the chains of part i - 1; dL/dy is made row by row from G and y
//   and never stored, the gradient behind the first norm is.
// `inner_norms`: S1 and S2 of the chains' first norms (a barrier).
//
// With x^ = (y - mean) / sigma, M values per channel and a = w gamma / sigma (or gamma / sigma of a
// chain's first norm): dL/dy = a * (g - S1 / M - x^ * sum(g x^) / M), and a * g where statistics
// are running ones.
#pragma once

#include "cpu/kernels/mixed_cell_backward_norms.h"
#include "cpu/kernels/mixed_cell_backward_states.h"

namespace darts_fast::cpu::DARTS_CPU_CAPABILITY {

// Items: chunks of images, and within a chunk the chains of the part.
template <typename T, typename M>
static void cell_grad_second(const CellStep<CellBackward<T, M>>& step, Items items) {
  const CellBackward<T, M>& p = *step.p;
  const CellPlan& plan = p.plan;
  const CellShape& s = plan.shape;
  const int64_t channels = s.channels;
  const int64_t period = pattern_period<T>(channels);
  const BlockShape shape = second_shape(s);
  const int64_t pad = plan.chain_pad;
  const Tile tile = make_tile(shape, pad, period);
  const int64_t row = s.node_width * channels;
  const CellPart& part = plan.parts[step.part];
  const int64_t count = part.chains_end - part.chains_begin;
  Scratch<T> cut = {p.scratch + items.share * p.scratch_stride};
  const CellBackwardScratch<T> scratch = grad_second_parts(plan, &cut);
  clear_tiles({shape, pad}, scratch.tile[0], scratch.block[0]);
  for (int64_t item = next_item(items); item >= 0; item = next_item(items)) {
    const int64_t index = item % count;
    const int64_t k = plan.chains.entries[part.chains_begin + index];
    const ImageRange range = chunk_range(p, item / count);
    const CellOp& op = plan.ops[k];
    if (!op_runs(p, range.group, k)) continue;
    BlockGradients<T> grads;
    const bool want = chunk_gradients(p, op.block + 1, item / count, true, &grads);
    const int64_t inner = (range.group * s.norms + op.norm - 1) * period;
    const InputNorm<T> norm = {p.center + inner, p.inner_scale + inner, p.inner_shift + inner};
    const GradNorm<T> outer = grad_norm(p, range.group, op.norm);
    for (int64_t n = range.begin; n < range.end; ++n) {
      const M* y = raw_image(p, op.map, n);
      const T* g = grad_node_image(p, op.node, n);
      const M* first = raw_image(p, op.inner_map, n);
      load_tile<T>(shape, tile, first, period, &norm, scratch.tile[0]);
      block_backward(shape, tile, pad, plan.blocks[op.block + 1], cell_block(p, op.block + 1),
                     scratch.tile[0], scratch.block[0], want ? &grads : nullptr, true,
                     scratch.grad_sum, [&](int64_t h, int64_t rows, T* to) {
                       norm_gradient_rows(outer, g, y, h, rows, row, period, to);
                     });
      T* out = p.grad_inner + index * p.slot + n * node_size(s);
      for (int64_t h = 0; h < s.node_height; ++h) {
        masked_gradient_row<T, false>(shape, tile, scratch.tile[0], scratch.grad_sum, h,
                                      out + h * row);
      }
      double* sums = p.inner_sums + (k * s.groups * s.images + n) * 2 * channels;
      sum_gradients(out, node_size(s), channels, period, scratch.sums, sums);
      sum_products(out, first, p.center + inner, node_size(s), channels, period, scratch.sums,
                   sums + channels);
    }
  }
}

// One image: adds what the convolutions of a part give to the gradients of their sources.
template <typename T, typename M>
static void entering_gradients(const CellBackward<T, M>& p, const CellPart& part, int64_t n,
                               int64_t chunk, bool first_image,
                               const CellBackwardScratch<T>& scratch) {
  const CellPlan& plan = p.plan;
  const CellShape& s = plan.shape;
  const int64_t period = pattern_period<T>(s.channels);
  const int64_t group = n / s.images;
  const int64_t row = s.node_width * s.channels;
  const T* const g = grad_node_image(p, part.node, n);
  const int64_t last = part.end;
  int64_t chain = 0;
  for (int64_t j = part.begin; j < last;) {
    // All ops of one source.
    const int64_t source = plan.ops[plan.entering.entries[j]].source;
    const int64_t at_geometry = geometry_of(s, source);
    const CellGeometry geometry = cell_geometry(plan, at_geometry);
    const Tile tile = make_tile(geometry.shape, geometry.pad, period);
    T* const image = scratch.tile[at_geometry];
    T* const out = grad_state_image(p, source, n);
    bool convolved = false;
    for (; j < last && plan.ops[plan.entering.entries[j]].source == source; ++j) {
      const int64_t k = plan.entering.entries[j];
      const CellOp& op = plan.ops[k];
      const int64_t place = is_chain(op) ? chain++ : 0;
      if (!is_conv(op) || !op_runs(p, group, k)) continue;
      if (!convolved) {
        load_tile<T>(geometry.shape, tile, state_image(p, source, n), period, nullptr, image);
      }
      BlockGradients<T> grads;
      const bool want = chunk_gradients(p, op.block, chunk, first_image, &grads);
      const M* y = raw_image(p, is_chain(op) ? op.inner_map : op.map, n);
      const T* behind = is_chain(op) ? p.grad_inner + place * p.slot + n * node_size(s) : g;
      const GradNorm<T> norm = grad_norm(p, group, op.norm - (is_chain(op) ? 1 : 0));
      block_backward(
          geometry.shape, tile, geometry.pad, plan.blocks[op.block], cell_block(p, op.block), image,
          scratch.block[at_geometry], want ? &grads : nullptr, !convolved,
          out != nullptr ? scratch.grad_sum : nullptr, [&](int64_t h, int64_t rows, T* to) {
            norm_gradient_rows(norm, behind, y, h, rows, row, period, to);
          });
      convolved = true;
    }
    const BlockShape& shape = geometry.shape;
    for (int64_t h = 0; convolved && out != nullptr && h < shape.height; ++h) {
      masked_gradient_row<T, true>(shape, tile, image, scratch.grad_sum, h,
                                   out + h * shape.width * shape.channels);
    }
  }
}

// The image's share of S1 of a node and of the products of a part's terms.
template <typename T, typename M>
static void node_products(const CellBackward<T, M>& p, const CellPart& part, int64_t n, T* sums) {
  const CellPlan& plan = p.plan;
  const CellShape& s = plan.shape;
  const int64_t period = pattern_period<T>(s.channels);
  const int64_t group = n / s.images;
  const int64_t all = s.groups * s.images;
  const auto place = [&](int64_t row) { return p.partial_sums + (row * all + n) * s.channels; };
  const T* g = grad_node_image(p, part.node, n);
  if (part.end == plan.entering.at[part.node + 1]) {  // the node's first part in this order
    sum_gradients(g, node_size(s), s.channels, period, sums, place(s.ops + part.node - s.inputs));
  }
  for (int64_t j = part.begin; j < part.end; ++j) {
    const int64_t k = plan.entering.entries[j];
    if (!op_runs(p, group, k)) continue;
    const CellOp& op = plan.ops[k];
    const int64_t norm = op.norm < 0 ? s.groups * s.norms : group * s.norms + op.norm;
    const T* center = p.center + norm * period;
    if (is_conv(op)) {
      sum_products(g, raw_image(p, op.map, n), center, node_size(s), s.channels, period, sums,
                   place(k));
    } else {
      sum_products(g, term_image(p, op, n), center, node_size(s), s.channels, period, sums,
                   place(k));
    }
  }
}

// Items: chunks of images. In the step behind the last part the gradients only start.
template <typename T, typename M>
static void cell_grad_first(const CellStep<CellBackward<T, M>>& step, Items items) {
  const CellBackward<T, M>& p = *step.p;
  const CellPlan& plan = p.plan;
  const CellShape& s = plan.shape;
  Scratch<T> cut = {p.scratch + items.share * p.scratch_stride};
  const CellBackwardScratch<T> scratch = grad_first_parts(plan, &cut);
  for (int64_t i = 0; i < geometry_count(s); ++i) {
    clear_tiles(cell_geometry(plan, i), scratch.tile[i], scratch.block[i]);
  }
  for (int64_t chunk = next_item(items); chunk >= 0; chunk = next_item(items)) {
    const ImageRange range = chunk_range(p, chunk);
    for (int64_t n = range.begin; n < range.end; ++n) {
      if (step.part == plan.part_count) {
        start_gradients(p, n);
      } else {
        entering_gradients(p, plan.parts[step.part], n, chunk, n == range.begin, scratch);
      }
      if (step.part == 0) {
        for (int64_t state = 0; state < s.inputs; ++state)
          add_plain_gradients(p, state, n, scratch);
        continue;
      }
      const CellPart& next = plan.parts[step.part - 1];
      if (next.end == plan.entering.at[next.node + 1]) {
        add_plain_gradients(p, next.node, n, scratch);
      }
      node_products(p, next, n, scratch.sums);
    }
  }
}

}  // namespace darts_fast::cpu::DARTS_CPU_CAPABILITY
