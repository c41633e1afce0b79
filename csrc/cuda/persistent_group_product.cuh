// The part of W_hh that a block of a group has on the chip, and its products with a tile of rows of
// the batch. Forward it is [units, H] of each gate, backward its transpose [H, gates of the units]:
// H, not known when this is compiled, is summed over in one and what is computed in the other.
#pragma once

#include "group_layout.h"
#include "persistent_product.cuh"

namespace fastlstm {
namespace cuda {

// Rows of the batch as operands: tiles of eight rows, one after the other.
template <class S>
class OperandRows {
 public:
  FASTLSTM_DEVICE OperandRows(void* shared, int row_bytes)
      : words_(static_cast<uint32_t*>(shared)), row_words_(row_bytes / 4) {}

  FASTLSTM_DEVICE OperandTile<S> tile(int index) const {
    return {words_ + index * kRowTile * row_words_, row_words_};
  }
  template <int kCount>
  FASTLSTM_DEVICE void set(int row, int k, const float (&x)[kCount]) const {
    tile(row / kRowTile).set(row % kRowTile, k, x);
  }
  FASTLSTM_DEVICE Word4* chunk_at(int row, int chunk) const {
    return tile(row / kRowTile).chunk_at(row % kRowTile, chunk);
  }
  FASTLSTM_DEVICE void clear(int rows) const {
    for (int i = static_cast<int>(threadIdx.x); i < rows * row_words_; i += kGroupThreads)
      words_[i] = 0;
  }

 private:
  uint32_t* words_;
  int row_words_;
};

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

// Two octets of rows of a block of K.
struct TileBlock {
  Word4 low, high;
};

// Tile-blocks of this thread in shared memory: a warp reads 512 adjacent bytes.
class SharedTiles {
 public:
  FASTLSTM_DEVICE explicit SharedTiles(void* shared)
      : begin_(static_cast<Word4*>(shared) + threadIdx.x) {}
  FASTLSTM_DEVICE TileBlock at(int index) const { return {*low(index), *high(index)}; }

  // Numbers k, k + 1, .. of rows low_row and high_row; -1: none.
  template <class S>
  FASTLSTM_DEVICE void fetch(int index, const MatrixRows<S>& w, int64_t low_row, int64_t high_row,
                             int64_t k) const {
    w.fetch(low(index), low_row, k);
    w.fetch(high(index), high_row, k);
  }
  // After the fetches have come.
  template <class S>
  FASTLSTM_DEVICE void make_operand(int index) const {
    *low(index) = as_operand(*low(index), static_cast<const S*>(nullptr));
    *high(index) = as_operand(*high(index), static_cast<const S*>(nullptr));
  }

 private:
  FASTLSTM_DEVICE Word4* low(int index) const { return begin_ + 2 * index * kGroupThreads; }
  FASTLSTM_DEVICE Word4* high(int index) const { return low(index) + kGroupThreads; }
  Word4* begin_;
};

template <class S>
FASTLSTM_DEVICE int64_t chunk_begin(int block) {
  return (int64_t{block} * 4 + device::lane() % 4) * kPerChunk<S>;
}

// sums += of a block of K, in kRowTiles row tiles from first_row_tile on. w(t): of the t-th tile of
// W.
template <class S, int kRowTiles, int kTiles, class W>
FASTLSTM_DEVICE void accumulate(const OperandRows<S>& x, int first_row_tile, int block,
                                float (&sums)[kRowTiles][kTiles][4], W&& w) {
  Word4 chunks[kRowTiles];
  FASTLSTM_UNROLL
  for (int r = 0; r < kRowTiles; ++r) chunks[r] = x.tile(first_row_tile + r).chunk(block);
  FASTLSTM_UNROLL
  for (int t = 0; t < kTiles; ++t) {
    const TileBlock rows = w(t);
    FASTLSTM_UNROLL
    for (int half = 0; half < 2; ++half) {
      FASTLSTM_UNROLL
      for (int r = 0; r < kRowTiles; ++r)
        mma_half<S>(sums[r][t], rows.low, rows.high, chunks[r], half);
    }
  }
}

// Forward: the warps are a grid, kSplit.warps_m by kSplit.warps_k (group_layout.h).
template <class S, int kGates, int kUnits>
class FwdMatrix {
 public:
  static constexpr FwdSplit kSplit = fwd_split(kGates, kUnits, Operand<S>::kKind);
  static constexpr int kTiles = kSplit.tiles, kAll = kGates * kUnits / kMmaRows;

  FASTLSTM_DEVICE FwdMatrix(void* shared, int H) : shared_(shared), blocks_(blocks_of<S>(H)) {}

  // w: W_hh. H: of a gate. first_unit: of the block.
  FASTLSTM_DEVICE void load(const MatrixRows<S>& w, int64_t H, int64_t first_unit) {
    // A row of each gate of unit j, in the order of the tiles.
    auto row = [&](int tile, int octet) {
      const int index = first_tile() + tile;
      const int64_t gate = index / (kUnits / kMmaRows);
      const int64_t j =
          first_unit + index % (kUnits / kMmaRows) * kMmaRows + octet * 8 + device::lane() / 4;
      return index < kAll && j < H ? gate * H + j : int64_t{-1};
    };
    auto fetch = [&](int slot, int i) {
      const int64_t k = chunk_begin<S>(block(i));
#pragma unroll 1
      for (int tile = 0; tile < kTiles; ++tile)
        shared_.fetch(slot * kTiles + tile, w, row(tile, 0), row(tile, 1), k);
    };
    FASTLSTM_UNROLL
    for (int i = 0; i < kSplit.register_blocks; ++i) {
      fetch(0, i);
      wait();
      FASTLSTM_UNROLL
      for (int tile = 0; tile < kTiles; ++tile) {
        shared_.make_operand<S>(tile);
        registers_[i][tile] = shared_.at(tile);
      }
    }
    const int slots = (blocks_ + kSplit.warps_k - 1) / kSplit.warps_k - kSplit.register_blocks;
    for (int slot = 0; slot < slots; ++slot) fetch(slot, slot + kSplit.register_blocks);
    wait();
    for (int i = 0; i < slots * kTiles; ++i) shared_.make_operand<S>(i);
  }

  // f(row tile, first row of W among those of the block, d) with the warp's part of the sums over K
  // of each of its tiles, in kRowTiles row tiles from first_row_tile on.
  template <int kRowTiles, class F>
  FASTLSTM_DEVICE void multiply(const OperandRows<S>& x, int first_row_tile, F&& f) const {
    float sums[kRowTiles][kTiles][4] = {};
    FASTLSTM_UNROLL
    for (int i = 0; i < kSplit.register_blocks; ++i) {
      // Beyond the end W is zero, and so is x up to the next look.
      if (i / kStride * kStride * kSplit.warps_k < blocks_) {
        accumulate(x, first_row_tile, block(i), sums,
                   [&](int tile) { return registers_[i][tile]; });
      }
    }
#pragma unroll 1
    for (int i = kSplit.register_blocks; i * kSplit.warps_k < blocks_; ++i) {
      const int slot = i - kSplit.register_blocks;
      accumulate(x, first_row_tile, block(i), sums,
                 [&](int tile) { return shared_.at(slot * kTiles + tile); });
    }
    FASTLSTM_UNROLL
    for (int r = 0; r < kRowTiles; ++r) {
      FASTLSTM_UNROLL
      for (int tile = 0; tile < kTiles; ++tile) {
        if (first_tile() + tile < kAll)
          f(first_row_tile + r, (first_tile() + tile) * kMmaRows, sums[r][tile]);
      }
    }
  }

  FASTLSTM_DEVICE static int warp_k() { return device::warp() % kSplit.warps_k; }

 private:
  static constexpr int kStride = fwd_stride(kSplit);

  FASTLSTM_DEVICE static int first_tile() { return device::warp() / kSplit.warps_k * kTiles; }
  FASTLSTM_DEVICE static int block(int i) { return i * kSplit.warps_k + warp_k(); }
  FASTLSTM_DEVICE static void wait() {
    device::cp_async_commit();
    device::cp_async_wait<0>();
  }

  TileBlock registers_[kSplit.register_blocks][kTiles];
  SharedTiles shared_;
  int blocks_;
};

// Backward: a warp has every 8th tile of 16 units (group_layout.h).
template <class S, int kGates, int kUnits, Exchange kExchange>
class BwdMatrix {
 public:
  static constexpr BwdSplit kSplit = bwd_split(kGates, kUnits, Operand<S>::kKind, kExchange);

  // tiles: of the group.
  FASTLSTM_DEVICE BwdMatrix(void* shared, int tiles) : shared_(shared), tiles_(tiles) {}

  // w: [H, gates of the units of the block].
  FASTLSTM_DEVICE void load(const MatrixRows<S>& w, int64_t H) {
    auto fetch = [&](int slot, int i) {
      const int64_t low = tile(i) * kMmaRows + device::lane() / 4, high = low + 8;
#pragma unroll 1
      for (int block = 0; block < kSplit.blocks; ++block)
        shared_.fetch(slot * kSplit.blocks + block, w, low < H ? low : -1, high < H ? high : -1,
                      chunk_begin<S>(block));
    };
    auto wait = [] {
      device::cp_async_commit();
      device::cp_async_wait<0>();
    };
    FASTLSTM_UNROLL
    for (int i = 0; i < kSplit.register_tiles; ++i) {
      fetch(0, i);
      wait();
      FASTLSTM_UNROLL
      for (int block = 0; block < kSplit.blocks; ++block) {
        shared_.make_operand<S>(block);
        registers_[i][block] = shared_.at(block);
      }
    }
    int slots = 0;
    for (; tile(slots + kSplit.register_tiles) < tiles_; ++slots)
      fetch(slots, slots + kSplit.register_tiles);
    wait();
    for (int i = 0; i < slots * kSplit.blocks; ++i) shared_.make_operand<S>(i);
  }

  // f(row tile, tile of units, d) with the sums of each of the warp's tiles.
  template <int kRowTiles, class F>
  FASTLSTM_DEVICE void multiply(const OperandRows<S>& x, int first_row_tile, F&& f) const {
    FASTLSTM_UNROLL
    for (int i = 0; i < kSplit.register_tiles; i += 2) {
      if (tile(i) < tiles_) {
        if (i + 1 < kSplit.register_tiles) {
          of_registers<kRowTiles, 2>(x, first_row_tile, i, f);
        } else {
          of_registers<kRowTiles, 1>(x, first_row_tile, i, f);
        }
      }
    }
#pragma unroll 1
    for (int i = kSplit.register_tiles; tile(i) < tiles_; ++i) {
      const int slot = i - kSplit.register_tiles;
      float sums[kRowTiles][1][4] = {};
      // Not unrolled whole: that takes registers from W.
#pragma unroll 2
      for (int block = 0; block < kSplit.blocks; ++block) {
        accumulate(x, first_row_tile, block, sums,
                   [&](int) { return shared_.at(slot * kSplit.blocks + block); });
      }
      give(first_row_tile, i, sums, f);
    }
  }

 private:
  FASTLSTM_DEVICE static int tile(int i) { return i * kGroupWarps + device::warp(); }

  // Tiles i, i + 1, .. together, so that no mma waits for the one before it.
  template <int kRowTiles, int kTiles, class F>
  FASTLSTM_DEVICE void of_registers(const OperandRows<S>& x, int first_row_tile, int i,
                                    F&& f) const {
    float sums[kRowTiles][kTiles][4] = {};
    FASTLSTM_UNROLL
    for (int block = 0; block < kSplit.blocks; ++block) {
      accumulate(x, first_row_tile, block, sums,
                 [&](int t) { return registers_[(i + t) % kHeldTiles][block]; });
    }
    give(first_row_tile, i, sums, f);
  }

  template <int kRowTiles, int kTiles, class F>
  FASTLSTM_DEVICE void give(int first_row_tile, int i, const float (&sums)[kRowTiles][kTiles][4],
                            F&& f) const {
    FASTLSTM_UNROLL
    for (int t = 0; t < kTiles; ++t) {
      FASTLSTM_UNROLL
      for (int r = 0; r < kRowTiles; ++r) {
        if (tile(i + t) < tiles_) f(first_row_tile + r, tile(i + t), sums[r][t]);
      }
    }
  }

  static constexpr int kHeldTiles = kSplit.register_tiles > 0 ? kSplit.register_tiles : 1;
  TileBlock registers_[kHeldTiles][kSplit.blocks];
  SharedTiles shared_;
  int tiles_;
};

template <int kCount>
struct Count {
  static constexpr int value = kCount;
};

// f(first row tile, Count of them) for all of `rows`: by two, so that what of W is in shared memory
// is read once for both, and the last one alone.
template <class F>
FASTLSTM_DEVICE void for_row_tiles(int rows, F&& f) {
  const int tiles = rows / kRowTile;
  int first = 0;
  for (; first + 2 <= tiles; first += 2) f(first, Count<2>{});
  if (first < tiles) f(first, Count<1>{});
}

}  // namespace cuda
}  // namespace fastlstm
