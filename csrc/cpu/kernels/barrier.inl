// A spinning barrier for the threads of one group: they meet once a step, every few microseconds.
#pragma once

#include <sched.h>
#include <time.h>

#include "../../recurrence.h"
#include "simd.h"

namespace fastlstm {
FASTLSTM_ISA_LOCAL_BEGIN

FASTLSTM_INLINE int64_t barrier_clock() {
  timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return now.tv_sec * int64_t(1000000000) + now.tv_nsec;
}

// Spins first (a step is shorter than a futex call), then gives the core away: on a shared machine
// the thread that is waited for may need it. A step takes microseconds, a turn of another process
// on the core of that thread much longer: who has to wait for it says so (cores.h).
FASTLSTM_INLINE void wait_for_group(Barrier* barrier, int group_size) {
  constexpr int kSpins = 2000;
  constexpr int64_t kLate = 100000;
  if (group_size == 1) return;
  const int epoch = __atomic_load_n(&barrier->epoch, __ATOMIC_ACQUIRE);
  if (__atomic_add_fetch(&barrier->arrived, 1, __ATOMIC_ACQ_REL) == group_size) {
    __atomic_store_n(&barrier->arrived, 0, __ATOMIC_RELAXED);
    __atomic_store_n(&barrier->epoch, epoch + 1, __ATOMIC_RELEASE);
    return;
  }
  auto is_closed = [&] { return __atomic_load_n(&barrier->epoch, __ATOMIC_ACQUIRE) == epoch; };
  for (int spins = 0; spins < kSpins; ++spins) {
    if (!is_closed()) return;
#if defined(__x86_64__)
    _mm_pause();
#endif
  }
  const int64_t begin = barrier_clock();
  while (is_closed()) sched_yield();
  const int64_t waited = barrier_clock() - begin;
  if (waited >= kLate) __atomic_add_fetch(&barrier->late, waited, __ATOMIC_RELAXED);
}

FASTLSTM_ISA_LOCAL_END
}  // namespace fastlstm
