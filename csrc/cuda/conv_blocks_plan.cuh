// SPDX-License-Identifier: Apache-2.0
// A call of conv_blocks as its CUDA kernels see it, and the host's side of that.
#pragma once

#include <algorithm>
#include <vector>

#include "cuda/cell_convolve.cuh"
#include "cuda/conv_blocks_launch.h"
#include "cuda/tables.cuh"

namespace darts_fast::cuda {
namespace {

template <typename T, typename S>
struct BranchTables {
  const BlockRow* rows;          // [B]; `op` is the branch's input
  const uint8_t* active;         // [G, B]; in the backward without branches no gradient arrives at
  const S* const* inputs;        // [S]
  const T* const* first;         // [B] depthwise, or the weight of a branch without it
  const T* const* second;        // [B] pointwise behind a depthwise convolution
  S* const* outputs;             // [B]
  const int16_t* lists;          // backward: what launches work through, and
  const ListRange* leaving;      // [S] the branches of an input
  const S* const* grad_outputs;  // [B]
  S* const* grad_inputs;         // [S]; null = nobody asked. So are the next two.
  T* const* grad_first;          // [B]
  T* const* grad_second;         // [B]
};

// M: how maps are stored, T or All<H>. What lies between launches is T.
template <typename T, typename M>
struct Branches {
  BranchTables<T, StateOf<T, M>> table;
  int groups, sources, branches, stride;
  int in_channels, channels;
  Plane in, out;
  int64_t images;  // per group
  Norm norm;       // of the inputs
  double eps;
  const T* in_mean;  // [S, G, C]; null without a norm, as the next one
  const T* in_var;
  const T* gamma;  // [S, C] or null
  const T* beta;
  T* scale;            // [S, G, C]: gamma / sigma
  T* mean;             // [G, B, C']
  T* var;              // [G, B, C']
  T* partial;          // see the kernels that write it
  uint32_t* counters;  // of blocks that arrived, 0 at first; see the kernels that count
  // backward
  T* grad_rows;  // slots of grad_rows_slot elements, by `rows` of a branch
  int64_t grad_rows_slot;
  T* grad_scale;  // [S, G, C], as those of a cell's norms
  T* grad_mean;
  T* grad_slope;
  T* grad_gamma;  // [S, C] or null
  T* grad_beta;
  T* partial_weights;
  int64_t partial_weights_row;
};

template <typename T, typename M>
__device__ __forceinline__ bool branch_runs(const Branches<T, M>& c, int group, int branch) {
  return c.table.active[group * c.branches + branch] != 0;
}

template <typename T, typename M>
__device__ __forceinline__ BlockWeights<T> branch_weights(const Branches<T, M>& c, int branch) {
  return {c.table.rows[branch], c.table.first[branch], entry(c.table.second, branch), c.in_channels,
          c.channels};
}

// A row of [S, G, C].
template <typename T, typename M>
__device__ __forceinline__ int64_t input_row(const Branches<T, M>& c, int source, int group) {
  return (static_cast<int64_t>(source) * c.groups + group) * c.in_channels;
}

// Image 0 of the group in an input, or in its gradient.
template <typename T, typename M>
__device__ __forceinline__ int64_t input_begin(const Branches<T, M>& c, int group) {
  return group * c.images * c.in.size() * c.in_channels;
}

// In an output, or in its gradient.
template <typename T, typename M>
__device__ __forceinline__ int64_t output_begin(const Branches<T, M>& c, int group) {
  return group * c.images * c.out.size() * c.channels;
}

template <typename T, typename M>
__device__ __forceinline__ BlockInput<T, M> branch_input(const Branches<T, M>& c, int source,
                                                         int group) {
  const StateOf<T, M>* input = c.table.inputs[source] + input_begin(c, group);
  BlockInput<T, M> in = {};
  in.plane = c.in;
  in.channels = c.in_channels;
  in.stride = c.stride;
  if (c.norm == Norm::kNone) {
    in.state = input;
    return in;
  }
  const int64_t row = input_row(c, source, group);
  in.map = input;
  in.center = c.in_mean + row;
  in.scale = c.scale + row;
  in.shift = c.beta == nullptr ? nullptr : c.beta + static_cast<int64_t>(source) * c.in_channels;
  return in;
}

// Of every input's norm. grid = elements / threads.
template <typename T, typename M>
__global__ __launch_bounds__(kThreads) void conv_blocks_scale(
    const __grid_constant__ Branches<T, M> c) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (i >= static_cast<int64_t>(c.sources) * c.groups * c.in_channels) return;
  const int64_t source = i / (static_cast<int64_t>(c.groups) * c.in_channels);
  const double gamma =
      c.gamma == nullptr ? 1.0 : c.gamma[source * c.in_channels + i % c.in_channels];
  c.scale[i] = static_cast<T>(gamma / sqrt(c.in_var[i] + c.eps));
}

// A call with its tables, under construction. The tables are placed twice: for their sizes, and
// where they are then put.
template <typename T, typename M>
class BranchTablesBuilder {
 public:
  using State = StateOf<T, M>;

  explicit BranchTablesBuilder(const ConvBlocksCall<T, State>& p)
      : active(p.active, p.active + p.shape.groups * p.shape.branches),
        p_(p),
        first_(p.depthwise, p.depthwise + p.shape.branches),
        second_(p.pointwise, p.pointwise + p.shape.branches) {
    const ConvBlocksShape& s = p.shape;
    refuse_large(kOp, s.height, s.width, std::max(s.channels, s.out_channels));
    for (int64_t b = 0; b < s.branches; ++b) {
      const ConvBlock& block = p.branches[b].block;
      rows.push_back({short_of(kOp, p.branches[b].source), static_cast<int8_t>(block.kind),
                      static_cast<int8_t>(block.kernel), short_of(kOp, block.dilation), 0, 0});
      if (block.kind == ConvKind::kDense) std::swap(first_[b], second_[b]);
    }
    short_of(kOp, s.branches);
    fill();
  }

  bool runs(int64_t b) const {
    for (int64_t g = 0; g < p_.shape.groups; ++g) {
      if (active[g * p_.shape.branches + b] != 0) return true;
    }
    return false;
  }

  // Room for what both directions have, for what `extra` adds, and for counters.
  template <typename Extra>
  char* take(ScratchArrays& arrays, int64_t counters, Extra extra) {
    char* table =
        place_.take(arrays, call.counters, counters,
                    [&](TableBytes& bytes, uintptr_t to) { place_tables(bytes, to, extra); });
    if (p_.norm.kind != Norm::kNone) call.scale = arrays.take<T>(norm_values());
    return table;
  }

  // Puts it there: the tables, and gamma / sigma.
  template <typename Extra>
  void upload(char* table, cudaStream_t stream, Extra extra) {
    place_.upload(table, stream,
                  [&](TableBytes& bytes, uintptr_t to) { place_tables(bytes, to, extra); });
    if (p_.norm.kind == Norm::kNone) return;
    launch("conv_blocks_scale", conv_blocks_scale<T, M>,
           grid_size(ceil_divide(norm_values(), kThreads)), kThreads, stream, call);
  }

  // Whether V channels of inputs, outputs (or their gradients) can be read and written at once.
  bool takes_vectors(std::initializer_list<const State* const*> others) const {
    const ConvBlocksShape& s = p_.shape;
    bool all =
        s.channels % kLanes<T> == 0 && s.out_channels % kLanes<T> == 0 && is_aligned(p_.norm.mean);
    for (int64_t i = 0; i < s.sources; ++i) all = all && is_aligned(p_.inputs[i]);
    for (int64_t b = 0; b < s.branches; ++b) {
      for (const State* const* each : others) all = all && is_aligned(each[b]);
    }
    return all;
  }

  int64_t norm_values() const { return p_.shape.sources * p_.shape.groups * p_.shape.channels; }

  Branches<T, M> call = {};
  std::vector<BlockRow> rows;
  std::vector<uint8_t> active;

 private:
  static constexpr char kOp[] = "conv_blocks";

  void fill() {
    const ConvBlocksShape& s = p_.shape;
    call.groups = static_cast<int>(s.groups);
    call.sources = static_cast<int>(s.sources);
    call.branches = static_cast<int>(s.branches);
    call.stride = static_cast<int>(s.stride);
    call.in_channels = static_cast<int>(s.channels);
    call.channels = static_cast<int>(s.out_channels);
    call.in = {static_cast<int>(s.height), static_cast<int>(s.width)};
    call.out = {static_cast<int>(s.out_height), static_cast<int>(s.out_width)};
    call.images = s.images;
    call.norm = p_.norm.kind;
    call.eps = p_.norm.eps;
    call.in_mean = p_.norm.mean;
    call.in_var = p_.norm.var;
    call.gamma = p_.norm.gamma;
    call.beta = p_.norm.beta;
  }

  template <typename Extra>
  void place_tables(TableBytes& bytes, uintptr_t to, Extra extra) {
    BranchTables<T, State>& t = call.table;
    const TableWriter put(bytes, to);
    put.rows(t.rows, rows);
    put.rows(t.active, active);
    put.pointers(t.inputs, p_.inputs, p_.shape.sources);
    put.pointers(t.first, first_.data(), p_.shape.branches);
    put.pointers(t.second, second_.data(), p_.shape.branches);
    extra(t, put);
  }

  const ConvBlocksCall<T, State>& p_;
  std::vector<const T*> first_, second_;
  TablePlace place_;
};

}  // namespace
}  // namespace darts_fast::cuda
