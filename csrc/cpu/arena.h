// SPDX-License-Identifier: Apache-2.0
// Memory for saved maps and workspaces, kept from one step to the next.
//
// Fresh memory costs a page fault for every 4 KiB, several microseconds each (a quarter of a
// training step where this was measured), and malloc gives large blocks back to the system at every
// free, so the next step pays again. Here a freed block goes to a cache, large blocks are aligned
// for huge pages, and the cache is bounded: live and cached blocks together exceed the most that
// was ever live at once by an eighth at most.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <tuple>

namespace darts_fast::cpu {

// An uninitialised tensor [elements] of the dtype of `options`, on the CPU, aligned to 64 bytes or
// more. Its memory goes back to the cache with its storage, on whichever thread that is. Throws
// OutOfMemoryError where the system has no more.
at::Tensor arena_empty(int64_t elements, const at::TensorOptions& options);

// The same as maps [N, C, H, W] in channels_last.
at::Tensor arena_maps(at::IntArrayRef sizes, const at::TensorOptions& options);

// The same for what the calling op gives back itself: of whatever block is large enough.
at::Tensor arena_transient(int64_t elements, const at::TensorOptions& options);

// Gives all cached blocks back to the system; tensors are not touched.
void arena_release();

// Bytes of the blocks in use, of those cached, and the most that were in use at once.
std::tuple<int64_t, int64_t, int64_t> arena_bytes();

}  // namespace darts_fast::cpu
