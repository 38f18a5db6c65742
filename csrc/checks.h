// SPDX-License-Identifier: Apache-2.0
// Last line of argument checks: "op: rule, got values". Python wrappers check first, with names.
#pragma once

#include <ATen/OpMathType.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <c10/util/Exception.h>
#include <c10/util/StringUtil.h>

#include <optional>

namespace darts_fast {

// What is computed with beside these maps: float32 for maps of 16 bits.
inline at::ScalarType computed_type(const at::Tensor& maps) {
  return at::toOpMathType(maps.scalar_type());
}

// Maps are float32 or float64, or with `takes_halves` of 16 bits.
inline void check_map_type(const char* op, const char* name, const at::Tensor& maps,
                           bool takes_halves) {
  const at::ScalarType type = maps.scalar_type();
  const bool half = type == at::kHalf || type == at::kBFloat16;
  TORCH_CHECK_NOT_IMPLEMENTED(type == at::kFloat || type == at::kDouble || (takes_halves && half),
                              op, ": ", name, " must be float32 or float64",
                              takes_halves ? ", float16 or bfloat16" : "",
                              maps.is_cpu() ? " on CPU, got " : " on CUDA, got ", type);
}

inline void check_shape_and_place(const char* op, const char* name, const at::Tensor& value,
                                  at::IntArrayRef shape, const at::Tensor& like) {
  TORCH_CHECK_VALUE(value.sizes() == shape, op, ": ", name, " must have shape ", shape, ", got ",
                    value.sizes());
  TORCH_CHECK_VALUE(value.device() == like.device(), op, ": ", name,
                    " must be on the device of the maps, ", like.device(), ", got ",
                    value.device());
}

// `value` is a map, or an output of one: of exactly this shape, dtype and device.
inline void check_like(const char* op, const char* name, const at::Tensor& value,
                       at::IntArrayRef shape, const at::Tensor& like) {
  check_shape_and_place(op, name, value, shape, like);
  TORCH_CHECK_TYPE(value.scalar_type() == like.scalar_type(), op, ": ", name,
                   " must have the dtype of the maps, ", like.scalar_type(), ", got ",
                   value.scalar_type());
}

// `value` is a parameter or a statistic beside these maps.
inline void check_beside(const char* op, const char* name, const at::Tensor& value,
                         at::IntArrayRef shape, const at::Tensor& maps) {
  if (computed_type(maps) == maps.scalar_type()) return check_like(op, name, value, shape, maps);
  check_shape_and_place(op, name, value, shape, maps);
  TORCH_CHECK_TYPE(value.scalar_type() == computed_type(maps), op, ": ", name, " must be ",
                   computed_type(maps), " beside maps of ", maps.scalar_type(), ", got ",
                   value.scalar_type());
}

// Contiguous, where there is one: an optional parameter or statistic of exactly this shape.
inline std::optional<at::Tensor> check_optional(const char* op, const char* name,
                                                const std::optional<at::Tensor>& value,
                                                at::IntArrayRef shape, const at::Tensor& like) {
  if (!value.has_value()) return std::nullopt;
  check_beside(op, name, *value, shape, like);
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
