// SPDX-License-Identifier: Apache-2.0
// The arguments of move_running_statistics, checked for every backend.
#pragma once

#include <ATen/core/Tensor.h>

#include <cmath>

#include "checks.h"

namespace darts_fast {

// A norm whose running mean is an empty tensor is left alone. `tracked` has a counter for every
// norm, or an empty tensor for one that has none; a momentum of NaN stands for the cumulative
// average, which needs the counter.
inline void check_running_statistics(const char* op, at::TensorList running_means,
                                     at::TensorList running_vars, at::TensorList tracked,
                                     const at::Tensor& mean, const at::Tensor& var,
                                     at::ArrayRef<double> momenta) {
  const size_t norms = running_means.size();
  TORCH_CHECK_VALUE(
      running_vars.size() == norms && tracked.size() == norms && momenta.size() == norms, op,
      ": running_means, running_vars, tracked and momenta must have one entry per norm, got ",
      norms, ", ", running_vars.size(), ", ", tracked.size(), " and ", momenta.size());
  TORCH_CHECK_VALUE(mean.dim() == 2 && mean.size(0) == static_cast<int64_t>(norms), op,
                    ": mean must have shape [", norms, ", C], got ", mean.sizes());
  check_like(op, "var", var, mean.sizes(), mean);
  for (size_t i = 0; i < norms; ++i) {
    if (running_means[i].numel() == 0) continue;
    check_like(op, "running_means", running_means[i], {mean.size(1)}, mean);
    check_like(op, "running_vars", running_vars[i], {mean.size(1)}, mean);
    TORCH_CHECK_VALUE(running_means[i].is_contiguous() && running_vars[i].is_contiguous(), op,
                      ": running statistics must be contiguous");
    TORCH_CHECK_VALUE(
        tracked[i].numel() == 0 || (tracked[i].numel() == 1 && tracked[i].dtype() == at::kLong), op,
        ": tracked must be int64 counters or empty, got ", tracked[i].sizes(), " of ",
        tracked[i].dtype());
    TORCH_CHECK_VALUE(tracked[i].numel() == 1 || !std::isnan(momenta[i]), op,
                      ": a cumulative average needs the counter of its norm, got none for norm ",
                      i);
  }
}

}  // namespace darts_fast
