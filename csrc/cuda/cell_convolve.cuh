// SPDX-License-Identifier: Apache-2.0
// Sweeps 1 and 2 of a cell's forward: convolution blocks and pools, with the partial statistics of
// what they give.
//
// One launch makes every map that leaves the states of a level, or every second block of the
// level's chains: grid = (tiles, groups * chunks of channels, items). A tile is `Micro::positions`
// positions of a group, whatever images and rows they lie in, so every size of image fills it.
//
// Bytes: a map is written once. A state is read by all items of its level, which run side by side;
// see cell_input.cuh. partial is [blocks + pools, G, tiles, 3, C] as in node_sum_statistics; the
// last block of an item, group and chunk of channels to come merges it. counters are [blocks +
// pools, G, chunks].
#pragma once

#include "cuda/cell_fragments.cuh"
#include "cuda/cell_norms.cuh"
#include "cuda/cell_pool.cuh"

namespace darts_fast::cuda {
namespace {

template <typename T, typename F = T>
union ConvolveShared {
  OperandsOf<T, F> operands;
  struct {
    Vec<T, kMicro> totals[1][kThreads];
    Vec<T, kMicro> moments[2][kThreads];
  } sums;
};

// A tile's outputs as sums in the accumulator.
template <int V, typename T, typename M, typename O>
__device__ __forceinline__ void convolve_tile(const BlockWeights<T>& w, const BlockInput<T, M>& in,
                                              const Micro& micro, const MicroPlace& place,
                                              const Positions& tile, int first_output, O& operands,
                                              Accumulator<T>& sum) {
  const BlockRow& b = w.row;
  auto& s = factors(operands);
  typename O::Sums sums = {};
  const bool separable = is_kind(b, ConvKind::kSeparable);
  const int outputs = least(w.outputs - first_output, kWidth);
  for (int tap = 0; tap < matrices(b); ++tap) {
    const BlockMatrix<T> matrix = block_matrix(w, tap);
    for (int ch = 0; ch < in.channels; ch += kDepth) {
      const int depths = least(in.channels - ch, kDepth);
      if (separable) {
        fill_taps(s.taps, w.first, b.kernel * b.kernel, ch, depths);
        __syncthreads();
      }
      fill_input<V>(s.a, s.taps, in, b, tile, micro.positions(), tap, ch, depths);
      fill_matrix<false>(s, depths, outputs,
                         [&](int d, int o) { return matrix(first_output + o, ch + d); });
      __syncthreads();
      multiply(s, micro, place, sums);
      __syncthreads();
    }
  }
  take_sums(operands, micro, place, sums, sum);
}

template <typename T, typename M, int V>
__device__ __forceinline__ void pool_tile(const Cell<T, M>& c, const PoolRow& row, int group,
                                          const Positions& tile, const MicroPlace& place,
                                          int first_channel, Accumulator<T>& sum) {
  const Plane plane = state_plane(c, row.source);
  const int stride = is_input(c, row.source) ? c.stride : 1;
  const bool max = row.kind == static_cast<int16_t>(CellOpKind::kMaxPool);
  const StateOf<T, M>* state = state_of(c, row.source, group);
  const int64_t size = static_cast<int64_t>(plane.size()) * c.channels;
#pragma unroll
  for (int i = 0; i < kMicro; ++i) {
    if (!place.works || place.p + i >= tile.count) continue;
    const Spot at = spot(tile, place.p + i);
#pragma unroll
    for (int j = 0; j < kMicro; j += V) {
      const int ch = first_channel + place.o + j;
      if (ch >= c.channels) continue;
      const Vec<T, V> value =
          pool<T, V>(state + at.image * size, plane, c.channels, stride, max, at.h, at.w, ch);
#pragma unroll
      for (int lane = 0; lane < V; ++lane) sum[i].lane[j + lane] = value.lane[lane];
    }
  }
}

// Mean and centred squares of the tile, per channel: about the tile's own mean, whose rounding is
// taken back out.
template <typename T, typename F>
__device__ __forceinline__ void tile_statistics(int channels, const Micro& micro,
                                                const MicroPlace& place, int count,
                                                int first_channel, const Accumulator<T>& value,
                                                ConvolveShared<T, F>& s, T* out) {
  const auto counts = [&](int i) { return place.works && place.p + i < count; };
  Vec<T, kMicro> total[1] = {zeros<T, kMicro>()};
#pragma unroll
  for (int i = 0; i < kMicro; ++i) {
#pragma unroll
    for (int j = 0; j < kMicro; ++j) total[0].lane[j] += counts(i) ? value[i].lane[j] : T(0);
  }
  sum_rows(total, s.sums.totals, micro.columns, micro.rows);
  const T size = static_cast<T>(count);
  Vec<T, kMicro> mean = s.sums.totals[0][place.column];
  Vec<T, kMicro> moment[2] = {zeros<T, kMicro>(), zeros<T, kMicro>()};
#pragma unroll
  for (int j = 0; j < kMicro; ++j) {
    mean.lane[j] /= size;
#pragma unroll
    for (int i = 0; i < kMicro; ++i) {
      const T d = counts(i) ? value[i].lane[j] - mean.lane[j] : T(0);
      moment[0].lane[j] += d;
      moment[1].lane[j] += d * d;
    }
  }
  sum_rows(moment, s.sums.moments, micro.columns, micro.rows);
  if (place.row != 0) return;
#pragma unroll
  for (int j = 0; j < kMicro; ++j) {
    const int ch = first_channel + place.o + j;
    if (ch >= channels) continue;
    out[ch] = mean.lane[j];
    out[channels + ch] = s.sums.moments[0][place.column].lane[j];
    out[2 * channels + ch] = s.sums.moments[1][place.column].lane[j];
  }
}

// One channel at a time the float32 product needs the registers of two blocks; that of tensor cores
// does not.
template <typename T, typename M, int V>
constexpr int kConvolveResident = V == 1 && sizeof(StateOf<T, M>) > 2 ? 1 : kResident<T>;

template <typename T, typename M, int V>
__global__ __launch_bounds__(kThreads, kConvolveResident<T, M, V>) void cell_convolve(
    const __grid_constant__ Cell<T, M> c, int list) {
  __shared__ ConvolveShared<T, FactorOf<T, M>> s;
  const Micro micro = micro_of<StateOf<T, M>>(c.channels);
  const int item = c.table.lists[list + static_cast<int>(blockIdx.z)];
  const int group = static_cast<int>(blockIdx.y) / micro.chunks;
  const int first_output = (static_cast<int>(blockIdx.y) - group * micro.chunks) * kWidth;
  const uint8_t flags = c.table.flags[group * (c.blocks + c.pools) + item];
  if ((flags & kRuns) == 0) return;
  const MicroPlace place(micro);
  const int64_t begin = static_cast<int64_t>(blockIdx.x) * micro.positions();
  const Positions tile(node_plane(c), c.images, begin, micro.positions());
  Accumulator<T> sum;
#pragma unroll
  for (int i = 0; i < kMicro; ++i) sum[i] = zeros<T, kMicro>();
  const int64_t at = begin * c.channels;
  if (item < c.blocks) {
    convolve_tile<V>(block_weights(c, item), block_input(c, item, group), micro, place, tile,
                     first_output, s.operands, sum);
    const OpRow& op = c.table.ops[c.table.blocks[item].op];
    const int map = is_chain(op) && item == op.block ? op.inner_map : op.map;
    store_tile<V>(raw_of(c, map, group) + at, c.channels, place, tile.count, first_output, sum);
  } else {
    const PoolRow& row = c.table.pools[item - c.blocks];
    pool_tile<T, M, V>(c, row, group, tile, place, first_output, sum);
    store_tile<V>(map_of(c, row.map, group) + at, c.channels, place, tile.count, first_output, sum);
  }
  if ((flags & kWantsMoments) == 0) return;
  tile_statistics(c.channels, micro, place, tile.count, first_output, sum, s,
                  partial_of(c, item, group, gridDim.x, blockIdx.x));
  const int64_t row = static_cast<int64_t>(item) * c.groups * micro.chunks + blockIdx.y;
  if (!arrives_last(c.counters + row, gridDim.x)) return;
  merge_norms(c, item, group, first_output, least(c.channels - first_output, kWidth),
              micro.positions());
}

}  // namespace
}  // namespace darts_fast::cuda
