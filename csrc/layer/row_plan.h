// Which rows of the batch each step computes, and where their states lie: a pure function of
// lengths, packing and resets. For the CPU's kernels it is tables: padding that is skipped, packed
// rows and resets in mid-sequence are all the same thing to them, another entry in a table. CUDA's
// work it out from step_begin and batch_row (../cuda/step/step.h).
//
// The states of a layer lie in one buffer of rows: N rows of initial states, one row for each row
// of the input, N rows of initial states of the reverse direction if there is one, and a row of
// zeros.
#pragma once

#include <cstdint>
#include <vector>

namespace fastlstm {

struct RowPlan {
  int64_t T, N;
  int directions;
  bool packed;    // the rows of the input are compact: no padding between the steps
  bool complete;  // every step has all N rows, in the order of the batch
  bool has_reset;
  int64_t input_rows;               // rows of x and y: T * N, or as many as are packed
  std::vector<int64_t> step_begin;  // [T + 1]: first compact row of each step
  std::vector<int64_t> batch_row;   // [N]: place in the batch of the n-th longest sequence
  std::vector<int64_t> length;      // [N]: of the n-th longest
  // The tables; empty before fill_tables.
  std::vector<int64_t> row;          // [rows]: row of the buffer that compact row k is stored in
  std::vector<int64_t> prev_row[2];  // a direction, [rows]: row that holds the states before

  int64_t rows() const { return step_begin.back(); }
  int64_t rows_of(int64_t t) const { return step_begin[t + 1] - step_begin[t]; }
  int64_t buffer_rows() const { return directions * N + input_rows + 1; }
  int64_t zero_row() const { return buffer_rows() - 1; }
  int64_t initial_row(int direction) const { return direction == 0 ? 0 : N + input_rows; }
  // Reads the values of reset: it has to be in the memory of the host.
  void fill_tables();
  // All below need the tables.
  // Row of the buffer with the states after the last step of the n-th longest sequence.
  int64_t last_row(int direction, int64_t n) const;
  // Compact row of the step that comes after k, in the order of the direction, or a NextRow.
  std::vector<int64_t> next(int direction) const;
  // Whether step t of the n-th longest sequence begins anew, so that no state passes from t - 1 to
  // t.
  bool cut(int64_t t, int64_t n) const { return has_reset && reset_[t * N + batch_row[n]]; }

  // All N rows in every step.
  static RowPlan of_padded(int64_t T, int64_t N, int directions, const bool* reset);
  // The first lengths[n] steps of row n.
  static RowPlan of_lengths(int64_t T, int64_t N, int directions, const int64_t* lengths,
                            const bool* reset);
  // batch_sizes[t] rows in step t, never more than in the step before.
  static RowPlan of_packed(int64_t T, int directions, const int64_t* batch_sizes);

 private:
  const bool* reset_ = nullptr;  // [T, N]
};

}  // namespace fastlstm
