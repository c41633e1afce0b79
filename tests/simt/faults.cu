// Kernels with one mistake each, which the emulator has to find. Not for GPUs.
#include "selftest.h"

namespace fastlstm {
namespace selftest {

using namespace device;

// The barrier between the stores and the loads.
FASTLSTM_KERNEL void missing_sync_block(const Params p) {
  float* x = shared_memory<float>();
  const unsigned i = threadIdx.x;
  x[i] = p.in<float>()[i];
  p.out<float>()[i] = x[(i + 1) % blockDim.x];
}

// The barrier between the loads and the next stores.
FASTLSTM_KERNEL void missing_second_sync_block(const Params p) {
  float* x = shared_memory<float>();
  const unsigned i = threadIdx.x;
  float value = p.in<float>()[i];
  for (int step = 0; step < 2; ++step) {
    x[i] = value;
    sync_block();
    value = x[(i + 1) % blockDim.x];
  }
  p.out<float>()[i] = value;
}

FASTLSTM_KERNEL void missing_sync_warp(const Params p) {
  float* x = shared_memory<float>();
  const int l = lane();
  x[l] = p.in<float>()[l];
  p.out<float>()[l] = x[l ^ 1];
}

template <bool kWait>
FASTLSTM_KERNEL void exchange(const Params p) {
  float* x = shared_memory<float>();
  const unsigned i = blockIdx.x * blockDim.x + threadIdx.x;
  // Both wait here, or the store could come before the other block starts.
  cluster_sync();
  cluster_shared(x, (cluster_rank() + 1) % cluster_size())[threadIdx.x] = p.in<float>()[i];
  cluster_arrive();
  if (kWait) cluster_wait();
  p.out<float>()[i] = x[threadIdx.x];
  if (!kWait) cluster_wait();
}

// The first cluster_sync: what is stored before the other block starts is lost.
FASTLSTM_KERNEL void missing_first_cluster_sync(const Params p) {
  float* x = shared_memory<float>();
  const unsigned i = blockIdx.x * blockDim.x + threadIdx.x;
  cluster_shared(x, (cluster_rank() + 1) % cluster_size())[threadIdx.x] = p.in<float>()[i];
  cluster_sync();
  p.out<float>()[i] = x[threadIdx.x];
}

// The last one: the block that is read from may have left.
FASTLSTM_KERNEL void missing_last_cluster_sync(const Params p) {
  float* x = shared_memory<float>();
  const unsigned i = blockIdx.x * blockDim.x + threadIdx.x;
  x[threadIdx.x] = p.in<float>()[i];
  cluster_sync();
  p.out<float>()[i] = cluster_shared(x, (cluster_rank() + 1) % cluster_size())[threadIdx.x];
}

FASTLSTM_KERNEL void unwaited_store_async(const Params p) {
  Word4* x = shared_memory<Word4>();
  uint64_t* barrier = reinterpret_cast<uint64_t*>(x + blockDim.x);
  if (threadIdx.x == 0) mbarrier_init(barrier, 1);
  cluster_sync();
  const int next = (cluster_rank() + 1) % cluster_size();
  store_async_16(cluster_shared(x + threadIdx.x, next), p.in<Word4>()[threadIdx.x],
                 cluster_shared(barrier, next));
  cluster_sync();
}

FASTLSTM_KERNEL void mbarrier_without_init(const Params) {
  mbarrier_expect_tx(shared_memory<uint64_t>(), 16);
}

FASTLSTM_KERNEL void global_read(const Params p) {
  const unsigned i = blockIdx.x * blockDim.x + threadIdx.x;
  p.out<float>()[i % 4] = p.in<float>()[i];
}

FASTLSTM_KERNEL void global_write(const Params p) { p.out<float>()[threadIdx.x] = 1; }

FASTLSTM_KERNEL void shared_write(const Params) { shared_memory<float>()[threadIdx.x] = 1; }

FASTLSTM_KERNEL void shared_write_before(const Params) {
  shared_memory<float>()[static_cast<int>(threadIdx.x) - 1] = 1;
}

FASTLSTM_KERNEL void uninitialised_shared(const Params p) {
  float* x = shared_memory<float>();
  if (threadIdx.x % 2 == 0) x[threadIdx.x] = 1;
  sync_block();
  p.out<float>()[threadIdx.x] = x[threadIdx.x];
}

FASTLSTM_KERNEL void different_calls(const Params) {
  if (lane() < 16) {
    sync_warp();
  } else {
    float d[4] = {};
    const uint32_t a[4] = {}, b[2] = {};
    mma_m16n8k16<Half>(d, a, b);
  }
}

FASTLSTM_KERNEL void lane_left(const Params) {
  if (threadIdx.x == 5) return;
  sync_warp();
}

template <bool kWait>
FASTLSTM_KERNEL void copies(const Params p) {
  float* x = shared_memory<float>();
  const unsigned i = 4 * threadIdx.x;
  cp_async_16(x + i, p.in<float>() + i);
  cp_async_commit();
  if (kWait) cp_async_wait<0>();
  sync_block();
  for (unsigned k = 0; k < 4; ++k) p.out<float>()[i + k] = x[(i + 4 + k) % (4 * blockDim.x)];
}

// out: what the first block sent, and a flag for each thread, in whose place the second puts what
// it read.
template <bool kRelease>
FASTLSTM_KERNEL void message(const Params p) {
  Word4* sent = p.out<Word4>() + threadIdx.x;
  Word4* read = sent + blockDim.x;
  unsigned* flag = read->w;  // 0xffffffff at first
  if (blockIdx.x == 0) {
    store_relaxed_16(sent, p.in<Word4>()[threadIdx.x]);
    if (kRelease) {
      add_release(flag, 1u);
    } else {
      store_relaxed_16(read, Word4{});
    }
  } else {
    while (load_acquire(flag) != 0) {
    }
    *read = load_relaxed_16(sent);
  }
}

FASTLSTM_KERNEL void barrier_not_for_all(const Params) {
  if (threadIdx.x == 8) {
    sync_warp();
  } else if (threadIdx.x < 40) {
    sync_block();
  }
}

FASTLSTM_KERNEL void spin(const Params p) {
  while (load_acquire(p.counter) == 0) {
  }
}

FASTLSTM_KERNEL void mbarrier_wait_in_vain(const Params) {
  uint64_t* barrier = shared_memory<uint64_t>();
  mbarrier_init(barrier, 1);
  mbarrier_expect_tx(barrier, 16);
  mbarrier_wait(barrier, 0, 100);
}

FASTLSTM_KERNEL void group_barrier_in_vain(const Params p) {
  unsigned epoch = 0;
  if (blockIdx.x == 0) group_barrier(p.counter, gridDim.x, epoch, 100);
}

int deep(const volatile int* p, int depth) {
  volatile int frame[64] = {};
  if (depth == 0) return *p;
  return deep(frame, depth - 1) + frame[depth % 64];
}
FASTLSTM_KERNEL void stack_overflow(const Params p) {
  p.out<int>()[0] = deep(p.in<int>(), 1000000);
}

FASTLSTM_KERNEL void misaligned(const Params p) { load_relaxed_16(p.in<float>() + 1); }

FASTLSTM_KERNEL void misaligned_copy(const Params p) {
  cp_async_4(shared_memory<float>(), p.in<char>() + 2);
}

FASTLSTM_KERNEL void copy_out_of_range(const Params p) {
  cp_async_4(shared_memory<float>(), p.in<float>() + p.count<float>());
}

FASTLSTM_KERNEL void load_of_shared(const Params) { load_relaxed_16(shared_memory<float>()); }

// Of another block of the cluster.
FASTLSTM_KERNEL void store_to_shared(const Params) {
  cluster_sync();
  store_relaxed_16(cluster_shared(shared_memory<float>(), cluster_rank() ^ 1), Word4{});
  cluster_sync();
}

FASTLSTM_KERNEL void nothing(const Params) {}

namespace {
const Test kFaults[] = {
    {"missing_sync_block", missing_sync_block, 1, 64, 256, Kind::kNormal},
    {"missing_second_sync_block", missing_second_sync_block, 1, 64, 256, Kind::kNormal},
    {"missing_sync_warp", missing_sync_warp, 1, 32, 128, Kind::kNormal},
    {"exchange", exchange<true>, 4, 32, 128, Kind::kCluster4},
    {"missing_cluster_wait", exchange<false>, 4, 32, 128, Kind::kCluster4},
    {"missing_first_cluster_sync", missing_first_cluster_sync, 4, 32, 128, Kind::kCluster4},
    {"missing_last_cluster_sync", missing_last_cluster_sync, 4, 32, 128, Kind::kCluster4},
    {"unwaited_store_async", unwaited_store_async, 4, 32, 528, Kind::kCluster4},
    {"mbarrier_without_init", mbarrier_without_init, 1, 1, 16, Kind::kNormal},
    {"global_read", global_read, 2, 64, 0, Kind::kNormal},
    {"global_write", global_write, 1, 32, 0, Kind::kNormal},
    {"shared_write", shared_write, 1, 32, 112, Kind::kNormal},
    {"shared_write_by_one", shared_write, 1, 32, 124, Kind::kNormal},
    {"shared_write_before", shared_write_before, 1, 32, 4096, Kind::kNormal},
    {"uninitialised_shared", uninitialised_shared, 1, 64, 256, Kind::kNormal},
    {"different_calls", different_calls, 1, 32, 0, Kind::kNormal},
    {"lane_left", lane_left, 1, 32, 0, Kind::kNormal},
    {"copies", copies<true>, 1, 32, 512, Kind::kNormal},
    {"missing_cp_async_wait", copies<false>, 1, 32, 512, Kind::kNormal},
    {"message", message<true>, 2, 32, 0, Kind::kCooperative},
    {"missing_release", message<false>, 2, 32, 0, Kind::kCooperative},
    {"barrier_not_for_all", barrier_not_for_all, 1, 64, 0, Kind::kNormal},
    {"spin", spin, 2, 32, 0, Kind::kNormal},
    {"stack_overflow", stack_overflow, 1, 1, 0, Kind::kNormal},
    {"misaligned", misaligned, 1, 1, 0, Kind::kNormal},
    {"misaligned_copy", misaligned_copy, 1, 1, 16, Kind::kNormal},
    {"copy_out_of_range", copy_out_of_range, 1, 1, 16, Kind::kNormal},
    {"load_of_shared", load_of_shared, 1, 1, 16, Kind::kNormal},
    {"store_to_shared", store_to_shared, 4, 32, 128, Kind::kCluster4},
    {"mbarrier_wait_in_vain", mbarrier_wait_in_vain, 1, 1, 16, Kind::kNormal},
    {"group_barrier_in_vain", group_barrier_in_vain, 2, 32, 0, Kind::kCooperative},
    {"too_large", nothing, 133, 32, 0, Kind::kCooperative},
    {"too_many_threads", nothing, 1, 1056, 0, Kind::kNormal},
    {"too_much_shared", nothing, 1, 32, 232449, Kind::kNormal},
    {"cluster_does_not_divide", nothing, 6, 32, 0, Kind::kCluster4},
    {"empty", nothing, dim3(4, 0), 32, 0, Kind::kNormal},
};
}  // namespace

FASTLSTM_SELFTESTS(run_fault, kFaults)

// Reads from a buffer that was freed.
extern "C" int run_use_after_free(char* error, size_t error_bytes) {
  float* in = static_cast<float*>(simt::guarded_alloc(256));
  Buffer out(256, 0);
  simt::guarded_free(in);
  try {
    launch(global_read, 1, 64, 0, nullptr, {in, out.data(), nullptr, 256});
  } catch (const std::exception& e) {
    snprintf(error, error_bytes, "%s", e.what());
    return 1;
  }
  return 0;
}

extern "C" void set_max_resident_blocks(int blocks) { simt::set_max_resident_blocks(blocks); }
extern "C" void set_spin_limit(int64_t looks) { simt::set_spin_limit(looks); }

}  // namespace selftest
}  // namespace fastlstm
