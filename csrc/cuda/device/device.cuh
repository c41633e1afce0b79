// What the kernels take from the hardware, each a small function with a name; what none of them
// calls is not here. Kernels contain no PTX and no #ifdef, so that the same source compiles twice:
// with nvcc, and with FASTLSTM_SIMT with any C++ compiler, where tests/simt/device_simt.h has the
// same functions for its emulator.
//
// A kernel is `template <...> FASTLSTM_KERNEL void name(const Params p)`: one plain struct of at
// most 4 KB, and locals without destructors. Blocks are one-dimensional as far as lane() and warp()
// are concerned.
#pragma once

#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include "host_device.h"

namespace fastlstm {
namespace device {

struct Half;
struct BFloat16;

// What load_relaxed_16 and its like move.
struct alignas(16) Word4 {
  uint32_t w[4];
};

// Keeps a parameter out of template argument deduction.
template <class T>
struct Identity {
  using type = T;
};

template <class To, class From>
FASTLSTM_HOST_DEVICE To bit_cast(const From& from) {
  static_assert(sizeof(To) == sizeof(From), "bit_cast");
  To to;
  memcpy(&to, &from, sizeof to);
  return to;
}

}  // namespace device
}  // namespace fastlstm

#ifdef FASTLSTM_SIMT
#include "device_simt.h"
#else
#include "cuda.cuh"
#endif

#include "half.cuh"

namespace fastlstm {
namespace device {

// a / b, for b and 1 / b that are normal: rounded as a division is, but for the last bit of a few
// (1 of 12 million, from reciprocals an ulp off; a Newton step for the reciprocal too: none). The
// compiler's own, for any b, is a call, which keeps divisions from overlapping: those of an LSTM's
// cell follow one another then.
FASTLSTM_DEVICE float divide(float a, float b) {
  const float r = reciprocal_approx(b), q = a * r;
  return ::fmaf(::fmaf(-b, q, a), r, q);
}

// Looks of a wait at what it waits for. One takes at least some 20 ns (shared memory) and at most
// about a microsecond (L2 under load, or mbarrier_try_wait asleep): together seconds to minutes. No
// right program waits for that long; sanitizers slow down the looks as well, and debuggers halt
// them.
constexpr int kMostLooks = 1 << 28;

// Ends the launch where a wait has taken too many looks, so that a mistake is an error and not a
// GPU that hangs.
class Patience {
 public:
  FASTLSTM_DEVICE explicit Patience(int most_looks = kMostLooks) : left_(most_looks) {}
  // After every look in vain.
  FASTLSTM_DEVICE void look() {
    if (--left_ < 0) trap("a wait took too many looks");
  }

 private:
  int left_;
};

// Until the phase of that parity is over.
FASTLSTM_DEVICE void mbarrier_wait(uint64_t* barrier, int parity, int most_looks = kMostLooks) {
  Patience patience(most_looks);
  while (!mbarrier_try_wait(barrier, parity)) patience.look();
}

// A barrier of all threads of the `blocks` blocks that share the counter, which must all be
// resident (launch_cooperative). What any of the threads stored before it, every one sees after
// it. counter: in global memory, zero before the launch. epoch: of each thread, zero at first, and
// the same in all of them.
FASTLSTM_DEVICE void group_barrier(unsigned* counter, unsigned blocks, unsigned& epoch,
                                   int most_looks = kMostLooks) {
  epoch += 1;
  sync_block();
  if (threadIdx.x == 0 && threadIdx.y == 0 && threadIdx.z == 0) {
    // Release is cumulative: it covers what sync_block made visible to this thread.
    add_release(counter, 1u);
    const unsigned target = epoch * blocks;
    Patience patience(most_looks);
    // As a signed difference, for a counter that has gone around.
    while (static_cast<int>(load_acquire(counter) - target) < 0) patience.look();
  }
  sync_block();
}

}  // namespace device
}  // namespace fastlstm
