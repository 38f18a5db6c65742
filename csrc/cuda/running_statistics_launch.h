// SPDX-License-Identifier: Apache-2.0
// The launcher of move_running_statistics, for its binding. Torch-free.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

namespace darts_fast::cuda {

// Of one batch norm.
template <typename T>
struct RunningNorm {
  T* mean;           // [C]
  T* var;            // [C]
  int64_t* tracked;  // counter, or null
  const T* batch_mean;
  const T* batch_var;
  double momentum;  // NaN: the cumulative average
};

template <typename T>
struct RunningStatistics {
  const RunningNorm<T>* norms;  // in host memory, which may go once the launch has returned
  int64_t count;
  int64_t channels;
  double unbiased;  // what the biased variance is multiplied by; 0: only the counters move
};

// Enqueues the kernel on `stream` and returns; throws std::runtime_error when it is refused.
template <typename T>
void launch_running_statistics(const RunningStatistics<T>& p, cudaStream_t stream);

}  // namespace darts_fast::cuda
