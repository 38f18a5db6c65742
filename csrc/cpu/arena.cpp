// SPDX-License-Identifier: Apache-2.0
#include "cpu/arena.h"

#include <ATen/ops/empty_strided.h>
#include <ATen/ops/from_blob.h>
#include <c10/core/MemoryFormat.h>
#include <c10/util/Exception.h>
#include <c10/util/accumulate.h>

#include <algorithm>
#include <iterator>
#include <limits>
#include <map>
#include <mutex>
#include <new>

#if defined(__linux__)
#include <sys/mman.h>
#endif
#if !defined(_WIN32)
#include <pthread.h>
#endif

namespace darts_fast::cpu {
namespace {

constexpr int64_t kHugePage = int64_t(2) << 20;
constexpr int64_t kSmallUnit = int64_t(64) << 10;
constexpr std::align_val_t kAlignment{64};

// Live and cached blocks together may exceed the most that was ever live at once by a part in
// kSlack, so that one block more than ever before does not drive out another in every step.
constexpr int64_t kSlack = 8;

// A block in use that is too large may leave idle a part in kIdle of the most that was ever live.
constexpr int64_t kIdle = 11;

int64_t block_bytes(int64_t bytes) {
  const int64_t unit = bytes >= kHugePage ? kHugePage : kSmallUnit;
  return (bytes + unit - 1) / unit * unit;
}

// Large blocks come straight from the system: what malloc gets back it may keep, or have no way to
// return. One huge page more than needed holds an aligned block; the rest of it goes back at once.
void* system_allocate(int64_t bytes) {
#if defined(__linux__)
  if (bytes >= kHugePage) {
    void* mapped = mmap(nullptr, bytes + kHugePage, PROT_READ | PROT_WRITE,
                        MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (mapped == MAP_FAILED) return nullptr;
    char* begin = static_cast<char*>(mapped);
    const int64_t before = (kHugePage - reinterpret_cast<uintptr_t>(begin) % kHugePage) % kHugePage;
    if (before > 0) munmap(begin, before);
    char* block = begin + before;
    munmap(block + bytes, kHugePage - before);
    madvise(block, bytes, MADV_HUGEPAGE);  // a wish: without huge pages the block works as well
    return block;
  }
#endif
  return ::operator new(bytes, kAlignment, std::nothrow);
}

void system_free(void* block, [[maybe_unused]] int64_t bytes) {
#if defined(__linux__)
  if (bytes >= kHugePage) {
    munmap(block, bytes);
    return;
  }
#endif
  ::operator delete(block, kAlignment);
}

struct Block {
  void* data;
  int64_t bytes;
};

class Arena {
 public:
  // Never destroyed: tensors may be freed after the destructors of statics have run.
  static Arena& instance() {
    static Arena& arena = *new Arena;
    return arena;
  }

  // The smallest cached block that fits, if not more than a quarter of it would lie idle, or if a
  // new one would drive cached ones out and little lies idle: in a forward without gradients few
  // are live at once, and of other sizes in each stage. What the call that asks for it gives back
  // itself may take any: while it runs nobody else wants them.
  Block take(int64_t bytes, bool transient) {
    const std::lock_guard<std::mutex> lock(mutex_);
    const auto fit = cached_.lower_bound(bytes);
    const int64_t idle = fit == cached_.end() ? 0 : fit->first - bytes;
    const bool reuse =
        fit != cached_.end() && (transient || idle <= fit->first / 4 ||
                                 (idle <= peak_ / kIdle && cached_bytes_ > room(bytes)));
    const Block block = reuse ? uncache(fit) : allocate(bytes);
    live_ += block.bytes;
    peak_ = std::max(peak_, live_);
    return block;
  }

  void give_back(Block block) {
    const std::lock_guard<std::mutex> lock(mutex_);
    live_ -= block.bytes;
    cached_bytes_ += block.bytes;
    cached_.emplace(block.bytes, block.data);
  }

  void release() {
    const std::lock_guard<std::mutex> lock(mutex_);
    release_down_to(0);
  }

  std::tuple<int64_t, int64_t, int64_t> bytes() {
    const std::lock_guard<std::mutex> lock(mutex_);
    return {live_, cached_bytes_, peak_};
  }

 private:
  // A child of fork has only the forking thread: no other one may hold the lock at that moment.
  Arena() {
#if !defined(_WIN32)
    pthread_atfork([] { instance().mutex_.lock(); }, [] { instance().mutex_.unlock(); },
                   [] { instance().mutex_.unlock(); });
#endif
  }

  Block uncache(std::multimap<int64_t, void*>::iterator at) {
    const Block block{at->second, at->first};
    cached_.erase(at);
    cached_bytes_ -= block.bytes;
    return block;
  }

  // Frees cached blocks until at most `bytes` are cached: the smallest one that is enough, or the
  // largest of those that are not.
  void release_down_to(int64_t bytes) {
    while (!cached_.empty() && cached_bytes_ > bytes) {
      const auto enough = cached_.lower_bound(cached_bytes_ - bytes);
      const Block block = uncache(enough != cached_.end() ? enough : std::prev(cached_.end()));
      system_free(block.data, block.bytes);
    }
  }

  // How much may stay cached beside a new block.
  int64_t room(int64_t bytes) const {
    return std::max<int64_t>(peak_ + peak_ / kSlack - live_ - bytes, 0);
  }

  Block allocate(int64_t bytes) {
    release_down_to(room(bytes));
    void* data = system_allocate(bytes);
    if (data == nullptr) {
      release_down_to(0);
      data = system_allocate(bytes);
    }
    TORCH_CHECK_WITH(OutOfMemoryError, data != nullptr, "darts_fast: cannot allocate ", bytes,
                     " bytes, ", live_, " are in use");
    return {data, bytes};
  }

  std::mutex mutex_;
  std::multimap<int64_t, void*> cached_;  // bytes -> block
  int64_t live_ = 0, cached_bytes_ = 0, peak_ = 0;
};

at::Tensor arena_strided(at::IntArrayRef sizes, at::IntArrayRef strides,
                         const at::TensorOptions& options, bool transient) {
  const int64_t elements = c10::multiply_integers(sizes);
  TORCH_INTERNAL_ASSERT(elements >= 0 && options.device().is_cpu());
  if (elements == 0) return at::empty_strided(sizes, strides, options);
  const int64_t itemsize = static_cast<int64_t>(options.dtype().itemsize());
  // Half of the range leaves room for rounding up and for adding up.
  TORCH_CHECK_WITH(OutOfMemoryError, elements <= std::numeric_limits<int64_t>::max() / 2 / itemsize,
                   "darts_fast: cannot allocate ", elements, " elements of ", itemsize, " bytes");
  const Block block = Arena::instance().take(block_bytes(elements * itemsize), transient);
  return at::from_blob(
      block.data, sizes, strides, [block](void*) { Arena::instance().give_back(block); }, options);
}

}  // namespace

at::Tensor arena_empty(int64_t elements, const at::TensorOptions& options) {
  return arena_strided({elements}, {1}, options, false);
}

at::Tensor arena_transient(int64_t elements, const at::TensorOptions& options) {
  return arena_strided({elements}, {1}, options, true);
}

at::Tensor arena_maps(at::IntArrayRef sizes, const at::TensorOptions& options) {
  return arena_strided(sizes, c10::get_channels_last_strides_2d(sizes), options, false);
}

void arena_release() { Arena::instance().release(); }

std::tuple<int64_t, int64_t, int64_t> arena_bytes() { return Arena::instance().bytes(); }

}  // namespace darts_fast::cpu
