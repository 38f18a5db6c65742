// SPDX-License-Identifier: Apache-2.0
// Last line of argument checks: "op: rule, got values". Python wrappers check first, with names.
#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <c10/util/Exception.h>
#include <c10/util/StringUtil.h>

#include <optional>

namespace darts_fast {

// `value` is an optional tensor of exactly this shape, dtype and device.
inline void check_like(const char* op, const char* name, const at::Tensor& value,
                       at::IntArrayRef shape, const at::Tensor& like) {
  TORCH_CHECK_VALUE(value.sizes() == shape, op, ": ", name, " must have shape ", shape, ", got ",
                    value.sizes());
  TORCH_CHECK_TYPE(value.scalar_type() == like.scalar_type(), op, ": ", name,
                   " must have the dtype of the maps, ", like.scalar_type(), ", got ",
                   value.scalar_type());
  TORCH_CHECK_VALUE(value.device() == like.device(), op, ": ", name,
                    " must be on the device of the maps, ", like.device(), ", got ",
                    value.device());
}

// Contiguous, where there is one: an optional tensor of exactly this shape, and of the dtype and
// device of `like`.
inline std::optional<at::Tensor> check_optional(const char* op, const char* name,
                                                const std::optional<at::Tensor>& value,
                                                at::IntArrayRef shape, const at::Tensor& like) {
  if (!value.has_value()) return std::nullopt;
  check_like(op, name, *value, shape, like);
  return value->contiguous();
}

// The host-side table [groups, columns] of what is computed; all of it where none is given.
inline at::Tensor check_active(const char* op, const std::optional<at::Tensor>& active,
                               int64_t groups, int64_t columns) {
  if (!active.has_value()) {
    at::Tensor all = at::empty({groups, columns}, at::kBool);
    return all.fill_(true);
  }
  TORCH_CHECK_TYPE(active->scalar_type() == at::kBool && active->device().is_cpu(), op,
                   ": active must be a bool tensor on the CPU, got ", active->scalar_type(), " on ",
                   active->device());
  TORCH_CHECK_VALUE(active->dim() == 2 && active->size(0) == groups && active->size(1) == columns,
                    op, ": active must have shape [", groups, ", ", columns, "], got ",
                    active->sizes());
  return active->contiguous();
}

}  // namespace darts_fast
