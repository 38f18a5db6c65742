// SPDX-License-Identifier: Apache-2.0
// The launchers of conv_blocks, compiled by nvcc without a torch header.
#include "cuda/conv_blocks_backward.cuh"

namespace darts_fast::cuda {

#define DARTS_INSTANTIATE_CONV_BLOCKS(T, M)                                              \
  template void launch_conv_blocks(const CudaConvBlocksForward<T, M>&, const Allocate&,  \
                                   cudaStream_t);                                        \
  template void launch_conv_blocks(const CudaConvBlocksBackward<T, M>&, const Allocate&, \
                                   cudaStream_t);
DARTS_INSTANTIATE_CONV_BLOCKS(float, float)
DARTS_INSTANTIATE_CONV_BLOCKS(float, All<BFloat16>)
DARTS_INSTANTIATE_CONV_BLOCKS(float, All<Half>)
DARTS_INSTANTIATE_CONV_BLOCKS(double, double)
#undef DARTS_INSTANTIATE_CONV_BLOCKS

}  // namespace darts_fast::cuda
