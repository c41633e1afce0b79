// How W_hh comes to the chip: from its rows in global memory to operands of mma in shared memory.
#pragma once

#include "../operands.cuh"
#include "layout.h"

namespace fastlstm {
namespace cuda {

// Rows of a matrix in global memory, of K numbers each.
template <class S>
struct MatrixRows {
  const S* begin;
  int64_t stride;
  int64_t K;
  bool aligned;  // every row to 16 bytes

  FASTLSTM_DEVICE MatrixRows(const S* begin, int64_t stride, int64_t K)
      : begin(begin),
        stride(stride),
        K(K),
        aligned(reinterpret_cast<uintptr_t>(begin) % 16 == 0 &&
                stride * static_cast<int64_t>(sizeof(S)) % 16 == 0) {}

  // Numbers k, k + 1, .. of a row, which is none where row < 0, on their way to shared memory. Zero
  // past the end.
  FASTLSTM_DEVICE void fetch(Word4* to, int64_t row, int64_t k) const {
    const S* from = begin + row * stride + k;
    if (aligned && k + kPerChunk<S> <= K) {
      device::cp_async_16(to, row >= 0 ? from : begin, row >= 0);
      return;
    }
    Word4 words = {};
    S numbers[kPerChunk<S>];
    FASTLSTM_UNROLL
    for (int i = 0; i < kPerChunk<S>; ++i)
      numbers[i] = row >= 0 && k + i < K ? from[i] : static_cast<S>(0.0f);
    memcpy(&words, numbers, sizeof words);
    *to = words;
  }
};

// What mma is to see of numbers as they lie in memory.
FASTLSTM_DEVICE Word4 as_operand(const Word4& raw, const float*) {
  Word4 words;
  FASTLSTM_UNROLL
  for (int i = 0; i < kChunkWords; ++i)
    words.w[i] = device::to_tf32(device::bit_cast<float>(raw.w[i]));
  return words;
}
template <class S>
FASTLSTM_DEVICE Word4 as_operand(const Word4& raw, const S*) {
  return raw;
}

// What a lane has of a block of K of a tile of 16 rows: of each of its two mma the operand, as it
// has to be in registers.
struct TileBlock {
  Word4 of_half[2];
};

// Tile-blocks of this thread in shared memory: a warp reads 512 adjacent bytes.
class SharedTiles {
 public:
  FASTLSTM_DEVICE explicit SharedTiles(void* shared)
      : begin_(static_cast<Word4*>(shared) + threadIdx.x) {}
  FASTLSTM_DEVICE TileBlock at(int index) const { return {{*half(index, 0), *half(index, 1)}}; }

  // Numbers k, k + 1, .. of rows low_row and high_row; -1: none.
  template <class S>
  FASTLSTM_DEVICE void fetch(int index, const MatrixRows<S>& w, int64_t low_row, int64_t high_row,
                             int64_t k) const {
    w.fetch(half(index, 0), low_row, k);
    w.fetch(half(index, 1), high_row, k);
  }
  // After the fetches have come: from two rows to two operands.
  template <class S>
  FASTLSTM_DEVICE void make_operand(int index) const {
    const Word4 low = as_operand(*half(index, 0), static_cast<const S*>(nullptr));
    const Word4 high = as_operand(*half(index, 1), static_cast<const S*>(nullptr));
    *half(index, 0) = {low.w[0], high.w[0], low.w[1], high.w[1]};
    *half(index, 1) = {low.w[2], high.w[2], low.w[3], high.w[3]};
  }

 private:
  FASTLSTM_DEVICE Word4* half(int index, int half) const {
    return begin_ + (2 * index + half) * kGroupThreads;
  }
  Word4* begin_;
};

template <class S>
FASTLSTM_DEVICE int64_t chunk_begin(int block) {
  return (int64_t{block} * 4 + device::lane() % 4) * kPerChunk<S>;
}

FASTLSTM_DEVICE void wait_for_fetches() {
  device::cp_async_commit();
  device::cp_async_wait<0>();
}

}  // namespace cuda
}  // namespace fastlstm
