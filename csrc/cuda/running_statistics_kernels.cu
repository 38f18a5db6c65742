// SPDX-License-Identifier: Apache-2.0
// Kernel and launcher of move_running_statistics.
#include "cuda/common.cuh"
#include "cuda/running_statistics_launch.h"

namespace darts_fast::cuda {
namespace {

constexpr int kThreads = 128;
constexpr int kNorms = 80;

// The table travels as a parameter, which a captured graph keeps.
template <typename T>
struct Norms {
  RunningNorm<T> norm[kNorms];
  int channels;
  double unbiased;
};
static_assert(sizeof(Norms<double>) <= 4096, "kernel parameters have 4 KiB");

// running += momentum * (batch - running), as torch's batch norm does it. A block per norm.
template <typename T>
__global__ __launch_bounds__(kThreads) void move_running_statistics(
    const __grid_constant__ Norms<T> p) {
  __shared__ double shared_momentum;
  const RunningNorm<T>& norm = p.norm[blockIdx.x];
  if (threadIdx.x == 0) {
    double momentum = norm.momentum;
    if (norm.tracked != nullptr) {
      const int64_t batches = ++*norm.tracked;
      if (momentum != momentum) momentum = 1.0 / static_cast<double>(batches);
    }
    shared_momentum = momentum;
  }
  __syncthreads();
  if (p.unbiased == 0) return;
  for (int c = static_cast<int>(threadIdx.x); c < p.channels; c += kThreads) {
    const double mean = norm.batch_mean[c];
    const double var = p.unbiased * static_cast<double>(norm.batch_var[c]);
    norm.mean[c] = static_cast<T>(norm.mean[c] + shared_momentum * (mean - norm.mean[c]));
    norm.var[c] = static_cast<T>(norm.var[c] + shared_momentum * (var - norm.var[c]));
  }
}

}  // namespace

template <typename T>
void launch_running_statistics(const RunningStatistics<T>& p, cudaStream_t stream) {
  for (int64_t first = 0; first < p.count; first += kNorms) {
    const int64_t left = p.count - first;
    const int count = static_cast<int>(left < kNorms ? left : kNorms);
    Norms<T> part = {};
    part.channels = static_cast<int>(p.channels);
    part.unbiased = p.unbiased;
    for (int i = 0; i < count; ++i) part.norm[i] = p.norms[first + i];
    launch("move_running_statistics", move_running_statistics<T>, count, kThreads, stream, part);
  }
}

template void launch_running_statistics(const RunningStatistics<float>&, cudaStream_t);
template void launch_running_statistics(const RunningStatistics<double>&, cudaStream_t);

}  // namespace darts_fast::cuda
