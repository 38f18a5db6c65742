// SPDX-License-Identifier: Apache-2.0
// A cell as its CUDA kernels see it: sizes, places in device memory, and the plan as tables.
//
// The plan (ops, blocks, norms, pointers of parameters, what is active) is made on the host.
// Kernels read it from device memory, where `cell_table` puts it at the start of a call: the table
// travels as parameters of that kernel. A captured graph keeps them; a copy from pinned memory
// would have to keep its source alive and unchanged for every replay. The tables of a DARTS cell
// are about 8 KB, one launch; the other kernels' parameters stay small.
//
// Maps are [group, image, row, column, channel] with the channel innermost. Offsets of images are
// 64 bits wide, those inside an image 32.
#pragma once

#include <type_traits>

#include "cuda/elements.cuh"
#include "cuda/mixed_cell_launch.h"

namespace darts_fast::cuda {
namespace {

constexpr int kThreads = 256;
// Blocks that an SM keeps at once, which bounds the registers: in double the operands leave room
// for few blocks anyway. Kernels that need no bound name it too: without one the compiler spills
// for the sake of a third block.
template <typename T>
constexpr int kResident = sizeof(T) == 8 ? 1 : 2;

struct OpRow {
  int16_t source, node, kind, norm, block, map, inner_map, pool;
};

// A convolution block. `item` counts blocks and pools.
struct BlockRow {
  int16_t op;
  int8_t kind, kernel;
  int16_t dilation;
  int16_t rows;   // place of what conv_blocks_grad_rows writes for it
  int16_t inner;  // of a chain's blocks: place of the gradient between them
};

struct PoolRow {
  int16_t source, kind, map, unused;
};

struct NormRow {
  int16_t kind, op;
  int16_t item;   // whose map it normalises: a block, or behind the blocks a pool
  int16_t inner;  // the first of a chain's two
};

// Entries of `lists` that one launch, or one item, works through.
struct ListRange {
  int at = 0, count = 0;
};

// Flags of an item in a group.
constexpr uint8_t kRuns = 1;
constexpr uint8_t kWantsMoments = 2;

// How a group's images are cut in the backward: into boxes of so many images, rows and columns of
// outputs (whole images, or a part of one). A block of threads goes through `share` boxes.
struct BoxGrid {
  int images, height, width;
  int down, across;  // boxes of an image
  int64_t boxes;
  int share, chunks;  // chunks: shares
};

template <typename T, typename S = T>
struct CellTables {
  const OpRow* ops;
  const BlockRow* blocks;
  const PoolRow* pools;
  const NormRow* norms;
  const double* eps;            // [B]
  const uint8_t* active;        // [G, K]
  const uint8_t* flags;         // [G, blocks + pools]
  const int16_t* lists;         // what launches work through, and
  const ListRange* item_norms;  // [blocks + pools] the norms that normalise an item's map
  const int16_t* node_maps;     // [nodes]
  const S* const* states;       // [S]
  const T* const* first;        // [blocks]
  const T* const* second;       // [blocks]
  const T* const* gamma;        // [B]; null: no norm has one. So are the next three.
  const T* const* beta;
  const T* const* running_mean;
  const T* const* running_var;
  // backward; null = nobody asked
  S* const* grad_states;
  T* const* grad_first;
  T* const* grad_second;
  T* const* grad_gamma;
  T* const* grad_beta;
};

template <typename T, typename M>
struct Cell {
  using Raw = RawOf<T, M>;
  using State = StateOf<T, M>;

  CellTables<T, State> table;
  int groups, inputs, shared, nodes, ops, norms, blocks, pools, multiplier, stride;
  int channels;     // of nodes and maps
  int in_channels;  // of input states; others than `channels` in a cell of one op only
  int height, width, node_height, node_width;
  int64_t images;  // per group
  int64_t slot;
  const T* weights;  // [G, K]; null for ones
  State* maps;
  Raw* raw;
  T* mean;             // [G, B, C]
  T* var;              // [G, B, C]
  T* scale;            // [G, B, C]: gamma / sigma
  T* partial;          // see the kernels that write it
  uint32_t* counters;  // of blocks that arrived, 0 at first; see the kernels that count
  State* output;       // [G * N, H', W', multiplier * C]
  // backward
  const State* grad_output;
  T* grad_nodes;   // [nodes] slots
  T* grad_inputs;  // slots of grad_inputs_slot elements, where State is narrower: the sums so far
  int64_t grad_inputs_slot;
  T* grad_inner;  // slots, by `inner` of the chain's second block
  T* grad_scale;  // [G, B, C]: dL/dy = grad_scale * ((g - grad_mean) - grad_slope * (y - mean))
  T* grad_mean;   // [G, B, C]
  T* grad_slope;  // [G, B, C]
  BoxGrid input_boxes, node_boxes;  // by the source of a block's input
  T* partial_weights;               // [blocks, G, partial_weights_rows] rows
  int64_t partial_weights_row;      // elements of a row
  int partial_weights_rows;         // room for the chunks of any block
  T* grad_weights;                  // [G, K] or null
};

// The table's bytes that one launch carries: with a pointer and a count within what parameters may
// have, 4 KiB before CUDA 12.1.
#if defined(CUDART_VERSION) && CUDART_VERSION < 12010
constexpr int kTableWords = 254;
#else
constexpr int kTableWords = 2046;
#endif
using TableWord = Vec<uint64_t, 2>;

// Its words, and zeros behind them: counters.
struct TablePart {
  TableWord words[kTableWords];
  TableWord* to;
  int count, zeros;
};
static_assert(sizeof(TablePart) <= 32764, "the limit of kernel parameters");

__global__ __launch_bounds__(kThreads) void cell_table(const __grid_constant__ TablePart part) {
  for (int i = static_cast<int>(threadIdx.x); i < part.count + part.zeros; i += kThreads) {
    part.to[i] = i < part.count ? part.words[i] : TableWord{};
  }
}

__device__ __forceinline__ bool is_chain(const OpRow& op) { return op.inner_map >= 0; }

__device__ __forceinline__ bool is_batch(const NormRow& norm) {
  return norm.kind == static_cast<int16_t>(Norm::kBatch);
}

__device__ __forceinline__ bool is_kind(const BlockRow& block, ConvKind kind) {
  return block.kind == static_cast<int8_t>(kind);
}

template <typename Pointer>
__device__ __forceinline__ Pointer entry(Pointer const* table, int i) {
  return table == nullptr ? nullptr : table[i];
}

template <typename T, typename M>
__device__ __forceinline__ bool op_runs(const Cell<T, M>& c, int group, int k) {
  return c.table.active[group * c.ops + k] != 0;
}

template <typename T, typename M>
__device__ __forceinline__ T op_weight(const Cell<T, M>& c, int group, int k) {
  return c.weights == nullptr ? T(1) : c.weights[group * c.ops + k];
}

// A row of [G, B, C].
template <typename T, typename M>
__device__ __forceinline__ int64_t norm_row(const Cell<T, M>& c, int group, int norm) {
  return (static_cast<int64_t>(group) * c.norms + norm) * c.channels;
}

// The grid of positions of a map.
struct Plane {
  int height, width;
  __host__ __device__ __forceinline__ int size() const { return height * width; }
};

template <typename T, typename M>
__device__ __forceinline__ Plane node_plane(const Cell<T, M>& c) {
  return {c.node_height, c.node_width};
}

template <typename T, typename M>
__device__ __forceinline__ bool is_input(const Cell<T, M>& c, int state) {
  return state < c.inputs;
}

template <typename T, typename M>
__device__ __forceinline__ Plane state_plane(const Cell<T, M>& c, int state) {
  if (is_input(c, state)) return {c.height, c.width};
  return node_plane(c);
}

template <typename T, typename M>
__device__ __forceinline__ int state_channels(const Cell<T, M>& c, int state) {
  return is_input(c, state) ? c.in_channels : c.channels;
}

// Image 0 of the group; of a shared state the group's images are everybody's.
template <typename T, typename M>
__device__ __forceinline__ const StateOf<T, M>* state_of(const Cell<T, M>& c, int state,
                                                         int group) {
  const int64_t image =
      static_cast<int64_t>(state_plane(c, state).size()) * state_channels(c, state);
  if (!is_input(c, state)) {
    return c.maps + c.table.node_maps[state - c.inputs] * c.slot + group * c.images * image;
  }
  return c.table.states[state] + (state < c.shared ? 0 : group * c.images * image);
}

template <typename T, typename M>
__device__ __forceinline__ int64_t node_image(const Cell<T, M>& c) {
  return static_cast<int64_t>(c.node_height) * c.node_width * c.channels;
}

// Image 0 of the group in a slot.
template <typename T, typename M>
__device__ __forceinline__ RawOf<T, M>* raw_of(const Cell<T, M>& c, int map, int group) {
  return c.raw + map * c.slot + group * c.images * node_image(c);
}

template <typename T, typename M>
__device__ __forceinline__ StateOf<T, M>* map_of(const Cell<T, M>& c, int map, int group) {
  return c.maps + map * c.slot + group * c.images * node_image(c);
}

template <typename T, typename M>
__device__ __forceinline__ T* grad_node_of(const Cell<T, M>& c, int state, int group) {
  return c.grad_nodes + (state - c.inputs) * c.slot + group * c.images * node_image(c);
}

// Image 0 of the group in an input state, and in what has its size.
template <typename T, typename M>
__device__ __forceinline__ int64_t input_begin(const Cell<T, M>& c, int group) {
  return group * c.images * static_cast<int64_t>(c.height) * c.width * c.in_channels;
}

// Where the gradient of a state is summed up.
template <typename T, typename M>
__device__ __forceinline__ T* grad_state_of(const Cell<T, M>& c, int state, int group) {
  if (!is_input(c, state)) return grad_node_of(c, state, group);
  if constexpr (std::is_same_v<T, StateOf<T, M>>) {
    return c.table.grad_states[state] + input_begin(c, group);
  } else {
    return c.grad_inputs + state * c.grad_inputs_slot + input_begin(c, group);
  }
}

// Positions [begin, begin + count) of a group's images, one behind the other.
struct Positions {
  Plane plane;
  int64_t image;  // in which `begin` lies
  int rest;       // and where in it
  int count;

  __device__ __forceinline__ Positions(Plane plane, int64_t images, int64_t begin, int most)
      : plane(plane) {
    const int64_t left = images * plane.size() - begin;
    count = static_cast<int>(left < most ? (left > 0 ? left : 0) : most);
    image = begin / plane.size();
    rest = static_cast<int>(begin - image * plane.size());
  }
};

struct Spot {
  int64_t image;
  int h, w;
};

__device__ __forceinline__ Spot spot(const Positions& p, int i) {
  const int at = p.rest + i;
  const int image = at / p.plane.size();
  const int inside = at - image * p.plane.size();
  const int h = inside / p.plane.width;
  return {p.image + image, h, inside - h * p.plane.width};
}

template <typename T>
__device__ __forceinline__ T relu(T x) {
  return x < T(0) ? T(0) : x;  // NaN stays
}

}  // namespace
}  // namespace darts_fast::cuda
