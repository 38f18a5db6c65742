// SPDX-License-Identifier: Apache-2.0
// CUDA binding of move_running_statistics: the batch norms of a cell in one launch.
#include <ATen/Dispatch.h>
#include <ATen/core/Tensor.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#include <torch/library.h>

#include <vector>

#include "cuda/running_statistics_launch.h"
#include "running_statistics_checks.h"

namespace darts_fast::cuda {
namespace {

using at::Tensor;

void move_running_statistics(at::TensorList running_means, at::TensorList running_vars,
                             at::TensorList tracked, const Tensor& mean, const Tensor& var,
                             at::ArrayRef<double> momenta, int64_t count) {
  static constexpr char op[] = "move_running_statistics";
  const c10::cuda::OptionalCUDAGuard guard(mean.device());
  check_running_statistics(op, running_means, running_vars, tracked, mean, var, momenta);
  const int64_t channels = mean.size(1);
  const Tensor batch_mean = mean.contiguous(), batch_var = var.contiguous();
  AT_DISPATCH_FLOATING_TYPES(mean.scalar_type(), op, [&] {
    std::vector<RunningNorm<scalar_t>> norms;
    for (size_t i = 0; i < running_means.size(); ++i) {
      if (running_means[i].numel() == 0) continue;
      TORCH_CHECK_VALUE(tracked[i].numel() == 0 || tracked[i].device() == mean.device(), op,
                        ": tracked must be on the device of mean, ", mean.device(), ", got ",
                        tracked[i].device());
      const int64_t at = static_cast<int64_t>(i) * channels;
      norms.push_back({running_means[i].mutable_data_ptr<scalar_t>(),
                       running_vars[i].mutable_data_ptr<scalar_t>(),
                       tracked[i].numel() == 1 ? tracked[i].mutable_data_ptr<int64_t>() : nullptr,
                       batch_mean.const_data_ptr<scalar_t>() + at,
                       batch_var.const_data_ptr<scalar_t>() + at, momenta[i]});
    }
    const double unbiased = count > 1 ? static_cast<double>(count) / (count - 1) : count;
    launch_running_statistics<scalar_t>(
        {norms.data(), static_cast<int64_t>(norms.size()), channels, unbiased},
        c10::cuda::getCurrentCUDAStream(mean.get_device()));
  });
}

TORCH_LIBRARY_IMPL(darts_fast, CUDA, m) {
  m.impl("move_running_statistics", move_running_statistics);
}

}  // namespace
}  // namespace darts_fast::cuda
