// SPDX-License-Identifier: Apache-2.0
// The vector of the capability this file is compiled for, as a compiler extension that g++ and
// clang share: arithmetic is written with operators, a * b + c becomes one fused instruction where
// the capability has it.
#pragma once

#include <cstdint>
#include <cstring>
#include <type_traits>

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

// to[i] += from[i], in double.
template <typename T>
static inline void add_wide(double* to, const T* from, int64_t count) {
  typedef double Wide __attribute__((vector_size(kLanes<T> * sizeof(double))));
  int64_t i = 0;
  for (; i + kLanes<T> <= count; i += kLanes<T>) {
    Wide sum;
    std::memcpy(&sum, to + i, sizeof(sum));
    sum += __builtin_convertvector(load(from + i), Wide);
    std::memcpy(to + i, &sum, sizeof(sum));
  }
  for (; i < count; ++i) to[i] += from[i];
}

// Asks for lines that will be read soon, from memory into the second-level cache.
template <typename T>
static inline void prefetch(const T* from, int64_t count) {
  constexpr int64_t kLine = 64 / static_cast<int64_t>(sizeof(T));
  for (int64_t i = 0; i < count; i += kLine) __builtin_prefetch(from + i, 0, 2);
}

static inline bool is_aligned(const void* at) {
  return reinterpret_cast<uintptr_t>(at) % DARTS_VECTOR_BYTES == 0;
}

// A store of a whole vector, aligned to its size, that does not read the line it replaces and
// leaves the caches alone: for maps that nobody reads before they have left the caches anyway.
// Other threads see it after `fence_streams`.
template <typename T>
static inline void stream(T* to, Vec<T> value) {
#if defined(__clang__)
  __builtin_nontemporal_store(value, reinterpret_cast<Vec<T>*>(to));
#elif defined(__AVX512F__)
  if constexpr (sizeof(T) == 4) {
    __builtin_ia32_movntps512(to, value);
  } else {
    __builtin_ia32_movntpd512(to, value);
  }
#elif defined(__AVX2__)
  if constexpr (sizeof(T) == 4) {
    __builtin_ia32_movntps256(to, value);
  } else {
    __builtin_ia32_movntpd256(to, value);
  }
#else
  store(to, value);
#endif
}

// Whether pixels of so many channels, streamed to this address two vectors (or all channels) at a
// time, fill whole lines: parts of lines cost as much as whole ones.
template <typename T>
static inline bool streams_lines(const T* to, int64_t channels) {
  constexpr int64_t kLine = 64;
  return 2 * DARTS_VECTOR_BYTES >= kLine && reinterpret_cast<uintptr_t>(to) % kLine == 0 &&
         channels * static_cast<int64_t>(sizeof(T)) % kLine == 0;
}

// Copies a map that stands in a cache to where nobody will read it soon.
template <typename M>
static inline void stream_map(M* to, const M* from, int64_t count) {
  constexpr int64_t kStep = DARTS_VECTOR_BYTES / static_cast<int64_t>(sizeof(M));
  using Word = std::conditional_t<sizeof(M) == sizeof(double), double, float>;
  int64_t i = 0;
  if (is_aligned(to)) {
    for (; i + kStep <= count; i += kStep) {
      stream(reinterpret_cast<Word*>(to + i), load(reinterpret_cast<const Word*>(from + i)));
    }
  }
  std::memcpy(to + i, from + i, (count - i) * sizeof(M));
}

static inline void fence_streams() { __atomic_thread_fence(__ATOMIC_SEQ_CST); }

}  // namespace darts_fast::cpu::DARTS_CPU_CAPABILITY
