// SPDX-License-Identifier: Apache-2.0
// Pointers of tensors for the torch-free kernels; null for tensors that are not defined or empty.
#pragma once

#include <ATen/core/Tensor.h>

#include <optional>
#include <vector>

namespace darts_fast {

template <typename T>
const T* read_pointer(const at::Tensor& tensor) {
  return tensor.defined() && tensor.numel() > 0 ? tensor.const_data_ptr<T>() : nullptr;
}

template <typename T>
const T* read_pointer(const std::optional<at::Tensor>& tensor) {
  return tensor.has_value() ? read_pointer<T>(*tensor) : nullptr;
}

// Of elements that torch calls otherwise: numbers of 16 bits.
template <typename T>
std::vector<const T*> read_elements(const std::vector<at::Tensor>& tensors) {
  std::vector<const T*> pointers;
  for (const at::Tensor& tensor : tensors) {
    const bool none = !tensor.defined() || tensor.numel() == 0;
    pointers.push_back(none ? nullptr : static_cast<const T*>(tensor.const_data_ptr()));
  }
  return pointers;
}

template <typename T>
std::vector<T*> write_elements(const std::vector<at::Tensor>& tensors) {
  std::vector<T*> pointers;
  for (const at::Tensor& tensor : tensors) {
    const bool none = !tensor.defined() || tensor.numel() == 0;
    pointers.push_back(none ? nullptr : static_cast<T*>(tensor.mutable_data_ptr()));
  }
  return pointers;
}

template <typename T>
T* write_pointer(const at::Tensor& tensor) {
  return tensor.defined() && tensor.numel() > 0 ? tensor.mutable_data_ptr<T>() : nullptr;
}

template <typename T>
std::vector<const T*> read_pointers(const std::vector<at::Tensor>& tensors) {
  std::vector<const T*> pointers;
  for (const at::Tensor& tensor : tensors) pointers.push_back(read_pointer<T>(tensor));
  return pointers;
}

template <typename T>
std::vector<T*> write_pointers(const std::vector<at::Tensor>& tensors) {
  std::vector<T*> pointers;
  for (const at::Tensor& tensor : tensors) pointers.push_back(write_pointer<T>(tensor));
  return pointers;
}

}  // namespace darts_fast
