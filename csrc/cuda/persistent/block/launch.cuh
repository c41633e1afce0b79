// The launches of block.h.
#pragma once

#include <stdexcept>
#include <string>

#include "../collect.cuh"
#include "bwd.cuh"
#include "fwd.cuh"

namespace fastlstm {
namespace cuda {

template <class Block>
FASTLSTM_KERNEL void FASTLSTM_LAUNCH_BOUNDS(Block::kShape.threads(), 1)
    block_kernel(const typename Block::Params p) {
  Block block(p);
  block();
}

// What is known of the block for H units of a cell, the smallest that holds them.
template <class P>
struct BlockLaunch {
  void (*kernel)(P) = nullptr;  // null: no block holds them
  int threads = 0;
  size_t shared_bytes = 0;
};

template <class Block>
BlockLaunch<typename Block::Params> launch_of(int64_t H) {
  const auto layout = Block::layout(H);
  return {&block_kernel<Block>, layout.threads,
          layout.words() * sizeof(uint32_t) + Block::kQueueBytes};
}

template <template <class> class Cell, class S, int kIndex = 0>
BlockLaunch<SequenceFwd<S>> fwd_launch(int64_t H) {
  if constexpr (kIndex < kShapeCount) {
    constexpr BlockShape kShape = fwd_shape<S>(Cell<Lane<float>>::kGates, kIndex);
    if constexpr (kShape.warps > 0) {
      if (H <= kShape.units()) return launch_of<BlockFwd<Cell, S, kIndex>>(H);
    }
    return fwd_launch<Cell, S, kIndex + 1>(H);
  }
  return {};
}
template <template <class> class Cell, class S, int kIndex = 0>
BlockLaunch<SequenceBwd<S>> bwd_launch(int64_t H) {
  if constexpr (kIndex < kShapeCount) {
    constexpr BlockShape kShape = bwd_shape<S>(Cell<Lane<float>>::kGates, kIndex);
    if constexpr (kShape.warps > 0) {
      if (H <= kShape.units()) return launch_of<BlockBwd<Cell, S, kIndex>>(H);
    }
    return bwd_launch<Cell, S, kIndex + 1>(H);
  }
  return {};
}

template <class S, template <class> class... Cells>
BlockLaunch<SequenceFwd<S>> fwd_launch(CellList<Cells...>, CellKind cell, int64_t H) {
  using Find = BlockLaunch<SequenceFwd<S>> (*)(int64_t);
  static constexpr Find kFind[] = {&fwd_launch<Cells, S>...};
  return kFind[cell](H);
}
template <class S, template <class> class... Cells>
BlockLaunch<SequenceBwd<S>> bwd_launch(CellList<Cells...>, CellKind cell, int64_t H) {
  using Find = BlockLaunch<SequenceBwd<S>> (*)(int64_t);
  static constexpr Find kFind[] = {&bwd_launch<Cells, S>...};
  return kFind[cell](H);
}

// float32 is rounded to TF32 or not taken.
template <class S>
constexpr bool takes(bool tf32) {
  return Operand<S>::kPerWord == 2 || tf32;
}

template <class P>
void launch_block(const BlockLaunch<P>& block, const P& p, cudaStream_t stream) {
  if (!block.kernel) {
    throw std::invalid_argument("no block holds W_hh of " + std::to_string(p.rows.H) + " units");
  }
  const int64_t tiles = ceil_div<int64_t>(p.rows.N, kRowTile);
  device::launch(block.kernel, dim3(static_cast<unsigned>(tiles), p.directions, 1),
                 dim3(block.threads, 1, 1), block.shared_bytes, stream, p);
}

template <class S>
size_t block_fwd_shared_bytes(CellKind cell, int64_t H, bool tf32) {
  return takes<S>(tf32) ? fwd_launch<S>(AllCells{}, cell, H).shared_bytes : 0;
}
template <class S>
size_t block_bwd_shared_bytes(CellKind cell, int64_t H, bool tf32) {
  return takes<S>(tf32) ? bwd_launch<S>(AllCells{}, cell, H).shared_bytes : 0;
}

template <class S>
void block_fwd(CellKind cell, const SequenceFwd<S>& p, cudaStream_t stream) {
  launch_block(fwd_launch<S>(AllCells{}, cell, p.rows.H), p, stream);
}

template <class S>
void block_bwd(CellKind cell, const SequenceBwd<S>& p, cudaStream_t stream) {
  collect_h(p, stream);
  launch_block(bwd_launch<S>(AllCells{}, cell, p.rows.H), p, stream);
}

#define FASTLSTM_INSTANTIATE_BLOCK_FWD(S)                             \
  template size_t block_fwd_shared_bytes<S>(CellKind, int64_t, bool); \
  template void block_fwd<S>(CellKind, const SequenceFwd<S>&, cudaStream_t);
#define FASTLSTM_INSTANTIATE_BLOCK_BWD(S)                             \
  template size_t block_bwd_shared_bytes<S>(CellKind, int64_t, bool); \
  template void block_bwd<S>(CellKind, const SequenceBwd<S>&, cudaStream_t);

}  // namespace cuda
}  // namespace fastlstm
