// SPDX-License-Identifier: Apache-2.0
// The launchers of node_sum, compiled by nvcc without a torch header. Not named node_sum.cu: its
// object would be that of node_sum.cpp.
#include "cuda/node_sum.cuh"

namespace darts_fast::cuda {

#define DARTS_INSTANTIATE_NODE_SUM(T, Map)                                           \
  template size_t node_sum_scratch(const NodeSumForward<T, Map>&);                   \
  template size_t node_sum_scratch(const NodeSumBackward<T, Map>&);                  \
  template void launch_node_sum(const NodeSumForward<T, Map>&, void*, cudaStream_t); \
  template void launch_node_sum(const NodeSumBackward<T, Map>&, void*, cudaStream_t);
DARTS_INSTANTIATE_NODE_SUM(float, float)
DARTS_INSTANTIATE_NODE_SUM(float, BFloat16)
DARTS_INSTANTIATE_NODE_SUM(float, Half)
DARTS_INSTANTIATE_NODE_SUM(double, double)
#undef DARTS_INSTANTIATE_NODE_SUM

}  // namespace darts_fast::cuda
