// SPDX-License-Identifier: Apache-2.0
// Device memory of a call, from torch's allocator and for the current stream.
#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>

#include <vector>

namespace darts_fast::cuda {

// [N, C, H, W], channels_last.
inline at::Tensor empty_maps(at::IntArrayRef sizes, const at::TensorOptions& options) {
  return at::empty(sizes, options, at::MemoryFormat::ChannelsLast);
}

inline std::vector<at::Tensor> empty_each(at::ArrayRef<at::IntArrayRef> shapes,
                                          const at::TensorOptions& options) {
  std::vector<at::Tensor> tensors;
  for (const at::IntArrayRef shape : shapes) tensors.push_back(at::empty(shape, options));
  return tensors;
}

// Gives out one block, and keeps it until it goes itself: behind the launches, in stream order.
class Scratch {
 public:
  explicit Scratch(const at::Tensor& like) : options_(like.options().dtype(at::kByte)) {}

  void* operator()(size_t bytes) {
    memory_ = at::empty({static_cast<int64_t>(bytes)}, options_.memory_format(std::nullopt));
    return memory_.mutable_data_ptr();
  }

 private:
  at::TensorOptions options_;
  at::Tensor memory_;
};

}  // namespace darts_fast::cuda
