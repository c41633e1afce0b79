#include "cores.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdlib>
#include <fstream>
#include <sstream>
#include <thread>

#if defined(__linux__)
#include <sched.h>
#endif

namespace fastlstm {
namespace cpu {
namespace {

constexpr int64_t kMillisecond = 1000 * 1000;

int affinity_cores() {
#if defined(__linux__)
  // Room for more processors than the fixed set of 1024 has, as long as the kernel asks for it.
  for (int processors = 1024; processors <= 1 << 20; processors *= 4) {
    cpu_set_t* set = CPU_ALLOC(processors);
    if (!set) break;
    const size_t bytes = CPU_ALLOC_SIZE(processors);
    const int count = sched_getaffinity(0, bytes, set) == 0 ? CPU_COUNT_S(bytes, set) : 0;
    CPU_FREE(set);
    if (count > 0) return count;
  }
#endif
  return std::max(1u, std::thread::hardware_concurrency());
}

// Whole cores, at least one, of `quota` in a `period`; 0 where there is no quota ("max", -1).
int cores_of(const std::string& quota, const std::string& period) {
  const double q = std::atof(quota.c_str()), p = std::atof(period.c_str());
  return q > 0 && p > 0 ? std::max(1, static_cast<int>(q / p)) : 0;
}

std::string first_line(const std::string& path) {
  std::ifstream file(path);
  std::string line;
  std::getline(file, line);
  return line;
}

// The quota of one group; of version 2 in cpu.max, of version 1 in two files.
int group_cores(const std::string& folder, bool unified) {
  if (!unified)
    return cores_of(first_line(folder + "/cpu.cfs_quota_us"),
                    first_line(folder + "/cpu.cfs_period_us"));
  std::istringstream words(first_line(folder + "/cpu.max"));
  std::string quota, period;
  words >> quota >> period;
  return cores_of(quota, period);
}

// Together they are the last window of watched time.
std::atomic<int64_t> window_late{0}, window_time{0};
std::atomic<int64_t> crowded_until{0}, next_hold{0};

}  // namespace

int quota_cores(const std::string& root) {
  std::ifstream groups(root + "/proc/self/cgroup");
  int fewest = 0;
  for (std::string line; std::getline(groups, line);) {
    // hierarchy:controllers:path
    const size_t first = line.find(':'), second = line.find(':', first + 1);
    if (first == std::string::npos || second == std::string::npos) continue;
    const std::string controllers = "," + line.substr(first + 1, second - first - 1) + ",";
    const bool unified = controllers == ",,";
    if (!unified && controllers.find(",cpu,") == std::string::npos) continue;
    const std::string mount = root + "/sys/fs/cgroup" + (unified ? "" : "/cpu");
    // A quota holds for the groups below. Inside of a container the path may be that of the host,
    // which is not there, but its own group is at the root.
    for (std::string path = line.substr(second + 1);;) {
      const int cores = group_cores(mount + path, unified);
      if (cores > 0) fewest = fewest == 0 ? cores : std::min(fewest, cores);
      if (path.empty()) break;
      path.resize(path.find_last_of('/') == std::string::npos ? 0 : path.find_last_of('/'));
    }
  }
  return fewest;
}

int usable_cores() {
  static const int quota = quota_cores("");
  thread_local int cores = 0;
  thread_local int64_t asked = 0;
  const int64_t now = now_in_nanoseconds();
  if (cores == 0 || now - asked > 100 * kMillisecond) {
    cores = quota > 0 ? std::min(quota, affinity_cores()) : affinity_cores();
    asked = now;
  }
  return cores;
}

int64_t now_in_nanoseconds() {
  return std::chrono::duration_cast<std::chrono::nanoseconds>(
             std::chrono::steady_clock::now().time_since_epoch())
      .count();
}

bool is_crowded() {
  const int64_t until = crowded_until.load(std::memory_order_relaxed);
  return until != 0 && now_in_nanoseconds() < until;
}

// A window ends after 100 ms of threads, or when 25 ms of it were waits; a quarter in waits is
// crowded. Turns of other processes, of up to 4 ms, happen on a quiet machine too. While it is
// crowded a trial is made from time to time, each time later: it takes as long as the calls of a
// window, whose threads wait for each other again. Counting context switches instead took a quiet
// machine for a crowded one now and then: 15 a second and thread there, 38 at worst, against 185.
void report_team(int64_t late, int64_t total) {
  constexpr int64_t kWindow = 100 * kMillisecond, kFirstHold = 100 * kMillisecond,
                    kLongestHold = 1000 * kMillisecond, kShare = 4;
  // Calls from several threads at once only blur the sums.
  const int64_t waited = window_late.fetch_add(late) + late;
  const int64_t time = window_time.fetch_add(total) + total;
  if (time < kWindow && kShare * waited < kWindow) return;
  window_late = 0;
  window_time = 0;
  if (kShare * waited < time) {
    next_hold = kFirstHold;
    return;
  }
  const int64_t hold = std::max(kFirstHold, next_hold.load());
  crowded_until = now_in_nanoseconds() + hold;
  next_hold = std::min(kLongestHold, 2 * hold);
}

}  // namespace cpu
}  // namespace fastlstm
