// The h that W_hh saw in each row of each step, where those are not the rows of h before: beside
// the backward kernels, as nothing in it waits for the step before.
#pragma once

#include "../device/device.cuh"
#include "rows.cuh"

namespace fastlstm {
namespace cuda {

template <class S>
FASTLSTM_KERNEL void collect_h_kernel(const SequenceBwd<S> p) {
  const SequenceBwdDirection<S>& d = p.direction[blockIdx.y];
  const DirectionRows rows(p.rows, d.reverse);
  for (int64_t t = blockIdx.x; t < p.rows.T; t += gridDim.x) {
    const int64_t before = rows.before(t), begin = rows.begin(t);
    for (int64_t n = 0; n < p.rows.N && rows.has(t, n); ++n) {
      const int64_t b = rows.batch_row(n);
      const bool cut = rows.is_cut(t, n, b);
      const S* h = rows.has(before, n) ? d.h + (rows.place(before) + b) * p.h_stride
                                       : d.h_initial + b * p.h_stride;
      for (int64_t j = threadIdx.x; j < p.rows.H; j += blockDim.x)
        d.h_operand[(begin + n) * p.rows.H + j] = cut ? S(0.0f) : h[j];
    }
  }
}

// Where backward asks for it.
template <class S>
void collect_h(const SequenceBwd<S>& p, cudaStream_t stream) {
  bool asked = false;
  for (int i = 0; i < p.directions; ++i) asked = asked || p.direction[i].h_operand;
  if (!asked || p.rows.T == 0) return;
  constexpr int64_t kMostBlocks = 65535;
  const int64_t blocks = p.rows.T < kMostBlocks ? p.rows.T : kMostBlocks;
  device::launch(&collect_h_kernel<S>, dim3(static_cast<unsigned>(blocks), p.directions, 1),
                 dim3(128, 1, 1), 0, stream, p);
}

}  // namespace cuda
}  // namespace fastlstm
