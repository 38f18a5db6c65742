// SPDX-License-Identifier: Apache-2.0
// From the dtype of maps to what is computed with and how they are stored.
#pragma once

#include <ATen/core/Tensor.h>

#include "cuda/stored.h"
#include "half_types.h"

namespace darts_fast::cuda {

// body<T, M>() for maps whose dtype is checked.
template <typename Body>
void dispatch_maps(at::ScalarType maps, Body body) {
  if (maps == at::kDouble) {
    body.template operator()<double, double>();
  } else if (maps == at::kBFloat16) {
    body.template operator()<float, All<BFloat16>>();
  } else if (maps == at::kHalf) {
    body.template operator()<float, All<Half>>();
  } else {
    body.template operator()<float, float>();
  }
}

}  // namespace darts_fast::cuda
