// SPDX-License-Identifier: Apache-2.0
// Stands in for torch's header: the emulated device is the CPU, and is always the current one.
#pragma once

#include <ATen/core/Tensor.h>

namespace c10::cuda {

struct OptionalCUDAGuard {
  explicit OptionalCUDAGuard(std::optional<c10::Device>) {}
  ~OptionalCUDAGuard() {}
};

}  // namespace c10::cuda
