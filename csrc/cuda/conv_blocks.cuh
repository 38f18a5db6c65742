// SPDX-License-Identifier: Apache-2.0
// The forward of conv_blocks on CUDA. Tiles, products and statistics are those of a cell's
// convolutions, with maps of 16 bits on tensor cores as there; a branch has inputs and outputs of
// its own instead of slots.
//
// Launches: the tables; gamma / sigma of the inputs' norms, if they have one; all branches.
// Bytes: an output is written once; an input is read by all its branches, which run side by side.
#pragma once

#include "cuda/conv_blocks_plan.cuh"

namespace darts_fast::cuda {
namespace {

template <typename T, typename M>
__device__ __forceinline__ StateOf<T, M>* output_of(const Branches<T, M>& c, int branch,
                                                    int group) {
  return c.table.outputs[branch] + output_begin(c, group);
}

template <typename T, typename M>
__device__ __forceinline__ void store_moments(const Branches<T, M>& c, int branch, int group,
                                              int ch, T mean, T var) {
  const int64_t at = (static_cast<int64_t>(group) * c.branches + branch) * c.channels + ch;
  c.mean[at] = mean;
  c.var[at] = var;
}

// partial is [B, G, tiles, 3, C'], counters are [B, G, chunks].
// grid = (tiles, groups * chunks of output channels, branches).
template <typename T, typename M, int V>
__global__ __launch_bounds__(kThreads, kConvolveResident<T, M, V>) void conv_blocks_forward(
    const __grid_constant__ Branches<T, M> c) {
  __shared__ ConvolveShared<T, FactorOf<T, M>> s;
  const Micro micro = micro_of<StateOf<T, M>>(c.channels);
  const MicroPlace place(micro);
  const int branch = static_cast<int>(blockIdx.z);
  const int group = static_cast<int>(blockIdx.y) / micro.chunks;
  const int first_output = (static_cast<int>(blockIdx.y) - group * micro.chunks) * kWidth;
  const int outputs = least(c.channels - first_output, kWidth);
  const int64_t begin = static_cast<int64_t>(blockIdx.x) * micro.positions();
  const Positions tile(c.out, c.images, begin, micro.positions());
  if (!branch_runs(c, group, branch)) {
    StateOf<T, M>* out = output_of(c, branch, group) + begin * c.channels + first_output;
    for (int i = static_cast<int>(threadIdx.x); i < tile.count * outputs; i += kThreads) {
      out[i / outputs * static_cast<int64_t>(c.channels) + i % outputs] = {};
    }
    for (int ch = static_cast<int>(threadIdx.x); blockIdx.x == 0 && ch < outputs; ch += kThreads) {
      store_moments(c, branch, group, first_output + ch, T(0), T(1));
    }
    return;
  }
  Accumulator<T> sum;
#pragma unroll
  for (int i = 0; i < kMicro; ++i) sum[i] = zeros<T, kMicro>();
  const BlockWeights<T> w = branch_weights(c, branch);
  convolve_tile<V>(w, branch_input(c, w.row.op, group), micro, place, tile, first_output,
                   s.operands, sum);
  store_tile<V>(output_of(c, branch, group) + begin * c.channels, c.channels, place, tile.count,
                first_output, sum);
  const int64_t row = static_cast<int64_t>(branch) * c.groups + group;
  T* partial = c.partial + row * gridDim.x * 3 * c.channels;
  tile_statistics(c.channels, micro, place, tile.count, first_output, sum, s,
                  partial + static_cast<int64_t>(blockIdx.x) * 3 * c.channels);
  const int64_t counter = static_cast<int64_t>(branch) * gridDim.y + blockIdx.y;
  if (!arrives_last(c.counters + counter, gridDim.x)) return;
  for (int ch = static_cast<int>(threadIdx.x) / kWarp; ch < outputs; ch += kNormWarps) {
    const Moments moments = merge_tiles(partial, c.channels, c.images * c.out.size(),
                                        micro.positions(), first_output + ch);
    if (threadIdx.x % kWarp != 0) continue;
    store_moments(c, branch, group, first_output + ch, static_cast<T>(moments.mean),
                  static_cast<T>(moments.square / moments.count));
  }
}

}  // namespace

template <typename T, typename M>
void launch_conv_blocks(const CudaConvBlocksForward<T, M>& p, const Allocate& allocate,
                        cudaStream_t stream) {
  const ConvBlocksShape& s = p.shape;
  BranchTablesBuilder<T, M> builder(p);
  Branches<T, M>& call = builder.call;
  call.mean = p.mean;
  call.var = p.var;
  const auto outputs = [&](BranchTables<T, StateOf<T, M>>& t, const TableWriter& put) {
    put.pointers(t.outputs, p.outputs, s.branches);
  };
  const Micro micro = micro_of<StateOf<T, M>>(call.channels);
  const int64_t tiles = ceil_divide(s.images * call.out.size(), micro.positions());
  const int64_t rows = s.branches * s.groups;
  const auto place = [&](ScratchArrays& arrays) {
    char* table = builder.take(arrays, rows * micro.chunks, outputs);
    call.partial = arrays.take<T>(rows * tiles * 3 * s.out_channels);
    return table;
  };
  ScratchArrays sizes;
  place(sizes);
  ScratchArrays arrays = {reinterpret_cast<uintptr_t>(allocate(sizes.next))};
  builder.upload(place(arrays), stream, outputs);
  const dim3 grid(grid_size(tiles), grid_size(s.groups * micro.chunks), grid_size(s.branches));
  if (builder.takes_vectors({p.outputs})) {
    launch("conv_blocks_forward", conv_blocks_forward<T, M, kLanes<T>>, grid, kThreads, stream,
           call);
  } else {
    launch("conv_blocks_forward", conv_blocks_forward<T, M, 1>, grid, kThreads, stream, call);
  }
}

}  // namespace darts_fast::cuda
