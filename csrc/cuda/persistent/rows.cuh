// The steps of a batch tile: which rows they have, where a sequence begins anew, and what the cells
// of a row, one for each unit, read and write of the layer's tensors (sequence.h).
#pragma once

#include "../step/step.cuh"
#include "operands.cuh"
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

// The steps of a tile in one launch, in the order in which they are taken. at: the place of a cell
// in a tensor [N, H].
template <template <class> class Cell, class S>
class FwdSteps {
  using V = Lane<float>;
  static constexpr CellTraits kTraits = Cell<V>::kTraits;

 public:
  using Params = SequenceFwd<S>;
  using Direction = SequenceFwdDirection<S>;
  using Row = FwdRow;
  // Of a step.
  struct Outputs {
    V h, state, reserve[kTraits.reserve ? kTraits.reserve : 1];
  };

  FASTLSTM_DEVICE FwdSteps(const SequenceFwd<S>& p, const SequenceFwdDirection<S>& d,
                           int64_t first_row)
      : p_(p), d_(d), H_(static_cast<int>(p.rows.H)), rows_(p.rows, d.reverse) {
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

  // Returns h as W_hh is to see it.
  FASTLSTM_DEVICE V load_states(int64_t at, V& state) const {
    const V h = load(d_.h_begin + at);
    store(d_.h_end + at, h);  // of rows without a step
    state = d_.state ? V{d_.state[at]} : h;
    return h;
  }
  FASTLSTM_DEVICE void store_states(int64_t at, V h, V state) const {
    store(d_.h_end + at, h);
    if (d_.state) d_.state[at] = state.v;
  }
  FASTLSTM_DEVICE const float* igate(int64_t row, int g, int unit) const {
    return d_.igates + (row * kTraits.gates + g) * H_ + unit;
  }
  FASTLSTM_DEVICE void store_outputs(const FwdRow& now, int unit, const Outputs& made) const {
    store(d_.h + now.place * p_.h_stride + unit, made.h);
    if (d_.c) d_.c[now.place * p_.c_stride + unit] = made.state.v;
    if (d_.reserve) {
      FASTLSTM_UNROLL
      for (int g = 0; g < kTraits.reserve; ++g)
        store(d_.reserve + (now.compact * kTraits.reserve + g) * H_ + unit, made.reserve[g]);
    }
  }

 private:
  const SequenceFwd<S>& p_;
  const SequenceFwdDirection<S>& d_;
  const int H_;
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

template <template <class> class Cell, class S>
class BwdSteps {
  using V = Lane<float>;
  using C = Cell<V>;
  static constexpr CellTraits kTraits = C::kTraits;
  static constexpr int kReserve = kTraits.reserve, kDgates = kTraits.dgates;

 public:
  using Params = SequenceBwd<S>;
  using Direction = SequenceBwdDirection<S>;
  using Row = BwdRow;
  struct Gradients {
    V dh, carry;
  };
  // Of a step. As they lie in memory, as long as they only wait.
  struct Inputs {
    S reserve[kReserve ? kReserve : 1], dy;
    float dc;
    V state_before;
    FASTLSTM_DEVICE void get_reserve(V (&numbers)[kReserve ? kReserve : 1]) const {
      FASTLSTM_UNROLL
      for (int g = 0; g < kReserve; ++g) numbers[g] = load(&reserve[g]);
    }
  };

  FASTLSTM_DEVICE BwdSteps(const SequenceBwd<S>& p, const SequenceBwdDirection<S>& d,
                           int64_t first_row)
      : p_(p),
        d_(d),
        H_(static_cast<int>(p.rows.H)),
        rows_(p.rows, d.reverse),
        count_(rows_.steps_of(first_row)) {}

  FASTLSTM_DEVICE int64_t count() const { return count_; }
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

  FASTLSTM_DEVICE Gradients load_gradients(int64_t at) const {
    return {{d_.dh[at]}, {kTraits.has_carry && d_.carry ? d_.carry[at] : 0}};
  }
  FASTLSTM_DEVICE void store_gradients(int64_t at, Gradients d) const {
    d_.dh[at] = d.dh.v;
    if (kTraits.has_carry && d_.carry) d_.carry[at] = d.carry.v;
  }
  // After the step that is taken first, where row n has it; those of the others are states before a
  // step.
  FASTLSTM_DEVICE V load_last_state(int64_t n, int unit) const {
    const int64_t t = time(0);
    if (!C::kTraits.bwd_reads_state || !rows_.has(t, n)) return V::broadcast(0);
    return load_state(false, rows_.place(t) + rows_.batch_row(n), unit);
  }
  FASTLSTM_DEVICE Inputs load_inputs(int64_t s, const BwdRow& now, int unit) const {
    Inputs in = {};
    if ((C::kTraits.bwd_reads_state || C::kTraits.bwd_reads_prev_state) && now.before >= 0)
      in.state_before = load_state(now.before_is_initial, now.before, unit);
    if (now.compact < 0) return in;
    const int64_t t = time(s);
    FASTLSTM_UNROLL
    for (int g = 0; g < kReserve; ++g)
      in.reserve[g] = d_.reserve[(now.compact * kReserve + g) * H_ + unit];
    if (d_.dy) in.dy = d_.dy[t * p_.dy_t_stride + now.grad * p_.dy_n_stride + unit];
    if (d_.dc_seq) in.dc = d_.dc_seq[t * p_.dc_seq_t_stride + now.grad * p_.dc_seq_n_stride + unit];
    return in;
  }
  FASTLSTM_DEVICE void store_dgates(const BwdRow& now, int unit, const V (&dgates)[kDgates]) const {
    FASTLSTM_UNROLL
    for (int g = 0; g < kDgates; ++g)
      store(d_.dgates + (now.compact * kDgates + g) * H_ + unit, dgates[g]);
  }

 private:
  FASTLSTM_DEVICE int64_t time(int64_t s) const { return d_.reverse ? s : count_ - 1 - s; }
  FASTLSTM_DEVICE V load_state(bool initial, int64_t place, int unit) const {
    if constexpr (kTraits.has_c) {
      return {(initial ? d_.c_initial : d_.c)[place * p_.c_stride + unit]};
    } else {
      return load((initial ? d_.h_initial : d_.h) + place * p_.h_stride + unit);
    }
  }

  const SequenceBwd<S>& p_;
  const SequenceBwdDirection<S>& d_;
  const int H_;
  const DirectionRows rows_;
  const int64_t count_;
};

static_assert(sizeof(FwdRow) == kQueueRowBytes && sizeof(BwdRow) == kQueueRowBytes,
              "tiles.h keeps so many bytes for a row of a RowQueue");

// What is known of the rows of coming steps, in shared memory: some threads look it up, one a row,
// while all others compute. Beside registers it saves waiting for one load after the other.
template <class Steps>
class RowQueue {
  using Row = typename Steps::Row;

 public:
  // rows: of a step, from first_row of the batch on.
  FASTLSTM_DEVICE RowQueue(void* shared, int64_t first_row, int rows)
      : rows_(static_cast<Row*>(shared)), first_row_(first_row), row_count_(rows) {}

  // Asks for the rows of step s, for which nothing waits before push(s).
  FASTLSTM_DEVICE void look_up(const Steps& steps, int64_t s) {
    if (is_mine()) coming_ = steps.look_up(s, first_row_ + threadIdx.x);
  }
  // Goes before the barrier of step s - 1, or of one before it.
  FASTLSTM_DEVICE void push(int64_t s) const {
    if (is_mine()) slot(s)[threadIdx.x] = coming_;
  }
  FASTLSTM_DEVICE const Row& at(int64_t s, int row) const { return slot(s)[row]; }

 private:
  FASTLSTM_DEVICE bool is_mine() const { return static_cast<int>(threadIdx.x) < row_count_; }
  FASTLSTM_DEVICE Row* slot(int64_t s) const { return rows_ + s % kQueueSteps * row_count_; }

  Row* const rows_;
  const int64_t first_row_;
  const int row_count_;
  Row coming_{};
};

}  // namespace cuda
}  // namespace fastlstm
