// SPDX-License-Identifier: Apache-2.0
// The launchers of node_sum.
#pragma once

#include <cstddef>

#include "cuda/node_sum_combine.cuh"
#include "cuda/node_sum_finish.cuh"
#include "cuda/node_sum_grad_maps.cuh"
#include "cuda/node_sum_launch.h"
#include "cuda/node_sum_plan.cuh"
#include "cuda/node_sum_reduce.cuh"
#include "cuda/node_sum_statistics.cuh"

namespace darts_fast::cuda {
namespace {

inline dim3 sweep_grid(const NodeSumShape& s, const Tiling& t, int z) {
  return dim3(static_cast<unsigned>(tiles(s)), static_cast<unsigned>(t.chunks),
              static_cast<unsigned>(z));
}

template <int V, typename T, typename Map>
void launch_chunks(const NodeSumForward<T, Map>& p, void* scratch, cudaStream_t stream) {
  Forward<T, Map> f;
  set_up<V>(f, p, reinterpret_cast<uintptr_t>(scratch));
  const NodeSumShape& s = f.p.shape;
  const unsigned channel_blocks =
      static_cast<unsigned>((s.channels + kMergeWarps - 1) / kMergeWarps);
  for (int64_t group = 0; group < s.groups; group += kGroups) {
    for (int64_t term = 0; term < s.terms; term += kTerms) {
      fill_terms(f.terms, p, group, term);
      if (f.terms.statistics_count > 0) {
        launch("node_sum_statistics", node_sum_statistics<T, Map, V>,
               sweep_grid(s, f.tiling, f.terms.groups * f.terms.statistics_count), kThreads, stream,
               f);
      }
      launch("node_sum_merge", node_sum_merge<T, Map>,
             dim3(channel_blocks, f.terms.count + 1, f.terms.groups), kThreads, stream, f);
      launch("node_sum_combine", node_sum_combine<T, Map, V>,
             sweep_grid(s, f.tiling, f.terms.groups), kThreads, stream, f);
    }
  }
}

template <int V, typename T, typename Map>
void launch_chunks(const NodeSumBackward<T, Map>& p, void* scratch, cudaStream_t stream) {
  Backward<T, Map> f;
  set_up<V>(f, p, reinterpret_cast<uintptr_t>(scratch));
  const NodeSumShape& s = f.p.shape;
  for (int64_t group = 0; group < s.groups; group += kGroups) {
    for (int64_t term = 0; term < s.terms; term += kTerms) {
      fill_terms(f.terms, p, group, term);
      fill_gradients(f.terms, p);
      const int blocks = static_cast<int>(ceil_divide(f.terms.count, kTermsPerBlock<Map>));
      launch("node_sum_reduce", node_sum_reduce<T, Map, V>,
             sweep_grid(s, f.tiling, f.terms.groups * blocks), kThreads, stream, f);
      launch("node_sum_finish", node_sum_finish<T, Map>, f.terms.count, kFinishWarps * kWarp,
             stream, f);
      launch("node_sum_grad_maps", node_sum_grad_maps<T, Map, V>,
             sweep_grid(s, f.tiling, f.terms.groups), kThreads, stream, f);
    }
  }
}

}  // namespace

template <typename T, typename Map>
size_t node_sum_scratch(const NodeSumForward<T, Map>& p) {
  Forward<T, Map> f;
  return takes_vectors(p) ? set_up<kLanes<Map>>(f, p, 0) : set_up<1>(f, p, 0);
}

template <typename T, typename Map>
size_t node_sum_scratch(const NodeSumBackward<T, Map>& p) {
  Backward<T, Map> f;
  return takes_vectors(p) ? set_up<kLanes<Map>>(f, p, 0) : set_up<1>(f, p, 0);
}

template <typename T, typename Map>
void launch_node_sum(const NodeSumForward<T, Map>& p, void* scratch, cudaStream_t stream) {
  if (p.shape.positions == 0) return;
  if (takes_vectors(p)) {
    launch_chunks<kLanes<Map>>(p, scratch, stream);
  } else {
    launch_chunks<1>(p, scratch, stream);
  }
}

template <typename T, typename Map>
void launch_node_sum(const NodeSumBackward<T, Map>& p, void* scratch, cudaStream_t stream) {
  if (p.shape.positions == 0) return;
  if (takes_vectors(p)) {
    launch_chunks<kLanes<Map>>(p, scratch, stream);
  } else {
    launch_chunks<1>(p, scratch, stream);
  }
}

}  // namespace darts_fast::cuda
