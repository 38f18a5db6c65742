// SPDX-License-Identifier: Apache-2.0
// Shapes and pointers of node_sum and node_sum_backward, shared by every backend. Torch-free.
#pragma once

#include <cstdint>

namespace darts_fast {

// How one term of the sum is normalised before it is weighted.
enum class Norm : int64_t {
  kNone = 0,     // identity, NAS-Bench-201 pools: the map enters as it is
  kBatch = 1,    // BatchNorm in train mode: statistics of the group's own batch
  kRunning = 2,  // BatchNorm in eval mode: statistics are given
};

// G groups of M positions (images x rows x columns) each, K terms, C channels. A map is [G * M, C]
// with the channel innermost (channels_last). Positions are cut into tiles of `tile` positions; the
// cut depends on C alone, so that every sum has one order, whatever the number of threads.
struct NodeSumShape {
  int64_t groups;
  int64_t terms;
  int64_t channels;
  int64_t positions;
  int64_t tile;
};

// Static, so that a kernel file compiled for one capability exports no copy for the others.
static inline int64_t tiles(const NodeSumShape& s) { return (s.positions + s.tile - 1) / s.tile; }

static inline int64_t tile_size(const NodeSumShape& s, int64_t index) {
  const int64_t left = s.positions - index * s.tile;
  return left < s.tile ? left : s.tile;
}

// Arguments and outputs of one call. Maps, the node and their gradients are stored as Map, all else
// as T, which is computed with. Tables per term (maps, norms, eps, active) lie in host memory,
// everything else on the device of the maps. Each backend adds scratch of its own.
template <typename T, typename Map = T>
struct NodeSumForward {
  NodeSumShape shape;
  const Map* const* maps;  // [K] -> [G * M, C]
  const T* weights;        // [G, K]
  const T* gamma;          // [K, C], or null for ones
  const T* beta;           // [K, C], or null for zeros
  const Norm* norms;       // [K]
  const double* eps;       // [K]
  const uint8_t* active;   // [G, K]: 0 = the map is neither read nor added
  // outputs
  T* mean;    // [G, K, C]; given for kRunning terms, 0 for kNone
  T* var;     // [G, K, C], biased; given for kRunning terms, 1 for kNone
  Map* node;  // [G * M, C]
};

template <typename T, typename Map = T>
struct NodeSumBackward {
  NodeSumShape shape;
  const Map* grad_node;    // [G * M, C]
  const Map* const* maps;  // [K] -> [G * M, C]
  const T* weights;        // [G, K]
  const T* gamma;          // [K, C], or null
  const T* beta;           // [K, C], or null
  const T* mean;           // [G, K, C]
  const T* var;            // [G, K, C]
  const Norm* norms;       // [K]
  const double* eps;       // [K]
  const uint8_t* active;   // [G, K]
  // outputs; a null pointer is a gradient that nobody asked for
  Map* const* grad_maps;  // [K] -> [G * M, C]
  T* grad_weights;        // [G, K]
  T* grad_gamma;          // [K, C]
  T* grad_beta;           // [K, C]
};

}  // namespace darts_fast
