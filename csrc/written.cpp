// SPDX-License-Identifier: Apache-2.0
#include "written.h"

#include <algorithm>
#include <iterator>

#include "modules.h"

namespace darts_fast {
namespace {

namespace py = pybind11;

PyObject* entry(const py::list& list, size_t i) {
  if (i >= list.size()) throw py::index_error("not the list that was given first");
  return PyList_GET_ITEM(list.ptr(), static_cast<Py_ssize_t>(i));
}

}  // namespace

py::list WrittenTables::written() const {
  py::list places;
  for (size_t i = 0; i < versions_.size(); ++i) {
    if (!versions_[i].is_current()) places.append(i);
  }
  return places;
}

void WrittenTables::take(const py::list& tables, const py::list& places) {
  for (const py::handle place : places) {
    const auto i = place.cast<size_t>();
    versions_.at(i) = TableVersion(entry(tables, i));
  }
}

void WrittenTables::forget(const py::list& places) {
  for (const py::handle place : places) versions_.at(place.cast<size_t>()) = {};
}

py::list WrittenModules::written(const py::list& modules) const {
  py::list places;
  for (size_t i = 0; i < seen_.size(); ++i) {
    if (!seen_[i].is_current(entry(modules, i))) places.append(i);
  }
  return places;
}

void WrittenModules::take(const py::list& modules, const py::list& places) {
  static const Name modules_name("_modules"), forward("forward");
  for (const py::handle place : places) {
    const auto i = place.cast<size_t>();
    PyObject* module = entry(modules, i);
    Seen& seen = seen_.at(i);
    const py::object attributes = attributes_of(module);
    seen.attributes = AttributesVersion(module);
    seen.type = Py_TYPE(module);
    PyObject* children = get(attributes.ptr(), modules_name.key);
    seen.children = PyDict_Check(children) ? TableVersion(children) : TableVersion();
    seen.plain = find(attributes.ptr(), forward.key) == nullptr;
    for (size_t k = 0; k < std::size(seen.hooks); ++k) {
      PyObject* hooks = get(attributes.ptr(), hook_names()[k].key);
      seen.hooks[k] = reinterpret_cast<PyDictObject*>(hooks);
      seen.plain = seen.plain && PyDict_Check(hooks);
    }
  }
}

void WrittenModules::forget(const py::list& places) {
  for (const py::handle place : places) seen_.at(place.cast<size_t>()) = {};
}

bool WrittenModules::untouched(const py::list& modules, const py::tuple& replaced) const {
  for (size_t i = 0; i < seen_.size(); ++i) {
    const Seen& seen = seen_[i];
    const bool known = seen.plain && seen.attributes.is_current();
    const bool is_untouched =
        known ? std::all_of(std::begin(seen.hooks), std::end(seen.hooks),
                            [](const PyDictObject* hooks) { return hooks->ma_used == 0; })
              : untouched_module(entry(modules, i), replaced);
    if (!is_untouched) return false;
  }
  return true;
}

}  // namespace darts_fast
