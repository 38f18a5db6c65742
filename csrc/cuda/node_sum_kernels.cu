// SPDX-License-Identifier: Apache-2.0
// The launchers of node_sum, compiled by nvcc without a torch header. Not named node_sum.cu: its
// object would be that of node_sum.cpp.
#include "cuda/node_sum.cuh"

namespace darts_fast::cuda {

#define DARTS_INSTANTIATE_NODE_SUM(T)                                           \
  template size_t node_sum_scratch(const NodeSumForward<T>&);                   \
  template size_t node_sum_scratch(const NodeSumBackward<T>&);                  \
  template void launch_node_sum(const NodeSumForward<T>&, void*, cudaStream_t); \
  template void launch_node_sum(const NodeSumBackward<T>&, void*, cudaStream_t);
DARTS_INSTANTIATE_NODE_SUM(float)
DARTS_INSTANTIATE_NODE_SUM(double)
#undef DARTS_INSTANTIATE_NODE_SUM

}  // namespace darts_fast::cuda
