// The steps of a batch tile: which rows they have, where those lie, and where a sequence begins
// anew.
#pragma once

#include "persistent_product.cuh"
#include "sequence.h"

namespace fastlstm {
namespace cuda {

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

// What forward has to know of a row of a step; -1 is none in this launch.
struct FwdRow {
  int64_t place;    // in the buffers of states
  int64_t compact;  // row
  int64_t igates;   // row
  bool cut;         // no state enters
};

// The steps of a tile in one launch, in the order in which they are taken.
template <class S>
class FwdSteps {
 public:
  FASTLSTM_DEVICE FwdSteps(const SequenceFwd<S>& p, const SequenceFwdDirection<S>& d,
                           int64_t first_row)
      : p_(p), d_(d), rows_(p.rows, d.reverse) {
    const int64_t end = rows_.steps_of(first_row);
    const int64_t last = (end < d.t_end ? end : d.t_end) - 1;
    count_ = last < d.t_begin ? 0 : last + 1 - d.t_begin;
    first_ = d.reverse ? last : d.t_begin;
  }

  FASTLSTM_DEVICE int64_t count() const { return count_; }
  FASTLSTM_DEVICE FwdRow look_up(int64_t s, int64_t n) const {
    const int64_t t = d_.reverse ? first_ - s : first_ + s;
    FwdRow row = {-1, -1, -1, false};
    if (!rows_.has(t, n)) return row;
    const int64_t b = rows_.batch_row(n);
    row.cut = rows_.is_cut(t, n, b);
    if (s >= count_) return row;
    row.place = rows_.place(t) + b;
    row.compact = rows_.begin(t) + n;
    row.igates = d_.tokens ? d_.tokens[row.place] : row.compact - rows_.begin(d_.t_begin);
    if (d_.tokens && (row.igates < 0 || row.igates >= p_.V)) device::trap("token out of range");
    return row;
  }

 private:
  const SequenceFwd<S>& p_;
  const SequenceFwdDirection<S>& d_;
  const DirectionRows rows_;
  int64_t first_, count_;
};

// The same of backward; -1 is none.
struct BwdRow {
  int64_t compact;  // row
  int64_t before;   // of the state before: in the buffers of states, or of initial ones
  int64_t grad;     // in dy and dc_seq, beside what t adds
  bool before_is_initial;
  bool cut;  // no state enters
};

template <class S>
class BwdSteps {
 public:
  FASTLSTM_DEVICE BwdSteps(const SequenceBwd<S>& p, const SequenceBwdDirection<S>& d,
                           int64_t first_row)
      : p_(p), d_(d), rows_(p.rows, d.reverse), count_(rows_.steps_of(first_row)) {}

  FASTLSTM_DEVICE int64_t count() const { return count_; }
  FASTLSTM_DEVICE int64_t time(int64_t s) const { return d_.reverse ? s : count_ - 1 - s; }
  FASTLSTM_DEVICE BwdRow look_up(int64_t s, int64_t n) const {
    BwdRow row = {-1, -1, -1, false, false};
    if (s >= count_) return row;
    const int64_t t = time(s), before = rows_.before(t);
    const bool has = rows_.has(t, n), has_before = rows_.has(before, n);
    if (!has && !has_before) return row;
    const int64_t b = rows_.batch_row(n);
    row.before_is_initial = !has_before;
    row.before = has_before ? rows_.place(before) + b : b;
    if (!has) return row;
    row.compact = rows_.begin(t) + n;
    row.grad = p_.rows.packed ? row.compact : b;
    row.cut = rows_.is_cut(t, n, b);
    return row;
  }
  // Where row n lies in the buffers of states after the step that is taken first; -1: it has none.
  FASTLSTM_DEVICE int64_t last_place(int64_t n) const {
    const int64_t t = time(0);
    return rows_.has(t, n) ? rows_.place(t) + rows_.batch_row(n) : -1;
  }

 private:
  const SequenceBwd<S>& p_;
  const SequenceBwdDirection<S>& d_;
  const DirectionRows rows_;
  const int64_t count_;
};

// What is known of the rows of coming steps, in shared memory: some threads look it up, one a row,
// while all others compute. Beside registers it saves waiting for one load after the other.
static_assert(sizeof(FwdRow) == kQueueRowBytes && sizeof(BwdRow) == kQueueRowBytes,
              "what group_layout.h keeps for a queue");

template <class Row>
class RowQueue {
 public:
  // rows: a step.
  FASTLSTM_DEVICE RowQueue(void* shared, int rows)
      : rows_(static_cast<Row*>(shared)), row_count_(rows) {}

  FASTLSTM_DEVICE bool is_mine() const { return static_cast<int>(threadIdx.x) < row_count_; }
  // Goes before the barrier of step s - 1, or of one before it.
  FASTLSTM_DEVICE void push(int64_t s, const Row& row) const { slot(s)[threadIdx.x] = row; }
  FASTLSTM_DEVICE const Row& at(int64_t s, int row) const { return slot(s)[row]; }

 private:
  FASTLSTM_DEVICE Row* slot(int64_t s) const { return rows_ + s % kQueueSteps * row_count_; }
  Row* rows_;
  const int row_count_;
};

}  // namespace cuda
}  // namespace fastlstm
