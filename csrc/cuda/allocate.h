// SPDX-License-Identifier: Apache-2.0
// How launchers get scratch memory. Torch-free.
#pragma once

#include <cstddef>
#include <functional>

namespace darts_fast::cuda {

// Device memory of so many bytes, aligned to 16, that lives until the launches are enqueued.
using Allocate = std::function<void*(size_t)>;

}  // namespace darts_fast::cuda
