// SPDX-License-Identifier: Apache-2.0
// Arrays in one block of device memory, and what their sizes and accesses need. Host side.
#pragma once

#include <cstddef>
#include <cstdint>

namespace darts_fast::cuda {
namespace {

// Scratch arrays one behind the other; sizes first, with `next` 0.
struct ScratchArrays {
  uintptr_t next = 0;

  template <typename Element>
  Element* take(int64_t elements) {
    Element* array = reinterpret_cast<Element*>(next);
    next += (static_cast<uintptr_t>(elements) * sizeof(Element) + 15) / 16 * 16;
    return array;
  }
};

inline int64_t ceil_divide(int64_t a, int64_t b) { return (a + b - 1) / b; }

inline bool is_aligned(const void* pointer) {
  return reinterpret_cast<uintptr_t>(pointer) % 16 == 0;
}

}  // namespace
}  // namespace darts_fast::cuda
