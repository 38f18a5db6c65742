// SPDX-License-Identifier: Apache-2.0
// Forward of mixed_cell, part by part (steps), image by image within a step. A part is a stretch of
// the ops that enter a node whose maps a cache keeps: they are made, read and summed before the
// next part begins, in memory that it uses again.
//
// `first`: the part before is added to its node's image, and if it was the node's last one, the
// pools of the node are made; then the first blocks of the step's part go over the images of their
// sources. `norms` merges the images' moments (a barrier). `second` runs the second blocks of the
// chains, norm and ReLU on load; `norms` again. Bytes from and to memory: the states, pools and
// nodes; and if maps are saved, each written once, past the caches.
#pragma once

#include "cpu/kernels/mixed_cell_common.h"
#include "cpu/kernels/node_sum_forward.h"

namespace darts_fast::cpu::DARTS_CPU_CAPABILITY {

template <typename T>
struct CellForwardScratch {
  T* tile[2];   // of each geometry
  T* constant;  // [period]
  T* pool;
  BlockForwardScratch<T> block[2];
};

template <typename T>
static CellForwardScratch<T> first_parts(const CellPlan& plan, Scratch<T>* scratch) {
  const int64_t period = pattern_period<T>(plan.shape.channels);
  CellForwardScratch<T> parts = {};
  for (int64_t i = 0; i < geometry_count(plan.shape); ++i) {
    const CellGeometry geometry = cell_geometry(plan, i);
    parts.tile[i] = scratch->take(make_tile(geometry.shape, geometry.pad, period).size);
    parts.block[i] = block_forward_scratch(geometry.shape, scratch);
  }
  parts.constant = scratch->take(period);
  parts.pool = scratch->take(pool_scratch<T>(pool_shape(plan.shape, 0)));
  return parts;
}

template <typename T>
static CellForwardScratch<T> second_parts(const CellPlan& plan, Scratch<T>* scratch) {
  const BlockShape shape = second_shape(plan.shape);
  const int64_t period = pattern_period<T>(shape.channels);
  CellForwardScratch<T> parts = {};
  parts.tile[0] = scratch->take(make_tile(shape, plan.chain_pad, period).size);
  parts.block[0] = block_forward_scratch(shape, scratch);
  return parts;
}

template <typename T>
static int64_t cell_forward_scratch(const CellPlan& plan) {
  Scratch<T> first = {nullptr}, second = {nullptr};
  first_parts(plan, &first);
  second_parts(plan, &second);
  return first.used > second.used ? first.used : second.used;
}

// An image of a convolution's output on its way to the norm that reads it: in the cache, or where
// it is saved.
template <typename T, typename M>
static inline M* staged_image(const CellForward<T, M>& p, const CellOp& op, int64_t map,
                              int64_t n) {
  if (p.stage == nullptr) return raw_image(p, map, n);
  return p.stage + op.stage * p.slot + n * node_size(p.plan.shape);
}

// Where an output that is staged is saved as well, or null.
template <typename T, typename M>
static inline M* saved_image(const CellForward<T, M>& p, int64_t map, int64_t n) {
  return p.stage != nullptr && p.save ? raw_image(p, map, n) : nullptr;
}

// What the sum of a node starts from: the shifts of its norms.
template <typename T, typename M>
static void start_node_image(const CellForward<T, M>& p, int64_t state, int64_t group, T* constant,
                             T* node) {
  const CellPlan& plan = p.plan;
  const CellShape& s = plan.shape;
  const int64_t period = pattern_period<T>(s.channels);
  const int64_t size = node_size(s);
  const int64_t* entering = plan.entering.entries + plan.entering.at[state];
  const int64_t count = plan.entering.at[state + 1] - plan.entering.at[state];
  expand_pattern(constant, s.channels, period, [&](int64_t c) {
    double sum = 0;
    for (int64_t i = 0; i < count; ++i) {
      const CellOp& op = plan.ops[entering[i]];
      if (!op_runs(p, group, entering[i]) || op.norm < 0 || p.beta[op.norm] == nullptr) continue;
      if (p.norms[op.norm] == Norm::kNone) continue;
      sum += static_cast<double>(p.weights[group * s.ops + entering[i]]) * p.beta[op.norm][c];
    }
    return static_cast<T>(sum);
  });
  for (int64_t i = 0; i < size; i += period) {
    std::memcpy(node + i, constant, (size - i < period ? size - i : period) * sizeof(T));
  }
}

// node += the terms of a part, one image.
template <typename T, typename M>
static void add_part_image(const CellForward<T, M>& p, const CellPart& part, int64_t n, T* node) {
  const CellPlan& plan = p.plan;
  const CellShape& s = plan.shape;
  const int64_t period = pattern_period<T>(s.channels);
  const int64_t group = n / s.images;
  const int64_t size = node_size(s);
  const int64_t stretch = stretch_elements(period);
  for (int64_t from = 0; from < size; from += stretch) {
    const int64_t length = size - from < stretch ? size - from : stretch;
    TermSum<T> sum = {node + from, length, period, 0, {}, {}, {}};
    TermSum<T, M> raw = {node + from, length, period, 0, {}, {}, {}};
    for (int64_t i = part.begin; i < part.end; ++i) {
      const int64_t k = plan.entering.entries[i];
      if (!op_runs(p, group, k)) continue;
      const CellOp& op = plan.ops[k];
      const int64_t norm = op.norm < 0 ? s.groups * s.norms : group * s.norms + op.norm;
      const T* scale = p.term_scale + (group * s.ops + k) * period;
      const T* center = p.center + norm * period;
      if constexpr (kSameElement<T, M>) {
        const T* y = is_conv(op) ? staged_image(p, op, op.map, n) : term_image(p, op, n);
        add_term(&sum, y + from, scale, center);
      } else if (is_conv(op)) {
        add_term(&raw, staged_image(p, op, op.map, n) + from, scale, center);
      } else {
        add_term(&sum, term_image(p, op, n) + from, scale, center);
      }
    }
    flush_terms(&sum);
    flush_terms(&raw);
  }
}

// Adds a part to its node's image, which is stored where later ops and the output want it. Returns
// where it can be read if it is complete, or null.
template <typename T, typename M>
static const T* add_to_node_image(const CellForward<T, M>& p, const CellPart& part, int64_t n,
                                  const CellForwardScratch<T>& scratch) {
  const CellShape& s = p.plan.shape;
  const int64_t node = part.node - s.inputs;
  const int64_t place = node - (s.nodes - s.multiplier);
  T* output = p.output + n * node_size(s) * s.multiplier;
  T* to = p.passing + n * node_size(s);
  if (p.plan.node_map[node] >= 0) {
    to = map_image(p, p.plan.node_map[node], n);
  } else if (s.multiplier == 1 && place == 0) {
    to = output;
  }
  if (part.begin == p.plan.entering.at[part.node]) {
    start_node_image(p, part.node, n / s.images, scratch.constant, to);
  }
  add_part_image(p, part, n, to);
  if (part.end < p.plan.entering.at[part.node + 1]) return nullptr;
  if (place >= 0 && to != output) {
    copy_pixels(to, s.channels, s.node_height * s.node_width, s.channels,
                output + place * s.channels, s.multiplier * s.channels);
  }
  return to;
}

// Where the moments of a block's or a pool's image stand, if its norm wants any.
template <typename T, typename M>
static inline int64_t partial_at(const CellForward<T, M>& p, int64_t index, int64_t n) {
  const CellShape& s = p.plan.shape;
  return (index * s.groups * s.images + n) * s.channels;
}

template <typename T, typename M>
static void pool_state_image(const CellForward<T, M>& p, int64_t state, int64_t n, const T* x,
                             const CellForwardScratch<T>& scratch) {
  const CellPlan& plan = p.plan;
  const CellShape& s = plan.shape;
  const int64_t group = n / s.images;
  const int64_t period = pattern_period<T>(s.channels);
  for (int64_t i = plan.state_pools.at[state]; i < plan.state_pools.at[state + 1]; ++i) {
    const int64_t index = plan.state_pools.entries[i];
    const CellPool& pool = plan.pools[index];
    bool runs = false, moments = false;
    for (int64_t j = plan.leaving.at[state]; j < plan.leaving.at[state + 1]; ++j) {
      const int64_t k = plan.leaving.entries[j];
      if (plan.ops[k].pool != index || !op_runs(p, group, k)) continue;
      runs = true;
      moments = moments || p.norms[plan.ops[k].norm] == Norm::kBatch;
    }
    if (!runs) continue;
    T* y = map_image(p, pool.map, n);
    const PoolShape shape = pool_shape(s, state);
    if (pool.kind == CellOpKind::kMaxPool) {
      max_pool_image(shape, x, scratch.pool, y);
    } else {
      avg_pool_image(shape, x, scratch.pool, y);
    }
    if (!moments) continue;
    const int64_t at = partial_at(p, s.blocks + index, n);
    tile_moments(y, node_size(s), s.channels, period, scratch.constant, p.partial_mean + at,
                 p.partial_square + at);
  }
}

// The first blocks of the ops of a part, one image.
template <typename T, typename M>
static void first_blocks_image(const CellForward<T, M>& p, const CellPart& part, int64_t n,
                               const CellForwardScratch<T>& scratch) {
  const CellPlan& plan = p.plan;
  const CellShape& s = plan.shape;
  const int64_t period = pattern_period<T>(s.channels);
  const int64_t group = n / s.images;
  int64_t loaded = -1;
  for (int64_t j = part.begin; j < part.end; ++j) {
    const int64_t k = plan.entering.entries[j];
    const CellOp& op = plan.ops[k];
    if (!is_conv(op) || !op_runs(p, group, k)) continue;
    const int64_t at_geometry = geometry_of(s, op.source);
    const CellGeometry geometry = cell_geometry(plan, at_geometry);
    const Tile tile = make_tile(geometry.shape, geometry.pad, period);
    T* const image = scratch.tile[at_geometry];
    if (loaded != op.source) {
      load_tile<T>(geometry.shape, tile, state_image(p, op.source, n), period, nullptr, image);
    }
    loaded = op.source;
    const bool moments = p.norms[op.norm - (is_chain(op) ? 1 : 0)] == Norm::kBatch;
    const int64_t at = partial_at(p, op.block, n);
    const int64_t map = is_chain(op) ? op.inner_map : op.map;
    block_forward(geometry.shape, tile, plan.blocks[op.block], cell_block(p, op.block), image,
                  scratch.block[at_geometry], staged_image(p, op, map, n),
                  moments ? p.partial_mean + at : nullptr, p.partial_square + at,
                  saved_image(p, map, n));
  }
}

// Items: images. In the step behind the last part only that part is added.
template <typename T, typename M>
static void cell_first(const CellStep<CellForward<T, M>>& step, Items items) {
  const CellForward<T, M>& p = *step.p;
  const CellPlan& plan = p.plan;
  const CellShape& s = plan.shape;
  Scratch<T> cut = {p.scratch + items.share * p.scratch_stride};
  const CellForwardScratch<T> scratch = first_parts(plan, &cut);
  for (int64_t i = 0; i < geometry_count(s); ++i) {
    clear_tile(cell_geometry(plan, i), scratch.tile[i]);
  }
  for (int64_t item = next_item(items); item >= 0; item = next_item(items)) {
    const int64_t n = image_of_item(s, item);
    if (step.part == 0) {
      for (int64_t state = 0; state < s.inputs; ++state) {
        pool_state_image(p, state, n, state_image(p, state, n), scratch);
      }
    } else {
      const CellPart& before = plan.parts[step.part - 1];
      const T* x = add_to_node_image(p, before, n, scratch);
      if (x != nullptr) pool_state_image(p, before.node, n, x, scratch);
    }
    if (step.part < plan.part_count) first_blocks_image(p, plan.parts[step.part], n, scratch);
  }
}

// Statistics and coefficients of one norm of one group; `index` is the block or pool of its map.
template <typename T, typename M>
static void finish_norm(const CellForward<T, M>& p, int64_t group, int64_t norm, int64_t index) {
  const CellShape& s = p.plan.shape;
  const int64_t channels = s.channels;
  const int64_t period = pattern_period<T>(channels);
  const int64_t row = group * s.norms + norm;
  T* mean = p.mean + row * channels;
  T* var = p.var + row * channels;
  const Norm kind = p.norms[norm];
  if (kind == Norm::kBatch && s.images > 0) {
    const int64_t at = partial_at(p, index, group * s.images);
    merge_image_moments(p.partial_mean + at, p.partial_square + at, s.images,
                        static_cast<double>(s.node_height * s.node_width), channels, mean, var);
  } else if (kind == Norm::kRunning) {
    std::memcpy(mean, p.running_mean[norm], channels * sizeof(T));
    std::memcpy(var, p.running_var[norm], channels * sizeof(T));
  } else {
    neutral_moments(channels, mean, var);
  }
  const T* gamma = p.gamma[norm];
  const T* beta = p.beta[norm];
  const bool plain = kind == Norm::kNone;
  expand_pattern(p.center + row * period, channels, period,
                 [&](int64_t c) { return plain ? T(0) : mean[c]; });
  expand_pattern(p.scale + row * period, channels, period, [&](int64_t c) {
    if (plain) return T(1);
    return static_cast<T>((gamma == nullptr ? 1.0 : gamma[c]) / std::sqrt(var[c] + p.eps[norm]));
  });
  expand_pattern(p.shift + row * period, channels, period,
                 [&](int64_t c) { return plain || beta == nullptr ? T(0) : beta[c]; });
}

// The weight of an op times its last norm's scale.
template <typename T, typename M>
static void finish_term(const CellForward<T, M>& p, int64_t group, int64_t k) {
  const CellShape& s = p.plan.shape;
  const int64_t period = pattern_period<T>(s.channels);
  const int64_t norm = p.plan.ops[k].norm;
  const double weight = p.weights[group * s.ops + k];
  expand_pattern(p.term_scale + (group * s.ops + k) * period, s.channels, period, [&](int64_t c) {
    if (norm < 0 || p.norms[norm] == Norm::kNone) return static_cast<T>(weight);
    const double gamma = p.gamma[norm] == nullptr ? 1.0 : p.gamma[norm][c];
    const T var = p.var[(group * s.norms + norm) * s.channels + c];
    return static_cast<T>(weight * gamma / std::sqrt(var + p.eps[norm]));
  });
}

// Items: groups, and within a group the ops (or chains) of the part.
template <typename T, typename M>
static void cell_norms(const CellStep<CellForward<T, M>>& step, int64_t begin, int64_t end) {
  const CellForward<T, M>& p = *step.p;
  const CellPlan& plan = p.plan;
  const CellShape& s = plan.shape;
  const CellPart& part = plan.parts[step.part];
  const int64_t* const entries =
      step.chains ? plan.chains.entries + part.chains_begin : plan.entering.entries + part.begin;
  const int64_t count = step.chains ? part.chains_end - part.chains_begin : part.end - part.begin;
  for (int64_t item = begin; item < end; ++item) {
    const int64_t group = item / count;
    const int64_t k = entries[item % count];
    const CellOp& op = plan.ops[k];
    if (!op_runs(p, group, k)) {
      for (int64_t norm = op.norm - (is_chain(op) ? 1 : 0); norm >= 0 && norm <= op.norm; ++norm) {
        const int64_t at = (group * s.norms + norm) * s.channels;
        neutral_moments(s.channels, p.mean + at, p.var + at);
      }
      continue;
    }
    if (is_chain(op) && !step.chains) {
      finish_norm(p, group, op.norm - 1, op.block);
      continue;
    }
    if (op.norm >= 0) {
      const int64_t block = is_chain(op) ? op.block + 1 : op.block;
      finish_norm(p, group, op.norm, op.pool >= 0 ? s.blocks + op.pool : block);
    }
    finish_term(p, group, k);
  }
}

// Items: images, and within an image the chains of the part. The output of a staged chain takes the
// place of its first block's, which stands in the tile by then.
template <typename T, typename M>
static void cell_second(const CellStep<CellForward<T, M>>& step, Items items) {
  const CellForward<T, M>& p = *step.p;
  const CellPlan& plan = p.plan;
  const CellShape& s = plan.shape;
  const int64_t period = pattern_period<T>(s.channels);
  const BlockShape shape = second_shape(s);
  const Tile tile = make_tile(shape, plan.chain_pad, period);
  const CellPart& part = plan.parts[step.part];
  const int64_t count = part.chains_end - part.chains_begin;
  Scratch<T> cut = {p.scratch + items.share * p.scratch_stride};
  const CellForwardScratch<T> scratch = second_parts(plan, &cut);
  clear_tile({shape, plan.chain_pad}, scratch.tile[0]);
  for (int64_t item = next_item(items); item >= 0; item = next_item(items)) {
    const int64_t k = plan.chains.entries[part.chains_begin + item % count];
    const int64_t n = item / count;
    const int64_t group = n / s.images;
    if (!op_runs(p, group, k)) continue;
    const CellOp& op = plan.ops[k];
    const int64_t row = (group * s.norms + op.norm - 1) * period;
    const InputNorm<T> norm = {p.center + row, p.scale + row, p.shift + row};
    load_tile<T>(shape, tile, staged_image(p, op, op.inner_map, n), period, &norm, scratch.tile[0]);
    const int64_t at = partial_at(p, op.block + 1, n);
    block_forward(shape, tile, plan.blocks[op.block + 1], cell_block(p, op.block + 1),
                  scratch.tile[0], scratch.block[0], staged_image(p, op, op.map, n),
                  p.norms[op.norm] == Norm::kBatch ? p.partial_mean + at : nullptr,
                  p.partial_square + at, saved_image(p, op.map, n));
  }
}

}  // namespace darts_fast::cpu::DARTS_CPU_CAPABILITY
