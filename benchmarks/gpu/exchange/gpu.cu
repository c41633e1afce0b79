// What only a GPU has: grid.sync, launches, clocks, and how many clusters can be resident.
#include <cooperative_groups.h>

#include "cluster.cuh"
#include "grid.cuh"
#include "run.h"

namespace fastlstm {
namespace exchange {
namespace {

// Of the whole grid, so there is one group.
class GridSync {
 public:
  FASTLSTM_DEVICE void wait(const Params&, int) { cooperative_groups::this_grid().sync(); }
};

// The forms for which all lanes of a warp are together, which device.cuh does not have.
struct WholeWarps {
  FASTLSTM_DEVICE static void arrive() {
#if __CUDA_ARCH__ >= 900
    asm volatile("barrier.cluster.arrive.release.aligned;" : : : "memory");
#else
    trap("clusters need sm_90");
#endif
  }
  FASTLSTM_DEVICE static void wait() {
#if __CUDA_ARCH__ >= 900
    asm volatile("barrier.cluster.wait.acquire.aligned;" : : : "memory");
#endif
  }
};

// Looks that sleep for as long as the hardware likes, which makes one look of two. kRelaxed: with a
// fence behind them that acquires from shared memory of the cluster alone; looks that acquire empty
// the L1 cache as well.
template <bool kRelaxed>
struct UnlimitedLooks {
  FASTLSTM_DEVICE static void wait(uint64_t* barrier, int parity, int most_looks) {
    Patience patience(most_looks);
    while (!is_over(barrier, parity)) patience.look();
#if __CUDA_ARCH__ >= 900
    if (kRelaxed)
      asm volatile("fence.acquire.sync_restrict::shared::cluster.cluster;" : : : "memory");
#endif
  }
  FASTLSTM_DEVICE static bool is_over(uint64_t* barrier, int parity) {
    uint32_t over = 0;
#if __CUDA_ARCH__ >= 900
#define FASTLSTM_TRY_WAIT(ORDER)                                                     \
  asm volatile("{\n\t.reg .pred p;\n\tmbarrier.try_wait.parity." ORDER               \
               ".cluster.shared::cta.b64 p, [%1], %2;\n\tselp.u32 %0, 1, 0, p;\n\t}" \
               : "=r"(over)                                                          \
               : "r"(shared_address(barrier)), "r"(parity)                           \
               : "memory")
    if constexpr (kRelaxed) {
      FASTLSTM_TRY_WAIT("relaxed");
    } else {
      FASTLSTM_TRY_WAIT("acquire");
    }
#undef FASTLSTM_TRY_WAIT
#endif
    return over != 0;
  }
};

const Scheme kGpuSchemes[] = {
    {"grid_sync", run_steps<ThroughBarrier<GridSync>>, Kind::kCooperative, false, false},
    {"cluster_aligned", run_steps<ClusterBarrier<WholeWarps>>, Kind::kCluster, true, false},
    {"cluster_unlimited", run_steps<ClusterAsync<Fault::kNone, UnlimitedLooks<false>>>,
     Kind::kCluster, true, false},
#if CUDART_VERSION >= 12080  // ptxas knows the fence
    {"cluster_relaxed", run_steps<ClusterAsync<Fault::kNone, UnlimitedLooks<true>>>, Kind::kCluster,
     true, false},
#endif
};

FASTLSTM_KERNEL void nothing(const Params) {}

FASTLSTM_DEVICE unsigned long long nanoseconds() {
  unsigned long long now;
  asm volatile("mov.u64 %0, %%globaltimer;" : "=l"(now));
  return now;
}

// One thread: hashes[0] = cycles of `steps` microseconds, as a 32-bit number.
FASTLSTM_KERNEL void count_cycles(const Params p) {
  const unsigned long long duration = 1000ull * static_cast<unsigned>(p.steps);
  const unsigned long long begin = nanoseconds();
  const long long first = clock64();
  unsigned long long now = begin;
  for (int looks = 0; now - begin < duration && looks < p.most_looks; ++looks) now = nanoseconds();
  const long long cycles = clock64() - first;
  p.hashes[0] = static_cast<uint32_t>(cycles * 1000 / static_cast<long long>(now - begin + 1));
}

int attribute(cudaDeviceAttr name) {
  int value = 0, device = 0;
  check(cudaGetDevice(&device));
  check(cudaDeviceGetAttribute(&value, name, device));
  return value;
}

class Stream {
 public:
  Stream() { check(cudaStreamCreate(&stream_)); }
  ~Stream() { cudaStreamDestroy(stream_); }
  Stream(const Stream&) = delete;
  void operator=(const Stream&) = delete;
  cudaStream_t get() const { return stream_; }

 private:
  cudaStream_t stream_ = nullptr;
};

void launch_nothing(int blocks, int threads, int count, cudaStream_t stream) {
  for (int i = 0; i < count; ++i) {
    launch(nothing, dim3(static_cast<unsigned>(blocks)), dim3(static_cast<unsigned>(threads)), 0,
           stream, Params{});
  }
}

// Of `count` launches, between two events on the stream.
float time_stream(int blocks, int threads, int count) {
  Stopwatch watch;
  watch.start();
  launch_nothing(blocks, threads, count, nullptr);
  return watch.milliseconds();
}

cudaGraphExec_t capture(int blocks, int threads, int count) {
  Stream stream;
  cudaGraph_t graph = nullptr;
  cudaGraphExec_t runnable = nullptr;
  check(cudaStreamBeginCapture(stream.get(), cudaStreamCaptureModeThreadLocal));
  launch_nothing(blocks, threads, count, stream.get());
  check(cudaStreamEndCapture(stream.get(), &graph));
  const cudaError_t error = cudaGraphInstantiate(&runnable, graph, 0);
  cudaGraphDestroy(graph);
  check(error);
  return runnable;
}

float time_graph(cudaGraphExec_t graph) {
  Stopwatch watch;
  watch.start();
  check(cudaGraphLaunch(graph, nullptr));
  return watch.milliseconds();
}

}  // namespace

FASTLSTM_SCHEMES(exchange_run_gpu, kGpuSchemes)

// facts: capability (90 for 9.0), multiprocessors, shared memory a block may have, MHz measured
// over 5 ms, CUDA version (13000 for 13.0).
extern "C" int exchange_device(char* name, size_t name_bytes, int32_t facts[5], char* error,
                               size_t error_bytes) {
  return report(error, error_bytes, [&] {
    cudaDeviceProp properties;
    int device = 0, version = 0;
    check(cudaGetDevice(&device));
    check(cudaGetDeviceProperties(&properties, device));
    check(cudaRuntimeGetVersion(&version));
    snprintf(name, name_bytes, "%s", properties.name);
    Buffer mhz(sizeof(uint32_t));
    Params p{};
    p.hashes = mhz.as<uint32_t>();
    p.steps = 5000;
    p.most_looks = 10'000'000;
    uint32_t measured = 0;
    // The first one wakes the clocks.
    for (int i = 0; i < 3; ++i) launch(count_cycles, dim3(1), dim3(1), 0, nullptr, p);
    fetch(&measured, mhz.as<uint32_t>(), sizeof measured);
    facts[0] = 10 * properties.major + properties.minor;
    facts[1] = properties.multiProcessorCount;
    facts[2] = attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin);
    facts[3] = static_cast<int32_t>(measured);
    facts[4] = version;
  });
}

// ms: [2, launches]: of `count` launches in a stream, and of a graph with as many.
extern "C" int exchange_launches(int blocks, int threads, int count, int launches, float* ms,
                                 char* error, size_t error_bytes) {
  return report(error, error_bytes, [&] {
    for (int i = 0; i < launches; ++i) ms[i] = time_stream(blocks, threads, count);
    cudaGraphExec_t graph = capture(blocks, threads, count);
    for (int i = 0; i < launches; ++i) ms[launches + i] = time_graph(graph);
    check(cudaGraphExecDestroy(graph));
  });
}

// How many clusters of `size` blocks can be resident.
extern "C" int exchange_max_clusters(int size, int threads, int shared, int32_t* clusters,
                                     char* error, size_t error_bytes) {
  return report(error, error_bytes, [&] {
    *clusters =
        max_active_clusters(run_steps<ClusterAsync<>>, size, threads, static_cast<size_t>(shared));
  });
}

}  // namespace exchange
}  // namespace fastlstm
