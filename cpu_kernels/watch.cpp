// See watch.hpp. A process has one who is asked: Python, whose main thread is the one that signals reach.
#include "watch.hpp"

#include <time.h>

#include "fastattention.h"

namespace {

constexpr int64_t INTERVAL = 50'000'000;  // nanoseconds; short calls ask nobody

int32_t (*asked)(void) = nullptr;
uintptr_t watched = 0;  // a pthread_t

int64_t now() {
#if defined(CLOCK_MONOTONIC_COARSE)
  constexpr clockid_t CLOCK = CLOCK_MONOTONIC_COARSE;  // good to milliseconds, and read in a few nanoseconds
#else
  constexpr clockid_t CLOCK = CLOCK_MONOTONIC;
#endif
  timespec time;
  clock_gettime(CLOCK, &time);
  return time.tv_sec * INT64_C(1'000'000'000) + time.tv_nsec;
}

uintptr_t number_of(pthread_t thread) { return (uintptr_t)thread; }  // an integer or a pointer

}  // namespace

namespace fa {

bool begin_watch(Watch &watch) {
  if (!asked || number_of(pthread_self()) != watched) return false;
  watch = {pthread_self(), now() + INTERVAL, 0, 0};
  return true;
}

bool is_due(const Watch &watch) {
  return pthread_equal(pthread_self(), watch.caller) && !is_stopped(watch) && now() >= watch.next;
}

void ask(Watch &watch) {
  __atomic_store_n(&watch.asked, 1, __ATOMIC_RELAXED);
  if (!asked()) __atomic_store_n(&watch.stopped, 1, __ATOMIC_RELAXED);
  watch.next = now() + INTERVAL;
}

}  // namespace fa

extern "C" void fa_set_watch(int32_t (*go_on)(void), uintptr_t thread) {
  asked = go_on;
  watched = thread;
}
