// SPDX-License-Identifier: Apache-2.0
// The kernels of conv_blocks for the capability this file is compiled for.
#include "cpu/kernels/conv_blocks_backward.h"
#include "cpu/kernels/conv_blocks_forward.h"
#include "cpu/kernels/conv_blocks_kernels.h"

namespace darts_fast::cpu::DARTS_CPU_CAPABILITY {

template <typename T>
static constexpr ConvBlocksKernels<T> make_kernels() {
  return {conv_packed_size<T>,      conv_forward_scratch<T>, conv_backward_scratch<T>,
          conv_partial_size<T>,     conv_forward_pack<T>,    conv_forward_run<T>,
          conv_forward_merge<T>,    conv_backward_pack<T>,   conv_backward_run<T>,
          conv_backward_weights<T>, conv_backward_sums<T>,   conv_backward_norm<T>};
}

const ConvBlocksKernels<float> conv_blocks_kernels_float = make_kernels<float>();
const ConvBlocksKernels<double> conv_blocks_kernels_double = make_kernels<double>();

}  // namespace darts_fast::cpu::DARTS_CPU_CAPABILITY
