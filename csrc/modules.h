// SPDX-License-Identifier: Apache-2.0
// Reads what a forward needs of hundreds of modules of torch.nn, without their attribute look-ups.
//
// Nothing is remembered between calls: every value is the one that the module has now.
#pragma once

#include <pybind11/pybind11.h>

namespace darts_fast {

// Whether modules[i] still has the class types[i] and its children are children[i], the very
// objects in this order; children[i] None: not looked at.
bool same_modules(const pybind11::list& modules, const pybind11::list& types,
                  const pybind11::list& children);

// Whether calling any of the modules does no more than the forward of its class: it has no hooks,
// and no forward of its own but of one of the types `replaced`, which compute what the class's
// does.
bool untouched_modules(const pybind11::list& modules, const pybind11::tuple& replaced);

// The parameter `name` of every module.
pybind11::list module_parameters(const pybind11::list& modules, const pybind11::str& name);

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
