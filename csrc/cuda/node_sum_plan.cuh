// SPDX-License-Identifier: Apache-2.0
// The host's side of node_sum: how maps are cut, where scratch lies, the chunks of the tables.
#pragma once

#include <cstddef>
#include <numeric>
#include <type_traits>

#include "cuda/node_sum_parameters.cuh"
#include "cuda/scratch.cuh"

namespace darts_fast::cuda {
namespace {

// Vectors of V lanes need 16-byte aligned slices in every group, and a row that fits a block.
template <typename Map>
bool takes_vectors(const NodeSumShape& s, bool aligned) {
  constexpr int64_t lanes = kLanes<Map>;
  const int64_t repeats = lanes / std::gcd(s.channels, lanes);
  return aligned && (s.groups == 1 || s.positions * s.channels % lanes == 0) &&
         (repeats == 1 || s.channels * repeats / lanes <= kThreads);
}

template <typename T, typename Map>
bool takes_vectors(const NodeSumForward<T, Map>& p) {
  bool aligned = is_aligned(p.node);
  for (int64_t k = 0; k < p.shape.terms; ++k) aligned = aligned && is_aligned(p.maps[k]);
  return takes_vectors<Map>(p.shape, aligned);
}

template <typename T, typename Map>
bool takes_vectors(const NodeSumBackward<T, Map>& p) {
  bool aligned = is_aligned(p.grad_node);
  for (int64_t k = 0; k < p.shape.terms; ++k) {
    aligned = aligned && is_aligned(p.maps[k]) && is_aligned(p.grad_maps[k]);
  }
  return takes_vectors<Map>(p.shape, aligned);
}

// The grid's limit of 65535 chunks refuses more than two million channels, long before an offset
// within a tile outgrows an int.
template <int V>
Tiling make_tiling(int64_t channels) {
  Tiling t;
  t.repeats = static_cast<int>(V / std::gcd(channels, int64_t{V}));
  t.stride = static_cast<int>(channels * t.repeats / V);
  t.chunks = t.repeats > 1 ? 1 : (t.stride + kColumns<V> - 1) / kColumns<V>;
  t.columns = (t.stride + t.chunks - 1) / t.chunks;
  t.rows = kThreads / t.columns;
  return t;
}

inline int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }

// What both directions set: the arguments without the tables in host memory, and how maps are cut.
template <int V, template <typename, typename> typename Sweeps, typename Params, typename T,
          typename Map>
void set_call(Sweeps<T, Map>& f, const Params& p) {
  f.p = p;
  f.p.maps = nullptr;
  f.p.norms = nullptr;
  f.p.eps = nullptr;
  f.p.active = nullptr;
  f.tiling = make_tiling<V>(p.shape.channels);
  f.p.shape.tile = int64_t{kItems<Map>} * f.tiling.rows * f.tiling.repeats;
}

// Everything of a call that does not change from chunk to chunk; returns the end of the scratch.
template <int V, typename T, typename Map>
uintptr_t set_up(Forward<T, Map>& f, const NodeSumForward<T, Map>& p, uintptr_t scratch) {
  set_call<V>(f, p);
  const int64_t groups = smaller(p.shape.groups, kGroups);
  const int64_t rows = groups * smaller(p.shape.terms, kTerms);
  const int64_t width = f.tiling.repeats * p.shape.channels;
  ScratchArrays arrays{scratch};
  f.scale = arrays.take<T>(rows * width);
  f.center = arrays.take<T>(rows * width);
  f.constant = arrays.take<T>(groups * width);
  f.partial = arrays.take<T>(rows * tiles(f.p.shape) * 3 * p.shape.channels);
  const bool sums = !std::is_same_v<T, Map> && p.shape.terms > kTerms;
  f.sum = sums ? arrays.take<T>(p.shape.groups * p.shape.positions * p.shape.channels) : nullptr;
  return arrays.next;
}

template <int V, typename T, typename Map>
uintptr_t set_up(Backward<T, Map>& f, const NodeSumBackward<T, Map>& p, uintptr_t scratch) {
  set_call<V>(f, p);
  f.p.grad_maps = nullptr;
  const int64_t groups = smaller(p.shape.groups, kGroups);
  const int64_t terms = smaller(p.shape.terms, kTerms);
  const int64_t width = f.tiling.repeats * p.shape.channels;
  ScratchArrays arrays{scratch};
  f.scale = arrays.take<T>(groups * terms * width);
  f.slope = arrays.take<T>(groups * terms * width);
  f.center = arrays.take<T>(groups * terms * width);
  f.shift = arrays.take<T>(groups * width);
  f.partial = arrays.take<T>(groups * tiles(f.p.shape) * (1 + terms) * p.shape.channels);
  return arrays.next;
}

// The part of the host tables that both directions have, for the chunk at (group, term).
template <typename Map, typename Params>
void fill_terms(Terms<Map>& terms, const Params& p, int64_t first_group, int64_t first_term) {
  const NodeSumShape& s = p.shape;
  terms = {};
  terms.first_group = static_cast<int>(first_group);
  terms.first_term = static_cast<int>(first_term);
  terms.groups = static_cast<int>(smaller(s.groups - first_group, kGroups));
  terms.count = static_cast<int>(smaller(s.terms - first_term, kTerms));
  uint64_t used = 0;
  for (int group = 0; group < terms.groups; ++group) {
    const uint8_t* active = p.active + (first_group + group) * s.terms + first_term;
    for (int i = 0; i < terms.count; ++i) {
      terms.active[group] |= static_cast<uint64_t>(active[i] != 0) << i;
    }
    used |= terms.active[group];
  }
  for (int i = 0; i < terms.count; ++i) {
    const uint64_t mask = uint64_t{1} << i;
    const Norm norm = p.norms[first_term + i];
    terms.maps[i] = p.maps[first_term + i];
    terms.eps[i] = p.eps[first_term + i];
    if (norm != Norm::kNone) terms.normalised |= mask;
    if (norm != Norm::kBatch) continue;
    terms.batch |= mask;
    if ((used & mask) != 0) {
      terms.statistics[terms.statistics_count++] = static_cast<uint8_t>(i);
    }
  }
}

template <typename T, typename Map>
void fill_gradients(Terms<Map>& terms, const NodeSumBackward<T, Map>& p) {
  for (int i = 0; i < terms.count; ++i) {
    const uint64_t mask = uint64_t{1} << i;
    terms.grads[i] = p.grad_maps[terms.first_term + i];
    if (p.grad_weights != nullptr || (p.grad_gamma != nullptr && (terms.normalised & mask) != 0) ||
        (terms.grads[i] != nullptr && (terms.batch & mask) != 0)) {
      terms.reduced |= mask;
    }
  }
}

}  // namespace
}  // namespace darts_fast::cuda
