// A spinning barrier for the threads of one group: they meet once a step, every few microseconds.
#pragma once

#include <sched.h>

#include "../recurrence.h"
#include "simd.h"

namespace fastlstm {
FASTLSTM_ISA_LOCAL_BEGIN

// Spins first (a step is shorter than a futex call), then gives the core away: on a shared machine
// the thread that is waited for may need it.
FASTLSTM_INLINE void wait_for_group(Barrier* barrier, int group_size) {
  if (group_size == 1) return;
  const int epoch = __atomic_load_n(&barrier->epoch, __ATOMIC_ACQUIRE);
  if (__atomic_add_fetch(&barrier->arrived, 1, __ATOMIC_ACQ_REL) == group_size) {
    __atomic_store_n(&barrier->arrived, 0, __ATOMIC_RELAXED);
    __atomic_store_n(&barrier->epoch, epoch + 1, __ATOMIC_RELEASE);
    return;
  }
  for (int spins = 0; __atomic_load_n(&barrier->epoch, __ATOMIC_ACQUIRE) == epoch; ++spins) {
#if defined(__x86_64__)
    _mm_pause();
#endif
    if (spins > 2000) sched_yield();
  }
}

FASTLSTM_ISA_LOCAL_END
}  // namespace fastlstm
