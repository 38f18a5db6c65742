// SPDX-License-Identifier: Apache-2.0
// CPU binding of move_running_statistics: the batch norms of a cell in one call.
#include <ATen/Dispatch.h>
#include <ATen/core/Tensor.h>
#include <torch/library.h>

#include <cmath>

#include "checks.h"

namespace darts_fast::cpu {
namespace {

using at::Tensor;

// running += momentum * (batch - running), as torch's batch norm does it.
template <typename T>
void move(T* running, const T* batch, double scale, double momentum, int64_t channels) {
  for (int64_t c = 0; c < channels; ++c) {
    const double value = scale * static_cast<double>(batch[c]);
    running[c] = static_cast<T>(running[c] + momentum * (value - running[c]));
  }
}

// A norm whose running mean is an empty tensor is left alone. `tracked` has a counter for every
// norm, or an empty tensor for one that has none; a momentum of NaN stands for the cumulative
// average, which needs the counter. Without values (count 0) only the counters move.
void move_running_statistics(at::TensorList running_means, at::TensorList running_vars,
                             at::TensorList tracked, const Tensor& mean, const Tensor& var,
                             at::ArrayRef<double> momenta, int64_t count) {
  static constexpr char op[] = "move_running_statistics";
  const size_t norms = running_means.size();
  TORCH_CHECK_VALUE(
      running_vars.size() == norms && tracked.size() == norms && momenta.size() == norms, op,
      ": running_means, running_vars, tracked and momenta must have one entry per norm, got ",
      norms, ", ", running_vars.size(), ", ", tracked.size(), " and ", momenta.size());
  TORCH_CHECK_VALUE(mean.dim() == 2 && mean.size(0) == static_cast<int64_t>(norms), op,
                    ": mean must have shape [", norms, ", C], got ", mean.sizes());
  check_like(op, "var", var, mean.sizes(), mean);
  const int64_t channels = mean.size(1);
  const Tensor batch_mean = mean.contiguous(), batch_var = var.contiguous();
  for (size_t i = 0; i < norms; ++i) {
    if (running_means[i].numel() == 0) continue;
    check_like(op, "running_means", running_means[i], {channels}, mean);
    check_like(op, "running_vars", running_vars[i], {channels}, mean);
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
  const double unbiased = count > 1 ? static_cast<double>(count) / (count - 1) : 1.0;
  AT_DISPATCH_FLOATING_TYPES(mean.scalar_type(), op, [&] {
    for (size_t i = 0; i < norms; ++i) {
      if (running_means[i].numel() == 0) continue;
      double momentum = momenta[i];
      if (tracked[i].numel() == 1) {
        const int64_t batches = ++*tracked[i].mutable_data_ptr<int64_t>();
        if (std::isnan(momentum)) momentum = 1.0 / static_cast<double>(batches);
      }
      if (count == 0) continue;
      const int64_t at = static_cast<int64_t>(i) * channels;
      move(running_means[i].mutable_data_ptr<scalar_t>(),
           batch_mean.const_data_ptr<scalar_t>() + at, 1.0, momentum, channels);
      move(running_vars[i].mutable_data_ptr<scalar_t>(), batch_var.const_data_ptr<scalar_t>() + at,
           unbiased, momentum, channels);
    }
  });
}

TORCH_LIBRARY_IMPL(darts_fast, CPU, m) {
  m.impl("move_running_statistics", move_running_statistics);
}

}  // namespace
}  // namespace darts_fast::cpu
