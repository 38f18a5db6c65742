// SPDX-License-Identifier: Apache-2.0
// What the headers of the emulation ask of its scheduler.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <stdexcept>
#include <string>
#include <type_traits>

struct cudaLaunchConfig_t;

namespace simt {

struct Error : std::runtime_error {
  using std::runtime_error::runtime_error;
};

// The line of device code that waits.
struct Site {
  const char* file = __builtin_FILE();
  int line = __builtin_LINE();
};

using Body = void (*)(void*);

// Runs `body(argument)` once per thread of the grid; `kernel` is the function's address, for its
// name, and `parameters` the size of what it takes in bytes. Returns a cudaError_t.
int run(const cudaLaunchConfig_t& config, Body body, void* argument, const void* kernel,
        size_t parameters);

// Waits for the block; returns how many of its threads gave true.
int barrier(bool predicate, Site site);

// Waits for the lanes of `mask`, and makes visible to them what they wrote.
void synchronise_warp(unsigned mask, Site site);

// Waits for the lanes of `mask`; returns what lane `source` gave.
uint64_t exchange(unsigned mask, uint64_t value, int source, Site site);

// Waits for the lanes of `mask`; returns those that gave true.
unsigned vote(unsigned mask, bool predicate, Site site);

// Waits for all 32 lanes of the warp; the last to come has `complete` called, once for the warp,
// with what each lane gave.
using Complete = void (*)(void* const* given);
void meet(void* given, Complete complete, Site site);

// d += a * b of a warp, [16, 8] += [16, depth] * [depth, 8], depth 8 or 16, in the fragments of
// csrc/cuda/mma_sync.cuh.
enum class Factors { kHalf, kBFloat16 };
void multiply_fragments(Factors factors, float* d, const uint32_t* a, const uint32_t* b, int depth,
                        Site site);

// Orders what the running thread did, for blocks that meet at an atomic.
void fence();

// Lane of the running thread in its warp.
int lane();

template <typename T>
T shuffle(unsigned mask, T value, int source, Site site) {
  static_assert(std::is_trivially_copyable_v<T> && sizeof(T) <= sizeof(uint64_t));
  uint64_t bits = 0;
  std::memcpy(&bits, &value, sizeof(T));
  bits = exchange(mask, bits, source, site);
  std::memcpy(&value, &bits, sizeof(T));
  return value;
}

// The name of the function at `address`: "kernel<float, 4>", or the address in figures.
std::string function_name(const void* address);

// Who is told of a run; in the build that counts, tests/simt/traffic.cpp.
struct Observer {
  virtual ~Observer() = default;
  virtual void launch(const std::string& kernel, int64_t blocks, int threads) = 0;
  virtual void block() = 0;
  virtual void fence() = 0;
  virtual void finish() = 0;
};
Observer*& observer();

// Whether a thread of a kernel runs: of the caller, memory accesses do not count.
bool in_kernel();

// Whether the address is that of a __shared__ variable, or of threadIdx and its like.
bool is_shared(const void* address);
bool is_own(const void* address);

}  // namespace simt
