// SPDX-License-Identifier: Apache-2.0
// Choosing a kernel table by capability, and running its phases in parallel.
#pragma once

#include <ATen/Parallel.h>

#include <algorithm>
#include <cstdint>
#include <vector>

#include "cpu/capability.h"
#include "cpu/items.h"

// Inside namespace darts_fast::cpu: the table of the capability in use.
#if defined(DARTS_X86_CAPABILITIES)
#define DARTS_SELECT_TABLE(TABLE)                      \
  (capability() >= Capability::kAvx512 ? AVX512::TABLE \
   : capability() == Capability::kAvx2 ? AVX2::TABLE   \
                                       : DEFAULT::TABLE)
#else
#define DARTS_SELECT_TABLE(TABLE) (DEFAULT::TABLE)
#endif

// Inside an unnamed namespace of darts_fast::cpu: kernels<T>(), the table KIND<T> of the capability
// in use, from the tables NAME_float and NAME_double.
#define DARTS_KERNEL_TABLES(KIND, NAME)       \
  template <typename T>                       \
  const KIND<T>& kernels();                   \
  template <>                                 \
  const KIND<float>& kernels<float>() {       \
    return DARTS_SELECT_TABLE(NAME##_float);  \
  }                                           \
  template <>                                 \
  const KIND<double>& kernels<double>() {     \
    return DARTS_SELECT_TABLE(NAME##_double); \
  }

namespace darts_fast::cpu {

// Small phases stay on the calling thread: a parallel region costs more than they do.
constexpr int64_t kGrainElements = 16384;

inline int64_t grain_size(int64_t elements_per_item) {
  return std::max<int64_t>(1, kGrainElements / std::max<int64_t>(1, elements_per_item));
}

template <typename Params>
void run_phase(void (*phase)(const Params&, int64_t, int64_t), const Params& params, int64_t items,
               int64_t elements_per_item) {
  at::parallel_for(0, items, grain_size(elements_per_item),
                   [&](int64_t begin, int64_t end) { phase(params, begin, end); });
}

// A phase that uses a row of scratch memory, of which there are at::get_num_threads(): one per
// share, and not per number of the thread that runs it. A build with another OpenMP library than
// torch's would count threads that torch does not know of.
template <typename Params>
void run_phase(void (*phase)(const Params&, Items), const Params& params, int64_t items,
               int64_t elements_per_item) {
  const int64_t grain = grain_size(elements_per_item);
  const int64_t count =
      std::min<int64_t>(std::max(1, at::get_num_threads()), (items + grain - 1) / grain);
  std::vector<ItemShare> shares;
  for (int64_t i = 0; i < count; ++i) {
    shares.push_back({items * i / count, items * (i + 1) / count});
  }
  at::parallel_for(0, count, 1, [&](int64_t first, int64_t last) {
    for (int64_t share = first; share < last; ++share) phase(params, {shares.data(), count, share});
  });
}

}  // namespace darts_fast::cpu
