// SPDX-License-Identifier: Apache-2.0
// Batch norms as operators take them, and the move of their running statistics.
#pragma once

#include <ATen/core/Tensor.h>
#include <pybind11/pybind11.h>

#include <cstdint>
#include <vector>

#include "module_state.h"

namespace darts_fast {

// The tensor behind a Python object; raises TypeError where there is none.
at::Tensor tensor_of(PyObject* value);

// Tensors in order, an empty one for null.
class TensorOrNone {
 public:
  explicit TensorOrNone(const at::Tensor& empty) : empty_(empty) {}

  void add(PyObject* value);
  const std::vector<at::Tensor>& whole() const { return tensors_; }
  // No entry at all where all are null.
  at::TensorList found() const { return some_ ? at::TensorList(tensors_) : at::TensorList(); }
  std::vector<at::Tensor>& tensors() { return tensors_; }

 private:
  const at::Tensor& empty_;
  std::vector<at::Tensor> tensors_;
  bool some_ = false;
};

// What moves the running statistics of norms, taken from their modules before the call.
struct RunningStatistics {
  explicit RunningStatistics(const at::Tensor& empty)
      : means(empty), variances(empty), counters(empty) {}

  // Null: a norm whose statistics stay.
  void add(const NormState* state);

  // Moves them towards mean and var [norms, C] of `count` values; false where there is no native
  // form for that and nothing was done.
  bool move(const at::Tensor& mean, const at::Tensor& var, int64_t count, bool cuda) const;

  TensorOrNone means, variances, counters;
  std::vector<double> momenta;
  bool any = false;
};

}  // namespace darts_fast
