// SPDX-License-Identifier: Apache-2.0
// 3x3 pools with padding 1 and stride 1 or 2, and where their gradients go: as torch pools, a NaN
// wins, ties go to the first in scan order, and an average counts the cells inside the image.
#pragma once

#include "cuda/cell_input.cuh"

namespace darts_fast::cuda {
namespace {

// Rows, or columns, of a window that lie inside.
struct Reach {
  int begin, end;
  __device__ __forceinline__ Reach(int out, int stride, int size)
      : begin(out * stride - 1 < 0 ? 0 : out * stride - 1),
        end(out * stride + 2 < size ? out * stride + 2 : size) {}
  __device__ __forceinline__ int count() const { return end - begin; }
};

// Channels [ch, ch + V) at position (h, w) of the pooled map. `x` is the image.
template <typename T, int V, typename S>
__device__ __forceinline__ Vec<T, V> pool(const S* x, const Plane& plane, int channels, int stride,
                                          bool max, int h, int w, int ch) {
  const Reach rows(h, stride, plane.height), columns(w, stride, plane.width);
  Vec<T, V> result = zeros<T, V>();
  bool first = true;
  for (int i = rows.begin; i < rows.end; ++i) {
    for (int j = columns.begin; j < columns.end; ++j) {
      const Vec<T, V> value =
          load_wide<T, V>(x + (i * plane.width + j) * static_cast<int64_t>(channels) + ch);
#pragma unroll
      for (int lane = 0; lane < V; ++lane) {
        const T v = value.lane[lane];
        T& r = result.lane[lane];
        if (!max) {
          r += v;
        } else if (first || v > r || v != v) {
          r = v;
        }
      }
      first = false;
    }
  }
  if (!max) {
    const T count = static_cast<T>(rows.count() * columns.count());
#pragma unroll
    for (int lane = 0; lane < V; ++lane) result.lane[lane] /= count;
  }
  return result;
}

// Whether cell (h, w), of value `v`, is where the window at (out_h, out_w) found its maximum `y`.
template <typename T, typename S>
__device__ __forceinline__ bool is_winner(const S* x, const Plane& plane, int channels, int stride,
                                          int out_h, int out_w, int h, int w, T v, T y) {
  const bool nan = y != y;
  if (nan ? v == v : v != y) return false;
  // Of equals the first wins, of NaNs the last.
  const Reach rows(out_h, stride, plane.height), columns(out_w, stride, plane.width);
  for (int i = rows.begin; i < rows.end; ++i) {
    for (int j = columns.begin; j < columns.end; ++j) {
      const bool before = i < h || (i == h && j < w);
      if (before == nan || (i == h && j == w)) continue;
      const T other = widen(x[(i * plane.width + j) * static_cast<int64_t>(channels)]);
      if (nan ? other != other : other == y) return false;
    }
  }
  return true;
}

// Windows, along one axis, that see cell `at`.
struct Windows {
  int begin, end;
  __device__ __forceinline__ Windows(int at, int stride, int count) {
    begin = at / stride;  // at - 1 <= out * stride
    if (stride == 1 && at > 0) begin = at - 1;
    end = (at + 1) / stride + 1;
    if (end > count) end = count;
  }
};

}  // namespace
}  // namespace darts_fast::cuda
