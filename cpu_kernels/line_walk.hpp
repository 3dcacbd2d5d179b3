// Asking for rows of K or V before they are read, line by line in the order of their addresses, in small
// shares between other work.
#pragma once
#include "paged.hpp"

namespace FA_NAMESPACE {
namespace {

constexpr int64_t CACHE_LINE = 64;  // bytes

// Always inlined: GCC takes a function that only prefetches for one without effect, and drops its calls.
__attribute__((always_inline)) inline void prefetch_line(const char *at) { __builtin_prefetch(at, 0, 2); }

class LineWalk {
 public:
  // Of rows that take `used` bytes each.
  LineWalk(const KvRows &rows, int64_t used, int64_t key) : rows_(rows), used_(used), key_(key) {}

  // Keys from here on are not asked for, for now.
  void limit(int64_t past) { past_ = past; }
  int64_t lines_of_row() const { return (used_ + CACHE_LINE - 1) / CACHE_LINE; }

  // Asks for the next `count` lines.
  void fetch(int64_t count) {
    for (; count > 0; --count) {
      if (at_ >= end_) {
        if (key_ >= past_) return;
        turn();
      }
      prefetch_line(at_);
      at_ += CACHE_LINE;
    }
  }

  // The next `count` lines, for the caller to ask for one by one. Where they do not follow one another they
  // are asked for here, all at once, and `instead` is returned.
  const char *take(int64_t count, const void *instead) {
    if (at_ >= end_ && key_ < past_) turn();
    if (end_ - at_ >= count * CACHE_LINE) {
      at_ += count * CACHE_LINE;
      return at_ - count * CACHE_LINE;
    }
    fetch(count);
    return static_cast<const char *>(instead);
  }

 private:
  // To the next row, or to all rows up to the limit where nothing lies between them.
  void turn() {
    const int64_t keys = rows_.row_bytes == used_ ? rows_.run(key_, past_ - key_) : 1;
    at_ = rows_.at(key_);
    end_ = at_ + keys * used_;
    key_ += keys;
  }

  const KvRows &rows_;
  int64_t used_, key_, past_ = 0;
  const char *at_ = nullptr, *end_ = nullptr;
};

}  // namespace
}  // namespace FA_NAMESPACE
