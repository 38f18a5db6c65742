// SPDX-License-Identifier: Apache-2.0
// The CPU kernels of node_sum: one table of functions per capability and element type.
#pragma once

#include <cstdint>

#include "node_sum.h"

namespace darts_fast::cpu {

// The arguments with the scratch of the phases.
template <typename T>
struct NodeSumForward : darts_fast::NodeSumForward<T> {
  T* partial_center;       // [K, G, tiles, C] scratch of statistics and merge
  double* partial_mean;    // [K, G, tiles, C]
  double* partial_square;  // [K, G, tiles, C] sums of squares about the tile's own mean
  T* scale;                // [G, K, period] scratch of prepare and combine: w * gamma / sigma
  T* center;               // [G, K, period]
  T* constant;             // [G, period]: sum over terms of w * beta
};

template <typename T>
struct NodeSumBackward : darts_fast::NodeSumBackward<T> {
  T* center;      // [G, K, period]
  T* partial;     // [G, tiles, K + 1, C]: sums of g, then of g * (y - mean) per term
  double* sums;   // [G, K + 1, C]: S1, then S2 per term
  T* grad_scale;  // [G, K, period]: grad_y = grad_scale * g - grad_shift
  T* grad_shift;  // [G, K, period]                          - grad_slope * (y - mean)
  T* grad_slope;  // [G, K, period]
};

// Each function does the work items [begin, end) of its phase. No two items write the same memory,
// each item has one order of summation, and phases run one after another: results do not depend on
// how the items are shared out.
template <typename T>
struct NodeSumKernels {
  // Length of the scratch rows: lcm(C, lanes).
  int64_t (*period)(int64_t channels);
  // Forward, in the order of the phases.                                     item
  void (*statistics)(const NodeSumForward<T>& p, int64_t begin, int64_t end);  // group, tile, term
  void (*merge)(const NodeSumForward<T>& p, int64_t begin, int64_t end);       // group, term
  void (*prepare)(const NodeSumForward<T>& p, int64_t begin, int64_t end);     // group
  void (*combine)(const NodeSumForward<T>& p, int64_t begin, int64_t end);     // group, tile
  // Backward, in the order of the phases.
  void (*center)(const NodeSumBackward<T>& p, int64_t begin, int64_t end);        // group, term
  void (*reduce)(const NodeSumBackward<T>& p, int64_t begin, int64_t end);        // group, tile
  void (*merge_sums)(const NodeSumBackward<T>& p, int64_t begin, int64_t end);    // group, 1 + term
  void (*coefficients)(const NodeSumBackward<T>& p, int64_t begin, int64_t end);  // group, term
  void (*parameters)(const NodeSumBackward<T>& p, int64_t begin, int64_t end);    // term
  void (*grad_maps)(const NodeSumBackward<T>& p, int64_t begin, int64_t end);     // group, tile
};

#define DARTS_DECLARE_NODE_SUM(CAPABILITY)                     \
  namespace CAPABILITY {                                       \
  extern const NodeSumKernels<float> node_sum_kernels_float;   \
  extern const NodeSumKernels<double> node_sum_kernels_double; \
  }
DARTS_DECLARE_NODE_SUM(DEFAULT)
DARTS_DECLARE_NODE_SUM(AVX2)
DARTS_DECLARE_NODE_SUM(AVX512)
#undef DARTS_DECLARE_NODE_SUM

}  // namespace darts_fast::cpu
