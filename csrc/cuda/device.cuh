// Everything a kernel needs of the hardware, each a small function with a name. Kernels contain no
// PTX and no #ifdef, so that the same source compiles twice: with nvcc, and with FASTLSTM_SIMT with
// any C++ compiler, where tests/simt/device_simt.h has the same functions for its emulator.
//
// A kernel is `template <...> FASTLSTM_KERNEL void name(const Params p)`: one plain struct of at
// most 4 KB, and locals without destructors. Blocks are one-dimensional as far as lane() and warp()
// are concerned.
#pragma once

#include <stddef.h>
#include <stdint.h>
#include <string.h>

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

}  // namespace device
}  // namespace fastlstm

#ifdef FASTLSTM_SIMT
#include "device_simt.h"
#else
#include "device_cuda.cuh"
#endif

#include "half.cuh"

namespace fastlstm {
namespace device {

// A barrier of all threads of all blocks, which must all be resident (launch_cooperative). What
// any thread stored before it, every thread sees after it. counter: in global memory, zero before
// the launch. epoch: of each thread, zero at first, and the same in all of them.
FASTLSTM_DEVICE void grid_barrier(unsigned* counter, unsigned blocks, unsigned& epoch) {
  epoch += 1;
  sync_block();
  if (threadIdx.x == 0 && threadIdx.y == 0 && threadIdx.z == 0) {
    // Release is cumulative: it covers what sync_block made visible to this thread.
    add_release(counter, 1u);
    const unsigned target = epoch * blocks;
    // As a signed difference, for a counter that has gone around.
    while (static_cast<int>(load_acquire(counter) - target) < 0) {
    }
  }
  sync_block();
}

}  // namespace device
}  // namespace fastlstm
