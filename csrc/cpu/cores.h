// How many cores the process may use, and whether it has them to itself.
#pragma once

#include <cstdint>
#include <string>

namespace fastlstm {
namespace cpu {

// Cores that this thread may run on by its affinity and by the quota of its control group, at least
// 1. The affinity is asked for anew after 100 ms, the quota once a process.
int usable_cores();

// Cores by the quota of a control group of version 2 or 1 (a part of a core does not count, but the
// first), or 0 without a quota. root: "" or the folder that stands for / in a test.
int quota_cores(const std::string& root);

// Whether other processes lately took the cores away from a team whose threads wait for each other.
// Such threads wait for whole time slices, so that one of them alone is faster.
bool is_crowded();

// What is_crowded() knows: how long the threads of a team ran, and how much of it they waited for
// one that did not run (Barrier::late). Nanoseconds of all threads together.
void report_team(int64_t late, int64_t total);

int64_t now_in_nanoseconds();

}  // namespace cpu
}  // namespace fastlstm
