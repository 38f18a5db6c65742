// SPDX-License-Identifier: Apache-2.0
// Cutting one thread's row of scratch memory into parts. The same code measures (from == nullptr)
// and cuts, so that size and use cannot disagree.
#pragma once

#include "cpu/kernels/vec.h"

namespace darts_fast::cpu::DARTS_CPU_CAPABILITY {

static inline int64_t round_up(int64_t value, int64_t unit) {
  return (value + unit - 1) / unit * unit;
}

template <typename T>
struct Scratch {
  T* from;  // null: only measure
  int64_t used = 0;

  // Parts begin at multiples of a cache line.
  T* take(int64_t elements) {
    T* part = from == nullptr ? nullptr : from + used;
    used += round_up(elements, 64 / static_cast<int64_t>(sizeof(T)));
    return part;
  }

  double* take_doubles(int64_t elements) {
    const int64_t ratio = sizeof(double) / sizeof(T);
    return reinterpret_cast<double*>(take(elements * ratio));
  }
};

}  // namespace darts_fast::cpu::DARTS_CPU_CAPABILITY
