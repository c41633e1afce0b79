// How large the blocks of block.h are, and what they need.
#pragma once

#include "../operands.cuh"
#include "block.h"

namespace fastlstm {
namespace cuda {

// A warp computes `octets` times 8 units. Of each of its rows of W, so many blocks of K are in
// registers.
struct BlockShape {
  int warps;  // at most
  int octets, register_blocks;
  // Inputs of a step are loaded while the step before is computed, not from its end on: that hides
  // more, but keeps those of two steps in registers.
  bool loads_early;
  constexpr int64_t units() const { return 8 * warps * octets; }
  constexpr int threads() const { return 32 * warps; }
};

// The smallest that has H units is taken; one of 0 warps does not exist. Many small warps are taken
// where they fit, to hide latency, and as much in registers as sm_80 and sm_90 hold without spills.
// Estimates: nothing here was measured.
constexpr int kShapeCount = 3;

template <class S>
constexpr BlockShape fwd_shape(int gates, int index) {
  constexpr bool kIsTf32 = Operand<S>::kPerWord == 1;
  constexpr BlockShape kLstm[2][kShapeCount] = {
      {{8, 1, 2, true}, {16, 1, 2, true}, {12, 2, 1, false}},
      {{8, 1, 4, true}, {16, 1, 2, true}, {}}};
  constexpr BlockShape kGru[2][kShapeCount] = {
      {{8, 1, 2, true}, {16, 1, 2, true}, {12, 2, 2, false}},
      {{8, 1, 4, true}, {16, 1, 2, true}, {}}};
  constexpr BlockShape kRnn[2][kShapeCount] = {{{8, 1, 2, true}, {16, 2, 8, true}, {}},
                                               {{8, 1, 4, true}, {16, 2, 8, true}, {}}};
  return gates == 4   ? kLstm[kIsTf32][index]
         : gates >= 2 ? kGru[kIsTf32][index]
                      : kRnn[kIsTf32][index];
}

// Two octets: a tile of mma.
template <class S>
constexpr BlockShape bwd_shape(int gates, int index) {
  constexpr bool kIsTf32 = Operand<S>::kPerWord == 1;
  constexpr BlockShape kLstm[2][kShapeCount] = {
      {{4, 2, 8, true}, {8, 2, 12, true}, {12, 2, 8, false}},
      {{4, 2, 16, true}, {8, 2, 12, true}, {}}};
  constexpr BlockShape kGru[2][kShapeCount] = {
      {{4, 2, 6, true}, {8, 2, 12, true}, {12, 2, 7, false}},
      {{4, 2, 12, true}, {8, 2, 12, true}, {}}};
  constexpr BlockShape kRnn[2][kShapeCount] = {{{4, 2, 2, true}, {16, 2, 6, true}, {}},
                                               {{4, 2, 4, true}, {16, 2, 6, true}, {}}};
  return gates == 4   ? kLstm[kIsTf32][index]
         : gates >= 2 ? kGru[kIsTf32][index]
                      : kRnn[kIsTf32][index];
}

// What lies in the shared memory of a block: blocks of K of W that are not in registers, two
// operand tiles for the step before and this one, and a RowQueue.
template <class S>
struct BlockLayout {
  int threads, blocks, matrix_words, row_words;

  // Of a warp: units and octets of rows of W.
  FASTLSTM_HOST_DEVICE BlockLayout(int units, int octets, int register_blocks, int64_t H, int64_t K)
      : threads(32 * static_cast<int>(ceil_div<int64_t>(H, units))), blocks(blocks_of<S>(K)) {
    const int shared_blocks = blocks > register_blocks ? blocks - register_blocks : 0;
    matrix_words = (shared_blocks > 0 ? shared_blocks : 1) * octets * threads * kChunkWords;
    row_words = padded_row_bytes(register_blocks + shared_blocks) / 4;
  }

  FASTLSTM_HOST_DEVICE int tile_words() const { return kRowTile * row_words; }
  FASTLSTM_HOST_DEVICE size_t words() const { return matrix_words + size_t{2} * tile_words(); }

  FASTLSTM_DEVICE Word4* matrix() const { return device::shared_memory<Word4>(); }
  FASTLSTM_DEVICE OperandTile<S> tile(int64_t step) const {
    return {tiles() + step % 2 * tile_words(), row_words};
  }
  FASTLSTM_DEVICE void* queue() const { return tiles() + 2 * tile_words(); }
  // What lies past the end of K is multiplied too.
  FASTLSTM_DEVICE void clear_tiles() const {
    for (int i = static_cast<int>(threadIdx.x); i < 2 * tile_words(); i += threads) tiles()[i] = 0;
  }

 private:
  FASTLSTM_DEVICE uint32_t* tiles() const {
    return device::shared_memory<uint32_t>() + matrix_words;
  }
};

}  // namespace cuda
}  // namespace fastlstm
