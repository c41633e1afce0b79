// One problem on one machine: buffers, launches, their times and checksums; and what Python calls.
#pragma once

#include <stdio.h>
#include <string.h>

#include <stdexcept>
#include <string>

#include "exchange.cuh"

namespace fastlstm {
namespace exchange {

enum class Kind { kNormal, kCooperative, kCluster };

struct Scheme {
  const char* name;
  void (*kernel)(Params);
  Kind kind;
  bool state_in_shared;
  bool slot_a_step;  // of the state in global memory; otherwise there are two slots
};

// native.py has the same.
struct Problem {
  int32_t groups, blocks, threads, chunks, steps;
  int32_t launches;
  int32_t most_looks;
  int32_t shared_bytes;  // at least; more keep other blocks off the multiprocessor
  uint64_t seed;         // of the emulator
};

// ---- what differs between the two machines ----

#ifdef FASTLSTM_SIMT
inline void* allocate(size_t bytes) { return simt::guarded_alloc(bytes); }
inline void release(void* p) { simt::guarded_free(p); }
inline void fill(void* p, int value, size_t bytes) { memset(p, value, bytes); }
inline void fetch(void* to, const void* from, size_t bytes) { memcpy(to, from, bytes); }
inline void set_seed(uint64_t seed) { simt::set_seed(seed); }

// There is no time in the emulator.
class Stopwatch {
 public:
  void start() {}
  float milliseconds() { return 0; }
};
#else
inline void check(cudaError_t error) {
  if (error != cudaSuccess) throw std::runtime_error(cudaGetErrorString(error));
}
inline void* allocate(size_t bytes) {
  void* p = nullptr;
  check(cudaMalloc(&p, bytes));
  return p;
}
inline void release(void* p) { cudaFree(p); }
inline void fill(void* p, int value, size_t bytes) { check(cudaMemset(p, value, bytes)); }
inline void fetch(void* to, const void* from, size_t bytes) {
  check(cudaMemcpy(to, from, bytes, cudaMemcpyDefault));
}
inline void set_seed(uint64_t) {}

class Stopwatch {
 public:
  Stopwatch() {
    check(cudaEventCreate(&start_));
    check(cudaEventCreate(&end_));
  }
  ~Stopwatch() {
    cudaEventDestroy(start_);
    cudaEventDestroy(end_);
  }
  Stopwatch(const Stopwatch&) = delete;
  void operator=(const Stopwatch&) = delete;
  void start() { check(cudaEventRecord(start_)); }
  // Waits for what was launched since start, and reports what went wrong in it.
  float milliseconds() {
    float elapsed = 0;
    check(cudaEventRecord(end_));
    check(cudaEventSynchronize(end_));
    check(cudaEventElapsedTime(&elapsed, start_, end_));
    return elapsed;
  }

 private:
  cudaEvent_t start_, end_;
};
#endif

class Buffer {
 public:
  explicit Buffer(size_t bytes) : bytes_(bytes), data_(allocate(bytes)) {}
  ~Buffer() { release(data_); }
  Buffer(const Buffer&) = delete;
  void operator=(const Buffer&) = delete;
  void fill_with(int value) { fill(data_, value, bytes_); }
  template <class T>
  T* as() const {
    return static_cast<T*>(data_);
  }
  size_t bytes() const { return bytes_; }

 private:
  size_t bytes_;
  void* data_;
};

// Of a block of the scheme.
inline size_t shared_bytes(const Scheme& scheme, int threads, int chunks) {
  const size_t partial = 2 * sizeof(uint32_t) * static_cast<size_t>(threads);
  if (!scheme.state_in_shared) return partial;
  return partial + 2 * sizeof(Word4) * static_cast<size_t>(chunks) + 2 * sizeof(uint64_t);
}

inline void launch_scheme(const Scheme& scheme, const Problem& problem, size_t shared,
                          const Params& p) {
  const dim3 grid(static_cast<unsigned>(problem.groups * problem.blocks));
  const dim3 block(static_cast<unsigned>(problem.threads));
  if (scheme.kind == Kind::kCooperative) {
    launch_cooperative(scheme.kernel, grid, block, shared, nullptr, p);
  } else if (scheme.kind == Kind::kCluster) {
    launch_cluster(scheme.kernel, grid, block, shared, nullptr, p, problem.blocks);
  } else {
    launch(scheme.kernel, grid, block, shared, nullptr, p);
  }
}

inline void check_problem(const Problem& problem) {
  const auto require = [](bool holds, const char* what) {
    if (!holds) throw std::runtime_error(std::string("problem: expected ") + what);
  };
  require(problem.groups >= 1 && problem.groups <= kGroupsMax, "1 to 160 groups");
  require(problem.threads >= 32 && problem.threads <= kThreadsMax && problem.threads % 32 == 0,
          "32, 64, ... 256 threads");
  require(problem.blocks >= 1 && problem.chunks >= problem.blocks, "a chunk for each block");
  require(problem.steps >= 1 && problem.launches >= 1 && problem.most_looks >= 1,
          "at least one step, launch and look");
}

// ms: [launches]. hashes: [launches, groups * blocks, threads].
inline void run(const Scheme& scheme, const Problem& problem, float* ms, uint32_t* hashes) {
  check_problem(problem);
  set_seed(problem.seed);
  const size_t groups = static_cast<size_t>(problem.groups);
  const size_t slots = scheme.slot_a_step ? static_cast<size_t>(problem.steps) : 2;
  const size_t threads = groups * static_cast<size_t>(problem.blocks * problem.threads);
  Buffer state(groups * slots * static_cast<size_t>(problem.chunks) * sizeof(Word4));
  Buffer counter(groups * kCounterStride * sizeof(unsigned));
  Buffer sums(threads * sizeof(uint32_t));
  size_t shared = shared_bytes(scheme, problem.threads, problem.chunks);
  if (problem.shared_bytes > static_cast<int>(shared)) {
    shared = static_cast<size_t>(problem.shared_bytes);
  }
  const Params p{state.as<Word4>(), counter.as<unsigned>(), sums.as<uint32_t>(), problem.blocks,
                 problem.chunks,    problem.steps,          problem.most_looks,  0};
  Stopwatch watch;
  for (int i = 0; i < problem.launches; ++i) {
    // What the launch before left must not pass for this one's.
    state.fill_with(0xff);
    counter.fill_with(0);
    sums.fill_with(0);
    watch.start();
    launch_scheme(scheme, problem, shared, p);
    ms[i] = watch.milliseconds();
    fetch(hashes + static_cast<size_t>(i) * threads, sums.as<uint32_t>(), sums.bytes());
  }
}

// Calls body; 0, or 1 and the words of what went wrong.
template <class Body>
int report(char* error, size_t error_bytes, Body body) {
  try {
    body();
    return 0;
  } catch (const std::exception& e) {
    snprintf(error, error_bytes, "%s", e.what());
    return 1;
  }
}

template <size_t kCount>
int run_by_name(const Scheme (&schemes)[kCount], const char* name, const Problem& problem,
                float* ms, uint32_t* hashes, char* error, size_t error_bytes) {
  return report(error, error_bytes, [&] {
    for (const Scheme& scheme : schemes) {
      if (strcmp(scheme.name, name) == 0) return run(scheme, problem, ms, hashes);
    }
    throw std::runtime_error(std::string("no scheme ") + name);
  });
}

}  // namespace exchange
}  // namespace fastlstm

// Defines a function for Python.
#define FASTLSTM_SCHEMES(NAME, TABLE)                                                        \
  extern "C" int NAME(const char* name, const Problem* problem, float* ms, uint32_t* hashes, \
                      char* error, size_t error_bytes) {                                     \
    return run_by_name(TABLE, name, *problem, ms, hashes, error, error_bytes);               \
  }
