// SPDX-License-Identifier: Apache-2.0
// Kernels and launchers of node_sum; mathematics and names as in cpu/kernels/node_sum_*.h.
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
// Sums: in T within a tile, in double over tiles, always in an order that depends on the shape
// alone. No atomics: equal arguments give equal bits, on every device.
#pragma once

#include <cstddef>
#include <numeric>

#include "cuda/common.cuh"
#include "cuda/moments.cuh"
#include "cuda/node_sum_launch.h"
#include "node_sum.h"

namespace darts_fast::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kItems = 8;
constexpr int kGradItems = 4;  // at once in the backward, which keeps three vectors of each
constexpr int kMergeWarps = kThreads / kWarp;
constexpr int kFinishWarps = 16;
constexpr int kTermsPerBlock = 4;  // of the backward's reduction
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
template <typename T>
struct Terms {
  const T* maps[kTerms];
  T* grads[kTerms];            // backward: null where not wanted
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
template <typename T>
struct Forward {
  NodeSumForward<T> p;
  Terms<T> terms;
  Tiling tiling;
  T* scale;     // [rows, repeats, C]: w * gamma / sigma
  T* center;    // [rows, repeats, C]
  T* constant;  // [groups, repeats, C]: sum over the chunk's terms of w * beta
  T* partial;   // [rows, tiles, 3, C]: a value c near the tile's mean, sum of y - c, of its square
};

template <typename T>
struct Backward {
  NodeSumBackward<T> p;
  Terms<T> terms;
  Tiling tiling;
  T* scale;    // [rows, repeats, C]: grad_y = scale * (g - shift - slope * (y - center))
  T* slope;    // [rows, repeats, C]
  T* center;   // [rows, repeats, C]
  T* shift;    // [groups, repeats, C]: S1 / M
  T* partial;  // [groups, tiles, 1 + count, C]: sum of g, then of g * (y - mean) per term
};

static_assert(sizeof(Forward<double>) <= 4096 && sizeof(Backward<double>) <= 4096,
              "kernel parameters have 4 KiB");
static_assert(kTerms <= 64, "masks have 64 bits");

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

// partial = {c, sum (y - c), sum (y - c)^2} per channel over a tile, c = the rounded mean of y.
//
// grid = (tiles, chunks of columns, groups * terms with batch statistics), one tile per block, kept
// in registers between the mean and the squares. The second sums take the rounding of c back out:
// the difference of two close numbers is exact, so a mean a thousand deviations away costs nothing.
// Memory: every batch-normalised map read once; three values per channel and tile written.
template <typename T, int V>
__global__ __launch_bounds__(kThreads,
                             3) void node_sum_statistics(const __grid_constant__ Forward<T> f) {
  __shared__ Vec<T, V> totals[1][kThreads];
  __shared__ Vec<T, V> moments[2][kThreads];
  const NodeSumShape& s = f.p.shape;
  const Tiling& t = f.tiling;
  const int group = static_cast<int>(blockIdx.z) / f.terms.statistics_count;
  const int term =
      f.terms.statistics[static_cast<int>(blockIdx.z) - group * f.terms.statistics_count];
  if (!bit(f.terms.active[group], term)) return;
  const Place at = place<V>(s, t, f.terms.first_group + group);
  const T* y = f.terms.maps[term] + at.base;
  Vec<T, V> value[kItems];
#pragma unroll
  for (int j = 0; j < kItems; ++j) value[j] = load<T, V>(y, at.first + j * at.step, at.count);
  Vec<T, V> total[1] = {zeros<T, V>()};
#pragma unroll
  for (int j = 0; j < kItems; ++j) {
#pragma unroll
    for (int lane = 0; lane < V; ++lane) total[0].lane[lane] += value[j].lane[lane];
  }
  sum_rows(total, totals, t.columns, t.rows);

  const T size = static_cast<T>(positions_in(s, blockIdx.x));
  const Row<T, V> sums(totals[0], s, t);
  const int slot = static_cast<int>(threadIdx.x) % t.columns * V;
  Vec<T, V> moment[2] = {zeros<T, V>(), zeros<T, V>()};
#pragma unroll
  for (int lane = 0; lane < V; ++lane) {
    const T c = sums.channel(slot + lane) / size;
#pragma unroll
    for (int j = 0; j < kItems; ++j) {
      if (at.first + j * at.step + lane < at.count) {
        const T d = value[j].lane[lane] - c;
        moment[0].lane[lane] += d;
        moment[1].lane[lane] += d * d;
      }
    }
  }
  sum_rows(moment, moments, t.columns, t.rows);

  const Row<T, V> differences(moments[0], s, t);
  const Row<T, V> squares(moments[1], s, t);
  const int64_t row = static_cast<int64_t>(group) * f.terms.count + term;
  T* out = f.partial + (row * tile_count(s) + blockIdx.x) * 3 * s.channels;
  for (int i = static_cast<int>(threadIdx.x); i < sums.channels; i += kThreads) {
    const int64_t c = static_cast<int64_t>(blockIdx.y) * sums.channels + i;
    if (c >= s.channels) continue;
    out[c] = sums.channel(i) / size;
    out[s.channels + c] = differences.channel(i);
    out[2 * s.channels + c] = squares.channel(i);
  }
}

// mean, var from the partial moments; then what `combine` needs of a term:
//   scale = w * gamma / sqrt(var + eps), center = mean, constant = sum_k w_k * beta_k.
//
// grid = (channels / warps, terms + 1, groups), one warp per channel of a term, its lanes over the
// tiles, merged in double: lane by lane, then by halves. The last y of the grid sums the constant,
// its lanes over the terms. Memory: the partial moments, small beside the maps.
template <typename T>
__global__ __launch_bounds__(kThreads) void node_sum_merge(const __grid_constant__ Forward<T> f) {
  const NodeSumShape& s = f.p.shape;
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  const int64_t c = static_cast<int64_t>(blockIdx.x) * kMergeWarps + threadIdx.x / kWarp;
  if (c >= s.channels) return;
  const int i = static_cast<int>(blockIdx.y);
  const int group = static_cast<int>(blockIdx.z);
  const uint64_t active = f.terms.active[group];
  const int64_t first_row = (f.terms.first_group + group) * s.terms + f.terms.first_term;
  const int64_t width = f.tiling.repeats * s.channels;
  if (i == f.terms.count) {
    double sum = 0;
    for (int k = lane; k < f.terms.count && f.p.beta != nullptr; k += kWarp) {
      if (!bit(active & f.terms.normalised, k)) continue;
      const T beta = f.p.beta[(f.terms.first_term + k) * s.channels + c];
      sum += static_cast<double>(f.p.weights[first_row + k]) * beta;
    }
    sum = warp_sum(sum);
    if (lane != 0) return;
    for (int64_t at = c; at < width; at += s.channels) {
      f.constant[group * width + at] = static_cast<T>(sum);
    }
    return;
  }

  const int64_t row = first_row + i;
  const int64_t chunk_row = static_cast<int64_t>(group) * f.terms.count + i;
  const bool batch = bit(f.terms.batch, i);
  const bool normalised = bit(f.terms.normalised, i);
  Moments moments = {0, 0, 0};
  if (batch && bit(active, i)) {
    const int64_t tiles = tile_count(s);
    for (int64_t tile = lane; tile < tiles; tile += kWarp) {
      const T* in = f.partial + (chunk_row * tiles + tile) * 3 * s.channels + c;
      const double size = positions_in(s, tile);
      const double sum = in[s.channels];
      moments = merge(moments, {size, in[0] + sum / size, in[2 * s.channels] - sum * sum / size});
    }
    moments = merge_lanes(moments);
  }
  if (lane != 0) return;
  if (batch || !normalised) {
    f.p.mean[row * s.channels + c] = static_cast<T>(moments.mean);
    f.p.var[row * s.channels + c] =
        moments.count > 0 ? static_cast<T>(moments.square / moments.count) : T(1);
  }
  if (!bit(active, i)) return;
  T center = T(0);
  double scale = f.p.weights[row];
  if (normalised) {
    center = f.p.mean[row * s.channels + c];
    if (f.p.gamma != nullptr) scale *= f.p.gamma[(f.terms.first_term + i) * s.channels + c];
    scale /= sqrt(f.p.var[row * s.channels + c] + f.terms.eps[i]);
  }
  for (int64_t at = c; at < width; at += s.channels) {
    f.center[chunk_row * width + at] = center;
    f.scale[chunk_row * width + at] = static_cast<T>(scale);
  }
}

// Items vectors of the node, from item `first` of the thread. With Whole every item lies in the
// tile and nothing is checked.
template <typename T, int V, int Items, bool Whole>
__device__ __forceinline__ void combine_items(const Forward<T>& f, int group, const Place& at,
                                              int first) {
  const int start = at.first + first * at.step;
  const int count = Whole ? kNoEnd : at.count;
  const int64_t width = f.tiling.repeats * f.p.shape.channels;
  T* node = f.p.node + at.base;
  const Vec<T, V> constant = load<T, V>(f.constant + group * width + at.slot);
  Vec<T, V> sum[Items];
#pragma unroll
  for (int j = 0; j < Items; ++j) {
    sum[j] = constant;
    if (f.terms.first_term > 0) {
      const Vec<T, V> before = load<T, V>(node, start + j * at.step, count);
#pragma unroll
      for (int lane = 0; lane < V; ++lane) sum[j].lane[lane] += before.lane[lane];
    }
  }
  for (int i = 0; i < f.terms.count; ++i) {
    if (!bit(f.terms.active[group], i)) continue;
    const int64_t row = (static_cast<int64_t>(group) * f.terms.count + i) * width + at.slot;
    const T* y = f.terms.maps[i] + at.base;
    Vec<T, V> value[Items];
#pragma unroll
    for (int j = 0; j < Items; ++j) value[j] = load<T, V>(y, start + j * at.step, count);
    const Vec<T, V> scale = load<T, V>(f.scale + row);
    const Vec<T, V> center = load<T, V>(f.center + row);
#pragma unroll
    for (int j = 0; j < Items; ++j) {
#pragma unroll
      for (int lane = 0; lane < V; ++lane) {
        sum[j].lane[lane] += (value[j].lane[lane] - center.lane[lane]) * scale.lane[lane];
      }
    }
  }
#pragma unroll
  for (int j = 0; j < Items; ++j) store<T, V>(node, start + j * at.step, count, sum[j]);
}

// node = constant + sum_k scale_k * (y_k - center_k), over the active terms; of later chunks of
// terms, added to the node.
//
// grid = (tiles, chunks of columns, groups), kItems vectors of the node per thread in registers
// while the terms pass by; a term's coefficients are read once per kItems vectors, from the cache.
// The last tile of a group goes item by item. Memory: every active map read once, the node written
// once.
template <typename T, int V>
__global__ __launch_bounds__(kThreads,
                             2) void node_sum_combine(const __grid_constant__ Forward<T> f) {
  const int group = static_cast<int>(blockIdx.z);
  const Place at = place<V>(f.p.shape, f.tiling, f.terms.first_group + group);
  if (at.count == 0) return;
  if (is_whole(f.p.shape, blockIdx.x)) {
    combine_items<T, V, kItems, true>(f, group, at, 0);
  } else {
    for (int j = 0; j < kItems; ++j) combine_items<T, V, 1, false>(f, group, at, j);
  }
}

// partial = sum g and, per term, sum g * (y - mean), over a tile.
//
// grid = (tiles, chunks of columns, groups * ceil(terms / kTermsPerBlock)): a block reads its tile
// of g once for kTermsPerBlock maps, and adds its rows up once for all of them. A term whose sums
// nobody needs stands in with g itself, which is cached, so that the loads have no branch between
// them. Memory: every map read once; g once from memory, then from the second-level cache. Without
// the bound of two blocks the compiler spills registers of doubles on sm_100.
template <typename T, int V>
__global__ __launch_bounds__(kThreads,
                             2) void node_sum_reduce(const __grid_constant__ Backward<T> f) {
  __shared__ Vec<T, V> shared[1 + kTermsPerBlock][kThreads];
  const NodeSumShape& s = f.p.shape;
  const Tiling& t = f.tiling;
  const int blocks = (f.terms.count + kTermsPerBlock - 1) / kTermsPerBlock;
  const int group = static_cast<int>(blockIdx.z) / blocks;
  const int first = (static_cast<int>(blockIdx.z) - group * blocks) * kTermsPerBlock;
  const Place at = place<V>(s, t, f.terms.first_group + group);
  const T* g = f.p.grad_node + at.base;
  const uint64_t read = f.terms.active[group] & f.terms.reduced;
  const T* y[kTermsPerBlock];
  Vec<T, V> mean[kTermsPerBlock];
#pragma unroll
  for (int q = 0; q < kTermsPerBlock; ++q) {
    const bool reads = first + q < f.terms.count && bit(read, first + q);
    y[q] = reads ? f.terms.maps[first + q] + at.base : g;
    const int64_t row =
        (f.terms.first_group + group) * s.terms + f.terms.first_term + (reads ? first + q : 0);
#pragma unroll
    for (int lane = 0; lane < V; ++lane) {
      const int c = (at.slot + lane) % static_cast<int>(s.channels);
      mean[q].lane[lane] = f.p.mean[row * s.channels + c];
    }
  }
  Vec<T, V> sum[1 + kTermsPerBlock];
#pragma unroll
  for (int q = 0; q < 1 + kTermsPerBlock; ++q) sum[q] = zeros<T, V>();
#pragma unroll 2
  for (int j = 0; j < kItems; ++j) {
    const int i = at.first + j * at.step;
    const Vec<T, V> grad = load<T, V>(g, i, at.count);
    Vec<T, V> value[kTermsPerBlock];
#pragma unroll
    for (int q = 0; q < kTermsPerBlock; ++q) value[q] = load<T, V>(y[q], i, at.count);
#pragma unroll
    for (int lane = 0; lane < V; ++lane) {
      sum[0].lane[lane] += grad.lane[lane];
      // Behind the end of the tile the gradient is 0, and so is the product.
#pragma unroll
      for (int q = 0; q < kTermsPerBlock; ++q) {
        sum[1 + q].lane[lane] += grad.lane[lane] * (value[q].lane[lane] - mean[q].lane[lane]);
      }
    }
  }
  sum_rows(sum, shared, t.columns, t.rows);

  T* out = f.partial + (group * tile_count(s) + blockIdx.x) * (1 + f.terms.count) * s.channels;
#pragma unroll
  for (int q = 0; q < 1 + kTermsPerBlock; ++q) {
    const bool wanted =
        q == 0 ? first == 0 : first + q - 1 < f.terms.count && bit(read, first + q - 1);
    if (!wanted) continue;
    const Row<T, V> sums(shared[q], s, t);
    for (int i = static_cast<int>(threadIdx.x); i < sums.channels; i += kThreads) {
      const int64_t c = static_cast<int64_t>(blockIdx.y) * sums.channels + i;
      if (c < s.channels) out[(q == 0 ? 0 : first + q) * s.channels + c] = sums.channel(i);
    }
  }
}

// S1 and S2 from the partial sums, then everything that has no map's size:
//   dL/dw = sum_c gamma S2 + beta S1, dL/dgamma = sum_g w S2, dL/dbeta = sum_g w S1,
//   and the coefficients of dL/dy.
//
// grid = terms, a block of kFinishWarps warps, one warp per channel at a time, its lanes over the
// tiles in double. A block goes through the groups itself: gradients of gamma and beta are sums
// over them, and more than one group in a backward is rare. Memory: the partial sums.
template <typename T>
__global__ __launch_bounds__(kFinishWarps* kWarp) void node_sum_finish(
    const __grid_constant__ Backward<T> f) {
  __shared__ double weight_sums[kGroups][kFinishWarps];
  const NodeSumShape& s = f.p.shape;
  const int i = static_cast<int>(blockIdx.x);
  const int warp = static_cast<int>(threadIdx.x) / kWarp;
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  const int64_t k = f.terms.first_term + i;
  const int64_t tiles = tile_count(s);
  const int64_t slots = 1 + f.terms.count;
  const int64_t width = f.tiling.repeats * s.channels;
  const bool batch = bit(f.terms.batch, i);
  const bool normalised = bit(f.terms.normalised, i);
  const bool reduced = bit(f.terms.reduced, i);
  if (lane == 0) {
    for (int group = 0; group < f.terms.groups; ++group) weight_sums[group][warp] = 0;
  }
  for (int64_t c = warp; c < s.channels; c += kFinishWarps) {
    const double gamma = normalised && f.p.gamma != nullptr ? f.p.gamma[k * s.channels + c] : T(1);
    const double beta = normalised && f.p.beta != nullptr ? f.p.beta[k * s.channels + c] : T(0);
    double grad_gamma = 0, grad_beta = 0;
    for (int group = 0; group < f.terms.groups; ++group) {
      const bool active = bit(f.terms.active[group], i);
      const T* in = f.partial + group * tiles * slots * s.channels + c;
      double s1 = 0, s2 = 0;
      for (int64_t tile = lane; tile < tiles; tile += kWarp) {
        s1 += in[tile * slots * s.channels];
        if (active && reduced) s2 += in[(tile * slots + 1 + i) * s.channels];
      }
      s1 = warp_sum(s1);
      s2 = warp_sum(s2);
      if (lane != 0) continue;
      const int64_t row = (f.terms.first_group + group) * s.terms + k;
      const double size = static_cast<double>(s.positions);
      if (i == 0) {
        for (int64_t at = c; at < width; at += s.channels) {
          f.shift[group * width + at] = static_cast<T>(s1 / size);
        }
      }
      if (!active) continue;
      const double sigma = normalised ? sqrt(f.p.var[row * s.channels + c] + f.terms.eps[i]) : 1.0;
      const double w = f.p.weights[row];
      s2 /= sigma;
      weight_sums[group][warp] += gamma * s2 + beta * s1;
      if (normalised) {
        grad_gamma += w * s2;
        grad_beta += w * s1;
      }
      const int64_t first = (static_cast<int64_t>(group) * f.terms.count + i) * width;
      for (int64_t at = first + c; at < first + width; at += s.channels) {
        f.scale[at] = static_cast<T>(w * gamma / sigma);
        if (!batch) continue;
        f.slope[at] = static_cast<T>(s2 / size / sigma);
        f.center[at] = f.p.mean[row * s.channels + c];
      }
    }
    if (lane != 0) continue;
    const bool add = f.terms.first_group > 0;
    T* gamma_out = f.p.grad_gamma == nullptr ? nullptr : f.p.grad_gamma + k * s.channels + c;
    T* beta_out = f.p.grad_beta == nullptr ? nullptr : f.p.grad_beta + k * s.channels + c;
    if (gamma_out != nullptr)
      *gamma_out = static_cast<T>(add ? *gamma_out + grad_gamma : grad_gamma);
    if (beta_out != nullptr) *beta_out = static_cast<T>(add ? *beta_out + grad_beta : grad_beta);
  }
  __syncthreads();
  if (f.p.grad_weights == nullptr) return;
  for (int group = static_cast<int>(threadIdx.x); group < f.terms.groups;
       group += kFinishWarps * kWarp) {
    double sum = 0;
    for (int w = 0; w < kFinishWarps; ++w) sum += weight_sums[group][w];
    f.p.grad_weights[(f.terms.first_group + group) * s.terms + k] = static_cast<T>(sum);
  }
}

template <typename T, int V, int Items, bool Whole>
__device__ __forceinline__ void grad_items(const Backward<T>& f, int group, const Place& at,
                                           int first) {
  const int start = at.first + first * at.step;
  const int count = Whole ? kNoEnd : at.count;
  const int64_t width = f.tiling.repeats * f.p.shape.channels;
  const T* g = f.p.grad_node + at.base;
  const Vec<T, V> shift = load<T, V>(f.shift + group * width + at.slot);
  Vec<T, V> grad[Items];
#pragma unroll
  for (int j = 0; j < Items; ++j) grad[j] = load<T, V>(g, start + j * at.step, count);
  for (int i = 0; i < f.terms.count; ++i) {
    if (f.terms.grads[i] == nullptr) continue;
    T* out = f.terms.grads[i] + at.base;
    Vec<T, V> result[Items];
    if (!bit(f.terms.active[group], i)) {
#pragma unroll
      for (int j = 0; j < Items; ++j) result[j] = zeros<T, V>();
    } else {
      const int64_t row = (static_cast<int64_t>(group) * f.terms.count + i) * width + at.slot;
      const Vec<T, V> scale = load<T, V>(f.scale + row);
#pragma unroll
      for (int j = 0; j < Items; ++j) result[j] = grad[j];
      if (bit(f.terms.batch, i)) {
        const T* y = f.terms.maps[i] + at.base;
        Vec<T, V> value[Items];
#pragma unroll
        for (int j = 0; j < Items; ++j) value[j] = load<T, V>(y, start + j * at.step, count);
        const Vec<T, V> slope = load<T, V>(f.slope + row);
        const Vec<T, V> center = load<T, V>(f.center + row);
#pragma unroll
        for (int j = 0; j < Items; ++j) {
#pragma unroll
          for (int lane = 0; lane < V; ++lane) {
            const T d = value[j].lane[lane] - center.lane[lane];
            result[j].lane[lane] = (result[j].lane[lane] - shift.lane[lane]) - slope.lane[lane] * d;
          }
        }
      }
#pragma unroll
      for (int j = 0; j < Items; ++j) {
#pragma unroll
        for (int lane = 0; lane < V; ++lane) result[j].lane[lane] *= scale.lane[lane];
      }
    }
#pragma unroll
    for (int j = 0; j < Items; ++j) store<T, V>(out, start + j * at.step, count, result[j]);
  }
}

// dL/dy = scale * (g - shift - slope * (y - center)) under batch statistics, scale * g under given
// ones or none, 0 for an inactive term.
//
// grid = (tiles, chunks of columns, groups), kGradItems vectors of g in registers while the terms
// pass by: of all kItems some architectures spill. The last tile of a group goes item by item.
// Memory: g read once, every batch-normalised map read once, every wanted gradient written once.
template <typename T, int V>
__global__ __launch_bounds__(kThreads,
                             2) void node_sum_grad_maps(const __grid_constant__ Backward<T> f) {
  const int group = static_cast<int>(blockIdx.z);
  const Place at = place<V>(f.p.shape, f.tiling, f.terms.first_group + group);
  if (at.count == 0) return;
  if (is_whole(f.p.shape, blockIdx.x)) {
#pragma unroll 1
    for (int j = 0; j < kItems; j += kGradItems)
      grad_items<T, V, kGradItems, true>(f, group, at, j);
  } else {
    for (int j = 0; j < kItems; ++j) grad_items<T, V, 1, false>(f, group, at, j);
  }
}

// Vectors of V lanes need 16-byte aligned slices in every group, and a row that fits a block.
template <typename T>
bool takes_vectors(const NodeSumShape& s, bool aligned) {
  constexpr int64_t lanes = kLanes<T>;
  const int64_t repeats = lanes / std::gcd(s.channels, lanes);
  return aligned && (s.groups == 1 || s.positions * s.channels % lanes == 0) &&
         (repeats == 1 || s.channels * repeats / lanes <= kThreads);
}

inline bool is_aligned(const void* pointer) {
  return reinterpret_cast<uintptr_t>(pointer) % 16 == 0;
}

template <typename T>
bool takes_vectors(const NodeSumForward<T>& p) {
  bool aligned = is_aligned(p.node);
  for (int64_t k = 0; k < p.shape.terms; ++k) aligned = aligned && is_aligned(p.maps[k]);
  return takes_vectors<T>(p.shape, aligned);
}

template <typename T>
bool takes_vectors(const NodeSumBackward<T>& p) {
  bool aligned = is_aligned(p.grad_node);
  for (int64_t k = 0; k < p.shape.terms; ++k) {
    aligned = aligned && is_aligned(p.maps[k]) && is_aligned(p.grad_maps[k]);
  }
  return takes_vectors<T>(p.shape, aligned);
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

// The scratch arrays one behind the other, each aligned to 16 bytes.
struct Scratch {
  uintptr_t next;

  template <typename T>
  T* take(int64_t elements) {
    T* array = reinterpret_cast<T*>(next);
    next += (static_cast<uintptr_t>(elements) * sizeof(T) + 15) / 16 * 16;
    return array;
  }
};

// Everything of a call that does not change from chunk to chunk; returns the end of the scratch.
template <typename T, int V>
uintptr_t set_up(Forward<T>& f, const NodeSumForward<T>& p, uintptr_t scratch) {
  f.p = p;
  f.p.maps = nullptr;
  f.p.norms = nullptr;
  f.p.eps = nullptr;
  f.p.active = nullptr;
  f.tiling = make_tiling<V>(p.shape.channels);
  f.p.shape.tile = int64_t{kItems} * f.tiling.rows * f.tiling.repeats;
  const int64_t groups = smaller(p.shape.groups, kGroups);
  const int64_t rows = groups * smaller(p.shape.terms, kTerms);
  const int64_t width = f.tiling.repeats * p.shape.channels;
  Scratch arrays{scratch};
  f.scale = arrays.take<T>(rows * width);
  f.center = arrays.take<T>(rows * width);
  f.constant = arrays.take<T>(groups * width);
  f.partial = arrays.take<T>(rows * tiles(f.p.shape) * 3 * p.shape.channels);
  return arrays.next;
}

template <typename T, int V>
uintptr_t set_up(Backward<T>& f, const NodeSumBackward<T>& p, uintptr_t scratch) {
  f.p = p;
  f.p.maps = nullptr;
  f.p.norms = nullptr;
  f.p.eps = nullptr;
  f.p.active = nullptr;
  f.p.grad_maps = nullptr;
  f.tiling = make_tiling<V>(p.shape.channels);
  f.p.shape.tile = int64_t{kItems} * f.tiling.rows * f.tiling.repeats;
  const int64_t groups = smaller(p.shape.groups, kGroups);
  const int64_t terms = smaller(p.shape.terms, kTerms);
  const int64_t width = f.tiling.repeats * p.shape.channels;
  Scratch arrays{scratch};
  f.scale = arrays.take<T>(groups * terms * width);
  f.slope = arrays.take<T>(groups * terms * width);
  f.center = arrays.take<T>(groups * terms * width);
  f.shift = arrays.take<T>(groups * width);
  f.partial = arrays.take<T>(groups * tiles(f.p.shape) * (1 + terms) * p.shape.channels);
  return arrays.next;
}

// The part of the host tables that both directions have, for the chunk at (group, term).
template <typename T, typename Params>
void fill_terms(Terms<T>& terms, const Params& p, int64_t first_group, int64_t first_term) {
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

template <typename T>
void fill_gradients(Terms<T>& terms, const NodeSumBackward<T>& p) {
  for (int i = 0; i < terms.count; ++i) {
    const uint64_t mask = uint64_t{1} << i;
    terms.grads[i] = p.grad_maps[terms.first_term + i];
    if (p.grad_weights != nullptr || (p.grad_gamma != nullptr && (terms.normalised & mask) != 0) ||
        (terms.grads[i] != nullptr && (terms.batch & mask) != 0)) {
      terms.reduced |= mask;
    }
  }
}

inline dim3 sweep_grid(const NodeSumShape& s, const Tiling& t, int z) {
  return dim3(static_cast<unsigned>(tiles(s)), static_cast<unsigned>(t.chunks),
              static_cast<unsigned>(z));
}

template <typename T, int V>
void launch_chunks(const NodeSumForward<T>& p, void* scratch, cudaStream_t stream) {
  Forward<T> f;
  set_up<T, V>(f, p, reinterpret_cast<uintptr_t>(scratch));
  const NodeSumShape& s = f.p.shape;
  const unsigned channel_blocks =
      static_cast<unsigned>((s.channels + kMergeWarps - 1) / kMergeWarps);
  for (int64_t group = 0; group < s.groups; group += kGroups) {
    for (int64_t term = 0; term < s.terms; term += kTerms) {
      fill_terms(f.terms, p, group, term);
      if (f.terms.statistics_count > 0) {
        launch("node_sum_statistics", node_sum_statistics<T, V>,
               sweep_grid(s, f.tiling, f.terms.groups * f.terms.statistics_count), kThreads, stream,
               f);
      }
      launch("node_sum_merge", node_sum_merge<T>,
             dim3(channel_blocks, f.terms.count + 1, f.terms.groups), kThreads, stream, f);
      launch("node_sum_combine", node_sum_combine<T, V>, sweep_grid(s, f.tiling, f.terms.groups),
             kThreads, stream, f);
    }
  }
}

template <typename T, int V>
void launch_chunks(const NodeSumBackward<T>& p, void* scratch, cudaStream_t stream) {
  Backward<T> f;
  set_up<T, V>(f, p, reinterpret_cast<uintptr_t>(scratch));
  const NodeSumShape& s = f.p.shape;
  for (int64_t group = 0; group < s.groups; group += kGroups) {
    for (int64_t term = 0; term < s.terms; term += kTerms) {
      fill_terms(f.terms, p, group, term);
      fill_gradients(f.terms, p);
      const int blocks = (f.terms.count + kTermsPerBlock - 1) / kTermsPerBlock;
      launch("node_sum_reduce", node_sum_reduce<T, V>,
             sweep_grid(s, f.tiling, f.terms.groups * blocks), kThreads, stream, f);
      launch("node_sum_finish", node_sum_finish<T>, f.terms.count, kFinishWarps * kWarp, stream, f);
      launch("node_sum_grad_maps", node_sum_grad_maps<T, V>,
             sweep_grid(s, f.tiling, f.terms.groups), kThreads, stream, f);
    }
  }
}

}  // namespace

template <typename T>
size_t node_sum_scratch(const NodeSumForward<T>& p) {
  Forward<T> f;
  return takes_vectors(p) ? set_up<T, kLanes<T>>(f, p, 0) : set_up<T, 1>(f, p, 0);
}

template <typename T>
size_t node_sum_scratch(const NodeSumBackward<T>& p) {
  Backward<T> f;
  return takes_vectors(p) ? set_up<T, kLanes<T>>(f, p, 0) : set_up<T, 1>(f, p, 0);
}

template <typename T>
void launch_node_sum(const NodeSumForward<T>& p, void* scratch, cudaStream_t stream) {
  if (p.shape.positions == 0) return;
  if (takes_vectors(p)) {
    launch_chunks<T, kLanes<T>>(p, scratch, stream);
  } else {
    launch_chunks<T, 1>(p, scratch, stream);
  }
}

template <typename T>
void launch_node_sum(const NodeSumBackward<T>& p, void* scratch, cudaStream_t stream) {
  if (p.shape.positions == 0) return;
  if (takes_vectors(p)) {
    launch_chunks<T, kLanes<T>>(p, scratch, stream);
  } else {
    launch_chunks<T, 1>(p, scratch, stream);
  }
}

}  // namespace darts_fast::cuda
