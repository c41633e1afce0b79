#include "dispatch.h"

#include <ATen/Parallel.h>
#include <ATen/Version.h>
#include <c10/util/Exception.h>
#include <pthread.h>

#include <algorithm>
#include <atomic>

#include "cores.h"
#if defined(_OPENMP)
#include <omp.h>
#elif defined(FASTLSTM_STD_THREADS)
#include <thread>
#include <vector>
#endif
#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace fastlstm {
namespace cpu {
namespace {

template <class S>
const Kernels<S>* find(const std::string& name);
template <>
const Kernels<float>* find(const std::string& name) {
  return name == "AVX512"    ? avx512_f32()
         : name == "AVX2"    ? avx2_f32()
         : name == "DEFAULT" ? scalar_f32()
                             : nullptr;
}
template <>
const Kernels<double>* find(const std::string& name) {
  return name == "AVX512"    ? avx512_f64()
         : name == "AVX2"    ? avx2_f64()
         : name == "DEFAULT" ? scalar_f64()
                             : nullptr;
}

bool processor_has(const std::string& name) {
#if defined(__x86_64__)
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  if (name == "AVX2") return avx2;
  if (name == "AVX512") {
    return avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") &&
           __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl");
  }
#endif
  return name == "DEFAULT";
}

class FlushDenormals {
#if defined(__x86_64__)
 public:
  FlushDenormals() : saved_(_mm_getcsr()) { _mm_setcsr(saved_ | 0x8040); }  // FTZ | DAZ
  ~FlushDenormals() { _mm_setcsr(saved_); }

 private:
  unsigned saved_;
#endif
};

// libgomp's threads do not survive fork, and a child that asks for them waits forever. The flag is
// set in the child.
std::atomic<bool> forked_after_use{false};
std::atomic<bool> used_threads{false};
const bool fork_handler_installed = [] {
  pthread_atfork(nullptr, nullptr, [] {
    if (used_threads.load()) forked_after_use = true;
  });
  return true;
}();

}  // namespace

std::vector<std::string> capabilities() {
  std::vector<std::string> names;
  for (const char* name : {"AVX512", "AVX2", "DEFAULT"}) {
    if (processor_has(name) && find<float>(name)) names.push_back(name);
  }
  return names;
}

std::string capability() {
  static const std::string chosen = [] {
    const std::string allowed = at::get_cpu_capability();
    for (const std::string& name : capabilities()) {
      if (name == allowed) return name;
      if (name == "AVX2" && allowed == "AVX512") return name;
    }
    return std::string("DEFAULT");
  }();
  return chosen;
}

template <class S>
const Kernels<S>& kernels(const std::string& name) {
  const Kernels<S>* table = processor_has(name) ? find<S>(name) : nullptr;
  TORCH_CHECK_VALUE(table, "capability must be one of those this machine can run, got ", name);
  return *table;
}

template <class S>
const Kernels<S>& kernels() {
  static const Kernels<S>& table = kernels<S>(capability());
  return table;
}

const Kernels<float>* bf16_kernels() {
#if defined(__x86_64__)
  static const bool usable = capability() == "AVX512" && __builtin_cpu_supports("avx512bf16");
  return usable ? avx512_bf16() : nullptr;
#else
  return nullptr;
#endif
}

template const Kernels<float>& kernels<float>();
template const Kernels<double>& kernels<double>();
template const Kernels<float>& kernels<float>(const std::string&);
template const Kernels<double>& kernels<double>(const std::string&);

int num_threads() {
#if defined(_OPENMP)
  if (omp_in_parallel() || at::in_parallel_region() ||
      forked_after_use.load(std::memory_order_relaxed))
    return 1;
  return std::min(at::get_num_threads(), usable_cores());
#elif defined(FASTLSTM_STD_THREADS)
  return at::in_parallel_region() ? 1 : at::get_num_threads();
#else
  return 1;
#endif
}

void run_team(int threads, void (*work)(void*, int, int), void* context) {
#if defined(_OPENMP)
  if (threads > 1) {
    used_threads.store(true, std::memory_order_relaxed);
#pragma omp parallel num_threads(threads)
    {
      FlushDenormals guard;
      work(context, omp_get_thread_num(), omp_get_num_threads());
    }
    return;
  }
#elif defined(FASTLSTM_STD_THREADS)
  // ThreadSanitizer sees how these start and end; libgomp's it does not.
  if (threads > 1) {
    auto member = [=](int thread) {
      FlushDenormals guard;
      work(context, thread, threads);
    };
    std::vector<std::thread> team;
    for (int i = 1; i < threads; ++i) team.emplace_back(member, i);
    member(0);
    for (std::thread& thread : team) thread.join();
    return;
  }
#else
  (void)threads;
#endif
  FlushDenormals guard;
  work(context, 0, 1);
}

}  // namespace cpu
}  // namespace fastlstm
