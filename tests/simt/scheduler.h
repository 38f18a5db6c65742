// SPDX-License-Identifier: Apache-2.0
// The state of the scheduler, for its own files.
#pragma once

#include <cstdint>
#include <cstring>
#include <random>
#include <string>
#include <vector>

#include "cuda_runtime.h"
#include "fibers.h"
#include "simt.h"

namespace simt {

constexpr int kWarp = 32;
constexpr unsigned kMaxThreads = 1024;

enum class Order { kAscending = 0, kDescending = 1, kShuffled = 2 };
enum class State { kReady, kBarrier, kWarp, kDone };

// At what a thread waits.
struct Wait {
  Site site = {};
  bool predicate = false;
  // Of a warp operation:
  bool orders = false;          // memory
  unsigned mask = 0;            // the lanes,
  int source = 0;               // the one asked, or < 0 to ask for all predicates,
  uint64_t value = 0;           // what is given, and after the operation what was got
  void* given = nullptr;        // or, for `complete`, where that is
  Complete complete = nullptr;  // called when all have come
};

struct Thread {
  Fiber fiber;
  uint3 index;
  State state;
  Wait wait;

  bool waits_at(State at, Site site) const {
    return state == at && wait.site.line == site.line &&
           std::strcmp(wait.site.file, site.file) == 0;
  }
};

struct Scheduler {
  Order order = Order::kAscending;
  std::mt19937 random;
  int64_t launches = 0;
  cudaError_t last_error = cudaSuccess;

  std::vector<Thread> threads = std::vector<Thread>(kMaxThreads);
  int count = 0;           // threads of the block
  std::vector<int> ready;  // those that can run; `next` is the first that has not
  size_t next = 0;
  int current = -1;  // the running thread, or none
  int votes = 0;     // of the last barrier
  Fiber main;
  Body body = nullptr;
  void* argument = nullptr;
  const void* kernel = nullptr;
};

Scheduler& scheduler();

std::vector<int> everyone();
std::vector<Fiber*> fibers_of(const std::vector<int>& indices);

// "file.cpp:12".
std::string text(Site site);

// Gives up the block; what its threads did is over for the caller.
[[noreturn]] void fail(const std::string& what);

// The same for a block in which nobody can run: who waits where.
[[noreturn]] void fail_stuck();

}  // namespace simt
