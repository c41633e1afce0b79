// The steps of a batch tile: which rows they have, where those lie, and where a sequence begins
// anew.
#pragma once

#include "persistent_product.cuh"
#include "sequence.h"

namespace fastlstm {
namespace cuda {

// Steps in the order in which they are taken.
struct Steps {
  int64_t first, count;
  int stride;
  FASTLSTM_DEVICE int64_t at(int64_t s) const { return first + s * stride; }
};

// The rows of one direction.
class DirectionRows {
 public:
  FASTLSTM_DEVICE DirectionRows(const SequenceRows& rows, bool reverse)
      : rows_(rows), reverse_(reverse) {}

  // The step whose states enter step t.
  FASTLSTM_DEVICE int64_t before(int64_t t) const { return reverse_ ? t + 1 : t - 1; }
  // Compact row of row 0.
  FASTLSTM_DEVICE int64_t begin(int64_t t) const {
    return rows_.step_begin ? rows_.step_begin[t] : t * rows_.N;
  }
  FASTLSTM_DEVICE int64_t place(int64_t t) const { return rows_.packed ? begin(t) : t * rows_.N; }
  FASTLSTM_DEVICE int64_t batch_row(int64_t n) const {
    return rows_.batch_row ? rows_.batch_row[n] : n;
  }
  FASTLSTM_DEVICE bool has(int64_t t, int64_t n) const {
    if (t < 0 || t >= rows_.T) return false;
    return n < (rows_.step_begin ? rows_.step_begin[t + 1] - rows_.step_begin[t] : rows_.N);
  }

  // Whether row n has step t, but no state enters it. To the direction that begins with step 0 the
  // initial state is one that reset[0] stops.
  FASTLSTM_DEVICE bool is_cut(int64_t t, int64_t n, int64_t b) const {
    if (!rows_.reset) return false;
    const int64_t later = reverse_ ? t + 1 : t;
    return has(later, n) && rows_.reset[later * rows_.N + b];
  }

  // How many steps have row n: the first ones.
  FASTLSTM_DEVICE int64_t steps_of(int64_t n) const {
    if (!rows_.step_begin) return rows_.T;
    int64_t low = 0, high = rows_.T;
    while (low < high) {
      const int64_t middle = (low + high) / 2;
      if (has(middle, n)) {
        low = middle + 1;
      } else {
        high = middle;
      }
    }
    return low;
  }

 private:
  const SequenceRows& rows_;
  const bool reverse_;
};

// What is known of the rows of coming steps, in shared memory: eight threads look it up, one a
// row, while all others compute. Beside registers it saves waiting for one load after the other.
template <class Row>
class RowQueue {
 public:
  static constexpr int kBytes = 4 * kTileRows * static_cast<int>(sizeof(Row));

  FASTLSTM_DEVICE explicit RowQueue(void* shared) : rows_(static_cast<Row*>(shared)) {}

  FASTLSTM_DEVICE static bool is_mine() { return threadIdx.x < kTileRows; }
  // Goes before the barrier that ends step s - 2, for `next` of step s - 1.
  FASTLSTM_DEVICE void push(int64_t s, const Row& row) const { slot(s)[threadIdx.x] = row; }
  FASTLSTM_DEVICE const Row& at(int64_t s, int i) const {
    return slot(s)[device::lane() % 4 * kLaneRows + i];
  }

 private:
  FASTLSTM_DEVICE Row* slot(int64_t s) const { return rows_ + s % 4 * kTileRows; }
  Row* rows_;
};

}  // namespace cuda
}  // namespace fastlstm
