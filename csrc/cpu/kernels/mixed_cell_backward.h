// SPDX-License-Identifier: Apache-2.0
// Backward of mixed_cell, part by part as the forward (CellPart), last one first, so that the maps
// of a part come from memory once.
//
// `grad_first` of part i: the first blocks, identities and pools of its ops, added to the gradients
//   of their sources, while one image of a source stands in the cache. Then G = dL/d node of part
//   i - 1 is complete, and with it the image's part of S1 = sum G and of sum G * (y_k - mean_k) for
//   every term k of that part.
// `node_norms` merges those (a barrier); dL/dw_k = sum_c gamma S2_k + beta S1 is a by-product.
// `grad_second`: second blocks of the chains of part i - 1; dL/dy is made row by row from G and y
//   and never stored, the gradient behind the first norm is.
// `inner_norms`: S1 and S2 of the chains' first norms (a barrier).
//
// With x^ = (y - mean) / sigma, M values per channel and a = w gamma / sigma (or gamma / sigma of a
// chain's first norm): dL/dy = a * (g - S1 / M - x^ * sum(g x^) / M), and a * g where statistics
// are running ones.
#pragma once

#include "cpu/kernels/mixed_cell_common.h"
#include "cpu/kernels/norm_gradient.h"

namespace darts_fast::cpu::DARTS_CPU_CAPABILITY {

template <typename T>
struct CellBackwardScratch {
  T* tile[2];  // of each geometry
  T* grad_sum;
  T* pool;
  T* sums;  // [C]
  BlockBackwardScratch<T> block[2];
};

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
  norm_gradient<T, false>(n, g + h * row, y + h * row, rows * row, period, out);
  prefetch(g + (h + rows) * row, rows * row);
  prefetch(y + (h + rows) * row, rows * row);
}

template <typename T, typename M>
static inline T* grad_node_image(const CellBackward<T, M>& p, int64_t state, int64_t n) {
  const CellShape& s = p.plan.shape;
  return p.grad_nodes + (state - s.inputs) * p.slot + n * node_size(s);
}

// Items: groups and norms.
template <typename T, typename M>
static void cell_prepare(const CellBackward<T, M>& p, int64_t begin, int64_t end) {
  const CellShape& s = p.plan.shape;
  const int64_t channels = s.channels;
  const int64_t period = pattern_period<T>(channels);
  for (int64_t item = begin; item < end; ++item) {
    const int64_t norm = item % s.norms;
    const bool plain = p.norms[norm] == Norm::kNone;
    const T* mean = p.mean + item * channels;
    const T* var = p.var + item * channels;
    const auto inverse = [&](int64_t c) {
      return plain ? 1.0 : 1.0 / std::sqrt(var[c] + p.eps[norm]);
    };
    expand_pattern(p.center + item * period, channels, period,
                   [&](int64_t c) { return plain ? T(0) : mean[c]; });
    expand_pattern(p.inner_scale + item * period, channels, period, [&](int64_t c) {
      const double gamma = plain || p.gamma[norm] == nullptr ? 1.0 : p.gamma[norm][c];
      return static_cast<T>(gamma * inverse(c));
    });
    expand_pattern(p.inner_shift + item * period, channels, period, [&](int64_t c) {
      return plain || p.beta[norm] == nullptr ? T(0) : p.beta[norm][c];
    });
    double* sums = p.norm_sums + (norm * s.groups + item / s.norms) * 2 * channels;
    for (int64_t i = 0; i < 2 * channels; ++i) sums[i] = 0;
  }
}

// From S1 = sum g and P = sum g * (y - mean): the coefficients of dL/dy, and S1, S2 = P / sigma for
// the gradients of beta and gamma.
template <typename T, typename M>
static void finish_grad_norm(const CellBackward<T, M>& p, int64_t group, int64_t norm,
                             double weight, const double* s1, const double* products) {
  const CellShape& s = p.plan.shape;
  const int64_t channels = s.channels;
  const int64_t period = pattern_period<T>(channels);
  const int64_t row = group * s.norms + norm;
  const T* var = p.var + row * channels;
  const bool plain = p.norms[norm] == Norm::kNone;
  const double count = static_cast<double>(s.images * s.node_height * s.node_width);
  double* sums = p.norm_sums + (norm * s.groups + group) * 2 * channels;
  for (int64_t c = 0; c < channels; ++c) {
    sums[c] = weight * s1[c];
    sums[channels + c] = weight * products[c] / (plain ? 1.0 : std::sqrt(var[c] + p.eps[norm]));
  }
  expand_pattern(p.grad_scale + row * period, channels, period, [&](int64_t c) {
    const double gamma = plain || p.gamma[norm] == nullptr ? 1.0 : p.gamma[norm][c];
    return static_cast<T>(weight * gamma / (plain ? 1.0 : std::sqrt(var[c] + p.eps[norm])));
  });
  if (p.norms[norm] != Norm::kBatch) return;
  expand_pattern(p.grad_mean + row * period, channels, period,
                 [&](int64_t c) { return static_cast<T>(s1[c] / count); });
  expand_pattern(p.grad_slope + row * period, channels, period, [&](int64_t c) {
    return static_cast<T>(products[c] / count / (var[c] + p.eps[norm]));
  });
}

// The sum over a group's images of rows [G * N, stride] of C values, in their order.
static inline void sum_images(const double* partial, int64_t first, int64_t images, int64_t stride,
                              int64_t channels, double* out) {
  for (int64_t c = 0; c < channels; ++c) out[c] = 0;
  for (int64_t n = first; n < first + images; ++n) {
    for (int64_t c = 0; c < channels; ++c) out[c] += partial[n * stride + c];
  }
}

// Items: chunks of images, and within a chunk the chains of the part.
template <typename T, typename M>
static void cell_grad_second(const CellStep<CellBackward<T, M>>& step, int64_t begin, int64_t end,
                             int64_t thread) {
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
  Scratch<T> cut = {p.scratch + thread * p.scratch_stride};
  const CellBackwardScratch<T> scratch = grad_second_parts(plan, &cut);
  clear_tiles({shape, pad}, scratch.tile[0], scratch.block[0]);
  for (int64_t item = begin; item < end; ++item) {
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

// Items: groups, and within a group the chains of the part.
template <typename T, typename M>
static void cell_inner_norms(const CellStep<CellBackward<T, M>>& step, int64_t begin, int64_t end) {
  const CellBackward<T, M>& p = *step.p;
  const CellPlan& plan = p.plan;
  const CellShape& s = plan.shape;
  const CellPart& part = plan.parts[step.part];
  const int64_t count = part.chains_end - part.chains_begin;
  for (int64_t item = begin; item < end; ++item) {
    const int64_t group = item / count;
    const int64_t k = plan.chains.entries[part.chains_begin + item % count];
    if (!op_runs(p, group, k)) continue;
    // The first image's place takes the sums of all.
    double* sums = p.inner_sums + (k * s.groups + group) * s.images * 2 * s.channels;
    for (int64_t n = 1; n < s.images; ++n) {
      for (int64_t i = 0; i < 2 * s.channels; ++i) sums[i] += sums[n * 2 * s.channels + i];
    }
    finish_grad_norm(p, group, plan.ops[k].norm - 1, 1.0, sums, sums + s.channels);
  }
}

template <typename T, typename M>
static inline T* grad_pool_image(const CellBackward<T, M>& p, int64_t pool, int64_t n) {
  return p.grad_pools + pool * p.slot + n * node_size(p.plan.shape);
}

// The gradient of a state's image, or null where nobody wants it.
template <typename T, typename M>
static inline T* grad_state_image(const CellBackward<T, M>& p, int64_t state, int64_t n) {
  const CellShape& s = p.plan.shape;
  if (!is_input(s, state)) return grad_node_image(p, state, n);
  if (p.grad_states[state] == nullptr) return nullptr;
  return p.grad_states[state] + n * s.height * s.width * s.channels;
}

// Before anything is added: 0, and of nodes in the output the gradient that arrives there.
template <typename T, typename M>
static void start_gradients(const CellBackward<T, M>& p, int64_t n) {
  const CellPlan& plan = p.plan;
  const CellShape& s = plan.shape;
  for (int64_t state = 0; state < s.inputs + s.nodes; ++state) {
    T* out = grad_state_image(p, state, n);
    if (out == nullptr) continue;
    const int64_t place = state - s.inputs - (s.nodes - s.multiplier);
    if (is_input(s, state) || place < 0) {
      const BlockShape shape = first_shape(s, state);
      std::memset(out, 0, shape.height * shape.width * shape.channels * sizeof(T));
    } else {
      copy_pixels(p.grad_output + n * node_size(s) * s.multiplier + place * s.channels,
                  s.multiplier * s.channels, s.node_height * s.node_width, s.channels, out,
                  s.channels);
    }
  }
  for (int64_t pool = 0; pool < s.pools; ++pool) {
    std::memset(grad_pool_image(p, pool, n), 0, node_size(s) * sizeof(T));
  }
}

// One image: adds what the ops of a part give to the gradients of their sources, and to those of
// pooled maps.
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
      if (!op_runs(p, group, k)) continue;
      if (op.kind == CellOpKind::kIdentity && out != nullptr) {
        const T weight = p.weights[group * s.ops + k];
        for (int64_t i = 0; i < node_size(s); ++i) out[i] += weight * g[i];
      } else if (op.pool >= 0) {
        norm_gradient<T, true>(grad_norm(p, group, op.norm), g, map_image(p, op.map, n),
                               node_size(s), period, grad_pool_image(p, op.pool, n));
      }
      if (!is_conv(op)) continue;
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

// One image: the pools' part of the gradient of a state, whose other parts are there.
template <typename T, typename M>
static void add_pool_gradients(const CellBackward<T, M>& p, int64_t state, int64_t n,
                               const CellBackwardScratch<T>& scratch) {
  const CellPlan& plan = p.plan;
  const CellShape& s = plan.shape;
  const int64_t group = n / s.images;
  T* const out = grad_state_image(p, state, n);
  for (int64_t i = plan.state_pools.at[state]; out != nullptr && i < plan.state_pools.at[state + 1];
       ++i) {
    const int64_t index = plan.state_pools.entries[i];
    bool runs = false;
    for (int64_t j = plan.leaving.at[state]; j < plan.leaving.at[state + 1]; ++j) {
      const int64_t k = plan.leaving.entries[j];
      runs = runs || (plan.ops[k].pool == index && op_runs(p, group, k));
    }
    if (!runs) continue;
    const PoolShape shape = pool_shape(s, state);
    const T* g = grad_pool_image(p, index, n);
    if (plan.pools[index].kind == CellOpKind::kMaxPool) {
      max_pool_grad_image(shape, state_image(p, state, n), map_image(p, plan.pools[index].map, n),
                          g, scratch.pool, out);
    } else {
      avg_pool_grad_image(shape, g, scratch.pool, out);
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
static void cell_grad_first(const CellStep<CellBackward<T, M>>& step, int64_t begin, int64_t end,
                            int64_t thread) {
  const CellBackward<T, M>& p = *step.p;
  const CellPlan& plan = p.plan;
  const CellShape& s = plan.shape;
  Scratch<T> cut = {p.scratch + thread * p.scratch_stride};
  const CellBackwardScratch<T> scratch = grad_first_parts(plan, &cut);
  for (int64_t i = 0; i < geometry_count(s); ++i) {
    clear_tiles(cell_geometry(plan, i), scratch.tile[i], scratch.block[i]);
  }
  for (int64_t chunk = begin; chunk < end; ++chunk) {
    const ImageRange range = chunk_range(p, chunk);
    for (int64_t n = range.begin; n < range.end; ++n) {
      if (step.part == plan.part_count) {
        start_gradients(p, n);
      } else {
        entering_gradients(p, plan.parts[step.part], n, chunk, n == range.begin, scratch);
      }
      if (step.part == 0) {
        for (int64_t state = 0; state < s.inputs; ++state) add_pool_gradients(p, state, n, scratch);
        continue;
      }
      const CellPart& next = plan.parts[step.part - 1];
      if (next.end == plan.entering.at[next.node + 1]) {
        add_pool_gradients(p, next.node, n, scratch);
      }
      node_products(p, next, n, scratch.sums);
    }
  }
}

// Items: groups, and within a group the ops of the part.
template <typename T, typename M>
static void cell_node_norms(const CellStep<CellBackward<T, M>>& step, int64_t begin, int64_t end) {
  const CellBackward<T, M>& p = *step.p;
  const CellPlan& plan = p.plan;
  const CellShape& s = plan.shape;
  const int64_t channels = s.channels;
  const int64_t all = s.groups * s.images;
  const CellPart& part = plan.parts[step.part];
  const int64_t count = part.end - part.begin;
  const double* node = p.partial_sums + (s.ops + part.node - s.inputs) * all * channels;
  for (int64_t item = begin; item < end; ++item) {
    const int64_t group = item / count;
    const int64_t k = plan.entering.entries[part.begin + item % count];
    const CellOp& op = plan.ops[k];
    p.op_sums[k * s.groups + group] = 0;
    if (!op_runs(p, group, k)) continue;
    // The first image's place of the op takes the sums of all; S1 is summed into the op's scratch.
    double* products = p.partial_sums + (k * all + group * s.images) * channels;
    for (int64_t n = 1; n < s.images; ++n) {
      for (int64_t c = 0; c < channels; ++c) products[c] += products[n * channels + c];
    }
    double* s1 = p.term_sums + (k * s.groups + group) * channels;
    sum_images(node, group * s.images, s.images, channels, channels, s1);
    const double weight = p.weights[group * s.ops + k];
    double grad = 0;
    const bool plain = op.norm < 0 || p.norms[op.norm] == Norm::kNone;
    for (int64_t c = 0; c < channels; ++c) {
      if (plain) {
        grad += products[c];
        continue;
      }
      const T var = p.var[(group * s.norms + op.norm) * channels + c];
      const double gamma = p.gamma[op.norm] == nullptr ? 1.0 : p.gamma[op.norm][c];
      const double beta = p.beta[op.norm] == nullptr ? 0.0 : p.beta[op.norm][c];
      grad += gamma * products[c] / std::sqrt(var + p.eps[op.norm]) + beta * s1[c];
    }
    p.op_sums[k * s.groups + group] = grad;
    if (op.norm >= 0) finish_grad_norm(p, group, op.norm, weight, s1, products);
  }
}

// Items: blocks.
template <typename T, typename M>
static void cell_weights(const CellBackward<T, M>& p, int64_t begin, int64_t end) {
  const CellPlan& plan = p.plan;
  const int64_t chunks = plan.shape.groups * group_chunks(p);
  for (int64_t b = begin; b < end; ++b) {
    if (p.grad_first[b] == nullptr && p.grad_second[b] == nullptr) continue;
    sum_block_gradients(
        block_shape(plan, b), plan.blocks[b], p.partial_weights + b * chunks * p.partial_stride,
        p.partial_stride, chunks,
        [&](int64_t chunk) { return op_runs(p, chunk / group_chunks(p), plan.block_op[b]); },
        p.grad_first[b], p.grad_second[b]);
  }
}

// Items: norms. dL/d beta = sum over groups of S1, dL/d gamma of S2.
template <typename T, typename M>
static void cell_parameters(const CellBackward<T, M>& p, int64_t begin, int64_t end) {
  const CellShape& s = p.plan.shape;
  for (int64_t norm = begin; norm < end; ++norm) {
    const double* sums = p.norm_sums + norm * s.groups * 2 * s.channels;
    for (int64_t c = 0; c < s.channels; ++c) {
      double beta = 0, gamma = 0;
      for (int64_t group = 0; group < s.groups; ++group) {
        beta += sums[group * 2 * s.channels + c];
        gamma += sums[group * 2 * s.channels + s.channels + c];
      }
      if (p.grad_gamma[norm] != nullptr) p.grad_gamma[norm][c] = static_cast<T>(gamma);
      if (p.grad_beta[norm] != nullptr) p.grad_beta[norm][c] = static_cast<T>(beta);
    }
  }
}

}  // namespace darts_fast::cpu::DARTS_CPU_CAPABILITY
