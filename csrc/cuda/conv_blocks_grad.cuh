// SPDX-License-Identifier: Apache-2.0
// The kernels of conv_blocks' backward, from the functions of a cell's.
//
// Bytes: as those of a cell's backward, but dL/dy is what arrives, and no output is read.
#pragma once

#include "cuda/cell_grad_inner.cuh"
#include "cuda/conv_blocks_grad_weights.cuh"
#include "cuda/conv_blocks_plan.cuh"

namespace darts_fast::cuda {
namespace {

// dL/dy as it arrives. No norm stands behind a branch.
template <typename T, typename M>
struct ArrivingGradient {
  const StateOf<T, M>* grad;  // image 0 of the group
};

template <int V, typename T, typename M>
__device__ __forceinline__ Vec<T, V> load_gradient(const ArrivingGradient<T, M>& outer, int64_t at,
                                                   int) {
  return load_wide<T, V>(outer.grad + at);
}

template <typename T, typename M>
__device__ __forceinline__ ArrivingGradient<T, M> branch_gradient(const Branches<T, M>& c,
                                                                  int branch, int group) {
  return {c.table.grad_outputs[branch] + output_begin(c, group)};
}

// A branch without depthwise convolution has stride 1: its rows lie in the outputs' plane too.
template <typename T, typename M>
__device__ __forceinline__ T* branch_rows(const Branches<T, M>& c, const BlockRow& row, int group) {
  return c.grad_rows + row.rows * c.grad_rows_slot +
         group * c.images * c.out.size() * c.in_channels;
}

// grid = (tiles, groups * chunks of input channels, branches of the list).
template <typename T, typename M, int V>
__global__ __launch_bounds__(kThreads, kResident<T>) void conv_blocks_grad_rows(
    const __grid_constant__ Branches<T, M> c, int list) {
  __shared__ OperandsOf<T, FactorOf<T, M>> s;
  const int branch = c.table.lists[list + static_cast<int>(blockIdx.z)];
  const Micro micro = micro_of<StateOf<T, M>>(c.in_channels);
  const int group = static_cast<int>(blockIdx.y) / micro.chunks;
  const int first_input = (static_cast<int>(blockIdx.y) - group * micro.chunks) * kWidth;
  if (!branch_runs(c, group, branch)) return;
  const BlockWeights<T> w = branch_weights(c, branch);
  const int64_t begin = static_cast<int64_t>(blockIdx.x) * micro.positions();
  const Positions tile(c.out, c.images, begin, micro.positions());
  grad_rows_tile<V>(w, branch_gradient(c, branch, group), c.out, 1, micro, tile, first_input, s,
                    branch_rows(c, w.row, group) + begin * c.in_channels);
}

// sum += what a block gives to its input at a spot of `plane`, before the ReLU's mask, from what
// conv_blocks_grad_rows wrote; `out` is the plane of its outputs.
template <typename T, int V>
__device__ __forceinline__ void add_rows(const BlockWeights<T>& w, const T* rows,
                                         const Plane& plane, const Plane& out, int stride,
                                         const Spot& at, int ch, Vec<T, V>& sum) {
  const BlockRow& b = w.row;
  const int channels = w.inputs;
  if (!is_kind(b, ConvKind::kSeparable)) {
    const int64_t position = at.image * plane.size() + at.h * plane.width + at.w;
    add_scaled(sum, T(1), load<T, V>(rows + position * channels + ch));
    return;
  }
  rows += at.image * out.size() * channels + ch;
  const int taps = b.kernel * b.kernel;
  const T* weight = w.first + static_cast<int64_t>(ch) * taps;
  const int pad = b.dilation * (b.kernel - 1) / 2;
  for (int i = 0; i < b.kernel; ++i) {
    const int h = at.h + pad - i * b.dilation;
    if (h < 0 || h % stride != 0 || h / stride >= out.height) continue;
    for (int j = 0; j < b.kernel; ++j) {
      const int w = at.w + pad - j * b.dilation;
      if (w < 0 || w % stride != 0 || w / stride >= out.width) continue;
      const Vec<T, V> g =
          load<T, V>(rows + (h / stride * out.width + w / stride) * static_cast<int64_t>(channels));
#pragma unroll
      for (int lane = 0; lane < V; ++lane) {
        sum.lane[lane] += g.lane[lane] * weight[lane * taps + i * b.kernel + j];
      }
    }
  }
}

// What passes an input's norm, of channels [first, end): all threads of a block. partial is
// [G, tiles, slots, C] with the input's two sums at slot `at`.
template <typename T, typename M>
__device__ __forceinline__ void finish_norm(const Branches<T, M>& c, int source, int slots, int at,
                                            int64_t tiles, int first, int end) {
  const double count = static_cast<double>(c.images * c.in.size());
  const PassingNorm<T> passing = {c.grad_scale, c.grad_mean, c.grad_slope};
  for (int ch = first + static_cast<int>(threadIdx.x) / kWarp; ch < end; ch += kNormWarps) {
    const int64_t parameter = static_cast<int64_t>(source) * c.in_channels + ch;
    const double gamma = c.gamma == nullptr ? 1.0 : c.gamma[parameter];
    double grad_gamma = 0, grad_beta = 0;
    for (int group = 0; group < c.groups; ++group) {
      const Sums sums = sum_tiles(c.partial, c.in_channels, slots, at, at + 1, group, tiles, ch);
      if (threadIdx.x % kWarp != 0) continue;
      const int64_t row = input_row(c, source, group) + ch;
      const double variance = c.in_var[row] + c.eps, sigma = sqrt(variance);
      grad_gamma += sums.product / sigma;
      grad_beta += sums.s1;
      passing.store(row, gamma / sigma, variance, c.norm == Norm::kBatch ? sums : Sums{0, 0},
                    count);
    }
    if (threadIdx.x % kWarp != 0) continue;
    if (c.grad_gamma != nullptr) c.grad_gamma[parameter] = static_cast<T>(grad_gamma);
    if (c.grad_beta != nullptr) c.grad_beta[parameter] = static_cast<T>(grad_beta);
  }
}

// The gradient of an input, or with a norm the one behind that. Blocks are
// (tiles, groups * chunks of channels); number `slot` of `slots` inputs.
template <typename T, typename M, int V>
__device__ __forceinline__ void grad_input(const Branches<T, M>& c, int source, int slot, int slots,
                                           Vec<T, V> (&shared)[2][kThreads]) {
  const StripPlace<V> at(c.in_channels, c.images * c.in.size());
  if (at.group >= c.groups || at.count == 0) return;
  const BlockInput<T, M> in = branch_input(c, source, at.group);
  StateOf<T, M>* grads = entry(c.table.grad_inputs, source);
  StateOf<T, M>* out = grads == nullptr ? nullptr : grads + input_begin(c, at.group);
  const ListRange leaving = c.table.leaving[source];
  const auto add = [&](const Spot& spot_of, Vec<T, V>& sum) {
    for (int i = 0; i < leaving.count; ++i) {
      const int branch = c.table.lists[leaving.at + i];
      if (!branch_runs(c, at.group, branch)) continue;
      const BlockWeights<T> w = branch_weights(c, branch);
      add_rows(w, branch_rows(c, w.row, at.group), c.in, c.out, c.stride, spot_of, at.ch, sum);
    }
  };
  if (c.norm == Norm::kNone) {
    const Positions tile(c.in, c.images, at.begin, at.strip.positions());
    for (int j = 0; j < kItems; ++j) {
      if (!at.has(j)) continue;
      const int64_t element = (at.begin + at.position(j)) * c.in_channels + at.ch;
      Vec<T, V> grad = zeros<T, V>();
      add(spot(tile, at.position(j)), grad);
      const Vec<T, V> value = load_wide<T, V>(in.state + element);
#pragma unroll
      for (int lane = 0; lane < V; ++lane) {
        if (value.lane[lane] <= T(0)) grad.lane[lane] = T(0);
      }
      store_narrow<V>(out + element, grad);
    }
    return;
  }
  const Positions tile(in.plane, c.images, at.begin, at.strip.positions());
  Vec<T, V> sums[2] = {zeros<T, V>(), zeros<T, V>()};
  for (int j = 0; j < kItems; ++j) {
    if (!at.has(j)) continue;
    const Spot spot_of = spot(tile, at.position(j));
    Vec<T, V> grad = zeros<T, V>();
    add(spot_of, grad);
    pass_relu<V>(in, spot_of, at.ch, grad, sums, out);
  }
  sum_rows(sums, shared, at.strip.columns, at.strip.rows);
  const int64_t positions = c.images * c.in.size();
  const int64_t tiles = (positions + at.strip.positions() - 1) / at.strip.positions();
  T* partial = c.partial + ((at.group * tiles + blockIdx.x) * 2 * slots + 2 * slot) * c.in_channels;
  store_sums<T, V, 2>(shared, at, c.in_channels, 0, 2, partial);
  const int chunk = static_cast<int>(blockIdx.y) - at.group * at.strip.chunks;
  const uint32_t arrivals = static_cast<uint32_t>(tiles * c.groups);
  if (!arrives_last(c.counters + slot * at.strip.chunks + chunk, arrivals)) return;
  const int width = at.strip.columns * V;
  finish_norm(c, source, 2 * slots, 2 * slot, tiles, chunk * width,
              least(c.in_channels, (chunk + 1) * width));
}

// Blocks are (groups * chunks, pieces).
template <typename T, typename M, int V>
__device__ __forceinline__ void branch_weights_piece(const Branches<T, M>& c, int branch,
                                                     int chunks,
                                                     WeightShared<T, FactorOf<T, M>>& s) {
  const int group = static_cast<int>(blockIdx.x) / chunks;
  if (group >= c.groups || !branch_runs(c, group, branch)) return;
  const BlockWeights<T> w = branch_weights(c, branch);
  const int64_t positions = c.images * c.out.size();
  const int64_t share = chunk_positions(positions);
  const int64_t begin = (static_cast<int>(blockIdx.x) - group * chunks) * share;
  const WeightPiece<T, M, ArrivingGradient<T, M>> piece = {
      w,
      branch_input(c, w.row.op, group),
      branch_gradient(c, branch, group),
      branch_rows(c, w.row, group),
      c.out,
      c.images,
      begin,
      begin + share < positions ? begin + share : positions,
      c.partial_weights +
          (static_cast<int64_t>(branch) * c.groups * chunks + blockIdx.x) * c.partial_weights_row};
  weight_piece<V>(piece, s);
}

template <typename T, int V, typename F>
union BranchShared {
  Vec<T, V> sums[2][kThreads];
  WeightShared<T, F> weights;
};

// In double, too, there is room for the operands of two blocks at a multiprocessor.
constexpr int kGradInputsResident = 2;

// partial is [G, tiles, 2 * sources of the list, C], counters are [sources of the list, chunks].
// grid.z = sources of the list, then branches of `weights`; the others have room for the largest.
template <typename T, typename M, int V>
__global__ __launch_bounds__(kThreads, kGradInputsResident) void conv_blocks_grad_inputs(
    const __grid_constant__ Branches<T, M> c, const ListRange sources, int weights, int chunks) {
  __shared__ BranchShared<T, V, FactorOf<T, M>> s;
  const int z = static_cast<int>(blockIdx.z);
  if (z < sources.count) {
    grad_input<T, M, V>(c, c.table.lists[sources.at + z], z, sources.count, s.sums);
  } else {
    branch_weights_piece<T, M, V>(c, c.table.lists[weights + z - sources.count], chunks, s.weights);
  }
}

// dL/d input from what conv_blocks_grad_inputs left there, behind the norm.
// grid = (tiles, groups * chunks of channels, sources of the list).
template <typename T, typename M, int V>
__global__ __launch_bounds__(kThreads, kResident<T>) void conv_blocks_grad_norms(
    const __grid_constant__ Branches<T, M> c, int list) {
  const int source = c.table.lists[list + static_cast<int>(blockIdx.z)];
  const StripPlace<V> at(c.in_channels, c.images * c.in.size());
  StateOf<T, M>* grads = entry(c.table.grad_inputs, source);
  if (grads == nullptr) return;
  StateOf<T, M>* out = grads + input_begin(c, at.group);
  const BlockInput<T, M> in = branch_input(c, source, at.group);
  const int64_t row = input_row(c, source, at.group);
  const OuterGradient<T, M> outer = {nullptr,  // it is in `out`
                                     in.map,
                                     in.center,
                                     c.grad_scale + row,
                                     c.grad_mean + row,
                                     c.grad_slope + row,
                                     c.norm == Norm::kBatch};
#pragma unroll
  for (int j = 0; j < kItems; ++j) {
    if (!at.has(j)) continue;
    const int64_t element = (at.begin + at.position(j)) * c.in_channels + at.ch;
    const Vec<T, V> behind = load_wide<T, V>(out + element);
    store_narrow<V>(out + element, pass_norm<V>(outer, element, at.ch, behind));
  }
}

// grid = (elements / threads, branches).
template <typename T, typename M>
__global__ __launch_bounds__(kThreads) void conv_blocks_sum_weights(
    const __grid_constant__ Branches<T, M> c, int chunks) {
  const int branch = static_cast<int>(blockIdx.y);
  const int64_t e = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  T* out = weight_place(c.table.rows[branch], c.in_channels, c.channels, e,
                        entry(c.table.grad_first, branch), entry(c.table.grad_second, branch));
  if (out == nullptr) return;
  const T* in = c.partial_weights +
                static_cast<int64_t>(branch) * c.groups * chunks * c.partial_weights_row + e;
  *out = sum_chunks(in, c.partial_weights_row, chunks, c.groups, chunks,
                    [&](int group) { return branch_runs(c, group, branch); });
}

}  // namespace
}  // namespace darts_fast::cuda
