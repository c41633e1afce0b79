// Who computes what: a pure function of the problem's sizes, so that it can be tested without
// threads.
#pragma once

#include <vector>

#include "../recurrence.h"

namespace fastlstm {
namespace cpu {

// The recurrence of a layer, as far as it decides who computes what.
struct ScheduleProblem {
  int64_t batch_size, hidden_size;
  int gates;  // of the cell
  int directions;
  bool ragged;           // rows of a step become fewer: the longest sequences come first
  bool crowded = false;  // no thread is to wait for another before the end
};

// Shares of each thread, in the order it works them off: at most one unless there are fewer threads
// than directions. Threads whose shares have the same group number meet at that group's barrier
// once a step; there are at most num_threads * directions groups. hidden_size is cut only at
// multiples of the panels of the packed W_hh.
std::vector<std::vector<Share>> schedule(const ScheduleProblem& problem, int num_threads,
                                         int lanes);

// Boundaries of the panels in vectors of lanes: [0, ..., ceil(hidden_size / lanes)].
std::vector<int64_t> panel_boundaries(int64_t hidden_size, int lanes);

}  // namespace cpu
}  // namespace fastlstm
