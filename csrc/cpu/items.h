// SPDX-License-Identifier: Apache-2.0
// How threads share the items of a phase. Each begins with a share of its own, of items that stand
// next to each other, and takes them in their order; one that is done goes on with what others have
// not begun. On a processor that others use too threads are not equally fast, and the phase ends
// with the slowest.
#pragma once

#include <cstdint>

namespace darts_fast::cpu {

struct alignas(64) ItemShare {
  int64_t next;
  int64_t end;
};

// The items as one thread sees them. `share`: the number of its own share, and of its row of
// scratch memory.
struct Items {
  ItemShare* shares;
  int64_t count;
  int64_t share;
};

// An item that nobody else takes, or -1 if none is left.
static inline int64_t next_item(const Items& items) {
  for (int64_t i = 0; i < items.count; ++i) {
    const int64_t at = items.share + i;
    ItemShare& share = items.shares[at < items.count ? at : at - items.count];
    const int64_t item = __atomic_fetch_add(&share.next, 1, __ATOMIC_RELAXED);
    if (item < share.end) return item;
  }
  return -1;
}

}  // namespace darts_fast::cpu
