// Fibers, the order in which they run, and what ends them.
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>

#include <algorithm>
#include <map>
#include <new>
#include <numeric>
#include <stdexcept>

#include "engine.h"

uint3 threadIdx, blockIdx;
dim3 blockDim, gridDim;

namespace simt {

Fiber* current = nullptr;
std::mt19937_64 random_bits;

namespace {

constexpr size_t kStackBytes = 64 * 1024;
// A stack with a guard page of its own takes two of the system's mappings, of which a process has
// 65530 (vm.max_map_count), also one that loads several libraries with an emulator in each. Stacks
// beyond the first share a guard and are given back when their launch ends.
constexpr size_t kGuardedStacks = 4 * 1024, kStacksOfGuard = 64;
constexpr int kResidentClusters = 4;  // at most, of a launch that asks for no more

int64_t spin_limit = 10'000'000;

struct Fault {
  const char* address = nullptr;
  bool write = false;
  bool pending = false;
};

// The launch that runs.
const LaunchSpec* spec = nullptr;
Context scheduler;
std::vector<Fiber*> ready;
std::vector<void*> stacks;  // free ones
std::vector<Region> stack_regions;
size_t mapped_stacks = 0;
std::vector<Region> shared_regions;
std::string error;
int64_t vain_looks = 0;
uint64_t last_id = 0;
unsigned candidates = 1;
unsigned priority_shift = 0;
volatile Fault fault;
pthread_t launching_thread;
struct sigaction previous_action[2];
constexpr int kFaultSignals[2] = {SIGSEGV, SIGBUS};

std::string text(uint3 v) {
  return "(" + std::to_string(v.x) + ", " + std::to_string(v.y) + ", " + std::to_string(v.z) + ")";
}

void map_stacks() {
  const size_t count = mapped_stacks < kGuardedStacks ? 1 : kStacksOfGuard;
  try {
    stack_regions.push_back(map_region(nullptr, count * kStackBytes));
    char* first = stack_regions.back().data;
    for (size_t i = 0; i < count; ++i) stacks.push_back(first + i * kStackBytes);
  } catch (const std::bad_alloc&) {
    throw std::runtime_error(
        "no room for another stack (most need two of vm.max_map_count): have fewer threads "
        "resident");
  }
  mapped_stacks += count;
}

void* new_stack() {
  if (stacks.empty()) map_stacks();
  void* stack = stacks.back();
  stacks.pop_back();
  return stack;
}

// Once no thread is left, whether its launch came to an end or not.
struct StacksGivenBack {
  ~StacksGivenBack() {
    if (mapped_stacks <= kGuardedStacks && stacks.size() == mapped_stacks) return;
    for (const Region& region : stack_regions) unmap_region(region);
    stack_regions.clear();
    stacks.clear();
    mapped_stacks = 0;
  }
};

Region new_shared() {
  if (!shared_regions.empty() && shared_regions.back().bytes != spec->shared_bytes) {
    for (const Region& region : shared_regions) unmap_region(region);
    shared_regions.clear();
  }
  if (shared_regions.empty()) return map_region("shared memory", spec->shared_bytes);
  Region region = shared_regions.back();
  shared_regions.pop_back();
  return region;
}

void leave() {
  current->state = State::kLeft;
  switch_context(current->context, scheduler);
}

void run_fiber() {
  spec->call(spec->kernel, spec->params);
  leave_warp();
  progress();
  leave();
}

void on_fault(int number, siginfo_t* info, void* context) {
  if (!pthread_equal(pthread_self(), launching_thread) || current == nullptr || fault.pending) {
    // Not a kernel's: the access is tried again under the handler that was there before.
    sigaction(number, &previous_action[number == SIGBUS], nullptr);
    return;
  }
  fault.address = static_cast<const char*>(info->si_addr);
  fault.write = signal_was_write(context);
  fault.pending = true;
  leave_signal(context, scheduler);
}

// While a launch runs, faults are its own.
class FaultHandler {
 public:
  FaultHandler() : memory_(64 * 1024) {
    stack_t stack = {};
    stack.ss_sp = memory_.data();
    stack.ss_size = memory_.size();
    sigaltstack(&stack, &previous_stack_);
    struct sigaction action = {};
    action.sa_sigaction = on_fault;
    action.sa_flags = SA_SIGINFO | SA_ONSTACK;
    launching_thread = pthread_self();
    for (int i = 0; i < 2; ++i) sigaction(kFaultSignals[i], &action, &previous_action[i]);
  }
  ~FaultHandler() {
    for (int i = 0; i < 2; ++i) sigaction(kFaultSignals[i], &previous_action[i], nullptr);
    sigaltstack(&previous_stack_, nullptr);
  }

 private:
  std::vector<char> memory_;
  stack_t previous_stack_;
};

// Blocks of a cluster are neighbours along x.
std::unique_ptr<Cluster> new_cluster(size_t number) {
  const int threads = static_cast<int>(spec->block.x * spec->block.y * spec->block.z);
  const int size = spec->cluster_size;
  auto cluster = std::make_unique<Cluster>();
  cluster->blocks.resize(size);
  cluster->live = size;
  cluster->threads = size * threads;
  for (int rank = 0; rank < size; ++rank) {
    Block& block = cluster->blocks[rank];
    const size_t linear = number * size + rank;
    block.index = {static_cast<unsigned>(linear % spec->grid.x),
                   static_cast<unsigned>(linear / spec->grid.x % spec->grid.y),
                   static_cast<unsigned>(linear / spec->grid.x / spec->grid.y)};
    block.cluster = cluster.get();
    block.shared = new_shared();
    if (size > 1) close_region(block.shared, "shared memory (its block has not started)");
    block.live = threads;
    block.fibers.resize(threads);
    block.warps.resize((threads + 31) / 32);
    const uint64_t key = random_bits();
    for (int i = 0; i < threads; ++i) {
      Fiber& fiber = block.fibers[i];
      fiber.block = &block;
      fiber.id = ++last_id;
      fiber.index = i;
      fiber.thread = {i % spec->block.x, i / spec->block.x % spec->block.y,
                      i / spec->block.x / spec->block.y};
      fiber.priority = (key ^ (static_cast<uint64_t>(i) >> priority_shift)) * 0x9E3779B97F4A7C15;
      fiber.stack = new_stack();
      // Stacks that all began at the same offset in a page would share a few cache sets.
      prepare(fiber.context, fiber.stack, kStackBytes - (i % 16) * 256, run_fiber);
      block.warps[i / 32].present |= 1u << (i % 32);
      ready.push_back(&fiber);
    }
  }
  return cluster;
}

void release(Block& block) {
  for (Fiber& fiber : block.fibers) stacks.push_back(fiber.stack);
  if (spec->cluster_size > 1) open_region(block.shared, "shared memory");
  shared_regions.push_back(block.shared);
}

// Mostly the best of a few, so that in some launches a warp or a block runs far ahead of the
// others; and sometimes any, so that those that spin do not keep out the one they wait for.
Fiber* pick() {
  const unsigned tries = chance(8) ? 1 : candidates;
  size_t best = random_bits() % ready.size();
  for (unsigned i = 1; i < tries; ++i) {
    const size_t other = random_bits() % ready.size();
    if (ready[other]->priority > ready[best]->priority) best = other;
  }
  Fiber* fiber = ready[best];
  ready[best] = ready.back();
  ready.pop_back();
  return fiber;
}

void resume(Fiber& fiber) {
  Block& block = *fiber.block;
  if (!block.started) {
    // Only now: other blocks of the cluster must not use it before.
    if (spec->cluster_size > 1) open_region(block.shared, "shared memory");
    poison(block.shared);
    block.started = true;
  }
  current = &fiber;
  threadIdx = fiber.thread;
  blockIdx = block.index;
  switch_context(scheduler, fiber.context);
  if (fault.pending) {
    fault.pending = false;
    const char* address = const_cast<const char*>(fault.address);
    error = name_of(fiber) + ": " + describe_fault(address, fault.write);
    if (address >= static_cast<char*>(fiber.stack) - 4096 && address < fiber.stack) {
      error = name_of(fiber) + ": stack overflow (" + std::to_string(kStackBytes) + " bytes)";
    }
  }
  current = nullptr;
}

// The last thread of the block has left.
void finish_block(Block& block) {
  if (!deliver_stores_into(block)) {
    error = "block " + text(block.index) +
            ": has left before a store_async into its shared memory was done";
  } else if (!intact(block.shared)) {
    error = "block " + text(block.index) + ": write next to its shared memory of " +
            std::to_string(block.shared.bytes) + " bytes";
  }
  --block.cluster->live;
  if (spec->cluster_size > 1) close_region(block.shared, "shared memory (its block has left)");
}

// One line for each primitive that fibers wait in.
std::string dead_lock(const std::vector<std::unique_ptr<Cluster>>& clusters) {
  std::map<std::string, std::pair<std::string, int>> waiting;
  for (const auto& cluster : clusters) {
    for (const Block& block : cluster->blocks) {
      for (const Fiber& fiber : block.fibers) {
        if (fiber.state != State::kWaiting) continue;
        auto& [first, count] = waiting[fiber.where];
        if (count++ == 0) {
          const auto left = block.fibers.size() - block.live;
          first = name_of(fiber) +
                  (left ? " (" + std::to_string(left) + " of its block have left)" : std::string());
        }
      }
    }
  }
  std::string result = "dead lock:";
  for (const auto& [where, who] : waiting) {
    result += "\n  in " + where + " waits " + who.first;
    if (who.second > 1) result += " and " + std::to_string(who.second - 1) + " more";
  }
  return result;
}

void run_all() {
  const size_t total =
      static_cast<size_t>(spec->grid.x) * spec->grid.y * spec->grid.z / spec->cluster_size;
  std::vector<size_t> order(total);
  std::iota(order.begin(), order.end(), size_t{0});
  std::shuffle(order.begin(), order.end(), random_bits);
  const size_t resident = spec->cooperative ? total : 1 + random_bits() % kResidentClusters;
  candidates = 1u << random_bits() % 3;
  constexpr unsigned kShifts[3] = {0, 5, 32};  // priorities of threads, of warps, of blocks
  priority_shift = kShifts[random_bits() % 3];
  reset_delays();

  std::vector<std::unique_ptr<Cluster>> clusters;
  size_t next = 0;
  while (error.empty()) {
    while (clusters.size() < resident && next < total) {
      clusters.push_back(new_cluster(order[next++]));
    }
    if (ready.empty()) {
      if (stores_pending()) {
        deliver_some_store();
        continue;
      }
      if (clusters.empty()) break;
      error = dead_lock(clusters);
      break;
    }
    if (stores_pending() && chance(16)) deliver_some_store();
    Fiber* fiber = pick();
    resume(*fiber);
    if (fiber->state == State::kReady) ready.push_back(fiber);
    if (fiber->state != State::kLeft || !error.empty()) continue;
    if (--fiber->block->live > 0) continue;
    finish_block(*fiber->block);
    Cluster* cluster = fiber->block->cluster;
    if (cluster->live > 0) continue;
    const auto done = std::find_if(clusters.begin(), clusters.end(),
                                   [&](const auto& c) { return c.get() == cluster; });
    for (Block& block : cluster->blocks) release(block);
    clusters.erase(done);
  }
  for (const auto& cluster : clusters) {
    for (Block& block : cluster->blocks) release(block);
  }
}

}  // namespace

std::string name_of(const Fiber& fiber) {
  return "block " + text(fiber.block->index) + ", thread " + text(fiber.thread);
}

const LaunchSpec& launch_spec() { return *spec; }

void set_spin_limit(int64_t looks) { spin_limit = looks; }

void fail(const char* format, ...) {
  char why[512];
  va_list arguments;
  va_start(arguments, format);
  vsnprintf(why, sizeof why, format, arguments);
  va_end(arguments);
  if (error.empty()) error = name_of(*current) + ": " + why;
  leave();
  __builtin_unreachable();
}

void wait(const char* where) {
  current->state = State::kWaiting;
  current->where = where;
  switch_context(current->context, scheduler);
}

void wake(Fiber& fiber) {
  fiber.state = State::kReady;
  ready.push_back(&fiber);
}

void yield(const char* where, bool vain) {
  if (vain && ++vain_looks > spin_limit) {
    fail("%s: no progress in %lld looks at memory; the thread waits for something that never comes",
         where, static_cast<long long>(spin_limit));
  }
  switch_context(current->context, scheduler);
}

void progress() { vain_looks = 0; }

std::string run_blocks(const LaunchSpec& launch) {
  spec = &launch;
  blockDim = launch.block;
  gridDim = launch.grid;
  error.clear();
  ready.clear();
  vain_looks = 0;
  {
    StacksGivenBack stacks_given_back;
    FaultHandler handler;
    run_all();
  }
  drop_stores();
  return error;
}

}  // namespace simt
