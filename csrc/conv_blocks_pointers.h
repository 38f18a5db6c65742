// SPDX-License-Identifier: Apache-2.0
// From the checked arguments of conv_blocks to the pointers that kernels take, for every backend.
#pragma once

#include <vector>

#include "conv_blocks_checks.h"
#include "pointers.h"

namespace darts_fast {

// Owns the pointer tables of the arguments that forward and backward share; maps are stored as S.
template <typename T, typename S = T>
struct ConvBlocksPointers {
  explicit ConvBlocksPointers(const ConvBlocksArguments& a)
      : inputs(read_elements<S>(a.inputs)),
        depthwise(read_pointers<T>(a.depthwise)),
        pointwise(read_pointers<T>(a.pointwise)) {}

  void set(ConvBlocksCall<T, S>& p, const ConvBlocksArguments& a) const {
    p.shape = a.shape;
    p.norm = {a.norm,
              a.eps,
              read_pointer<T>(a.mean),
              read_pointer<T>(a.var),
              read_pointer<T>(a.gamma),
              read_pointer<T>(a.beta)};
    p.branches = a.branches.data();
    p.inputs = inputs.data();
    p.depthwise = depthwise.data();
    p.pointwise = pointwise.data();
    p.active = a.active_pointer();
  }

  std::vector<const S*> inputs;
  std::vector<const T*> depthwise, pointwise;
};

}  // namespace darts_fast
