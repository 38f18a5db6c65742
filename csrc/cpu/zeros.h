// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>
#include <c10/util/strides.h>

#include <vector>

namespace darts_fast::cpu {

// Zeros of the shapes of `like` where `wanted`, asked once for each, says so: parts of one
// allocation, each where a vector begins. Empty tensors for the others, and for empty ones.
template <typename Wanted>
std::vector<at::Tensor> zeros_where(Wanted wanted, at::TensorList like,
                                    const at::TensorOptions& options) {
  constexpr int64_t kAligned = 16;
  std::vector<int64_t> places;
  int64_t size = 0;
  for (const at::Tensor& tensor : like) {
    const bool want = wanted() && tensor.numel() > 0;
    places.push_back(want ? size : -1);
    if (want) size += (tensor.numel() + kAligned - 1) / kAligned * kAligned;
  }
  const at::Tensor buffer = at::zeros({size}, options), none = at::empty({0}, options);
  std::vector<at::Tensor> zeros;
  for (size_t i = 0; i < like.size(); ++i) {
    const at::IntArrayRef shape = like[i].sizes();
    zeros.push_back(
        places[i] < 0 ? none : buffer.as_strided(shape, c10::contiguous_strides(shape), places[i]));
  }
  return zeros;
}

}  // namespace darts_fast::cpu
