// SPDX-License-Identifier: Apache-2.0
// The host's side of tables that kernels read from device memory: their bytes, their places, and
// the launches that put them there.
#pragma once

#include <cstring>
#include <limits>
#include <vector>

#include "cuda/cell.cuh"
#include "cuda/scratch.cuh"

namespace darts_fast::cuda {
namespace {

// Tables one behind the other, each aligned to 16 bytes.
class TableBytes {
 public:
  template <typename Row>
  size_t add(const Row* rows, int64_t count) {
    const size_t at = bytes_.size(), size = static_cast<size_t>(count) * sizeof(Row);
    bytes_.resize(at + (size + 15) / 16 * 16);
    if (size > 0) std::memcpy(bytes_.data() + at, rows, size);
    return at;
  }
  template <typename Row>
  size_t add(const std::vector<Row>& rows) {
    return add(rows.data(), static_cast<int64_t>(rows.size()));
  }

  size_t size() const { return bytes_.size(); }

  // Enqueues what puts them at `to`, and so many words of zeros behind them.
  void upload(void* to, int zeros, cudaStream_t stream) const {
    const int words = static_cast<int>(bytes_.size() / sizeof(TableWord));
    for (int from = 0; from < words; from += kTableWords) {
      TablePart part;
      part.to = static_cast<TableWord*>(to) + from;
      part.count = words - from < kTableWords ? words - from : kTableWords;
      part.zeros = from + part.count == words ? zeros : 0;
      std::memcpy(part.words, bytes_.data() + from * sizeof(TableWord),
                  part.count * sizeof(TableWord));
      launch("cell_table", cell_table, 1, kThreads, stream, part);
    }
  }

 private:
  std::vector<unsigned char> bytes_;
};

// Gives tables their places behind `to`, and collects their bytes.
class TableWriter {
 public:
  TableWriter(TableBytes& bytes, uintptr_t to) : bytes_(bytes), to_(to) {}

  template <typename Row, typename Rows>
  void rows(const Row*& pointer, const Rows& rows) const {
    pointer = reinterpret_cast<const Row*>(to_ + bytes_.add(rows));
  }
  // A pointer per entry: no table where none has any.
  template <typename Entry>
  void pointers(Entry* const*& pointer, Entry* const* entries, int64_t count) const {
    bool any = false;
    for (int64_t i = 0; entries != nullptr && i < count; ++i) any = any || entries[i] != nullptr;
    pointer = any ? reinterpret_cast<Entry* const*>(to_ + bytes_.add(entries, count)) : nullptr;
  }

 private:
  TableBytes& bytes_;
  uintptr_t to_;
};

class Lists {
 public:
  ListRange add(const std::vector<int64_t>& entries) {
    const ListRange range = {static_cast<int>(entries_.size()), static_cast<int>(entries.size())};
    for (const int64_t entry : entries) entries_.push_back(static_cast<int16_t>(entry));
    return range;
  }
  const std::vector<int16_t>& entries() const { return entries_; }

 private:
  std::vector<int16_t> entries_;
};

inline unsigned grid_size(int64_t blocks) { return static_cast<unsigned>(blocks); }

// As an entry of a table.
inline int16_t short_of(const char* op, int64_t value) {
  if (value > std::numeric_limits<int16_t>::max()) {
    throw std::runtime_error(std::string(op) + ": tables have room for 32767 of each kind, got " +
                             std::to_string(value));
  }
  return static_cast<int16_t>(value);
}

inline void refuse_large(const char* op, int64_t height, int64_t width, int64_t channels) {
  if (height * width * channels > std::numeric_limits<int32_t>::max()) {
    throw std::runtime_error(
        std::string(op) + ": an image must have less than 2^31 elements, got " +
        std::to_string(height) + " x " + std::to_string(width) + " x " + std::to_string(channels));
  }
}

// The tables of a call, with counters behind them. place(bytes, to) adds their bytes and points to
// them behind `to`; it is called twice, for the sizes and for where they are then put.
class TablePlace {
 public:
  template <typename Place>
  char* take(ScratchArrays& arrays, uint32_t*& counters, int64_t count, Place place) {
    TableBytes bytes;
    place(bytes, uintptr_t{0});
    char* table = arrays.take<char>(static_cast<int64_t>(bytes.size()));
    counters = arrays.take<uint32_t>(count);
    zeros_ = static_cast<int>(ceil_divide(count * sizeof(uint32_t), sizeof(TableWord)));
    return table;
  }

  template <typename Place>
  void upload(char* table, cudaStream_t stream, Place place) const {
    TableBytes bytes;
    place(bytes, reinterpret_cast<uintptr_t>(table));
    bytes.upload(table, zeros_, stream);
  }

 private:
  int zeros_ = 0;  // words of counters
};

}  // namespace
}  // namespace darts_fast::cuda
