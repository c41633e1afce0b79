#include "schedule.h"

#include <algorithm>

#include "kernels/kernels.h"

namespace fastlstm {
namespace cpu {
namespace {

int64_t part(int64_t n, int64_t i, int64_t parts) { return n * i / parts; }

// A thread with fewer rows than this reads W_hh too often for what it computes: then the hidden
// units are split instead, at the price of a barrier a step. While W_hh stays in the L2 of every
// core, few rows are enough: N=8, H=200 is 1.14x faster by rows without gradient, 1.08x with; at
// N=16, H=512 it is 4 % slower without gradient.
int64_t min_rows_per_thread(const ScheduleProblem& p) {
  constexpr int64_t kCachedWeights = 200000;  // scalars of W_hh: 800 KB of a 1 MB L2 in fp32
  return p.gates * p.hidden_size * p.hidden_size <= kCachedWeights ? 4 : 12;
}

// Below this many multiply-adds a step and thread the barrier costs more than the second thread
// brings.
constexpr int64_t kMinWorkPerThread = 30000;

}  // namespace

std::vector<int64_t> panel_boundaries(int64_t hidden_size, int lanes) {
  const int64_t vectors = (hidden_size + lanes - 1) / lanes;
  const int64_t panels = panel_count(vectors);
  std::vector<int64_t> boundaries;
  for (int64_t p = 0; p <= panels; ++p) boundaries.push_back(part(vectors, p, panels));
  return boundaries;
}

std::vector<std::vector<Share>> schedule(const ScheduleProblem& problem, int num_threads,
                                         int lanes) {
  const int64_t N = problem.batch_size, H = problem.hidden_size;
  const int directions = problem.directions;
  std::vector<std::vector<Share>> shares(num_threads);
  if (N == 0 || H == 0) return shares;
  const std::vector<int64_t> boundaries = panel_boundaries(H, lanes);
  const int64_t panels = static_cast<int64_t>(boundaries.size()) - 1;
  int group = 0;
  for (int direction = 0; direction < directions; ++direction) {
    // Directions do not depend on each other: each gets its own threads, if there are enough.
    const bool split_directions = num_threads >= directions;
    const int64_t first = split_directions ? part(num_threads, direction, directions) : 0;
    const int64_t last = split_directions ? part(num_threads, direction + 1, directions) : 1;
    const int64_t work = N * H * H * problem.gates;
    const int64_t most = std::clamp<int64_t>(work / kMinWorkPerThread, 1, last - first);

    // Batch split needs no barrier: as many groups of rows as can be fed, the threads of a group
    // split its hidden units.
    const int64_t groups = std::clamp<int64_t>(N / min_rows_per_thread(problem), 1, most);
    const int64_t threads = problem.crowded ? groups : most;
    for (int64_t g = 0; g < groups; ++g, ++group) {
      const int64_t begin = part(threads, g, groups), end = part(threads, g + 1, groups);
      const int64_t members = std::min(end - begin, panels);
      for (int64_t m = 0; m < members; ++m) {
        Share share;
        share.thread = static_cast<int>(first + begin + m);
        share.direction = direction;
        // Of ragged rows every group takes long ones and short ones.
        share.row_begin = problem.ragged ? g : part(N, g, groups);
        share.row_end = problem.ragged ? N : part(N, g + 1, groups);
        share.row_step = problem.ragged ? groups : 1;
        share.vector_begin = boundaries[part(panels, m, members)];
        share.vector_end = boundaries[part(panels, m + 1, members)];
        share.group = group;
        share.group_size = static_cast<int>(members);
        shares[first + begin + m].push_back(share);
      }
    }
  }
  return shares;
}

}  // namespace cpu
}  // namespace fastlstm
