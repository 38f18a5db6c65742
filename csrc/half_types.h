// SPDX-License-Identifier: Apache-2.0
// Numbers of 16 bits as they stand in memory. Torch-free.
#pragma once

#include <cstdint>

namespace darts_fast {

// The upper half of a float32.
struct BFloat16 {
  uint16_t bits;
};

// IEEE 754 binary16.
struct Half {
  uint16_t bits;
};

}  // namespace darts_fast
