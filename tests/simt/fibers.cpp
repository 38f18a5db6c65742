// SPDX-License-Identifier: Apache-2.0
#include "fibers.h"

#include <sys/mman.h>

#include <stdexcept>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif
#if defined(SIMT_RACES)  // this file itself is not instrumented: it is no part of the kernels
#include <sanitizer/tsan_interface.h>
#endif

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
constexpr size_t kStep = kStackBytes + kPageBytes;
constexpr size_t kStacks = 1024;

char* stacks() {
  static char* const memory = [] {
    void* mapped = mmap(nullptr, kStacks * kStep, PROT_READ | PROT_WRITE,
                        MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (mapped == MAP_FAILED) {
      throw std::runtime_error("simt: no memory for the stacks of the threads");
    }
    return static_cast<char*>(mapped);
  }();
  return memory;
}

#if defined(__SANITIZE_ADDRESS__)
const void* main_stack = nullptr;
size_t main_stack_bytes = 0;
#endif

void start_switch([[maybe_unused]] const Fiber& to) {
#if defined(__SANITIZE_ADDRESS__)
  const bool to_main = to.stack == nullptr;
  __sanitizer_start_switch_fiber(nullptr, to_main ? main_stack : to.stack,
                                 to_main ? main_stack_bytes : kStackBytes);
#endif
#if defined(SIMT_RACES)
  __tsan_switch_to_fiber(to.tracked, __tsan_switch_to_fiber_no_sync);
#endif
}

void switch_context(Fiber& from, Fiber& to) {
#if defined(__x86_64__)
  simt_switch(&from.stack_pointer, to.stack_pointer);
#else
  swapcontext(&from.saved, &to.saved);
#endif
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(nullptr, nullptr, nullptr);
#endif
}

#if defined(SIMT_RACES)
// What the thread sanitizer takes for the running thread, for one call.
void as(const Fiber& fiber, void (*call)(void*), void* place) {
  void* before = __tsan_get_current_fiber();
  __tsan_switch_to_fiber(fiber.tracked, __tsan_switch_to_fiber_no_sync);
  call(place);
  __tsan_switch_to_fiber(before, __tsan_switch_to_fiber_no_sync);
}
#endif

}  // namespace

void prepare(Fiber& fiber, int index, void (*entry)()) {
  if (fiber.stack == nullptr) {
    char* memory = stacks() + static_cast<size_t>(index) * kStep;
    mprotect(memory, kPageBytes, PROT_NONE);
    fiber.stack = memory + kPageBytes;
#if defined(SIMT_RACES)
    fiber.tracked = __tsan_create_fiber(0);
#endif
  }
#if defined(__SANITIZE_ADDRESS__)
  __asan_unpoison_memory_region(fiber.stack, kStackBytes);
#endif
#if defined(__x86_64__)
  // What simt_switch pops: six registers, then the address to return to. Entered by a return, a
  // function expects the stack as a call leaves it, 8 bytes off 16.
  auto** top = reinterpret_cast<void**>(fiber.stack + kStackBytes) - 1;
  *--top = reinterpret_cast<void*>(entry);
  for (int i = 0; i < 6; ++i) *--top = nullptr;
  fiber.stack_pointer = top;
#else
  getcontext(&fiber.saved);
  fiber.saved.uc_stack = {fiber.stack, 0, kStackBytes};
  fiber.saved.uc_link = nullptr;
  makecontext(&fiber.saved, entry, 0);
#endif
}

void enter(Fiber& main, Fiber& fiber) {
  start_switch(fiber);
  switch_context(main, fiber);
}

void leave(Fiber& fiber, Fiber& main) {
  start_switch(main);
  switch_context(fiber, main);
}

void entered() {
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(nullptr, &main_stack, &main_stack_bytes);
#endif
}

bool on_a_stack(const void* address) {
  const auto* at = static_cast<const char*>(address);
  return at >= stacks() && at < stacks() + kStacks * kStep;
}

void synchronise([[maybe_unused]] Fiber* const* fibers, [[maybe_unused]] int count) {
#if defined(SIMT_RACES)
  // A place of its own each time: a place remembers all that was ever released there.
  char* place = new char;
  for (int i = 0; i < count; ++i) as(*fibers[i], __tsan_release, place);
  for (int i = 0; i < count; ++i) as(*fibers[i], __tsan_acquire, place);
  delete place;
#endif
}

void begin([[maybe_unused]] Fiber& main, [[maybe_unused]] Fiber* const* fibers,
           [[maybe_unused]] int count) {
#if defined(SIMT_RACES)
  main.tracked = __tsan_get_current_fiber();
  __tsan_release(&main);
  for (int i = 0; i < count; ++i) as(*fibers[i], __tsan_acquire, &main);
#endif
}

void end([[maybe_unused]] Fiber& main, [[maybe_unused]] Fiber* const* fibers,
         [[maybe_unused]] int count) {
#if defined(SIMT_RACES)
  for (int i = 0; i < count; ++i) as(*fibers[i], __tsan_release, &main);
  __tsan_acquire(&main);
#endif
}

}  // namespace simt
