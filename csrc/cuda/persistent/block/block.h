// One block a batch tile: W_hh stays in registers and shared memory for the whole sequence, h in
// double-buffered shared memory, with one barrier of the block a step. For small H.
#pragma once

#include <stddef.h>

#include "../sequence.h"

namespace fastlstm {
namespace cuda {

// What the kernels need of a block, for a layer of H units; 0 where they do not take it.
// tf32: float32 products may be rounded to TF32, without which they take no float32.
template <class S>
size_t block_fwd_shared_bytes(CellKind cell, int64_t H, bool tf32);
template <class S>
size_t block_bwd_shared_bytes(CellKind cell, int64_t H, bool tf32);

template <class S>
void block_fwd(CellKind cell, const SequenceFwd<S>& p, cudaStream_t stream);
template <class S>
void block_bwd(CellKind cell, const SequenceBwd<S>& p, cudaStream_t stream);

}  // namespace cuda
}  // namespace fastlstm
