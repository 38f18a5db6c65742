// SPDX-License-Identifier: Apache-2.0
// Which dictionaries were written to since they were last looked at, so that only those are looked
// into again. Where the interpreter does not say (Python 3.12 and later), all of them were.
//
// Every call is given the same list again: to keep it here would hide from the garbage collector
// that a network which keeps what is known of it is in a cycle.
#pragma once

#include <pybind11/pybind11.h>

#include <vector>

#include "python_tables.h"

namespace darts_fast {

// Of a list of dictionaries. At first all count as written to.
class WrittenTables {
 public:
  explicit WrittenTables(const pybind11::list& tables) : versions_(tables.size()) {}

  // Their places in the list.
  pybind11::list written() const;

  // From now on these have been looked at; `forget`: they have not.
  void take(const pybind11::list& tables, const pybind11::list& places);
  void forget(const pybind11::list& places);

 private:
  std::vector<TableVersion> versions_;
};

// Of a list of modules: their attributes, classes and children.
class WrittenModules {
 public:
  explicit WrittenModules(const pybind11::list& modules) : seen_(modules.size()) {}

  pybind11::list written(const pybind11::list& modules) const;
  void take(const pybind11::list& modules, const pybind11::list& places);
  void forget(const pybind11::list& places);

  // Whether calling any of them does no more than the forward of its class (`untouched_module`).
  bool untouched(const pybind11::list& modules, const pybind11::tuple& replaced) const;

 private:
  struct Seen {
    AttributesVersion attributes;
    PyTypeObject* type = nullptr;
    // What follows belongs to the attributes.
    TableVersion children;
    PyDictObject* hooks[4] = {};
    bool plain = false;  // the hooks are dictionaries, and no forward is among the attributes

    bool is_current(PyObject* module) const {
      return attributes.is_current() && Py_TYPE(module) == type && children.is_current();
    }
  };

  std::vector<Seen> seen_;
};

}  // namespace darts_fast
