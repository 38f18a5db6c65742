// SPDX-License-Identifier: Apache-2.0
// The workspace of one call: parts of different types, cut from one block of the arena.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>

#include "cpu/arena.h"

namespace darts_fast::cpu {

class Workspace {
 public:
  // Room for `count` values; the place of the part, to be resolved once the block exists.
  template <typename T>
  int64_t reserve(int64_t count) {
    const int64_t at = bytes_;
    bytes_ += (count * static_cast<int64_t>(sizeof(T)) + 63) / 64 * 64;
    return at;
  }

  void allocate() { block_ = arena_transient(bytes_, at::TensorOptions().dtype(at::kByte)); }

  template <typename T>
  T* get(int64_t at) const {
    return reinterpret_cast<T*>(static_cast<char*>(block_.mutable_data_ptr()) + at);
  }

 private:
  int64_t bytes_ = 0;
  at::Tensor block_;
};

// Images of one group whose weight gradients share a row. At most 16 rows per group and two images
// in each: rows are memory to write and to sum, but bound how many threads can share the work.
inline int64_t chunk_images(int64_t images) {
  constexpr int64_t kMostChunks = 16;
  const int64_t share = (images + kMostChunks - 1) / kMostChunks;
  return share < 2 ? 2 : share;
}

}  // namespace darts_fast::cpu
