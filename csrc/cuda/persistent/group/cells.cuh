// The cells of a block of a group: a unit of a row each, shared out among its threads.
#pragma once

#include "../sequence.h"
#include "matrix.cuh"

namespace fastlstm {
namespace cuda {

// A lane's cell among those a warp computes at a time: 16 units in two rows of the batch. So the
// numbers of a row that a warp touches in global memory fill whole sectors, and neither what mma
// left (PartialSums, part_word) nor what goes to the other blocks conflicts in shared memory.
struct CellPlace {
  int row, unit;  // of the block
  int index;      // in shared memory, where those of a warp are adjacent
};

// The cells of a block of a group: kUnits units in the rows of a tile of the batch.
template <int kUnits>
struct GroupCells {
  static constexpr unsigned kUnitTiles = kUnits / kMmaRows;
  const SequenceRows& layer;
  int H, rows, first_unit;
  int64_t first_row;

  // member: which block of the group.
  FASTLSTM_DEVICE GroupCells(const SequenceRows& layer, const GroupPlan& plan, int member,
                             int64_t tile)
      : layer(layer),
        H(static_cast<int>(layer.H)),
        rows(plan.rows),
        first_unit(member * kUnits),
        first_row(tile * plan.rows) {}

  // A warp computes 32 at a time, every kGroupWarps-th such set of the block.
  FASTLSTM_DEVICE int sets() const { return rows / 2 * kUnitTiles; }
  // Of a lane in the i-th set.
  FASTLSTM_DEVICE static CellPlace of_set(unsigned i, unsigned lane) {
    return {static_cast<int>(i / kUnitTiles * 2 + lane / kMmaRows),
            static_cast<int>(i % kUnitTiles * kMmaRows + lane % kMmaRows),
            static_cast<int>(i * 32 + lane)};
  }
  FASTLSTM_DEVICE static CellPlace of_set(int i) { return of_set(i, device::lane()); }
  template <class F>
  FASTLSTM_DEVICE void for_each(F&& f) const {
    for (int i = device::warp(); i < sets(); i += kGroupWarps) f(of_set(i));
  }

  // In the layer and the batch.
  FASTLSTM_DEVICE int unit(CellPlace at) const { return first_unit + at.unit; }
  FASTLSTM_DEVICE int64_t row(CellPlace at) const { return first_row + at.row; }
  FASTLSTM_DEVICE bool exists(CellPlace at) const { return unit(at) < H; }
  FASTLSTM_DEVICE bool is_in_batch(CellPlace at) const { return row(at) < layer.N && exists(at); }
  // Of a tensor [N, H].
  FASTLSTM_DEVICE int64_t place(CellPlace at) const { return row(at) * H + unit(at); }
};

// What a cell has in shared memory for itself, in an array of those of all cells of the block that
// begins at byte `offset`.
template <class T>
FASTLSTM_DEVICE T& of_cell(int offset, CellPlace at) {
  return reinterpret_cast<T*>(device::shared_memory<char>() + offset)[at.index];
}

// Sums that warps have of a part of K each: [part, row of the batch, row of W]. The rows of W are
// permuted, differently in each row of the batch, so that neither the lanes of mma nor those of
// cells conflict.
class PartialSums {
 public:
  FASTLSTM_DEVICE PartialSums(void* shared, int rows, int stride)
      : sums_(static_cast<float*>(shared)), rows_(rows), stride_(stride) {}

  // d: as mma leaves it, of 16 rows of W from w_row on.
  FASTLSTM_DEVICE void set(int part, int row_tile, int w_row, const float (&d)[4]) const {
    const unsigned g = device::lane() / 4u, p = device::lane() % 4u;
    float* even = sums_ + (part * rows_ + row_tile * kRowTile + 2 * p) * stride_;
    const unsigned column = (w_row + g) ^ p * 8;
    FASTLSTM_UNROLL
    for (unsigned i = 0; i < 4; ++i)
      even[i % 2 * stride_ + (column ^ i / 2 * 8 ^ i % 2 * 16)] = d[i];
  }
  template <int kParts>
  FASTLSTM_DEVICE float sum(unsigned row, unsigned w_row) const {
    const float* first = sums_ + row * stride_ + (w_row ^ row / 2 % 4 * 8 ^ row % 2 * 16);
    float sum = *first;
    FASTLSTM_UNROLL
    for (int part = 1; part < kParts; ++part) sum += first[part * rows_ * stride_];
    return sum;
  }

 private:
  float* sums_;
  int rows_, stride_;
};

}  // namespace cuda
}  // namespace fastlstm
