// SPDX-License-Identifier: Apache-2.0
// The operators that C++ calls by the dispatcher, with their types.
#pragma once

#include <ATen/core/List.h>
#include <ATen/core/Tensor.h>
#include <ATen/core/dispatch/Dispatcher.h>

#include <cstdint>
#include <optional>
#include <tuple>
#include <vector>

namespace darts_fast {

// output, saved, mean, var
using MixedCellResult = std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor>;
using MixedCellOp = MixedCellResult(at::TensorList, const at::Tensor&, at::TensorList,
                                    at::TensorList, at::TensorList, at::TensorList, at::TensorList,
                                    at::IntArrayRef, at::IntArrayRef, at::ArrayRef<double>, int64_t,
                                    int64_t, int64_t, int64_t, int64_t,
                                    const std::optional<at::Tensor>&, int64_t, bool);

// output, raw, mean, var
using ReluConvNormResult = std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor>;
using ReluConvNormOp = ReluConvNormResult(const at::Tensor&, at::TensorList,
                                          const std::optional<at::Tensor>&,
                                          const std::optional<at::Tensor>&,
                                          const std::optional<at::Tensor>&,
                                          const std::optional<at::Tensor>&, int64_t, double,
                                          int64_t, int64_t, bool, bool);

using MoveRunningStatisticsOp = void(at::TensorList, at::TensorList, at::TensorList,
                                     const at::Tensor&, const at::Tensor&, at::ArrayRef<double>,
                                     int64_t);

template <typename Op>
c10::TypedOperatorHandle<Op> find_op(const char* name) {
  return c10::Dispatcher::singleton().findSchemaOrThrow(name, "").typed<Op>();
}

}  // namespace darts_fast
