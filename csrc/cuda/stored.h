// SPDX-License-Identifier: Apache-2.0
// What the maps of an op are stored as, beside the type that is computed with. Torch-free.
#pragma once

namespace darts_fast::cuda {

// What maps are stored as: the outputs of convolutions as M, pools, nodes, and states with their
// gradients as what is computed with.
template <typename T, typename M>
struct Stored {
  using Raw = M;
  using State = T;
};
// All of them as H, under autocast.
template <typename H>
struct All {};
template <typename T, typename H>
struct Stored<T, All<H>> {
  using Raw = H;
  using State = H;
};
template <typename T, typename M>
using RawOf = typename Stored<T, M>::Raw;
template <typename T, typename M>
using StateOf = typename Stored<T, M>::State;

}  // namespace darts_fast::cuda
