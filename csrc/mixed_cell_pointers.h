// SPDX-License-Identifier: Apache-2.0
// From the checked arguments of mixed_cell to the pointers that kernels take, for every backend.
#pragma once

#include <vector>

#include "mixed_cell.h"
#include "mixed_cell_checks.h"
#include "pointers.h"

namespace darts_fast {

// Owns the pointer tables of the arguments that forward and backward share.
template <typename T, typename S = T>
struct MixedCellPointers {
  explicit MixedCellPointers(const MixedCellArguments& a)
      : states(read_elements<S>(a.states)),
        first(read_pointers<T>(a.first)),
        second(read_pointers<T>(a.second)),
        gamma(read_pointers<T>(a.gammas)),
        beta(read_pointers<T>(a.betas)) {}

  std::vector<const S*> states;
  std::vector<const T*> first, second, gamma, beta;
};

// All but scratch, and the statistics.
template <typename T, typename M, typename S>
void set_cell_arguments(CellArguments<T, M, S>& p, const MixedCellArguments& a,
                        const MixedCellPointers<T, S>& pointers, S* maps) {
  p.plan = a.plan.view();
  p.states = pointers.states.data();
  p.weights = a.weights.const_data_ptr<T>();
  p.first = pointers.first.data();
  p.second = pointers.second.data();
  p.gamma = pointers.gamma.data();
  p.beta = pointers.beta.data();
  p.norms = a.norms.data();
  p.eps = a.eps.data();
  p.active = reinterpret_cast<const uint8_t*>(a.active.const_data_ptr<bool>());
  p.slot = slot_elements(a.plan);
  p.maps = maps;
  p.raw = reinterpret_cast<M*>(maps + (sizeof(M) < sizeof(S) ? a.plan.slots * p.slot : 0));
}

}  // namespace darts_fast
