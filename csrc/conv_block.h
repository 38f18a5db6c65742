// SPDX-License-Identifier: Apache-2.0
// What one convolution block is: ReLU, then a separable or a dense convolution. Torch-free.
#pragma once

#include <cstdint>

namespace darts_fast {

enum class ConvKind : int64_t {
  kSeparable,  // depthwise kernel x kernel, then pointwise
  kDense,      // kernel x kernel
  kReduce,     // half of the channels from the even pixels, half from the odd ones; stride 2
};

// Padding is that of "same" convolution; output sizes round up at stride 2.
struct ConvBlock {
  ConvKind kind;
  int64_t kernel;
  int64_t dilation;
};

// One image: [H, W, C] to [H', W', C'], the channel innermost.
struct BlockShape {
  int64_t channels;
  int64_t out_channels;
  int64_t height;
  int64_t width;
  int64_t out_height;
  int64_t out_width;
  int64_t stride;
};

}  // namespace darts_fast
