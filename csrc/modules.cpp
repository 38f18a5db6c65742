// SPDX-License-Identifier: Apache-2.0
#include "modules.h"

#include <torch/csrc/autograd/python_variable.h>

#include "module_state.h"
#include "node_sum.h"
#include "python_tables.h"

namespace darts_fast {
namespace {

namespace py = pybind11;

bool has_items(PyObject* table) {
  return PyDict_Check(table) ? PyDict_Size(table) != 0 : is_true(table);
}

bool is_instance(PyObject* value, const py::tuple& types) {
  const int found = PyObject_IsInstance(value, types.ptr());
  if (found < 0) throw py::error_already_set();
  return found == 1;
}

bool same_children(PyObject* table, const py::list& expected) {
  if (!PyDict_CheckExact(table)) {  // a subclass may have an order of its own
    const py::list values(py::reinterpret_borrow<py::object>(table).attr("values")());
    if (values.size() != expected.size()) return false;
    for (size_t i = 0; i < values.size(); ++i) {
      if (!values[i].is(expected[i])) return false;
    }
    return true;
  }
  if (PyDict_Size(table) != static_cast<Py_ssize_t>(expected.size())) return false;
  Py_ssize_t position = 0, i = 0;
  PyObject* child = nullptr;
  while (PyDict_Next(table, &position, nullptr, &child)) {
    if (child != PyList_GET_ITEM(expected.ptr(), i++)) return false;
  }
  return true;
}

// Expected of a table that has no such key.
bool same_entry(PyObject* found, PyObject* expected, PyObject* missing) {
  return (found == nullptr ? missing : found) == expected;
}

// 0 where the interpreter has given the class as it is now no number.
unsigned int version_of(PyTypeObject* type) {
#if PY_VERSION_HEX < 0x030D0000
  if (!PyType_HasFeature(type, Py_TPFLAGS_VALID_VERSION_TAG)) return 0;
#endif
  return type->tp_version_tag;
}

bool same_shape(PyObject* parameter, const py::handle& expected) {
  if (!THPVariable_Check(parameter)) return false;
  const auto sizes = THPVariable_Unpack(parameter).sizes();
  if (!PyTuple_Check(expected.ptr()) ||
      PyTuple_GET_SIZE(expected.ptr()) != static_cast<Py_ssize_t>(sizes.size())) {
    return false;
  }
  for (size_t i = 0; i < sizes.size(); ++i) {
    if (PyLong_AsLongLong(PyTuple_GET_ITEM(expected.ptr(), i)) != sizes[i]) return false;
  }
  return true;
}

// Tensors in order, `empty` for those that are not there; an empty list if none is.
class Tensors {
 public:
  explicit Tensors(const py::object& empty) : empty_(empty) {}

  void add(PyObject* tensor) {
    some_ = some_ || tensor != nullptr;
    list_.append(py::handle(tensor == nullptr ? empty_.ptr() : tensor));
  }

  py::list whole() const { return list_; }
  py::list found() const { return some_ ? list_ : py::list(); }

 private:
  const py::object& empty_;
  py::list list_;
  bool some_ = false;
};

}  // namespace

bool same_modules(const py::list& modules, const py::list& types, const py::list& children) {
  static const Name modules_name("_modules");
  for (size_t i = 0; i < modules.size(); ++i) {
    PyObject* module = PyList_GET_ITEM(modules.ptr(), i);
    if (reinterpret_cast<PyObject*>(Py_TYPE(module)) != PyList_GET_ITEM(types.ptr(), i)) {
      return false;
    }
    PyObject* expected = PyList_GET_ITEM(children.ptr(), i);
    if (expected == Py_None) continue;
    PyObject* table = get(attributes_of(module).ptr(), modules_name.key);
    if (!same_children(table, py::reinterpret_borrow<py::list>(expected))) return false;
  }
  return true;
}

py::list type_versions(const py::list& types) {
  py::list versions;
  for (const py::handle type : types) {
    versions.append(version_of(reinterpret_cast<PyTypeObject*>(type.ptr())));
  }
  return versions;
}

bool same_types(const py::list& types, const py::list& versions) {
  for (size_t i = 0; i < types.size(); ++i) {
    const unsigned int now =
        version_of(reinterpret_cast<PyTypeObject*>(PyList_GET_ITEM(types.ptr(), i)));
    if (now == 0 || now != PyLong_AsUnsignedLong(PyList_GET_ITEM(versions.ptr(), i))) return false;
  }
  return true;
}

bool same_entries(const py::list& tables, const py::list& keys, const py::list& values,
                  const py::object& missing) {
  for (size_t i = 0; i < tables.size(); ++i) {
    PyObject* table = PyList_GET_ITEM(tables.ptr(), i);
    PyObject* names = PyList_GET_ITEM(keys.ptr(), i);
    PyObject* expected = PyList_GET_ITEM(values.ptr(), i);
    for (Py_ssize_t j = 0; j < PyTuple_GET_SIZE(names); ++j) {
      PyObject* found = find(table, PyTuple_GET_ITEM(names, j));
      if (!same_entry(found, PyTuple_GET_ITEM(expected, j), missing.ptr())) return false;
    }
  }
  return true;
}

bool same_shapes(const py::list& modules, const py::list& shapes) {
  static const Name parameters("_parameters");
  for (size_t i = 0; i < modules.size(); ++i) {
    const py::object attributes = attributes_of(PyList_GET_ITEM(modules.ptr(), i));
    PyObject* table = get(attributes.ptr(), parameters.key);
    PyObject* expected = PyList_GET_ITEM(shapes.ptr(), i);
    Py_ssize_t position = 0, found = 0;
    PyObject* parameter = nullptr;
    while (PyDict_Next(table, &position, nullptr, &parameter)) {
      if (parameter == Py_None) continue;
      if (found == PyTuple_GET_SIZE(expected) ||
          !same_shape(parameter, PyTuple_GET_ITEM(expected, found++))) {
        return false;
      }
    }
    if (found != PyTuple_GET_SIZE(expected)) return false;
  }
  return true;
}

const std::array<Name, 4>& hook_names() {
  static const std::array<Name, 4> names = {Name("_forward_hooks"), Name("_forward_pre_hooks"),
                                            Name("_backward_hooks"), Name("_backward_pre_hooks")};
  return names;
}

bool untouched_module(PyObject* module, const py::tuple& replaced) {
  static const Name forward("forward");
  const py::object attributes = attributes_of(module);
  for (const Name& name : hook_names()) {
    if (has_items(get(attributes.ptr(), name.key))) return false;
  }
  PyObject* own = find(attributes.ptr(), forward.key);
  return own == nullptr || is_instance(own, replaced);
}

py::tuple norm_arguments(const py::list& norms, const py::object& empty) {
  Tensors gammas(empty), betas(empty), means(empty), variances(empty);
  py::list kinds, eps;
  bool moving = false;
  for (const py::handle norm : norms) {
    if (norm.is_none()) {
      for (Tensors* tensors : {&gammas, &betas, &means, &variances}) tensors->add(nullptr);
      kinds.append(static_cast<int64_t>(Norm::kNone));
      eps.append(0.0);
      continue;
    }
    NormSeen seen;
    const NormState& state = seen.of(norm.ptr());
    const bool batch = state.is_batch();
    gammas.add(state.gamma);
    betas.add(state.beta);
    means.add(batch ? nullptr : state.mean);
    variances.add(batch ? nullptr : state.var);
    kinds.append(static_cast<int64_t>(batch ? Norm::kBatch : Norm::kRunning));
    eps.append(state.eps);
    moving = moving || (state.moves && state.keeps());
  }
  return py::make_tuple(gammas.found(), betas.found(), means.found(), variances.found(), kinds, eps,
                        moving);
}

py::tuple running_statistics(const py::list& norms, const py::object& empty, bool all) {
  Tensors means(empty), variances(empty), counters(empty);
  py::list momenta;
  for (const py::handle norm : norms) {
    if (!norm.is_none()) {
      NormSeen seen;
      const NormState& state = seen.of(norm.ptr());
      if (state.keeps() && (all || state.moves)) {
        means.add(state.mean);
        variances.add(state.var);
        counters.add(state.counter);
        momenta.append(state.momentum);
        continue;
      }
    }
    for (Tensors* tensors : {&means, &variances, &counters}) tensors->add(nullptr);
    momenta.append(0.0);
  }
  return py::make_tuple(means.whole(), variances.whole(), counters.whole(), momenta);
}

}  // namespace darts_fast
