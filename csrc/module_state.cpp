// SPDX-License-Identifier: Apache-2.0
#include "module_state.h"

#include <cmath>
#include <limits>

namespace darts_fast {
namespace {

namespace py = pybind11;

PyObject* tensor_or_null(PyObject* value) { return value == Py_None ? nullptr : value; }

// A value that no one can change without writing it to where it is kept.
bool is_fixed(PyObject* value) {
  return value == Py_None || PyBool_Check(value) || PyFloat_CheckExact(value) ||
         PyLong_CheckExact(value);
}

double number(PyObject* value) {
  const double found = PyFloat_AsDouble(value);
  if (found == -1.0 && PyErr_Occurred() != nullptr) throw py::error_already_set();
  return found;
}

}  // namespace

PyObject* WeightSeen::of(PyObject* module) {
  static const Name parameters("_parameters"), weight("weight");
  if (attributes_.is_current() && parameters_.is_current()) return weight_;
  const py::object attributes = attributes_of(module);
  PyObject* own = get(attributes.ptr(), parameters.key);
  weight_ = get(own, weight.key);
  attributes_ = AttributesVersion(module);
  parameters_ = TableVersion(own);
  return weight_;
}

const NormState& NormSeen::of(PyObject* module) {
  static const Name training("training"), parameters("_parameters"), buffers("_buffers"),
      mean("running_mean"), var("running_var"), counter("num_batches_tracked"), weight("weight"),
      bias("bias"), tracks("track_running_stats"), eps("eps"), momentum("momentum");
  if (attributes_.is_current() && parameters_.is_current() && buffers_.is_current()) return state_;
  const py::object attributes = attributes_of(module);
  const auto attribute = [&](const Name& name) { return get(attributes.ptr(), name.key); };
  PyObject* own = attribute(parameters);
  PyObject* kept = attribute(buffers);
  state_.gamma = tensor_or_null(get(own, weight.key));
  state_.beta = tensor_or_null(get(own, bias.key));
  state_.mean = tensor_or_null(get(kept, mean.key));
  state_.var = tensor_or_null(get(kept, var.key));
  state_.counter = tensor_or_null(get(kept, counter.key));
  state_.training = is_true(attribute(training));
  state_.moves = state_.training && is_true(attribute(tracks));
  state_.eps = number(attribute(eps));
  PyObject* share = attribute(momentum);
  state_.momentum = share == Py_None ? std::numeric_limits<double>::quiet_NaN() : number(share);
  bool fixed = true;
  for (const Name& name : {training, tracks, eps, momentum}) {
    fixed = fixed && is_fixed(attribute(name));
  }
  attributes_ = fixed ? AttributesVersion(module) : AttributesVersion();
  parameters_ = TableVersion(own);
  buffers_ = TableVersion(kept);
  return state_;
}

}  // namespace darts_fast
