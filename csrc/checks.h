// SPDX-License-Identifier: Apache-2.0
// Last line of argument checks: "op: rule, got values". Python wrappers check first, with names.
#pragma once

#include <ATen/core/Tensor.h>
#include <c10/util/Exception.h>
#include <c10/util/StringUtil.h>

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

}  // namespace darts_fast
