// SPDX-License-Identifier: Apache-2.0
// What a forward reads of convolutions and batch norms: read again only where their dictionaries
// were written to since, or hold what may change by itself.
#pragma once

#include <pybind11/pybind11.h>

#include "python_tables.h"

namespace darts_fast {

// The weight of a convolution.
class WeightSeen {
 public:
  // Borrowed.
  PyObject* of(PyObject* module);

 private:
  AttributesVersion attributes_;
  TableVersion parameters_;  // belongs to the attributes
  PyObject* weight_ = nullptr;
};

// Of one batch norm. Tensors are borrowed, and null where there is none.
struct NormState {
  PyObject *gamma, *beta, *mean, *var, *counter;
  double eps, momentum;  // a momentum of NaN stands for the cumulative average
  bool training;
  bool moves;  // a forward would move its running statistics, if it keeps any

  bool keeps() const { return mean != nullptr && var != nullptr; }
  // Whether a forward takes the statistics of the batch.
  bool is_batch() const { return training || mean == nullptr; }
};

class NormSeen {
 public:
  const NormState& of(PyObject* module);

 private:
  AttributesVersion attributes_;
  TableVersion parameters_, buffers_;  // belong to the attributes
  NormState state_ = {};
};

}  // namespace darts_fast
