// SPDX-License-Identifier: Apache-2.0
// How the backward cuts a group's images: into boxes of rows and columns, whole images where they
// are small, so that the windows of a depthwise convolution reach few positions beyond.
//
// A box of a block's input, and the outputs that lie behind it, are one thread block's to make the
// gradients of: every pair of an output and a cell of its window belongs to the box of the cell.
#pragma once

#include "cuda/cell_fragments.cuh"
#include "cuda/cell_strip.cuh"
#include "cuda/tables.cuh"

namespace darts_fast::cuda {
namespace {

// A thread of such a kernel keeps kItems vectors of the gradient, and these are all of a box: so
// many channels and threads of the product at a time.
constexpr int kBoxChannels = 16, kBoxThreads = 64;  // times the lanes

template <typename S>
__host__ __device__ inline Micro box_micro(int channels, int lanes) {
  return micro_of<S>(channels, kBoxChannels * lanes, kBoxThreads * lanes);
}

// Positions of one plane; an image counts in the group.
struct Box {
  int64_t image;
  int images, top, left, height, width;
  int count;  // positions

  __device__ __forceinline__ bool has(const Spot& at) const {
    return at.h >= top && at.h < top + height && at.w >= left && at.w < left + width;
  }
};

__device__ __forceinline__ Box make_box(int64_t image, int images, int top, int left, int height,
                                        int width) {
  return {image, images, top, left, height, width, images * height * width};
}

__device__ __forceinline__ Spot spot(const Box& box, int i) {
  const int row = i / box.width;
  const int image = row / box.height;
  return {box.image + image, box.top + row - image * box.height, box.left + i - row * box.width};
}

// Boxes of at most `positions` cells of the input.
inline BoxGrid box_grid(const Plane& out, int stride, int64_t images, int positions) {
  const int room = positions / (stride * stride);
  BoxGrid grid = {1, out.height, out.width, 1, 1, 0, 1, 0};
  if (out.size() <= room) {
    const int64_t whole = room / out.size();
    grid.images = static_cast<int>(whole < images ? whole : images);
  } else {
    int side = 1;
    while ((side + 1) * (side + 1) <= room) ++side;
    grid.across = static_cast<int>(ceil_divide(out.width, side));
    grid.width = static_cast<int>(ceil_divide(out.width, grid.across));
    grid.down = static_cast<int>(ceil_divide(out.height, room / grid.width));
    grid.height = static_cast<int>(ceil_divide(out.height, grid.down));
  }
  grid.boxes = ceil_divide(images, grid.images) * grid.down * grid.across;
  return grid;
}

// Number `i` of the outputs' boxes.
__device__ __forceinline__ Box output_box(const BoxGrid& grid, const Plane& out, int64_t images,
                                          int64_t i) {
  const int parts = grid.down * grid.across;
  const int64_t stack = i / parts;
  const int part = static_cast<int>(i - stack * parts);
  const int64_t image = stack * grid.images, rest = images - image;
  const int top = part / grid.across * grid.height, left = part % grid.across * grid.width;
  return make_box(image, static_cast<int>(rest < grid.images ? rest : grid.images), top, left,
                  least(grid.height, out.height - top), least(grid.width, out.width - left));
}

// The cells in front of it.
__device__ __forceinline__ Box input_box(const Box& out, const Plane& in, int stride) {
  const int top = out.top * stride, left = out.left * stride;
  return make_box(out.image, out.images, top, left, least(out.height * stride, in.height - top),
                  least(out.width * stride, in.width - left));
}

// The outputs whose windows see a cell of the box.
__device__ __forceinline__ Box reached_box(const Box& in, const BlockRow& b, const Plane& out,
                                           int stride) {
  const int pad = b.dilation * (b.kernel - 1) / 2;
  const auto first = [&](int at) { return at < pad ? 0 : (at - pad + stride - 1) / stride; };
  const auto end = [&](int last, int size) { return least((last + pad) / stride + 1, size); };
  const int top = first(in.top), left = first(in.left);
  return make_box(in.image, in.images, top, left, end(in.top + in.height - 1, out.height) - top,
                  end(in.left + in.width - 1, out.width) - left);
}

// A box of a map, and the chunk of its channels, in shared memory: it is the same for all threads,
// and their registers would not hold it beside the sums. blockIdx.y counts groups and in a group
// chunks.
struct BoxTask {
  Plane plane;
  Box box;
  int64_t number, end;  // of the box, and of those that a block of threads goes through
  int state, channels, group, chunk;
  int first, width;   // channels of the chunk
  int columns, rows;  // of threads, by vectors of channels
  Micro micro;        // and of a product
};

// Where a thread works in a box: V channels of positions row, row + rows, ..., kItems at most.
template <int V>
struct BoxPlace {
  struct {
    int columns, rows;
  } strip;
  int group, row, column, ch;
  bool works;
  const BoxTask& task;

  __device__ __forceinline__ explicit BoxPlace(const BoxTask& task) : task(task) {
    strip = {task.columns, task.rows};
    group = task.group;
    row = static_cast<int>(threadIdx.x) / strip.columns;
    column = static_cast<int>(threadIdx.x) - row * strip.columns;
    ch = task.first + column * V;
    works = row < strip.rows && ch < task.channels;
  }

  __device__ __forceinline__ int position(int j) const { return row + j * strip.rows; }
  __device__ __forceinline__ bool has(int j) const { return works && position(j) < task.box.count; }
  __device__ __forceinline__ Spot at(int j) const { return spot(task.box, position(j)); }
  // Item j's position in the group.
  __device__ __forceinline__ int64_t place(int j) const {
    const Spot from = at(j);
    return from.image * task.plane.size() + from.h * task.plane.width + from.w;
  }
};

// With the positions, for loops that need them many times.
template <int V>
struct KnownPlaces : BoxPlace<V> {
  int64_t known[kItems];

  __device__ __forceinline__ explicit KnownPlaces(const BoxTask& task) : BoxPlace<V>(task) {
#pragma unroll
    for (int j = 0; j < kItems; ++j) known[j] = BoxPlace<V>::place(j);
  }
  __device__ __forceinline__ int64_t place(int j) const { return known[j]; }
};

}  // namespace
}  // namespace darts_fast::cuda
