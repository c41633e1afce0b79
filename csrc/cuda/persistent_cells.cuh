// The cells of a block of a group: a unit of a row each, shared out among its threads.
#pragma once

#include "persistent_group_product.cuh"

namespace fastlstm {
namespace cuda {

// A lane's cell among those a warp computes at a time: 16 units in two rows of the batch. So the
// numbers of a row that a warp touches in global memory fill whole sectors, and neither what mma
// left (PartialSums, part_word) nor what goes to the other blocks conflicts in shared memory.
struct CellPlace {
  int row, unit;  // of the block
  int index;      // in shared memory, where those of a warp are adjacent
};

// The i-th cells of the block, 32 at a time; `lane` of them.
template <int kUnits>
FASTLSTM_DEVICE CellPlace cell_place(unsigned i, unsigned lane) {
  constexpr unsigned kUnitTiles = kUnits / kMmaRows;
  return {static_cast<int>(i / kUnitTiles * 2 + lane / kMmaRows),
          static_cast<int>(i % kUnitTiles * kMmaRows + lane % kMmaRows),
          static_cast<int>(i * 32 + lane)};
}
template <int kUnits>
FASTLSTM_DEVICE CellPlace cell_place(int i) {
  return cell_place<kUnits>(i, device::lane());
}
template <int kUnits>
FASTLSTM_DEVICE int cell_count(int rows) {
  return rows / 2 * (kUnits / kMmaRows);
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
