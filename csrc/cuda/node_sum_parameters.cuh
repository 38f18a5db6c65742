// SPDX-License-Identifier: Apache-2.0
// What the kernels of node_sum are given; mathematics and names as in cpu/kernels/node_sum_*.h.
//
// A group's slice of a map is one array of M * C elements, channel innermost, cut into tiles of
// positions. A block takes one tile: its threads stand in rows of `columns` 128-bit vectors, a
// thread keeps the channels of its column and goes down kItems rows, so neighbours read neighbours
// and each thread has kItems independent loads in flight. Where C is no multiple of the vector, a
// row is the shortest run of whole positions that is one (C = 10 in float32: two positions in five
// vectors), so 128-bit accesses serve every C. Only maps that are not aligned to 16 bytes in every
// group, or have more than kThreads vectors in a row, take one element per access.
//
// The tables that lie in host memory (pointers, norms, eps, active) travel by value as kernel
// parameters, kTerms terms and kGroups groups at a time. A copy from pinned memory would have to
// keep its source alive and unchanged for every replay of a captured graph, and costs a copy per
// call; parameters are part of the launch. A DARTS node has at most 35 terms, so one chunk is the
// rule and more is a loop.
//
// Maps are stored as Map and computed with as T: under autocast as 16 bits and as float, eight
// elements to a vector. The node and the maps' gradients are rounded once.
//
// Sums: in T within a tile, in double over tiles, always in an order that depends on the shape
// alone. No atomics: equal arguments give equal bits, on every device.
#pragma once

#include "cuda/common.cuh"
#include "node_sum.h"

namespace darts_fast::cuda {
namespace {

constexpr int kThreads = 256;
// Rows that a thread goes down: a tile has as many bytes of any map, and partial sums of maps of 16
// bits weigh little.
template <typename Map>
constexpr int kItems = sizeof(Map) == 2 ? 4 : 8;
constexpr int kTerms = 64;
constexpr int kGroups = 64;
// Threads side by side before a row of channels is cut: 256 bytes of whole memory sectors, while
// the rows of a tile stay many enough for its three partial sums per channel to weigh little.
template <int V>
constexpr int kColumns = V == 1 ? 32 : 16;

struct Tiling {
  int columns;  // vectors of a row that a block takes
  int rows;     // rows that stand in a block at once
  int chunks;   // blocks side by side in a row
  int stride;   // vectors from one row to the next
  int repeats;  // positions in a row
};

// One chunk of the host tables. Bit i of a mask is term i of the chunk.
template <typename Map>
struct Terms {
  const Map* maps[kTerms];
  Map* grads[kTerms];          // backward: null where not wanted
  double eps[kTerms];          // added to the variance
  uint64_t active[kGroups];    // per group
  uint64_t batch;              // Norm::kBatch
  uint64_t normalised;         // kBatch or kRunning
  uint64_t reduced;            // backward: some gradient needs sum g * x^
  uint8_t statistics[kTerms];  // forward: the terms with batch statistics in any group
  int statistics_count;
  int count;
  int groups;
  int first_term;
  int first_group;
};

// What a launch of the forward's kernels takes. The pointers to host tables in `p` are null: a
// kernel finds the tables in `terms`. Rows count (group, term) pairs of the chunk.
template <typename T, typename Map>
struct Forward {
  NodeSumForward<T, Map> p;
  Terms<Map> terms;
  Tiling tiling;
  T* scale;     // [rows, repeats, C]: w * gamma / sigma
  T* center;    // [rows, repeats, C]
  T* constant;  // [groups, repeats, C]: sum over the chunk's terms of w * beta
  T* partial;   // [rows, tiles, 3, C]: a value c near the tile's mean, sum of y - c, of its square
  T* sum;       // [G * M, C]: the sum over several chunks for a narrower node; null for others
};

template <typename T, typename Map>
struct Backward {
  NodeSumBackward<T, Map> p;
  Terms<Map> terms;
  Tiling tiling;
  T* scale;    // [rows, repeats, C]: grad_y = scale * (g - shift - slope * (y - center))
  T* slope;    // [rows, repeats, C]
  T* center;   // [rows, repeats, C]
  T* shift;    // [groups, repeats, C]: S1 / M
  T* partial;  // [groups, tiles, 1 + count, C]: sum of g, then of g * (y - mean) per term
};

static_assert(sizeof(Forward<double, double>) <= 4096 && sizeof(Backward<double, double>) <= 4096,
              "kernel parameters have 4 KiB");
static_assert(kTerms <= 64, "masks have 64 bits");

}  // namespace
}  // namespace darts_fast::cuda
