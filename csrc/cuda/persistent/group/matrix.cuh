// The part of W_hh that a block of a group has on the chip, and its products with a tile of rows of
// the batch. Forward it is [units, H] of each gate, backward its transpose [H, gates of the units]:
// H, not known when this is compiled, is summed over in one and what is computed in the other.
#pragma once

#include <type_traits>

#include "weights.cuh"

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

// What a lane has of kRowTiles row tiles, from one on.
template <class S, int kRowTiles>
struct LaneOperands {
  const Word4* even[kRowTiles];  // chunks of even blocks
  const Word4* odd[kRowTiles];
  FASTLSTM_DEVICE LaneOperands(const OperandRows<S>& x, int first_row_tile) {
    FASTLSTM_UNROLL
    for (int r = 0; r < kRowTiles; ++r) {
      even[r] = x.tile(first_row_tile + r).lane_chunks(0);
      odd[r] = x.tile(first_row_tile + r).lane_chunks(1);
    }
  }
  FASTLSTM_DEVICE const Word4& of(int r, int block, bool is_odd) const {
    const Word4* from = is_odd ? odd[r] : even[r];
    return from[4 * block];
  }
};

// Sums of kTiles tiles of W in kRowTiles row tiles. One for each, whatever kRowTiles: two, of even
// and odd mma, would wait less for one another where tiles are few, but then the bits of a row
// would depend on the rows beside it.
template <class S, int kRowTiles, int kTiles>
class Sums {
 public:
  // Of a block of K. w(t): of the t-th tile of W.
  template <class W>
  FASTLSTM_DEVICE void add(const LaneOperands<S, kRowTiles>& x, int block, bool is_odd, W&& w) {
    Word4 chunks[kRowTiles];
    FASTLSTM_UNROLL
    for (int r = 0; r < kRowTiles; ++r) chunks[r] = x.of(r, block, is_odd);
    FASTLSTM_UNROLL
    for (int half = 0; half < 2; ++half) {
      FASTLSTM_UNROLL
      for (int t = 0; t < kTiles; ++t) {
        const Word4 rows = w(t).of_half[half];
        FASTLSTM_UNROLL
        for (int r = 0; r < kRowTiles; ++r) {
          const uint32_t b[2] = {chunks[r].w[2 * half], chunks[r].w[2 * half + 1]};
          Operand<S>::mma(of_[r][t], rows.w, b);
        }
      }
    }
  }
  FASTLSTM_DEVICE const float (&of(int r, int t) const)[4] { return of_[r][t]; }

 private:
  float of_[kRowTiles][kTiles][4] = {};
};

// Forward: the warps are a grid, kSplit.warps_m by kSplit.warps_k (layout.h).
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
      wait_for_fetches();
      FASTLSTM_UNROLL
      for (int tile = 0; tile < kTiles; ++tile) {
        shared_.make_operand<S>(tile);
        registers_[i][tile] = shared_.at(tile);
      }
    }
    const int slots = ceil_div(blocks_, kSplit.warps_k) - kSplit.register_blocks;
    for (int slot = 0; slot < slots; ++slot) fetch(slot, slot + kSplit.register_blocks);
    wait_for_fetches();
    for (int i = 0; i < slots * kTiles; ++i) shared_.make_operand<S>(i);
  }

  // f(row tile, first row of W among those of the block, d) with the warp's part of the sums over K
  // of each of its tiles, in kRowTiles row tiles from first_row_tile on.
  template <int kRowTiles, class F>
  FASTLSTM_DEVICE void multiply(const OperandRows<S>& x, int first_row_tile, F&& f) const {
    // All blocks of a warp are odd, or none is.
    static_assert(kSplit.warps_k % 2 == 0, "blocks of a warp");
    const bool is_odd = warp_k() % 2 == 1;
    const LaneOperands<S, kRowTiles> operands(x, first_row_tile);
    Sums<S, kRowTiles, kTiles> sums;
    FASTLSTM_UNROLL
    for (int i = 0; i < kSplit.register_blocks; ++i) {
      // Beyond the end W is zero, and so is x up to the next look.
      if (i / kStride * kStride * kSplit.warps_k < blocks_)
        sums.add(operands, block(i), is_odd, [&](int tile) { return registers_[i][tile]; });
    }
#pragma unroll 1
    for (int i = kSplit.register_blocks; i * kSplit.warps_k < blocks_; ++i) {
      const int slot = i - kSplit.register_blocks;
      sums.add(operands, block(i), is_odd,
               [&](int tile) { return shared_.at(slot * kTiles + tile); });
    }
    FASTLSTM_UNROLL
    for (int r = 0; r < kRowTiles; ++r) {
      FASTLSTM_UNROLL
      for (int tile = 0; tile < kTiles; ++tile) {
        if (kSplit.warps_m * kTiles == kAll || first_tile() + tile < kAll) {
          f(first_row_tile + r, (first_tile() + tile) * kMmaRows, sums.of(r, tile));
        }
      }
    }
  }

  FASTLSTM_DEVICE static int warp_k() { return device::warp() % kSplit.warps_k; }

 private:
  static constexpr int kStride = fwd_stride(kSplit);

  FASTLSTM_DEVICE static int first_tile() { return device::warp() / kSplit.warps_k * kTiles; }
  FASTLSTM_DEVICE static int block(int i) { return i * kSplit.warps_k + warp_k(); }

  TileBlock registers_[kSplit.register_blocks][kTiles];
  SharedTiles shared_;
  int blocks_;
};

// Backward: a warp has every 8th tile of 16 units (layout.h).
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
    FASTLSTM_UNROLL
    for (int i = 0; i < kSplit.register_tiles; ++i) {
      fetch(0, i);
      wait_for_fetches();
      FASTLSTM_UNROLL
      for (int block = 0; block < kSplit.blocks; ++block) {
        shared_.make_operand<S>(block);
        registers_[i][block] = shared_.at(block);
      }
    }
    int slots = 0;
    for (; tile(slots + kSplit.register_tiles) < tiles_; ++slots)
      fetch(slots, slots + kSplit.register_tiles);
    wait_for_fetches();
    for (int i = 0; i < slots * kSplit.blocks; ++i) shared_.make_operand<S>(i);
  }

  // f(row tile, tile of units, d) with the sums of each of the warp's tiles.
  template <int kRowTiles, class F>
  FASTLSTM_DEVICE void multiply(const OperandRows<S>& x, int first_row_tile, F&& f) const {
    const LaneOperands<S, kRowTiles> operands(x, first_row_tile);
    FASTLSTM_UNROLL
    for (int i = 0; i < kSplit.register_tiles; i += 2) {
      if (tile(i) < tiles_) {
        if (i + 1 < kSplit.register_tiles) {
          of_registers<kRowTiles, 2>(operands, first_row_tile, i, f);
        } else {
          of_registers<kRowTiles, 1>(operands, first_row_tile, i, f);
        }
      }
    }
#pragma unroll 1
    for (int i = kSplit.register_tiles; tile(i) < tiles_; ++i) {
      const int slot = i - kSplit.register_tiles;
      Sums<S, kRowTiles, 1> sums;
      // Not unrolled whole: that takes registers from W.
#pragma unroll 2
      for (int block = 0; block < kSplit.blocks; ++block) {
        sums.add(operands, block, block % 2 == 1,
                 [&](int) { return shared_.at(slot * kSplit.blocks + block); });
      }
      emit(first_row_tile, i, sums, f);
    }
  }

 private:
  FASTLSTM_DEVICE static int tile(int i) { return i * kGroupWarps + device::warp(); }

  // Tiles i, i + 1, .. together, so that no mma waits for the one before it.
  template <int kRowTiles, int kTiles, class F>
  FASTLSTM_DEVICE void of_registers(const LaneOperands<S, kRowTiles>& operands, int first_row_tile,
                                    int i, F&& f) const {
    Sums<S, kRowTiles, kTiles> sums;
    FASTLSTM_UNROLL
    for (int block = 0; block < kSplit.blocks; ++block) {
      sums.add(operands, block, block % 2 == 1,
               [&](int t) { return registers_[(i + t) % kHeldTiles][block]; });
    }
    emit(first_row_tile, i, sums, f);
  }

  template <int kRowTiles, int kTiles, class F>
  FASTLSTM_DEVICE void emit(int first_row_tile, int i, const Sums<S, kRowTiles, kTiles>& sums,
                            F&& f) const {
    FASTLSTM_UNROLL
    for (int t = 0; t < kTiles; ++t) {
      FASTLSTM_UNROLL
      for (int r = 0; r < kRowTiles; ++r) {
        if (tile(i + t) < tiles_) {
          f(first_row_tile + r, tile(i + t), sums.of(r, t));
        }
      }
    }
  }

  static constexpr int kHeldTiles = kSplit.register_tiles > 0 ? kSplit.register_tiles : 1;
  TileBlock registers_[kHeldTiles][kSplit.blocks];
  SharedTiles shared_;
  int tiles_;
};

// f(first row tile, how many as an integral_constant) for all of `rows`.
template <class F>
FASTLSTM_DEVICE void for_row_tiles(int rows, F&& f) {
  constexpr int kTogether = kRowTilesTogether;
  const int tiles = rows / kRowTile;
  int first = 0;
  for (; first + kTogether <= tiles; first += kTogether)
    f(first, std::integral_constant<int, kTogether>());
  for (; first < tiles; ++first) f(first, std::integral_constant<int, 1>());
}

}  // namespace cuda
}  // namespace fastlstm
