// SPDX-License-Identifier: Apache-2.0
// The vector of the capability this file is compiled for, as a compiler extension that g++ and
// clang share: arithmetic is written with operators, a * b + c becomes one fused instruction where
// the capability has it.
#pragma once

#include <cstdint>
#include <cstring>

#if !defined(DARTS_CPU_CAPABILITY)
#error "compile kernels with -DDARTS_CPU_CAPABILITY=DEFAULT|AVX2|AVX512"
#endif

#if defined(__AVX512F__)
#define DARTS_VECTOR_BYTES 64
#elif defined(__AVX2__)
#define DARTS_VECTOR_BYTES 32
#else
#define DARTS_VECTOR_BYTES 16
#endif

namespace darts_fast::cpu::DARTS_CPU_CAPABILITY {

template <typename T>
struct VecOf {
  typedef T type __attribute__((vector_size(DARTS_VECTOR_BYTES)));
};
template <typename T>
using Vec = typename VecOf<T>::type;

template <typename T>
constexpr int64_t kLanes = DARTS_VECTOR_BYTES / static_cast<int64_t>(sizeof(T));

template <typename T>
static inline Vec<T> load(const T* from) {
  Vec<T> value;
  std::memcpy(&value, from, sizeof(value));
  return value;
}

template <typename T>
static inline void store(T* to, Vec<T> value) {
  std::memcpy(to, &value, sizeof(value));
}

}  // namespace darts_fast::cpu::DARTS_CPU_CAPABILITY
