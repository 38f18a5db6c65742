// SPDX-License-Identifier: Apache-2.0
// The upper half of a float32 as it stands in memory. Torch-free.
#pragma once

#include <cstdint>

namespace darts_fast {

struct BFloat16 {
  uint16_t bits;
};

}  // namespace darts_fast
