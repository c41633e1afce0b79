#include "row_plan.h"

#include <algorithm>
#include <numeric>

#include "../recurrence.h"

namespace fastlstm {

RowPlan RowPlan::of_padded(int64_t T, int64_t N, int directions, const bool* reset) {
  RowPlan p;
  p.T = T;
  p.N = N;
  p.directions = directions;
  p.packed = false;
  p.complete = true;
  p.has_reset = reset != nullptr;
  p.reset_ = reset;
  p.input_rows = T * N;
  p.batch_row.resize(N);
  std::iota(p.batch_row.begin(), p.batch_row.end(), 0);
  p.length.assign(N, T);
  for (int64_t t = 0; t <= T; ++t) p.step_begin.push_back(t * N);
  return p;
}

RowPlan RowPlan::of_lengths(int64_t T, int64_t N, int directions, const int64_t* lengths,
                            const bool* reset) {
  if (std::all_of(lengths, lengths + N, [&](int64_t length) { return length == T; }))
    return of_padded(T, N, directions, reset);
  RowPlan p;
  p.T = T;
  p.N = N;
  p.directions = directions;
  p.packed = false;
  p.complete = false;
  p.has_reset = reset != nullptr;
  p.reset_ = reset;
  p.input_rows = T * N;
  p.batch_row.resize(N);
  std::iota(p.batch_row.begin(), p.batch_row.end(), 0);
  std::stable_sort(p.batch_row.begin(), p.batch_row.end(),
                   [&](int64_t a, int64_t b) { return lengths[a] > lengths[b]; });
  for (int64_t n : p.batch_row) p.length.push_back(lengths[n]);
  p.step_begin.push_back(0);
  int64_t count = N;
  for (int64_t t = 0; t < T; ++t) {
    while (count > 0 && p.length[count - 1] <= t) --count;
    p.step_begin.push_back(p.step_begin.back() + count);
  }
  return p;
}

RowPlan RowPlan::of_packed(int64_t T, int directions, const int64_t* batch_sizes) {
  RowPlan p;
  p.T = T;
  p.N = T > 0 ? batch_sizes[0] : 0;
  p.directions = directions;
  p.packed = true;
  p.complete = T == 0 || batch_sizes[T - 1] == p.N;
  p.has_reset = false;
  p.batch_row.resize(p.N);
  std::iota(p.batch_row.begin(), p.batch_row.end(), 0);
  p.length.assign(p.N, 0);
  p.step_begin.push_back(0);
  for (int64_t t = 0; t < T; ++t) {
    p.step_begin.push_back(p.step_begin.back() + batch_sizes[t]);
    for (int64_t n = 0; n < batch_sizes[t]; ++n) p.length[n] = t + 1;
  }
  p.input_rows = p.rows();
  return p;
}

void RowPlan::fill_tables() {
  row.resize(rows());
  for (int64_t t = 0; t < T; ++t) {
    for (int64_t k = step_begin[t]; k < step_begin[t + 1]; ++k)
      row[k] = N + (packed ? k : t * N + batch_row[k - step_begin[t]]);
  }
  for (int d = 0; d < directions; ++d) {
    prev_row[d].resize(rows());
    const std::vector<int64_t> next_of_other = next(1 - d);
    for (int64_t t = 0; t < T; ++t) {
      for (int64_t k = step_begin[t]; k < step_begin[t + 1]; ++k) {
        const int64_t n = k - step_begin[t], before = next_of_other[k];
        prev_row[d][k] = before == kSequenceEnds  ? initial_row(d) + batch_row[n]
                         : before == kSequenceCut ? zero_row()
                                                  : row[before];
        // No state enters a sequence that is cut at its first step.
        if (d == 0 && t == 0 && cut(0, n)) prev_row[d][k] = zero_row();
      }
    }
  }
}

int64_t RowPlan::last_row(int direction, int64_t n) const {
  if (length[n] == 0) return initial_row(direction) + batch_row[n];
  return row[step_begin[direction == 0 ? length[n] - 1 : 0] + n];
}

std::vector<int64_t> RowPlan::next(int direction) const {
  std::vector<int64_t> result(rows());
  for (int64_t t = 0; t < T; ++t) {
    for (int64_t k = step_begin[t]; k < step_begin[t + 1]; ++k) {
      const int64_t n = k - step_begin[t];
      const int64_t after = direction == 0 ? t + 1 : t - 1;
      if (after < 0 || after >= length[n])
        result[k] = kSequenceEnds;
      else if (cut(direction == 0 ? t + 1 : t, n))
        result[k] = kSequenceCut;
      else
        result[k] = step_begin[after] + n;
    }
  }
  return result;
}

}  // namespace fastlstm
