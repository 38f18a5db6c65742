// SPDX-License-Identifier: Apache-2.0
// How the element-wise kernels of a cell cut a map: a thread keeps V channels and goes down
// kItems positions, so its coefficients are read once for them.
#pragma once

#include "cuda/cell.cuh"

namespace darts_fast::cuda {
namespace {

constexpr int kItems = 4;
constexpr int kStripColumns = 32;

struct Strip {
  int columns, rows, chunks;

  __host__ __device__ Strip(int channels, int lanes) {
    const int vectors = channels / lanes;
    columns = vectors < kStripColumns ? vectors : kStripColumns;
    rows = kThreads / columns;
    chunks = (vectors + columns - 1) / columns;
  }
  __host__ __device__ int positions() const { return rows * kItems; }
};

// grid.x is the tile, grid.y counts groups and in a group chunks of channels.
template <int V>
struct StripPlace {
  Strip strip;
  int group, row, column, ch;
  int64_t begin;  // of the tile
  int count;      // positions of the tile
  bool works;

  __device__ __forceinline__ StripPlace(int channels, int64_t positions) : strip(channels, V) {
    group = static_cast<int>(blockIdx.y) / strip.chunks;
    const int chunk = static_cast<int>(blockIdx.y) - group * strip.chunks;
    row = static_cast<int>(threadIdx.x) / strip.columns;
    column = static_cast<int>(threadIdx.x) - row * strip.columns;
    ch = (chunk * strip.columns + column) * V;
    begin = static_cast<int64_t>(blockIdx.x) * strip.positions();
    const int64_t left = positions - begin;
    count = static_cast<int>(left < strip.positions() ? (left > 0 ? left : 0) : strip.positions());
    works = row < strip.rows && ch < channels;
  }

  // Item j's position in the tile, and whether there is one.
  __device__ __forceinline__ int position(int j) const { return row + j * strip.rows; }
  __device__ __forceinline__ bool has(int j) const { return works && position(j) < count; }
  // And in the group.
  __device__ __forceinline__ int64_t place(int j) const { return begin + position(j); }
};

// What an op gives to the sum of its node: one of the two, image 0 of the group.
template <typename T, typename M>
struct TermMap {
  const StateOf<T, M>* wide;
  const RawOf<T, M>* raw;
};

template <typename T, typename M>
__device__ __forceinline__ TermMap<T, M> term_map(const Cell<T, M>& c, const OpRow& op, int group) {
  if (op.block >= 0) return {nullptr, raw_of(c, op.map, group)};
  if (op.map >= 0) return {map_of(c, op.map, group), nullptr};
  return {state_of(c, op.source, group), nullptr};
}

template <typename T, typename M, int V>
__device__ __forceinline__ Vec<T, V> load_term(const TermMap<T, M>& y, int64_t at) {
  return y.raw == nullptr ? load_wide<T, V>(y.wide + at) : load_wide<T, V>(y.raw + at);
}

}  // namespace
}  // namespace darts_fast::cuda
