// SPDX-License-Identifier: Apache-2.0
// The kernels of relu_conv_norm for the capability this file is compiled for.
#include "cpu/kernels/relu_conv_norm_backward.h"
#include "cpu/kernels/relu_conv_norm_forward.h"

namespace darts_fast::cpu::DARTS_CPU_CAPABILITY {

template <typename T>
static constexpr ReluConvNormKernels<T> make_kernels() {
  return {pattern_period<T>,
          relu_conv_packed_size<T>,
          relu_conv_forward_scratch<T>,
          relu_conv_backward_scratch<T>,
          relu_conv_partial_size<T>,
          relu_conv_pack<T>,
          relu_conv_convolve<T>,
          relu_conv_merge<T>,
          relu_conv_normalise<T>,
          relu_conv_grad_pack<T>,
          relu_conv_reduce<T>,
          relu_conv_merge_sums<T>,
          relu_conv_grad_convolve<T>,
          relu_conv_parameters<T>};
}

const ReluConvNormKernels<float> relu_conv_norm_kernels_float = make_kernels<float>();
const ReluConvNormKernels<double> relu_conv_norm_kernels_double = make_kernels<double>();

}  // namespace darts_fast::cpu::DARTS_CPU_CAPABILITY
