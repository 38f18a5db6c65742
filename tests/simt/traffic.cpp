// SPDX-License-Identifier: Apache-2.0
// Counts the bytes that kernels move, and finds blocks of one launch that touch the same byte of
// global memory, one of them writing, with nothing that orders them.
//
// What orders blocks is an atomic between two fences: what a block did before its last fence is
// seen, behind its next fence, by a block that later updates the same atomic. A barrier must tie
// the other threads to the one that fences; where it is missing some order of threads shows it.
// What a block has seen so it does not pass on, and a byte that several blocks read stays theirs:
// correct kernels that need more would be reported.
//
// Kernels are compiled with -fsanitize=thread and linked with this file instead of the sanitizer's
// runtime: the compiler then calls a function below before every memory access that is left after
// optimisation, and the kernels' source knows nothing of it. An access to a stack is a register or
// a parameter on hardware and does not count. An explicit memcpy is not seen.
//
// Per launch, and for reads and writes of global memory each:
//  - requested: what threads ask for, before anything is shared or cached;
//  - sectors: 32 bytes for each sector that a block touches, once per block: what the second-level
//    cache must give if a block never fetches twice. Halos of neighbours count in each block;
//  - distinct: bytes touched at all, once per launch: what memory must give.
#include <dlfcn.h>
#include <pthread.h>

#include <algorithm>
#include <cstdint>
#include <deque>
#include <memory>
#include <sstream>
#include <string>
#include <unordered_map>
#include <utility>
#include <vector>

#include "cuda_runtime.h"
#include "fibers.h"
#include "simt.h"

namespace simt {
namespace {

constexpr uintptr_t kPage = 4096;
constexpr uintptr_t kSector = 32;
constexpr size_t kMaxPages = 16 * 1024;  // 0.6 GB of shadow
constexpr uint32_t kMany = 0x80000000u;  // beside the number of the last: other blocks read too

// What a block does up to a fence is a segment. They are numbered through all launches; 0 is none.
struct Shadow {
  uint32_t reader[kPage] = {}, writer[kPage] = {};  // the last segment, per byte
  uint32_t sector_reader[kPage / kSector] = {}, sector_writer[kPage / kSector] = {};
};

struct Way {
  int64_t requested = 0, sectors = 0, distinct = 0;
};

// Segments [begin, end) of one block each, in their order.
using Segments = std::vector<std::pair<uint32_t, uint32_t>>;

// The first `count` of them.
struct Seen {
  const Segments* segments;
  size_t count;

  bool has(uint32_t segment) const {
    const auto end = segments->begin() + static_cast<std::ptrdiff_t>(count);
    const auto behind = std::upper_bound(segments->begin(), end, std::pair{segment, UINT32_MAX});
    return behind != segments->begin() && segment < std::prev(behind)->second;
  }
};

struct Counts {
  int64_t blocks = 0, threads = 0;
  Way read, written;
  int64_t shared_read = 0, shared_written = 0;
};

class Traffic final : public Observer {
 public:
  Traffic() { observer() = this; }

  void launch(const std::string& kernel, int64_t blocks, int threads) override {
    current_ = &launches_.emplace_back(kernel, Counts()).second;
    current_->blocks = blocks;
    current_->threads = blocks * threads;
    kernel_ = kernel;
    first_ = segment_ + 1;
    released_.clear();
    conflict_.clear();
    if (pages_.size() > kMaxPages) pages_.clear();
    last_page_ = nullptr;
    pthread_attr_t attributes;
    void* stack = nullptr;
    size_t bytes = 0;
    pthread_getattr_np(pthread_self(), &attributes);
    pthread_attr_getstack(&attributes, &stack, &bytes);
    pthread_attr_destroy(&attributes);
    caller_ = reinterpret_cast<uintptr_t>(stack);
    caller_end_ = caller_ + bytes;
  }

  void block() override {
    own_ = ++segment_;
    pending_.clear();
    seen_.clear();
  }

  void fence() override {
    ++segment_;
    seen_.insert(seen_.end(), pending_.begin(), pending_.end());
    pending_.clear();
  }

  // The running block updates an atomic.
  void synchronise(uintptr_t atomic) {
    if (!in_kernel()) return;
    Segments& released = released_[atomic];
    pending_.push_back({&released, released.size()});
    if (segment_ > own_) released.push_back({own_, segment_});
  }

  void finish() override {
    if (!conflict_.empty()) throw Error("simt: " + kernel_ + ": " + conflict_);
  }

  void touch(const void* address, size_t size, bool writes, bool is_atomic, const void* place) {
    if (!in_kernel() || is_own(address) || on_a_stack(address)) return;
    const auto at = reinterpret_cast<uintptr_t>(address);
    if (at >= caller_ && at < caller_end_) return;
    const auto bytes = static_cast<int64_t>(size);
    if (is_shared(address)) {
      (writes ? current_->shared_written : current_->shared_read) += bytes;
      return;
    }
    Way& way = writes ? current_->written : current_->read;
    way.requested += bytes;
    for (uintptr_t byte = at; byte < at + size; ++byte) {
      Shadow& shadow = shadow_of(byte);
      const uintptr_t i = byte % kPage;
      uint32_t& sector = (writes ? shadow.sector_writer : shadow.sector_reader)[i / kSector];
      if (sector < own_) way.sectors += kSector;
      sector = segment_;
      uint32_t& seen = (writes ? shadow.writer : shadow.reader)[i];
      if (!of_this_launch(seen)) ++way.distinct;
      if (!is_atomic) check(shadow, i, writes, place);
      const bool by_others = of_this_launch(seen) && ((seen & kMany) != 0 || seen < own_);
      seen = by_others && !writes ? segment_ | kMany : segment_;
    }
  }

  std::string report() const {
    std::ostringstream out;
    for (const auto& [name, c] : launches_) {
      out << name << '\t' << c.blocks << '\t' << c.threads;
      for (const Way* way : {&c.read, &c.written}) {
        out << '\t' << way->requested << '\t' << way->sectors << '\t' << way->distinct;
      }
      out << '\t' << c.shared_read << '\t' << c.shared_written << '\n';
    }
    return out.str();
  }

  void reset() { launches_.clear(); }

 private:
  bool of_this_launch(uint32_t segment) const { return (segment & ~kMany) >= first_; }

  // Of another block of the launch, and nothing orders it before what runs now.
  bool is_unordered(uint32_t segment) const {
    if (!of_this_launch(segment)) return false;
    if ((segment & kMany) != 0) return true;
    return segment < own_ &&
           std::none_of(
               seen_.begin(), seen_.end(), [&](const Seen& seen) { return seen.has(segment); });
  }

  Shadow& shadow_of(uintptr_t address) {
    const uintptr_t page = address / kPage;
    if (last_page_ == nullptr || page != last_number_) {
      std::unique_ptr<Shadow>& entry = pages_[page];
      if (!entry) entry = std::make_unique<Shadow>();
      last_page_ = entry.get();
      last_number_ = page;
    }
    return *last_page_;
  }

  void check(const Shadow& shadow, uintptr_t i, bool writes, const void* place) {
    const bool written = is_unordered(shadow.writer[i]);
    const bool read = writes && is_unordered(shadow.reader[i]);
    if (!(written || read) || !conflict_.empty()) return;
    Dl_info info;
    std::ostringstream what;
    what << "block (" << blockIdx.x << ", " << blockIdx.y << ", " << blockIdx.z << ") "
         << (writes ? "writes" : "reads") << " a byte that another block of the launch "
         << (written ? "has written" : "has read");
    if (dladdr(place, &info) != 0) {
      what << ", at " << info.dli_fname << "+0x" << std::hex
           << static_cast<const char*>(place) - static_cast<const char*>(info.dli_fbase);
    }
    conflict_ = what.str();
  }

  std::deque<std::pair<std::string, Counts>> launches_;  // of which one in work stays in place
  Counts* current_ = nullptr;
  std::string kernel_, conflict_;
  uint32_t segment_ = 0;
  uint32_t own_ = 1, first_ = 1;                      // the first of the block, and of the launch
  std::unordered_map<uintptr_t, Segments> released_;  // by what was added to atomics
  std::vector<Seen> pending_, seen_;                  // up to the next fence, and behind it
  std::unordered_map<uintptr_t, std::unique_ptr<Shadow>> pages_;
  Shadow* last_page_ = nullptr;
  uintptr_t last_number_ = 0;
  uintptr_t caller_ = 0, caller_end_ = 0;  // the stack of the thread that launches
};

Traffic traffic;

}  // namespace
}  // namespace simt

// One line per launch: name, blocks, threads; requested, sectors, distinct of reads, then
// of writes; shared bytes read, written. Valid until the next call.
extern "C" const char* simt_counts() {
  static std::string text;
  text = simt::traffic.report();
  return text.c_str();
}

extern "C" void simt_reset_counts() { simt::traffic.reset(); }

// What g++ calls. Hidden: another library of the process may bring the sanitizer's own.
#define SIMT_CALLED extern "C" __attribute__((visibility("hidden")))
#define SIMT_ACCESS(NAME, SIZE, WRITES)                                             \
  SIMT_CALLED void __tsan_##NAME(void* address) {                                   \
    simt::traffic.touch(address, SIZE, WRITES, false, __builtin_return_address(0)); \
  }
#define SIMT_ACCESSES(SIZE)                      \
  SIMT_ACCESS(read##SIZE, SIZE, false)           \
  SIMT_ACCESS(write##SIZE, SIZE, true)           \
  SIMT_ACCESS(unaligned_read##SIZE, SIZE, false) \
  SIMT_ACCESS(unaligned_write##SIZE, SIZE, true)
SIMT_ACCESSES(1)
SIMT_ACCESSES(2)
SIMT_ACCESSES(4)
SIMT_ACCESSES(8)
SIMT_ACCESSES(16)
SIMT_CALLED void __tsan_read_range(void* address, size_t size) {
  simt::traffic.touch(address, size, false, false, __builtin_return_address(0));
}
SIMT_CALLED void __tsan_write_range(void* address, size_t size) {
  simt::traffic.touch(address, size, true, false, __builtin_return_address(0));
}
SIMT_CALLED void __tsan_init() {}
SIMT_CALLED void __tsan_func_entry(void*) {}
SIMT_CALLED void __tsan_func_exit() {}
SIMT_CALLED void __tsan_vptr_update(void*, void*) {}

// An atomic update reads and writes its bytes once.
#define SIMT_ATOMIC(BITS, T)                                                                 \
  SIMT_CALLED T __tsan_atomic##BITS##_load(const volatile T* at, int) { return *at; }        \
  SIMT_CALLED int __tsan_atomic##BITS##_compare_exchange_strong(volatile T* at, T* expected, \
                                                                T desired, int, int) {       \
    T* address = const_cast<T*>(at);                                                         \
    simt::traffic.synchronise(reinterpret_cast<uintptr_t>(address));                         \
    simt::traffic.touch(address, sizeof(T), false, true, nullptr);                           \
    simt::traffic.touch(address, sizeof(T), true, true, nullptr);                            \
    return __atomic_compare_exchange_n(address, expected, desired, false, __ATOMIC_RELAXED,  \
                                       __ATOMIC_RELAXED);                                    \
  }
SIMT_ATOMIC(32, uint32_t)
SIMT_ATOMIC(64, uint64_t)
