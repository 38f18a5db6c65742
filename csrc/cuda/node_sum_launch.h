// SPDX-License-Identifier: Apache-2.0
// The launchers of node_sum, for its binding. Torch-free.
#pragma once

#include <cuda_runtime.h>

#include <cstddef>

#include "node_sum.h"

namespace darts_fast::cuda {

// Bytes of device memory, aligned to 16, that the launch of these arguments uses as scratch. Reads
// only the host tables and the addresses.
template <typename T, typename Map>
size_t node_sum_scratch(const NodeSumForward<T, Map>& p);
template <typename T, typename Map>
size_t node_sum_scratch(const NodeSumBackward<T, Map>& p);

// Enqueues the kernels on `stream` and returns. The host tables of `p` may go once it has returned:
// they travel as kernel parameters, which a captured graph keeps. Nothing is read back, nothing
// waits. Throws std::runtime_error when a launch is refused. Without positions nothing is launched
// and nothing is written.
template <typename T, typename Map>
void launch_node_sum(const NodeSumForward<T, Map>& p, void* scratch, cudaStream_t stream);
template <typename T, typename Map>
void launch_node_sum(const NodeSumBackward<T, Map>& p, void* scratch, cudaStream_t stream);

}  // namespace darts_fast::cuda
