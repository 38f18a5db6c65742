// SPDX-License-Identifier: Apache-2.0
// The launchers of mixed_cell and of what is a cell of one operation, relu_conv_norm. Torch-free.
#pragma once

#include <cuda_runtime.h>

#include "cuda/allocate.h"
#include "cuda/stored.h"
#include "mixed_cell.h"

namespace darts_fast::cuda {

template <typename T, typename M>
using CudaCellArguments = CellArguments<T, RawOf<T, M>, StateOf<T, M>>;

// Tables lie in host memory and may go once the launch has returned; what they point to is on the
// device. Of CellArguments the scratch (packed and behind it) is not used.
template <typename T, typename M>
struct CudaCellForward : CudaCellArguments<T, M> {
  int64_t in_channels;           // of the input states; the plan's `channels` are the nodes'
  const T* const* running_mean;  // [B] -> [C]; read where norms is kRunning
  const T* const* running_var;
  StateOf<T, M>* output;  // [G * N, H', W', multiplier * C]
};

template <typename T, typename M>
struct CudaCellBackward : CudaCellArguments<T, M> {
  int64_t in_channels;
  const StateOf<T, M>* grad_output;  // [G * N, H', W', multiplier * C]
  // outputs; null = nobody asked. The gradient of an input that no op but `none` leaves is not
  // written, nor is the gradient of a parameter of an op that no group computes.
  StateOf<T, M>* const* grad_states;  // [S]
  T* grad_weights;                    // [G, K]
  T* const* grad_first;               // [blocks]
  T* const* grad_second;              // [blocks]
  T* const* grad_gamma;               // [B]
  T* const* grad_beta;                // [B]
};

// Enqueues the kernels on `stream` and returns. Nothing is read back, nothing waits: a captured
// graph can be replayed. Throws std::runtime_error when a launch is refused, and for sizes that the
// tables or the offsets inside an image have no room for. At least one image.
template <typename T, typename M>
void launch_cell(const CudaCellForward<T, M>& p, const Allocate& allocate, cudaStream_t stream);
template <typename T, typename M>
void launch_cell(const CudaCellBackward<T, M>& p, const Allocate& allocate, cudaStream_t stream);

}  // namespace darts_fast::cuda
