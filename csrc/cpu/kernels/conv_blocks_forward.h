// SPDX-License-Identifier: Apache-2.0
// y_b = pointwise_b(depthwise_b(ReLU([BN] x_source(b)))) for all branches b of a call, with the
// moments of every y_b for the batch norm that follows.
//
// An item is one image of one input: it is read once, stands padded in scratch memory of about
// (H + 2 P)(W + 2 P) C elements, and each of its branches goes over it row by row, the depthwise
// row feeding the pointwise row out of the first-level cache. Bytes: each input once, each output
// once.
#pragma once

#include "cpu/kernels/conv_pack.h"
#include "cpu/kernels/conv_rows.h"

namespace darts_fast::cpu::DARTS_CPU_CAPABILITY {

// Scratch of a thread: the tile, a depthwise row, a pointwise row, moments, norm coefficients.
template <typename T>
static int64_t conv_forward_scratch(const ConvBlocksShape& s, const ConvBranch* branches) {
  const ConvTile tile = make_tile(s, branches, pattern_period<T>(s.channels));
  const int64_t out_row = vectors_of<T>(s.out_channels) * kLanes<T>;
  const int64_t moments = round_up(3 * s.out_channels * sizeof(double) / sizeof(T) + 16, 16);
  return round_up(tile.size + tile.out_count + s.out_width * out_row + moments + 3 * s.channels,
                  16);
}

template <typename T>
static void conv_forward_pack(const ConvBlocksForward<T>& p, int64_t begin, int64_t end) {
  for (int64_t b = begin; b < end; ++b) {
    pack_branch(p.shape, p.branches[b], p.depthwise[b], p.pointwise[b],
                packed_branch(p.shape, p.packed, p.packed_stride, b));
  }
}

// Adds the row's sums about `shift`, in single precision over the row, to those of the image.
template <typename T>
static void add_row_moments(const T* y, int64_t pixels, int64_t channels, const double* shift,
                            double* sum, double* square) {
  constexpr int64_t kChunk = 16;
  for (int64_t first = 0; first < channels; first += kChunk) {
    const int64_t count = channels - first < kChunk ? channels - first : kChunk;
    T about[kChunk] = {}, sums[kChunk] = {}, squares[kChunk] = {};
    for (int64_t c = 0; c < count; ++c) about[c] = static_cast<T>(shift[first + c]);
    if (count == kChunk) {
      for (int64_t w = 0; w < pixels; ++w) {
        const T* __restrict__ at = y + w * channels + first;
        for (int64_t c = 0; c < kChunk; ++c) {
          const T d = at[c] - about[c];
          sums[c] += d;
          squares[c] += d * d;
        }
      }
    } else {
      for (int64_t w = 0; w < pixels; ++w) {
        const T* __restrict__ at = y + w * channels + first;
        for (int64_t c = 0; c < count; ++c) {
          const T d = at[c] - about[c];
          sums[c] += d;
          squares[c] += d * d;
        }
      }
    }
    for (int64_t c = 0; c < count; ++c) {
      sum[first + c] += sums[c];
      square[first + c] += squares[c];
    }
  }
}

// One branch of one image; writes y [H', W', C'] and its moments [C'].
template <typename T>
static void conv_forward_branch(const ConvBlocksShape& s, const ConvTile& tile,
                                const ConvBranch& branch, const PackedBranch<T>& packed,
                                const T* image, T* depthwise, T* pointwise, double* moments, T* y,
                                double* mean, double* square) {
  const int64_t period = pattern_period<T>(s.channels);
  const int64_t vectors = vectors_of<T>(s.out_channels);
  const int64_t taps = branch_taps(branch);
  const bool whole_vectors = s.out_channels % kLanes<T> == 0;
  const int64_t out_stride = whole_vectors ? s.out_channels : vectors * kLanes<T>;
  double* shift = moments;
  double* sum = shift + s.out_channels;
  double* squares = sum + s.out_channels;
  int64_t offsets[kMaxTaps];
  tap_offsets(s, tile, branch, offsets);
  for (int64_t h = 0; h < s.out_height; ++h) {
    const T* row = image + h * s.stride * tile.row;
    const T* in = row + tile_offset(s, tile, 0, 0);
    if (taps > 0) {
      depthwise_row(row, offsets, taps, packed.depthwise, period, tile.out_count, depthwise, false);
      in = depthwise;
    }
    T* out_row = y + h * s.out_width * s.out_channels;
    T* target = whole_vectors ? out_row : pointwise;
    pointwise_row(in, s.channels, s.out_width, s.channels, packed.pointwise, vectors, target,
                  out_stride);
    for (int64_t w = 0; !whole_vectors && w < s.out_width; ++w) {
      std::memcpy(out_row + w * s.out_channels, pointwise + w * out_stride,
                  s.out_channels * sizeof(T));
    }
    for (int64_t c = 0; h == 0 && c < s.out_channels; ++c) {
      shift[c] = out_row[c];
      sum[c] = squares[c] = 0;
    }
    add_row_moments(out_row, s.out_width, s.out_channels, shift, sum, squares);
  }
  const double count = static_cast<double>(s.out_height * s.out_width);
  for (int64_t c = 0; c < s.out_channels; ++c) {
    mean[c] = shift[c] + sum[c] / count;
    square[c] = squares[c] - sum[c] * sum[c] / count;
  }
}

template <typename T>
static void conv_forward_run(const ConvBlocksForward<T>& p, int64_t begin, int64_t end,
                             int64_t thread) {
  const ConvBlocksShape& s = p.shape;
  const int64_t period = pattern_period<T>(s.channels);
  const ConvTile tile = make_tile(s, p.branches, period);
  const int64_t all_images = s.groups * s.images;
  T* image = p.scratch + thread * p.scratch_stride;
  double* moments = reinterpret_cast<double*>(image + tile.size);
  T* depthwise =
      image + tile.size + round_up(3 * s.out_channels * sizeof(double) / sizeof(T) + 16, 16);
  T* pointwise = depthwise + tile.out_count;
  T* coefficients = pointwise + s.out_width * vectors_of<T>(s.out_channels) * kLanes<T>;
  std::memset(image, 0, tile.size * sizeof(T));
  for (int64_t item = begin; item < end; ++item) {
    const int64_t source = item % s.sources;
    const int64_t n = item / s.sources;
    const int64_t group = n / s.images;
    InputNorm<T> norm;
    if (p.norm.mean != nullptr) norm = input_norm(s, p.norm, source, group, coefficients);
    load_tile(s, tile, p.inputs[source] + n * s.height * s.width * s.channels,
              p.norm.mean != nullptr ? &norm : nullptr, image);
    for (int64_t b = 0; b < s.branches; ++b) {
      if (p.branches[b].source != source) continue;
      const int64_t out_size = s.out_height * s.out_width * s.out_channels;
      T* y = p.outputs[b] + n * out_size;
      if (!p.active[group * s.branches + b]) {
        std::memset(y, 0, out_size * sizeof(T));
        continue;
      }
      const int64_t at = (b * all_images + n) * s.out_channels;
      conv_forward_branch(s, tile, p.branches[b], packed_branch(s, p.packed, p.packed_stride, b),
                          image, depthwise, pointwise, moments, y, p.partial_mean + at,
                          p.partial_square + at);
    }
  }
}

template <typename T>
static void conv_forward_merge(const ConvBlocksForward<T>& p, int64_t begin, int64_t end) {
  const ConvBlocksShape& s = p.shape;
  for (int64_t item = begin; item < end; ++item) {
    const int64_t b = item % s.branches;
    const int64_t group = item / s.branches;
    T* mean = p.mean + item * s.out_channels;
    T* var = p.var + item * s.out_channels;
    if (!p.active[item] || s.images == 0) {
      for (int64_t c = 0; c < s.out_channels; ++c) {
        mean[c] = T(0);
        var[c] = T(1);
      }
      continue;
    }
    const int64_t at = (b * s.groups + group) * s.images * s.out_channels;
    double* means = p.partial_mean + at;
    double* squares = p.partial_square + at;
    const double size = static_cast<double>(s.out_height * s.out_width);
    double seen = size;
    for (int64_t n = 1; n < s.images; ++n) {
      merge_moments(means, squares, seen, means + n * s.out_channels, squares + n * s.out_channels,
                    size, s.out_channels);
      seen += size;
    }
    for (int64_t c = 0; c < s.out_channels; ++c) {
      mean[c] = static_cast<T>(means[c]);
      var[c] = static_cast<T>(squares[c] / seen);
    }
  }
}

}  // namespace darts_fast::cpu::DARTS_CPU_CAPABILITY
