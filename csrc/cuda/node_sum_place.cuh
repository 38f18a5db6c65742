// SPDX-License-Identifier: Apache-2.0
// Where a thread of node_sum works, and what its block has summed up.
#pragma once

#include "cuda/elements.cuh"
#include "cuda/node_sum_parameters.cuh"

namespace darts_fast::cuda {
namespace {

__device__ __forceinline__ bool bit(uint64_t mask, int i) { return (mask >> i & 1) != 0; }

__device__ __forceinline__ int64_t tile_count(const NodeSumShape& s) {
  return (s.positions + s.tile - 1) / s.tile;
}

__device__ __forceinline__ int positions_in(const NodeSumShape& s, int64_t tile) {
  const int64_t left = s.positions - tile * s.tile;
  return static_cast<int>(left < s.tile ? left : s.tile);
}

__device__ __forceinline__ bool is_whole(const NodeSumShape& s, int64_t tile) {
  return positions_in(s, tile) == s.tile;
}

// Where a thread works: blockIdx.x is the tile, blockIdx.y the chunk of columns.
struct Place {
  int64_t base;  // of the tile in the map
  int count;     // elements of the tile; 0 for a thread that has no column
  int first;     // element in the tile of the thread's first vector
  int step;      // elements to its next
  int slot;      // element in the row, < repeats * C
};

template <int V>
__device__ __forceinline__ Place place(const NodeSumShape& s, const Tiling& t, int64_t group) {
  const int64_t tile = blockIdx.x;
  const int row = static_cast<int>(threadIdx.x) / t.columns;
  const int column = static_cast<int>(threadIdx.x) - row * t.columns;
  const int vector = static_cast<int>(blockIdx.y) * t.columns + column;
  const bool works = row < t.rows && vector < t.stride;
  Place at;
  at.base = (group * s.positions + tile * s.tile) * s.channels;
  at.count = works ? positions_in(s, tile) * static_cast<int>(s.channels) : 0;
  at.first = (row * t.stride + vector) * V;
  at.step = t.rows * t.stride * V;
  at.slot = works ? vector * V : 0;
  return at;
}

// Element `slot` of a row of sums, with those of the same channel at the row's other positions.
template <typename T, int V>
struct Row {
  const T* sums;
  int slots;
  int channels;  // that the block's part of the row holds

  __device__ __forceinline__ Row(const Vec<T, V>* sums, const NodeSumShape& s, const Tiling& t)
      : sums(reinterpret_cast<const T*>(sums)),
        slots(t.columns * V),
        channels(t.repeats > 1 ? static_cast<int>(s.channels) : t.columns * V) {}

  __device__ __forceinline__ T channel(int slot) const {
    T sum = T(0);
    for (int i = slot % channels; i < slots; i += channels) sum += sums[i];
    return sum;
  }
};

}  // namespace
}  // namespace darts_fast::cuda
