// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/ops/from_blob.h>
#include <ATen/ops/zeros.h>
#include <c10/util/accumulate.h>

#include <vector>

namespace darts_fast::cpu {

// Zeros of these shapes in one allocation, each where a vector begins. They are no views: outputs
// of an op may not alias each other, so each has a storage of its own, which keeps the allocation.
inline std::vector<at::Tensor> zeros_together(at::ArrayRef<at::IntArrayRef> shapes,
                                              const at::TensorOptions& options) {
  constexpr int64_t kAligned = 16;
  std::vector<int64_t> places;
  int64_t size = 0;
  for (const at::IntArrayRef shape : shapes) {
    places.push_back(size);
    size += (c10::multiply_integers(shape) + kAligned - 1) / kAligned * kAligned;
  }
  const at::Tensor memory = at::zeros({size}, options);
  char* begin = static_cast<char*>(memory.mutable_data_ptr());
  std::vector<at::Tensor> zeros;
  for (size_t i = 0; i < shapes.size(); ++i) {
    void* data = begin + places[i] * memory.element_size();
    zeros.push_back(at::from_blob(data, shapes[i], [memory](void*) {}, options));
  }
  return zeros;
}

}  // namespace darts_fast::cpu
