// SPDX-License-Identifier: Apache-2.0
// The scheduler behind tests/simt/cuda_runtime.h.
#include <algorithm>
#include <numeric>
#include <string>
#include <utility>
#include <vector>

#include "scheduler.h"

#define SIMT_OWN __attribute__((section("simt_own")))
SIMT_OWN uint3 threadIdx, blockIdx;
SIMT_OWN dim3 blockDim, gridDim;

// Bounds of all __shared__ variables of this object, from the linker; weak because there may be
// none.
extern "C" __attribute__((weak, visibility("hidden"))) char __start_simt_shared[],
    __stop_simt_shared[];
extern "C" __attribute__((visibility("hidden"))) char __start_simt_own[], __stop_simt_own[];

namespace simt {

Scheduler& scheduler() {
  static Scheduler s;
  return s;
}

Observer*& observer() {
  static Observer* current = nullptr;
  return current;
}

namespace {

constexpr size_t kMaxParameters = 32764;  // since CUDA 12.1, from compute capability 7.0 on

// From the running thread back to the scheduler, until it goes on.
uint64_t suspend(State state, const Wait& wait) {
  Scheduler& s = scheduler();
  Thread& thread = s.threads[s.current];
  thread.state = state;
  thread.wait = wait;
  leave(thread.fiber, s.main);
  return thread.wait.value;
}

void resume(int index) {
  Scheduler& s = scheduler();
  s.current = index;
  threadIdx = s.threads[index].index;
  enter(s.main, s.threads[index].fiber);
  s.current = -1;
}

extern "C" void simt_thread() {
  entered();
  const Scheduler& s = scheduler();
  s.body(s.argument);
  suspend(State::kDone, {});
}

// What the threads wrote is visible to all of them from now on.
void order_memory(const std::vector<int>& indices) {
  synchronise(fibers_of(indices).data(), static_cast<int>(indices.size()));
}

// Adds threads that can run again, in the order of the schedule.
void make_ready(std::vector<int> indices) {
  Scheduler& s = scheduler();
  for (const int i : indices) s.threads[i].state = State::kReady;
  if (s.order == Order::kDescending) std::reverse(indices.begin(), indices.end());
  s.ready.insert(s.ready.end(), indices.begin(), indices.end());
}

int take_ready() {
  Scheduler& s = scheduler();
  if (s.order == Order::kShuffled) {
    const size_t chosen = s.next + s.random() % (s.ready.size() - s.next);
    std::swap(s.ready[s.next], s.ready[chosen]);
  }
  return s.ready[s.next++];
}

void release_barrier() {
  Scheduler& s = scheduler();
  s.votes = 0;
  for (int i = 0; i < s.count; ++i) {
    if (!s.threads[i].waits_at(State::kBarrier, s.threads[0].wait.site)) fail_stuck();
    s.votes += s.threads[i].wait.predicate;
  }
  s.ready.clear();
  s.next = 0;
  order_memory(everyone());
  make_ready(everyone());
}

// Completes the warp operation at which a thread has just arrived, if it is the last to come.
void try_warp(int index) {
  Scheduler& s = scheduler();
  const Wait self = s.threads[index].wait;
  const int own = index % kWarp, base = index - own;
  const auto refuse = [&](const std::string& why) {
    fail(why + ", at a warp operation, " + text(self.site));
  };
  if ((self.mask >> own & 1) == 0) {
    refuse("lane " + std::to_string(own) + " is not in its own mask");
  }
  bool complete = true;
  std::vector<int> lanes;
  for (int l = 0; l < kWarp; ++l) {
    if ((self.mask >> l & 1) == 0) continue;
    const bool exists = base + l < s.count;
    if (!exists || s.threads[base + l].state == State::kDone) {
      refuse("the mask names lane " + std::to_string(l) + ", which " +
             (exists ? "has returned" : "does not exist"));
    }
    const Thread& other = s.threads[base + l];
    complete = complete && other.waits_at(State::kWarp, self.site) && other.wait.mask == self.mask;
    lanes.push_back(base + l);
  }
  if (!complete) return;
  uint64_t given[kWarp], votes = 0;
  for (const int i : lanes) {
    given[i - base] = s.threads[i].wait.value;
    votes |= static_cast<uint64_t>(s.threads[i].wait.predicate) << (i - base);
  }
  for (const int i : lanes) {
    Wait& wait = s.threads[i].wait;
    // What a lane outside the mask would give is undefined: NaN.
    const bool is_given = wait.source >= 0 && (self.mask >> wait.source & 1) != 0;
    wait.value = wait.source < 0 ? votes : is_given ? given[wait.source] : ~uint64_t{0};
  }
  if (self.complete != nullptr) {
    void* all[kWarp] = {};
    for (const int i : lanes) all[i - base] = s.threads[i].wait.given;
    self.complete(all);
  }
  if (self.orders) order_memory(lanes);
  make_ready(std::move(lanes));
}

#if defined(__SANITIZE_ADDRESS__)
__attribute__((no_sanitize("address")))  // the red zones between the variables are filled too
#endif
void poison_shared() {
  volatile char* to = __start_simt_shared;
  for (; to < __stop_simt_shared; ++to) *to = static_cast<char>(0xff);
}

void run_block() {
  Scheduler& s = scheduler();
  poison_shared();
  if (observer() != nullptr) observer()->block();
  s.ready.clear();
  s.next = 0;
  for (int i = 0; i < s.count; ++i) prepare(s.threads[i].fiber, i, simt_thread);
  const std::vector<Fiber*> fibers = fibers_of(everyone());
  begin(s.main, fibers.data(), s.count);
  make_ready(everyone());
  const auto is_done = [](const Thread& thread) { return thread.state == State::kDone; };
  for (;;) {
    while (s.next < s.ready.size()) {
      const int index = take_ready();
      resume(index);
      if (s.threads[index].state == State::kWarp) try_warp(index);
    }
    if (std::all_of(s.threads.begin(), s.threads.begin() + s.count, is_done)) break;
    release_barrier();
  }
  end(s.main, fibers.data(), s.count);
}

std::vector<int64_t> block_order(int64_t blocks) {
  Scheduler& s = scheduler();
  std::vector<int64_t> order(blocks);
  std::iota(order.begin(), order.end(), 0);
  if (s.order == Order::kDescending) std::reverse(order.begin(), order.end());
  if (s.order == Order::kShuffled) std::shuffle(order.begin(), order.end(), s.random);
  return order;
}

bool fits(const cudaLaunchConfig_t& config, size_t parameters) {
  const dim3 grid = config.gridDim, block = config.blockDim;
  const uint64_t threads = uint64_t{block.x} * block.y * block.z;
  return grid.x > 0 && grid.y > 0 && grid.z > 0 && grid.x <= 0x7fffffffu && grid.y <= 65535 &&
         grid.z <= 65535 && threads > 0 && threads <= kMaxThreads && block.z <= 64 &&
         config.dynamicSmemBytes == 0 && parameters <= kMaxParameters;
}

}  // namespace

int run(const cudaLaunchConfig_t& config, Body body, void* argument, const void* kernel,
        size_t parameters) {
  Scheduler& s = scheduler();
  ++s.launches;
  if (!fits(config, parameters)) {
    s.last_error = cudaErrorInvalidConfiguration;
    return s.last_error;
  }
  gridDim = config.gridDim;
  blockDim = config.blockDim;
  s.body = body;
  s.argument = argument;
  s.kernel = kernel;
  s.count = static_cast<int>(blockDim.x * blockDim.y * blockDim.z);
  for (int i = 0; i < s.count; ++i) {
    const unsigned thread = static_cast<unsigned>(i);
    s.threads[i].index = {thread % blockDim.x, thread / blockDim.x % blockDim.y,
                          thread / blockDim.x / blockDim.y};
  }
  const int64_t blocks = int64_t{gridDim.x} * gridDim.y * gridDim.z;
  if (observer() != nullptr) observer()->launch(function_name(kernel), blocks, s.count);
  for (const int64_t block : block_order(blocks)) {
    blockIdx = {static_cast<unsigned>(block % gridDim.x),
                static_cast<unsigned>(block / gridDim.x % gridDim.y),
                static_cast<unsigned>(block / gridDim.x / gridDim.y)};
    run_block();
  }
  if (observer() != nullptr) observer()->finish();
  return cudaSuccess;
}

int barrier(bool predicate, Site site) {
  suspend(State::kBarrier, {.site = site, .predicate = predicate});
  return scheduler().votes;
}

void fence() {
  if (observer() != nullptr) observer()->fence();
}

int lane() { return scheduler().current % kWarp; }

bool in_kernel() { return scheduler().current >= 0; }

bool is_shared(const void* address) {
  return address >= __start_simt_shared && address < __stop_simt_shared;
}

bool is_own(const void* address) {
  return address >= __start_simt_own && address < __stop_simt_own;
}

void synchronise_warp(unsigned mask, Site site) {
  suspend(State::kWarp, {.site = site, .orders = true, .mask = mask});
}

uint64_t exchange(unsigned mask, uint64_t value, int source, Site site) {
  return suspend(State::kWarp, {.site = site, .mask = mask, .source = source, .value = value});
}

void meet(void* given, Complete complete, Site site) {
  suspend(State::kWarp, {.site = site, .mask = ~0u, .given = given, .complete = complete});
}

unsigned vote(unsigned mask, bool predicate, Site site) {
  return static_cast<unsigned>(
      suspend(State::kWarp, {.site = site, .predicate = predicate, .mask = mask, .source = -1}));
}

}  // namespace simt

const char* cudaGetErrorString(cudaError_t error) {
  return error == cudaSuccess ? "no error" : "invalid configuration argument";
}

cudaError_t cudaGetLastError() { return std::exchange(simt::scheduler().last_error, cudaSuccess); }

// 0 ascending, 1 descending, 2 shuffled, for all launches from now on.
extern "C" void simt_set_order(int order, unsigned seed) {
  simt::scheduler().order = static_cast<simt::Order>(order);
  simt::scheduler().random.seed(seed);
}

// Launches so far, the refused ones among them.
extern "C" int64_t simt_launches() { return simt::scheduler().launches; }
