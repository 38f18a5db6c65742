// SPDX-License-Identifier: Apache-2.0
// The launchers of conv_blocks. Torch-free.
#pragma once

#include <cuda_runtime.h>

#include "conv_blocks.h"
#include "cuda/allocate.h"
#include "cuda/stored.h"

namespace darts_fast::cuda {

// Tables lie in host memory and may go once the launch has returned; what they point to is on the
// device. M: how maps are stored, T or All<H>.
template <typename T, typename M>
struct CudaConvBlocksForward : ConvBlocksCall<T, StateOf<T, M>> {
  StateOf<T, M>* const* outputs;  // [B] -> [G * N, H', W', C']
  T* mean;                        // [G, B, C']
  T* var;                         // [G, B, C'], biased
};

template <typename T, typename M>
struct CudaConvBlocksBackward : ConvBlocksCall<T, StateOf<T, M>> {
  const StateOf<T, M>* const* grad_outputs;  // [B] -> [G * N, H', W', C'], null = none arrives
  // outputs; null = nobody asked
  StateOf<T, M>* const* grad_inputs;  // [S] -> [G * N, H, W, C]
  T* const* grad_depthwise;           // [B] -> [C, kernel, kernel]
  T* const* grad_pointwise;           // [B] -> [C', C]
  T* grad_gamma;                      // [S, C]
  T* grad_beta;                       // [S, C]
};

// Enqueues the kernels on `stream` and returns. Nothing is read back, nothing waits: a captured
// graph can be replayed. Throws std::runtime_error when a launch is refused, and for sizes that the
// tables or the offsets inside an image have no room for. At least one image.
template <typename T, typename M>
void launch_conv_blocks(const CudaConvBlocksForward<T, M>& p, const Allocate& allocate,
                        cudaStream_t stream);
template <typename T, typename M>
void launch_conv_blocks(const CudaConvBlocksBackward<T, M>& p, const Allocate& allocate,
                        cudaStream_t stream);

}  // namespace darts_fast::cuda
