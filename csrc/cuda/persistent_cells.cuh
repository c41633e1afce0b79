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
};

// The i-th cells of the block, 32 at a time.
template <int kUnits>
FASTLSTM_DEVICE CellPlace cell_place(int i) {
  constexpr int kUnitTiles = kUnits / kMmaRows;
  return {i / kUnitTiles * 2 + device::lane() / kMmaRows,
          i % kUnitTiles * kMmaRows + device::lane() % kMmaRows};
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
    const int g = device::lane() / 4, p = device::lane() % 4;
    FASTLSTM_UNROLL
    for (int i = 0; i < 4; ++i)
      at(part, row_tile * kRowTile + 2 * p + i % 2, w_row + g + i / 2 * 8) = d[i];
  }
  template <int kParts>
  FASTLSTM_DEVICE float sum(int row, int w_row) const {
    float sum = at(0, row, w_row);
    FASTLSTM_UNROLL
    for (int part = 1; part < kParts; ++part) sum += at(part, row, w_row);
    return sum;
  }

 private:
  FASTLSTM_DEVICE float& at(int part, int row, int w_row) const {
    const int permutation = row / 2 % 4 * 8 ^ row % 2 * 16;
    return sums_[(part * rows_ + row) * stride_ + (w_row ^ permutation)];
  }
  float* sums_;
  int rows_, stride_;
};

}  // namespace cuda
}  // namespace fastlstm
