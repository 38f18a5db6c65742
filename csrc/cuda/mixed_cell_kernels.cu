// SPDX-License-Identifier: Apache-2.0
// The launchers of mixed_cell, compiled by nvcc without a torch header.
#include "cuda/cell_backward.cuh"

namespace darts_fast::cuda {

#define DARTS_INSTANTIATE_CELL(T, M)                                                      \
  template void launch_cell(const CudaCellForward<T, M>&, const Allocate&, cudaStream_t); \
  template void launch_cell(const CudaCellBackward<T, M>&, const Allocate&, cudaStream_t);
DARTS_INSTANTIATE_CELL(float, float)
DARTS_INSTANTIATE_CELL(float, BFloat16)
DARTS_INSTANTIATE_CELL(float, All<BFloat16>)
DARTS_INSTANTIATE_CELL(float, All<Half>)
DARTS_INSTANTIATE_CELL(double, double)
#undef DARTS_INSTANTIATE_CELL

}  // namespace darts_fast::cuda
