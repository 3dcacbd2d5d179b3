// How a long call is stopped. Whoever waits for it is asked from time to time, on the thread that called, and
// says whether it is to go on; the other threads look at what was answered.
#pragma once
#include <pthread.h>

#include <cstdint>

namespace fa {

struct Watch {
  pthread_t caller;
  int64_t next; /* when to ask again, in nanoseconds */
  int32_t asked; /* somebody was asked: the call is a long one */
  int32_t stopped; /* the answer; set once, read by all threads */
};

// Lets a call be watched. False: nobody asked for that, or this thread is not the one that is watched.
bool begin_watch(Watch &watch);

// Whether it is time to ask; only ever on the thread that called.
bool is_due(const Watch &watch);

// Asks. The answer may be computed by anything, Python among them: the processor's modes and registers are to
// be as the rest of a program expects them.
void ask(Watch &watch);

static inline bool is_stopped(const Watch &watch) {
  return __atomic_load_n(&watch.stopped, __ATOMIC_RELAXED) != 0;
}

static inline bool was_asked(const Watch &watch) {
  return __atomic_load_n(&watch.asked, __ATOMIC_RELAXED) != 0;
}

}  // namespace fa
