// SPDX-License-Identifier: Apache-2.0
// Reads what a forward needs of hundreds of modules of torch.nn, without their attribute look-ups.
//
// Nothing is remembered between calls: every value is the one that the module has now.
#pragma once

#include <pybind11/pybind11.h>

#include <array>

#include "python_tables.h"

namespace darts_fast {

// Whether modules[i] still has the class types[i] and its children are children[i], the very
// objects in this order; children[i] None: not looked at.
bool same_modules(const pybind11::list& modules, const pybind11::list& types,
                  const pybind11::list& children);

// The numbers that the interpreter has given to the classes as they are now. A class gets another
// one when an attribute of it, or of a class that it inherits from, is set or deleted; 0 is none.
pybind11::list type_versions(const pybind11::list& types);

// Whether no class has changed since it had the number versions[i]; false where one has none now.
bool same_types(const pybind11::list& types, const pybind11::list& versions);

// Whether the tuple of keys[i] still leads, in the dictionary tables[i], to the very objects of the
// tuple values[i]; `missing` stands there for keys that the table does not have.
bool same_entries(const pybind11::list& tables, const pybind11::list& keys,
                  const pybind11::list& values, const pybind11::object& missing);

// Whether the parameters of modules[i] that are there have, in order, the shapes of shapes[i].
bool same_shapes(const pybind11::list& modules, const pybind11::list& shapes);

// Whether calling a module does no more than the forward of its class: it has no hooks, and no
// forward of its own but of one of the types `replaced`, which compute what the class's does.
bool untouched_module(PyObject* module, const pybind11::tuple& replaced);

// The attributes that hold hooks.
const std::array<Name, 4>& hook_names();

// Of every batch norm (None: none at all) what mixed_cell takes: gammas, betas, running means,
// running variances, norms and eps; and whether a forward would move some running statistics. A
// list of tensors is empty where no norm has any, and has `empty` for those that have none. Running
// statistics are there only where a forward would read them.
pybind11::tuple norm_arguments(const pybind11::list& norms, const pybind11::object& empty);

// Of every batch norm (None: none at all) that keeps running statistics what
// move_running_statistics takes: means, variances, counters and momenta. `empty` stands for what is
// not there and, unless `all`, for those that a forward would not move now.
pybind11::tuple running_statistics(const pybind11::list& norms, const pybind11::object& empty,
                                   bool all);

}  // namespace darts_fast
