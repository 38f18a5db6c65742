// SPDX-License-Identifier: Apache-2.0
// The partial sums of a separable block's weights' gradients, from what grad_separable has of a
// slab in shared memory: dL/dy with the depthwise outputs of the box, made again, for the pointwise
// matrix; the gradient of the depthwise outputs with the cells of the box for the taps.
//
// Bytes: the input of the box with what its windows see, through the first-level cache.
#pragma once

#include "cuda/cell_grad_task.cuh"

namespace darts_fast::cuda {
namespace {

template <typename T>
__device__ __forceinline__ void add_partial(T* to, T value, bool fresh) {
  *to = fresh ? value : *to + value;
}

// outputs[i][p] = the depthwise outputs of the slab that belong to the box, 0 elsewhere.
template <int V, typename T, typename M, typename F>
__device__ __forceinline__ void fill_outputs(const GradTask<T, M>& g, const Slab& slab,
                                             int positions, GradShared<T, V, F>& s) {
  const BlockRow& b = g.row;
  constexpr int kVectors = kDepth / V;
  const int row = s.outputs_row(positions);
  const int filled = s.kFragments ? whole_pieces(positions) : positions;
  for (int from = 0; from < g.width; from += kDepth) {
    const int depths = least(g.width - from, kDepth);
    const int first = g.first + from;
    fill_taps(s.operands.taps, g.weights[0], b.kernel * b.kernel, first, depths);
    __syncthreads();
    for (int i = static_cast<int>(threadIdx.x); i < filled * kVectors; i += kThreads) {
      const int p = i / kVectors;
      const int d = (i - p * kVectors) * V;
      if (d >= depths) continue;
      Vec<T, V> value = zeros<T, V>();
      if (p < slab.count) {
        const Spot at = slab.at(p);
        if (g.own.has(at)) {
          value = depthwise<T, M, V>(g.in, b, at, first + d, &s.operands.taps[0][d], kDepth);
        }
      }
#pragma unroll
      for (int lane = 0; lane < V; ++lane) {
        s.outputs[(from + d + lane) * row + p] = narrow<F>(value.lane[lane]);
      }
    }
    __syncthreads();
  }
}

// out[o][i] += sum of a[o][p] * outputs[i][p] over a slab, for `depths` outputs and `width` inputs.
// A thread has two of each; lanes next to each other share the positions.
template <typename T, int Row>
__device__ __forceinline__ void add_matrix(const T (&a)[kDepth][Row], const T* map, int positions,
                                           int count, int depths, int width, int inputs, T* out,
                                           bool fresh) {
  constexpr int kHalf = kDepth / 2;
  const int pairs = (width + 1) / 2;
  int shares = 1;
  while (2 * shares * kHalf * pairs <= kThreads && shares < kWarp) shares *= 2;
  const int share = static_cast<int>(threadIdx.x) % shares;
  const int at = static_cast<int>(threadIdx.x) / shares;
  const int o = at % kHalf, i = at / kHalf;
  const bool works = i < pairs;
  T sum[2][2] = {{T(0), T(0)}, {T(0), T(0)}};
  if (works) {
    const T* in = map + i * (positions + kMicro);
    const T* other = map + least(i + pairs, width - 1) * (positions + kMicro);
    for (int p = share * kMicro; p < count; p += shares * kMicro) {
      const Vec<T, kMicro> g[2] = {load<T, kMicro>(&a[o][p]), load<T, kMicro>(&a[o + kHalf][p])};
      const Vec<T, kMicro> x[2] = {load<T, kMicro>(in + p), load<T, kMicro>(other + p)};
#pragma unroll
      for (int k = 0; k < 4; ++k) {
#pragma unroll
        for (int lane = 0; lane < kMicro; ++lane) {
          sum[k / 2][k % 2] += g[k / 2].lane[lane] * x[k % 2].lane[lane];
        }
      }
    }
  }
#pragma unroll
  for (int k = 0; k < 4; ++k) {
    T& part = sum[k / 2][k % 2];
    for (int step = shares / 2; step > 0; step /= 2) {
      part += __shfl_down_sync(kWholeWarp, part, step, shares);
    }
    const int to_o = o + k / 2 * kHalf, to_i = i + k % 2 * pairs;
    if (works && share == 0 && to_o < depths && to_i < width) {
      add_partial(out + static_cast<int64_t>(to_o) * inputs + to_i, part, fresh);
    }
  }
}

// The same of 16 bits, on tensor cores: a is [position][depth], and a warp has 8 inputs.
template <typename H, int Positions>
__device__ __forceinline__ void add_matrix(const H (&a)[Positions][kFactorRow], const H* map,
                                           int positions, int count, int depths, int width,
                                           int inputs, float* out, bool fresh) {
  const FragmentPlace lane;
  const int first = static_cast<int>(threadIdx.x) / kWarp * kFragmentColumns;
  if (first >= width) return;  // the whole warp
  const int row = positions + kFragmentPadding;
  float sum[4] = {};
#pragma unroll 1  // the registers are full
  for (int p = 0; p < count; p += kFragmentDepth) {
    uint32_t g[4], x[2];
    load_transposed_rows(g, lane, &a[p][0], kFactorRow);
    load_columns(x, lane, map + first * row + p, row);
    multiply_fragments<H>(sum, g, x);
  }
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const int o = lane.row + i / 2 * 8, ch = first + lane.pair + i % 2;
    if (o < depths && ch < width) {
      add_partial(out + static_cast<int64_t>(o) * inputs + ch, sum[i], fresh);
    }
  }
}

// out[i][tap] += sum of rows * input over the box's cells and the slab's outputs: a thread has a
// channel and a row of the window, and every so-many-th row of cells. lines is free.
template <int K, typename T, typename M>
__device__ __forceinline__ void add_taps(const GradTask<T, M>& g, const Slab& slab, const T* rows,
                                         int row, T (&lines)[kMostTaps * kThreads / 7],
                                         bool fresh) {
  constexpr int kLines = kThreads / (kDepth * K);
  const BlockRow& b = g.row;
  const Box& box = g.box;
  const int pad = b.dilation * (b.kernel - 1) / 2;
  const int thread = static_cast<int>(threadIdx.x);
  const int i = thread / kDepth % K;
  const int line = thread / (kDepth * K);
  for (int from = 0; from < g.width; from += kDepth) {
    const int channel = from + thread % kDepth;
    T sum[K];
#pragma unroll
    for (int k = 0; k < K; ++k) sum[k] = T(0);
    const bool works = line < kLines && channel < g.width;
    for (int r = line; works && r < box.images * box.height; r += kLines) {
      const int image = r / box.height;
      const int h = box.top + r - image * box.height;
      const int out_h = output_of_cell(h, pad - i * b.dilation, g.in.stride, g.out.height);
      if (out_h < 0) continue;
      for (int w = box.left; w < box.left + box.width; ++w) {
        const T value =
            load_input<T, M, 1>(g.in, box.image + image, h, w, g.first + channel).lane[0];
#pragma unroll
        for (int k = 0; k < K; ++k) {
          const int out_w = output_of_cell(w, pad - k * b.dilation, g.in.stride, g.out.width);
          if (out_w < 0) continue;
          const unsigned at = slab.place(image, out_h, out_w);
          if (at < static_cast<unsigned>(slab.count)) sum[k] += value * rows[at * row + channel];
        }
      }
    }
    if (line < kLines) {
#pragma unroll
      for (int k = 0; k < K; ++k) {
        lines[((line * K + i) * K + k) * kDepth + thread % kDepth] = sum[k];
      }
    }
    __syncthreads();
    for (int t = thread; t < K * K * kDepth; t += kThreads) {
      if (from + t % kDepth >= g.width) continue;
      T total = T(0);
      for (int l = 0; l < kLines; ++l) total += lines[l * K * K * kDepth + t];
      const int64_t ch = g.first + from + t % kDepth;
      add_partial(g.taps + ch * K * K + t / kDepth, total, fresh);
    }
    __syncthreads();
  }
}

}  // namespace
}  // namespace darts_fast::cuda
