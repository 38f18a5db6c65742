// SPDX-License-Identifier: Apache-2.0
// The scheduler behind tests/simt/cuda_runtime.h.
#include <sys/mman.h>

#include <algorithm>
#include <map>
#include <numeric>
#include <random>
#include <sstream>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "cuda_runtime.h"

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif
#if !defined(__x86_64__)
#include <ucontext.h>
#endif

uint3 threadIdx, blockIdx;
dim3 blockDim, gridDim;

// Bounds of all __shared__ variables of this object, from the linker; weak because there may be
// none.
extern "C" __attribute__((weak, visibility("hidden"))) char __start_simt_shared[],
    __stop_simt_shared[];

#if defined(__x86_64__)
// Pushes the registers that a call preserves, leaves the stack pointer in *from, and goes on where
// `to` was left: twenty times as fast as swapcontext, which asks the kernel for the signal mask.
extern "C" void simt_switch(void** from, void* to);
asm(R"(
.text
.type simt_switch, @function
.hidden simt_switch
simt_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size simt_switch, .-simt_switch
)");
#endif

namespace simt {
namespace {

constexpr size_t kStackBytes = 128 * 1024;
constexpr size_t kPageBytes = 4096;
constexpr int kWarp = 32;
constexpr unsigned kMaxThreads = 1024;
constexpr size_t kMaxParameters = 4096;

enum class Order { kAscending = 0, kDescending = 1, kShuffled = 2 };
enum class State { kReady, kBarrier, kWarp, kDone };

struct Context {
#if defined(__x86_64__)
  void* stack_pointer = nullptr;
#else
  ucontext_t saved;
#endif
};

struct Thread {
  Context context;
  char* stack = nullptr;
  uint3 index;
  State state;
  Site site;
  unsigned mask;   // of the warp operation at which it waits,
  int source;      // the lane it asks,
  uint64_t value;  // what it gives, and after the operation what it got
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
  int current = 0;
  Context main;
  const void* main_stack = nullptr;
  size_t main_stack_bytes = 0;
  Body body = nullptr;
  void* argument = nullptr;
  std::string failure;  // set by a thread that cannot go on
};

Scheduler& scheduler() {
  static Scheduler s;
  return s;
}

void start_switch([[maybe_unused]] const void* stack, [[maybe_unused]] size_t bytes) {
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_start_switch_fiber(nullptr, stack, bytes);
#endif
}

void finish_switch([[maybe_unused]] const void** stack, [[maybe_unused]] size_t* bytes) {
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(nullptr, stack, bytes);
#endif
}

void switch_context(Context& from, Context& to) {
#if defined(__x86_64__)
  simt_switch(&from.stack_pointer, to.stack_pointer);
#else
  swapcontext(&from.saved, &to.saved);
#endif
}

// From a thread back to the scheduler.
void suspend(State state, Site site) {
  Scheduler& s = scheduler();
  Thread& thread = s.threads[s.current];
  thread.state = state;
  thread.site = site;
  start_switch(s.main_stack, s.main_stack_bytes);
  switch_context(thread.context, s.main);
  finish_switch(nullptr, nullptr);
}

void resume(int index) {
  Scheduler& s = scheduler();
  Thread& thread = s.threads[index];
  s.current = index;
  threadIdx = thread.index;
  start_switch(thread.stack, kStackBytes);
  switch_context(s.main, thread.context);
  finish_switch(nullptr, nullptr);
}

extern "C" void simt_thread() {
  Scheduler& s = scheduler();
  finish_switch(&s.main_stack, &s.main_stack_bytes);
  s.body(s.argument);
  suspend(State::kDone, {});
}

// A stack on which simt_thread has not begun. The page below it is not mapped in, so a kernel that
// needs more stack than there is faults.
void prepare(Thread& thread) {
  if (thread.stack == nullptr) {
    void* memory = mmap(nullptr, kStackBytes + kPageBytes, PROT_READ | PROT_WRITE,
                        MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory == MAP_FAILED) throw Error("simt: no memory for the stacks of the threads");
    mprotect(memory, kPageBytes, PROT_NONE);
    thread.stack = static_cast<char*>(memory) + kPageBytes;
  }
#if defined(__SANITIZE_ADDRESS__)
  __asan_unpoison_memory_region(thread.stack, kStackBytes);
#endif
#if defined(__x86_64__)
  // What simt_switch pops: six registers, then the address to return to. Entered by a return, a
  // function expects the stack as a call leaves it, 8 bytes off 16.
  auto** top = reinterpret_cast<void**>(thread.stack + kStackBytes) - 1;
  *--top = reinterpret_cast<void*>(&simt_thread);
  for (int i = 0; i < 6; ++i) *--top = nullptr;
  thread.context.stack_pointer = top;
#else
  getcontext(&thread.context.saved);
  thread.context.saved.uc_stack = {thread.stack, 0, kStackBytes};
  thread.context.saved.uc_link = nullptr;
  makecontext(&thread.context.saved, simt_thread, 0);
#endif
  thread.state = State::kReady;
}

std::string text(Site site) {
  const std::string file = site.file;
  return file.substr(file.rfind('/') + 1) + ":" + std::to_string(site.line);
}

[[noreturn]] void fail(const std::string& what) {
  std::ostringstream message;
  message << "simt: block (" << blockIdx.x << ", " << blockIdx.y << ", " << blockIdx.z
          << "): " << what;
  throw Error(message.str());
}

// Who waits where, for a block in which nobody can run.
[[noreturn]] void fail_stuck() {
  Scheduler& s = scheduler();
  std::map<std::pair<std::string, unsigned>, int> waiting;
  int returned = 0;
  for (int i = 0; i < s.count; ++i) {
    const Thread& thread = s.threads[i];
    if (thread.state == State::kDone) ++returned;
    if (thread.state == State::kBarrier) ++waiting[{"__syncthreads, " + text(thread.site), 0}];
    if (thread.state == State::kWarp) {
      ++waiting[{"a warp operation, " + text(thread.site), thread.mask}];
    }
  }
  std::ostringstream what;
  what << "is stuck:";
  for (const auto& [where, threads] : waiting) {
    what << " " << threads << " thread(s) wait at " << where.first;
    if (where.second != 0) what << ", mask 0x" << std::hex << where.second << std::dec;
    what << ";";
  }
  what << " " << returned << " have returned";
  fail(what.str());
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
  std::vector<int> everyone(s.count);
  std::iota(everyone.begin(), everyone.end(), 0);
  const Site site = s.threads[0].site;
  for (const int i : everyone) {
    const Thread& thread = s.threads[i];
    const bool together = thread.state == State::kBarrier && thread.site.line == site.line &&
                          std::strcmp(thread.site.file, site.file) == 0;
    if (!together) fail_stuck();
  }
  s.ready.clear();
  s.next = 0;
  make_ready(std::move(everyone));
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
  s.ready.clear();
  s.next = 0;
  for (int i = 0; i < s.count; ++i) prepare(s.threads[i]);
  std::vector<int> everyone(s.count);
  std::iota(everyone.begin(), everyone.end(), 0);
  make_ready(std::move(everyone));
  const auto is_done = [](const Thread& thread) { return thread.state == State::kDone; };
  for (;;) {
    while (s.next < s.ready.size()) {
      resume(take_ready());
      if (!s.failure.empty()) fail(std::exchange(s.failure, {}));
    }
    if (std::all_of(s.threads.begin(), s.threads.begin() + s.count, is_done)) return;
    release_barrier();
  }
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

cudaError_t run(const cudaLaunchConfig_t& config, Body body, void* argument, size_t parameters) {
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
  s.count = static_cast<int>(blockDim.x * blockDim.y * blockDim.z);
  for (int i = 0; i < s.count; ++i) {
    const unsigned thread = static_cast<unsigned>(i);
    s.threads[i].index = {thread % blockDim.x, thread / blockDim.x % blockDim.y,
                          thread / blockDim.x / blockDim.y};
  }
  for (const int64_t block : block_order(int64_t{gridDim.x} * gridDim.y * gridDim.z)) {
    blockIdx = {static_cast<unsigned>(block % gridDim.x),
                static_cast<unsigned>(block / gridDim.x % gridDim.y),
                static_cast<unsigned>(block / gridDim.x / gridDim.y)};
    run_block();
  }
  return cudaSuccess;
}

void barrier(Site site) { suspend(State::kBarrier, site); }

int lane() { return scheduler().current % kWarp; }

uint64_t exchange(unsigned mask, uint64_t value, int source, Site site) {
  Scheduler& s = scheduler();
  Thread& self = s.threads[s.current];
  const int base = s.current / kWarp * kWarp;
  self.mask = mask;
  self.source = source;
  self.value = value;
  self.site = site;
  self.state = State::kWarp;
  bool complete = true;
  for (int l = 0; l < kWarp; ++l) {
    if ((mask >> l & 1) == 0) {
      if (l == lane()) s.failure = "lane " + std::to_string(l) + " is not in its own mask";
      continue;
    }
    const bool present = base + l < s.count && s.threads[base + l].state != State::kDone;
    if (!present) {
      s.failure = "the mask names lane " + std::to_string(l) + ", which " +
                  (base + l < s.count ? "has returned" : "does not exist");
      break;
    }
    const Thread& other = s.threads[base + l];
    complete = complete && other.state == State::kWarp && other.mask == mask &&
               other.site.line == site.line && std::strcmp(other.site.file, site.file) == 0;
  }
  if (!s.failure.empty()) {
    s.failure += ", at a warp operation, " + text(site);
    suspend(State::kWarp, site);
  }
  if (complete) {
    uint64_t given[kWarp];
    std::vector<int> others;
    for (int l = 0; l < kWarp; ++l) {
      if ((mask >> l & 1) != 0) given[l] = s.threads[base + l].value;
    }
    for (int l = 0; l < kWarp; ++l) {
      if ((mask >> l & 1) == 0) continue;
      Thread& thread = s.threads[base + l];
      // What a lane outside the mask would give is undefined: NaN.
      thread.value = (mask >> thread.source & 1) != 0 ? given[thread.source] : ~uint64_t{0};
      if (base + l != s.current) others.push_back(base + l);
    }
    self.state = State::kReady;
    make_ready(std::move(others));
  } else {
    suspend(State::kWarp, site);
  }
  return self.value;
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
