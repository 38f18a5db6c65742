// SPDX-License-Identifier: Apache-2.0
// Fibers: functions with a stack of their own that are entered and left by switches, and that the
// sanitizers know of. All run on the calling thread.
#pragma once

#include <cstddef>
#if !defined(__x86_64__)
#include <ucontext.h>
#endif

namespace simt {

struct Fiber {
#if defined(__x86_64__)
  void* stack_pointer = nullptr;
#else
  ucontext_t saved;
#endif
  char* stack = nullptr;    // null for the fiber that is the calling thread itself
  void* tracked = nullptr;  // by the thread sanitizer
};

// Puts `fiber` at the start of `entry`, which must never return; its stack is number `index` of a
// row of equal stacks, each above a page that is not mapped in: a kernel that needs more faults.
void prepare(Fiber& fiber, int index, void (*entry)());

// From the calling thread to a fiber, and back. `entered` is a fiber's first call, on its stack.
void enter(Fiber& main, Fiber& fiber);
void leave(Fiber& fiber, Fiber& main);
void entered();

// Whether the address lies in one of the stacks.
bool on_a_stack(const void* address);

// For the thread sanitizer: what `fibers[0..count)` did so far happens before what any of them does
// next. Nothing else orders two fibers.
void synchronise(Fiber* const* fibers, int count);

// The same from the calling thread to the fibers, and from them to it.
void begin(Fiber& main, Fiber* const* fibers, int count);
void end(Fiber& main, Fiber* const* fibers, int count);

}  // namespace simt
