// SPDX-License-Identifier: Apache-2.0
// Backward of conv_blocks. Per image of an input, and per branch with g = dL/dy:
//   d = depthwise(ReLU x) again (it was not stored)
//   dL/d pointwise[co, ci] = sum_p g[p, co] d[p, ci]
//   gd = pointwise^T g
//   dL/d depthwise[t, c] = sum_p gd[p, c] x[p + t, c]
//   dL/dx += depthwise with the taps reversed of gd (stride 1), scattered taps (stride 2)
// then the mask of the ReLU. Weight gradients are summed over the images in their order, in double.
// Behind a batch norm, dL/dx is first that of its output; its sums S1 and S2 need the whole batch
// (a barrier), and `conv_backward_norm` finishes it in place.
#pragma once

#include "cpu/kernels/conv_pack.h"
#include "cpu/kernels/conv_rows.h"

namespace darts_fast::cpu::DARTS_CPU_CAPABILITY {

// The parts of a thread's scratch memory.
template <typename T>
struct BackwardScratch {
  T* image;         // tile of the input behind its ReLU
  T* grad_tile;     // stride 1: gd, padded; stride 2: dL/dx in planes
  T* depthwise;     // [H', out_count]
  T* grad_rows;     // [H', out_count], 0 behind each row
  T* grad_image;    // [H, row of whole patterns]
  T* grad_out;      // a row of g, [W', vectors of C']
  T* grad_row;      // a row of gd, [W', vectors of C]
  T* taps;          // [taps, period]
  T* pointwise;     // [C, vectors of C']
  T* coefficients;  // [3, C]
};

template <typename T>
static int64_t conv_backward_layout(const ConvBlocksShape& s, const ConvTile& t, T* from,
                                    BackwardScratch<T>* parts) {
  const int64_t period = pattern_period<T>(s.channels);
  const int64_t out_row = vectors_of<T>(s.out_channels) * kLanes<T>;
  const int64_t in_row = vectors_of<T>(s.channels) * kLanes<T>;
  const int64_t sizes[] = {t.size,
                           t.size,
                           s.out_height * t.out_count,
                           s.out_height * t.out_count,
                           s.height * round_up(s.width * s.channels, period),
                           s.out_width * out_row,
                           s.out_width * in_row,
                           kMaxTaps * period,
                           s.channels * out_row,
                           3 * s.channels};
  T** const pointers[] = {&parts->image,       &parts->grad_tile,  &parts->depthwise,
                          &parts->grad_rows,   &parts->grad_image, &parts->grad_out,
                          &parts->grad_row,    &parts->taps,       &parts->pointwise,
                          &parts->coefficients};
  int64_t used = 0;
  for (int i = 0; i < 10; ++i) {
    *pointers[i] = from == nullptr ? nullptr : from + used;
    used += round_up(sizes[i], 16);
  }
  return used;
}

template <typename T>
static int64_t conv_backward_scratch(const ConvBlocksShape& s, const ConvBranch* branches) {
  BackwardScratch<T> parts;
  const ConvTile tile = make_tile(s, branches, pattern_period<T>(s.channels));
  return conv_backward_layout<T>(s, tile, nullptr, &parts);
}

template <typename T>
static void conv_backward_pack(const ConvBlocksBackward<T>& p, int64_t begin, int64_t end) {
  for (int64_t b = begin; b < end; ++b) {
    if (p.grad_outputs[b] == nullptr) continue;
    pack_branch(p.shape, p.branches[b], p.depthwise[b], p.pointwise[b],
                packed_branch(p.shape, p.packed, p.packed_stride, b));
  }
}

// gd = pointwise^T g into grad_rows, and into the padded tile where the input gradient wants it;
// the pointwise weight gradient of the image on the way.
template <typename T>
static void conv_backward_pointwise(const ConvBlocksBackward<T>& p, const ConvTile& tile,
                                    const ConvBranch& branch, const PackedBranch<T>& packed,
                                    const T* g, const BackwardScratch<T>& scratch) {
  const ConvBlocksShape& s = p.shape;
  const int64_t out_vectors = vectors_of<T>(s.out_channels);
  const int64_t in_vectors = vectors_of<T>(s.channels);
  const bool whole = s.out_channels % kLanes<T> == 0;
  const int64_t g_stride = whole ? s.out_channels : out_vectors * kLanes<T>;
  const int64_t in_stride = in_vectors * kLanes<T>;
  const bool depthwise = branch.kernel > 0;
  for (int64_t h = 0; h < s.out_height; ++h) {
    const T* g_row = g + h * s.out_width * s.out_channels;
    if (!whole) {
      for (int64_t w = 0; w < s.out_width; ++w) {
        std::memcpy(scratch.grad_out + w * g_stride, g_row + w * s.out_channels,
                    s.out_channels * sizeof(T));
      }
      g_row = scratch.grad_out;
    }
    if (p.want_weights) {
      const T* in = depthwise ? scratch.depthwise + h * tile.out_count
                              : scratch.image + tile_offset(s, tile, h, 0);
      pointwise_grad_row(in, s.channels, g_row, g_stride, s.out_width, s.channels, out_vectors,
                         scratch.pointwise);
    }
    pointwise_row(g_row, g_stride, s.out_width, s.out_channels, packed.transposed, in_vectors,
                  scratch.grad_row, in_stride);
    T* row = scratch.grad_rows + h * tile.out_count;
    if (s.channels == in_stride) {
      std::memcpy(row, scratch.grad_row, s.out_width * s.channels * sizeof(T));
    } else {
      for (int64_t w = 0; w < s.out_width; ++w) {
        std::memcpy(row + w * s.channels, scratch.grad_row + w * in_stride, s.channels * sizeof(T));
      }
    }
    if (depthwise && s.stride == 1) {
      std::memcpy(scratch.grad_tile + tile_offset(s, tile, h, 0), row,
                  s.out_width * s.channels * sizeof(T));
    }
  }
}

template <typename T>
static void conv_backward_branch(const ConvBlocksBackward<T>& p, const ConvTile& tile, int64_t b,
                                 int64_t n, bool want_input, const BackwardScratch<T>& scratch) {
  const ConvBlocksShape& s = p.shape;
  const ConvBranch& branch = p.branches[b];
  const int64_t period = pattern_period<T>(s.channels);
  const int64_t taps = branch_taps(branch);
  const int64_t image_row = round_up(s.width * s.channels, period);
  const PackedBranch<T> packed = packed_branch(s, p.packed, p.packed_stride, b);
  const int64_t out_row = vectors_of<T>(s.out_channels) * kLanes<T>;
  int64_t offsets[kMaxTaps];
  tap_offsets(s, tile, branch, offsets);
  if (p.want_weights) {
    for (int64_t h = 0; taps > 0 && h < s.out_height; ++h) {
      depthwise_row(scratch.image + h * s.stride * tile.row, offsets, taps, packed.depthwise,
                    period, tile.out_count, scratch.depthwise + h * tile.out_count, false);
    }
    std::memset(scratch.pointwise, 0, s.channels * out_row * sizeof(T));
    std::memset(scratch.taps, 0, taps * period * sizeof(T));
  }
  conv_backward_pointwise(p, tile, branch, packed,
                          p.grad_outputs[b] + n * s.out_height * s.out_width * s.out_channels,
                          scratch);
  for (int64_t h = 0; h < s.out_height; ++h) {
    const T* g = scratch.grad_rows + h * tile.out_count;
    if (p.want_weights && taps > 0) {
      depthwise_grad_row(scratch.image + h * s.stride * tile.row, offsets, taps, g, period,
                         tile.out_count, scratch.taps);
    }
    if (!want_input) continue;
    if (taps == 0) {
      T* to = scratch.grad_image + h * image_row;
      for (int64_t i = 0; i < s.width * s.channels; ++i) to[i] += g[i];
    } else if (s.stride == 1) {
      // The same reach as forward: at stride 1 the padding is symmetric.
      depthwise_row(scratch.grad_tile + h * tile.row, offsets, taps, packed.reversed, period,
                    image_row, scratch.grad_image + h * image_row, true);
    } else {
      depthwise_scatter_row(scratch.grad_tile + h * s.stride * tile.row, offsets, taps,
                            packed.depthwise, period, tile.out_count, g);
    }
  }
  if (!p.want_weights) return;
  const int64_t at = b * s.groups * s.images + n;
  T* to = p.partial_depthwise + at * p.partial_depthwise_stride;
  for (int64_t t = 0; t < taps; ++t) {
    for (int64_t c = 0; c < s.channels; ++c) to[t * s.channels + c] = T(0);
    for (int64_t i = 0; i < period; ++i) {
      to[t * s.channels + i % s.channels] += scratch.taps[t * period + i];
    }
  }
  T* pointwise = p.partial_pointwise + at * s.channels * s.out_channels;
  for (int64_t ci = 0; ci < s.channels; ++ci) {
    std::memcpy(pointwise + ci * s.out_channels, scratch.pointwise + ci * out_row,
                s.out_channels * sizeof(T));
  }
}

// The mask of the ReLU on the sum over branches, and behind a batch norm the image's part of S1,
// S2.
template <typename T>
static void conv_backward_mask(const ConvBlocksBackward<T>& p, const ConvTile& tile,
                               const InputNorm<T>* norm, int64_t source, int64_t n,
                               const BackwardScratch<T>& scratch) {
  const ConvBlocksShape& s = p.shape;
  const int64_t channels = s.channels;
  const int64_t image_row = round_up(s.width * channels, pattern_period<T>(channels));
  const int64_t at = n * s.height * s.width * channels;
  const int64_t group = n / s.images;
  double* sums = p.partial_sums + (source * s.groups * s.images + n) * 2 * channels;
  for (int64_t i = 0; norm != nullptr && i < 2 * channels; ++i) sums[i] = 0;
  for (int64_t h = 0; h < s.height; ++h) {
    for (int64_t w = 0; w < s.width; ++w) {
      const int64_t in_tile = tile_offset(s, tile, h, w);
      const T* __restrict__ x = scratch.image + in_tile;
      const T* __restrict__ g = s.stride == 1 ? scratch.grad_image + h * image_row + w * channels
                                              : scratch.grad_tile + in_tile;
      T* __restrict__ out = p.grad_inputs[source] + at + (h * s.width + w) * channels;
      for (int64_t c = 0; c < channels; ++c) out[c] = x[c] <= T(0) ? T(0) : g[c];
    }
    if (norm == nullptr) continue;
    const T* raw = p.inputs[source] + at + h * s.width * channels;
    const T* out = p.grad_inputs[source] + at + h * s.width * channels;
    const T* var = p.norm.var + (source * s.groups + group) * channels;
    for (int64_t c = 0; c < channels; ++c) {
      T sum = 0, product = 0;
      for (int64_t w = 0; w < s.width; ++w) {
        sum += out[w * channels + c];
        product += out[w * channels + c] * (raw[w * channels + c] - norm->center[c]);
      }
      sums[c] += sum;
      sums[channels + c] += product / std::sqrt(var[c] + p.norm.eps);
    }
  }
}

template <typename T>
static void conv_backward_run(const ConvBlocksBackward<T>& p, int64_t begin, int64_t end,
                              int64_t thread) {
  const ConvBlocksShape& s = p.shape;
  const int64_t period = pattern_period<T>(s.channels);
  const ConvTile tile = make_tile(s, p.branches, period);
  BackwardScratch<T> scratch;
  conv_backward_layout(s, tile, p.scratch + thread * p.scratch_stride, &scratch);
  std::memset(scratch.image, 0, tile.size * sizeof(T));
  std::memset(scratch.grad_tile, 0, tile.size * sizeof(T));
  std::memset(scratch.grad_rows, 0, s.out_height * tile.out_count * sizeof(T));
  std::memset(scratch.grad_out, 0,
              s.out_width * vectors_of<T>(s.out_channels) * kLanes<T> * sizeof(T));
  const int64_t image_row = round_up(s.width * s.channels, period);
  for (int64_t item = begin; item < end; ++item) {
    const int64_t source = item % s.sources;
    const int64_t n = item / s.sources;
    const int64_t group = n / s.images;
    const bool want_input = p.grad_inputs[source] != nullptr;
    InputNorm<T> norm;
    if (p.norm.mean != nullptr) norm = input_norm(s, p.norm, source, group, scratch.coefficients);
    const InputNorm<T>* used = p.norm.mean != nullptr ? &norm : nullptr;
    load_tile(s, tile, p.inputs[source] + n * s.height * s.width * s.channels, used, scratch.image);
    std::memset(scratch.grad_image, 0, s.height * image_row * sizeof(T));
    if (s.stride == 2) std::memset(scratch.grad_tile, 0, tile.size * sizeof(T));
    for (int64_t b = 0; b < s.branches; ++b) {
      if (p.branches[b].source != source || p.grad_outputs[b] == nullptr ||
          !p.active[group * s.branches + b]) {
        continue;
      }
      conv_backward_branch(p, tile, b, n, want_input, scratch);
    }
    if (want_input) conv_backward_mask(p, tile, used, source, n, scratch);
  }
}

// Items are branches: sums the images' weight gradients in their order.
template <typename T>
static void conv_backward_weights(const ConvBlocksBackward<T>& p, int64_t begin, int64_t end) {
  const ConvBlocksShape& s = p.shape;
  const int64_t all_images = s.groups * s.images;
  constexpr int64_t kBlock = 64;
  for (int64_t b = begin; b < end; ++b) {
    const int64_t taps = branch_taps(p.branches[b]);
    const bool arrives = p.grad_outputs[b] != nullptr;
    const auto reduce = [&](const T* partial, int64_t stride, int64_t size, auto write) {
      for (int64_t first = 0; first < size; first += kBlock) {
        const int64_t count = size - first < kBlock ? size - first : kBlock;
        double sums[kBlock] = {};
        for (int64_t n = 0; arrives && n < all_images; ++n) {
          if (!p.active[n / s.images * s.branches + b]) continue;
          const T* from = partial + n * stride + first;
          for (int64_t i = 0; i < count; ++i) sums[i] += from[i];
        }
        for (int64_t i = 0; i < count; ++i) write(first + i, static_cast<T>(sums[i]));
      }
    };
    if (taps > 0 && p.grad_depthwise[b] != nullptr) {
      reduce(p.partial_depthwise + b * all_images * p.partial_depthwise_stride,
             p.partial_depthwise_stride, taps * s.channels, [&](int64_t i, T value) {
               p.grad_depthwise[b][i % s.channels * taps + i / s.channels] = value;
             });
    }
    if (p.grad_pointwise[b] != nullptr) {
      const int64_t size = s.channels * s.out_channels;
      reduce(p.partial_pointwise + b * all_images * size, size, size, [&](int64_t i, T value) {
        p.grad_pointwise[b][i % s.out_channels * s.channels + i / s.out_channels] = value;
      });
    }
  }
}

// Items are inputs: S1 and S2 of every group, and with them the gradients of gamma and beta.
template <typename T>
static void conv_backward_sums(const ConvBlocksBackward<T>& p, int64_t begin, int64_t end) {
  const ConvBlocksShape& s = p.shape;
  const int64_t channels = s.channels;
  for (int64_t source = begin; source < end; ++source) {
    for (int64_t group = 0; group < s.groups; ++group) {
      double* sums = p.sums + (source * s.groups + group) * 2 * channels;
      for (int64_t i = 0; i < 2 * channels; ++i) sums[i] = 0;
      for (int64_t n = group * s.images; n < (group + 1) * s.images; ++n) {
        const double* part = p.partial_sums + (source * s.groups * s.images + n) * 2 * channels;
        for (int64_t i = 0; i < 2 * channels; ++i) sums[i] += part[i];
      }
    }
    for (int64_t c = 0; c < channels; ++c) {
      double beta = 0, gamma = 0;
      for (int64_t group = 0; group < s.groups; ++group) {
        const double* sums = p.sums + (source * s.groups + group) * 2 * channels;
        beta += sums[c];
        gamma += sums[channels + c];
      }
      if (p.grad_gamma != nullptr) p.grad_gamma[source * channels + c] = static_cast<T>(gamma);
      if (p.grad_beta != nullptr) p.grad_beta[source * channels + c] = static_cast<T>(beta);
    }
  }
}

// Items are images of inputs: dL/dx = gamma / sigma * (g - S1 / M - x^ S2 / M), in place.
template <typename T>
static void conv_backward_norm(const ConvBlocksBackward<T>& p, int64_t begin, int64_t end,
                               int64_t thread) {
  const ConvBlocksShape& s = p.shape;
  const int64_t channels = s.channels;
  const double count = static_cast<double>(s.images * s.height * s.width);
  BackwardScratch<T> scratch;
  const ConvTile tile = make_tile(s, p.branches, pattern_period<T>(channels));
  conv_backward_layout(s, tile, p.scratch + thread * p.scratch_stride, &scratch);
  T* mean_part = scratch.grad_tile;
  T* slope = scratch.depthwise;
  for (int64_t item = begin; item < end; ++item) {
    const int64_t source = item % s.sources;
    const int64_t n = item / s.sources;
    const int64_t group = n / s.images;
    if (p.grad_inputs[source] == nullptr) continue;
    const InputNorm<T> norm = input_norm(s, p.norm, source, group, scratch.coefficients);
    const double* sums = p.sums + (source * s.groups + group) * 2 * channels;
    const T* var = p.norm.var + (source * s.groups + group) * channels;
    const bool batch = p.norm.kind == Norm::kBatch;
    for (int64_t c = 0; c < channels; ++c) {
      const double sigma = std::sqrt(var[c] + p.norm.eps);
      mean_part[c] = batch ? static_cast<T>(sums[c] / count) : T(0);
      slope[c] = batch ? static_cast<T>(sums[channels + c] / count / sigma) : T(0);
    }
    const int64_t at = n * s.height * s.width * channels;
    for (int64_t pixel = 0; pixel < s.height * s.width; ++pixel) {
      const T* __restrict__ raw = p.inputs[source] + at + pixel * channels;
      T* __restrict__ out = p.grad_inputs[source] + at + pixel * channels;
      for (int64_t c = 0; c < channels; ++c) {
        out[c] = norm.scale[c] * ((out[c] - mean_part[c]) - slope[c] * (raw[c] - norm.center[c]));
      }
    }
  }
}

}  // namespace darts_fast::cpu::DARTS_CPU_CAPABILITY
