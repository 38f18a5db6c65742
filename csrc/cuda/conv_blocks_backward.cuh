// SPDX-License-Identifier: Apache-2.0
// The launches of conv_blocks' backward: the tables, and gamma / sigma of the inputs' norms; dL/dy
// times the transposed matrices; the gradients of inputs and the partial ones of weights, and by
// the last block of an input what passes its norm; that norm; the sums of the weights' partial
// gradients. What nobody asked for is not launched.
#pragma once

#include "cuda/conv_blocks.cuh"
#include "cuda/conv_blocks_grad.cuh"

namespace darts_fast::cuda {
namespace {

// What the launches work through.
struct BranchLists {
  Lists lists;
  std::vector<ListRange> leaving;  // [S]
  ListRange rows, sources, weights;
};

template <typename T, typename M>
BranchLists branch_lists(BranchTablesBuilder<T, M>& builder,
                         const CudaConvBlocksBackward<T, M>& p) {
  const ConvBlocksShape& s = p.shape;
  BranchLists found;
  std::vector<int64_t> rows, sources, weights;
  const bool wants_norm = p.grad_gamma != nullptr || p.grad_beta != nullptr;
  const auto wanted = [&](int64_t source) {
    return p.grad_inputs[source] != nullptr || wants_norm;
  };
  for (int64_t i = 0; i < s.sources; ++i) {
    std::vector<int64_t> leaving;
    for (int64_t b = 0; b < s.branches; ++b) {
      if (p.branches[b].source == i && builder.runs(b)) leaving.push_back(b);
    }
    found.leaving.push_back(found.lists.add(leaving));
    if (wanted(i)) sources.push_back(i);
  }
  for (int64_t b = 0; b < s.branches; ++b) {
    const bool wants_weights = p.grad_depthwise[b] != nullptr || p.grad_pointwise[b] != nullptr;
    if (wants_weights) weights.push_back(b);
    // The sums of both weights are made together, and those of taps read the rows.
    const bool separable = p.branches[b].block.kind == ConvKind::kSeparable;
    if (builder.runs(b) && (wanted(p.branches[b].source) || (separable && wants_weights))) {
      builder.rows[b].rows = static_cast<int16_t>(rows.size());
      rows.push_back(b);
    }
  }
  found.rows = found.lists.add(rows);
  found.sources = found.lists.add(sources);
  found.weights = found.lists.add(weights);
  return found;
}

template <typename T, typename M, int V>
void launch_backward(const Branches<T, M>& call, const BranchLists& lists,
                     const WeightLimits& limits, cudaStream_t stream) {
  const int64_t positions = call.images * call.out.size();
  const int chunks = static_cast<int>(ceil_divide(positions, chunk_positions(positions)));
  const Micro micro = micro_of<StateOf<T, M>>(call.in_channels);
  if (lists.rows.count > 0) {
    launch("conv_blocks_grad_rows", conv_blocks_grad_rows<T, M, V>,
           dim3(grid_size(ceil_divide(positions, micro.positions())), call.groups * micro.chunks,
                lists.rows.count),
           kThreads, stream, call, lists.rows.at);
  }
  const Strip strip(call.in_channels, V);
  const unsigned tiles = grid_size(ceil_divide(call.images * call.in.size(), strip.positions()));
  const unsigned strips = grid_size(call.groups * strip.chunks);
  const bool weights = lists.weights.count > 0;
  if (lists.sources.count > 0 || weights) {
    const dim3 grid(std::max(tiles, weights ? grid_size(call.groups * chunks) : 0u),
                    std::max(strips, weights ? grid_size(limits.pieces) : 0u),
                    grid_size(lists.sources.count + lists.weights.count));
    launch("conv_blocks_grad_inputs", conv_blocks_grad_inputs<T, M, V>, grid, kThreads, stream,
           call, lists.sources, lists.weights.at, chunks);
  }
  if (lists.sources.count > 0 && call.norm != Norm::kNone && call.table.grad_inputs != nullptr) {
    launch("conv_blocks_grad_norms", conv_blocks_grad_norms<T, M, V>,
           dim3(tiles, strips, lists.sources.count), kThreads, stream, call, lists.sources.at);
  }
  if (weights) {
    launch("conv_blocks_sum_weights", conv_blocks_sum_weights<T, M>,
           dim3(grid_size(ceil_divide(limits.row, kThreads)), call.branches), kThreads, stream,
           call, chunks);
  }
}

}  // namespace

template <typename T, typename M>
void launch_conv_blocks(const CudaConvBlocksBackward<T, M>& p, const Allocate& allocate,
                        cudaStream_t stream) {
  const ConvBlocksShape& s = p.shape;
  BranchTablesBuilder<T, M> builder(p);
  for (int64_t i = 0; i < s.groups * s.branches; ++i) {
    if (p.grad_outputs[i % s.branches] == nullptr) builder.active[i] = 0;
  }
  Branches<T, M>& call = builder.call;
  call.grad_gamma = p.grad_gamma;
  call.grad_beta = p.grad_beta;
  const BranchLists lists = branch_lists(builder, p);
  const WeightLimits limits = weight_limits(builder.rows, call.in_channels, call.channels);
  // As the weights stand in the tables: the one of a branch without depthwise convolution first.
  std::vector<T*> grad_first(p.grad_depthwise, p.grad_depthwise + s.branches);
  std::vector<T*> grad_second(p.grad_pointwise, p.grad_pointwise + s.branches);
  for (int64_t b = 0; b < s.branches; ++b) {
    if (p.branches[b].block.kind == ConvKind::kDense) std::swap(grad_first[b], grad_second[b]);
  }
  const auto grads = [&](BranchTables<T, StateOf<T, M>>& t, const TableWriter& put) {
    put.rows(t.lists, lists.lists.entries());
    put.rows(t.leaving, lists.leaving);
    put.pointers(t.grad_outputs, p.grad_outputs, s.branches);
    put.pointers(t.grad_inputs, p.grad_inputs, s.sources);
    put.pointers(t.grad_first, grad_first.data(), s.branches);
    put.pointers(t.grad_second, grad_second.data(), s.branches);
  };
  const bool norm = p.norm.kind != Norm::kNone;
  const int64_t positions = s.images * call.out.size();
  const int64_t weight_rows = s.groups * ceil_divide(positions, chunk_positions(positions));
  const Strip narrow(call.in_channels, 1);
  const int64_t tiles = ceil_divide(s.images * call.in.size(), narrow.positions());
  // Whole vectors, so that every slot is aligned.
  call.grad_rows_slot = ceil_divide(s.groups * positions * s.channels, 16) * 16;
  call.partial_weights_row = ceil_divide(limits.row, 16) * 16;
  const auto place = [&](ScratchArrays& arrays) {
    char* table = builder.take(arrays, norm ? lists.sources.count * narrow.chunks : 0, grads);
    const int64_t values = norm ? builder.norm_values() : 0;
    call.grad_scale = arrays.take<T>(values);
    call.grad_mean = arrays.take<T>(values);
    call.grad_slope = arrays.take<T>(values);
    call.partial =
        arrays.take<T>(norm ? s.groups * tiles * 2 * lists.sources.count * s.channels : 0);
    call.grad_rows = arrays.take<T>(lists.rows.count * call.grad_rows_slot);
    call.partial_weights = arrays.take<T>(
        lists.weights.count > 0 ? s.branches * weight_rows * call.partial_weights_row : 0);
    return table;
  };
  ScratchArrays sizes;
  place(sizes);
  ScratchArrays arrays = {reinterpret_cast<uintptr_t>(allocate(sizes.next))};
  builder.upload(place(arrays), stream, grads);
  bool aligned = builder.takes_vectors({p.grad_outputs});
  for (int64_t i = 0; i < s.sources; ++i) aligned = aligned && is_aligned(p.grad_inputs[i]);
  if (aligned) {
    launch_backward<T, M, kLanes<T>>(call, lists, limits, stream);
  } else {
    launch_backward<T, M, 1>(call, lists, limits, stream);
  }
}

}  // namespace darts_fast::cuda
