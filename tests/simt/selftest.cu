// Kernels that use every function of csrc/cuda/device.cuh as real kernels do. The emulator runs
// them in test_simt.py; nvcc compiles them, so that a GPU can be asked the same questions.
#include "selftest.h"

#include <math.h>

namespace fastlstm {
namespace selftest {

using namespace device;

constexpr unsigned kWarpMask = 0xffffffffu;

FASTLSTM_KERNEL void indices(const Params p) {
  const unsigned block = blockIdx.x + gridDim.x * (blockIdx.y + gridDim.y * blockIdx.z);
  const unsigned thread = threadIdx.x + blockDim.x * (threadIdx.y + blockDim.y * threadIdx.z);
  p.out<unsigned>()[block * blockDim.x * blockDim.y * blockDim.z + thread] = block << 16 | thread;
}

FASTLSTM_KERNEL void conversions(const Params p) {
  const int i = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x);
  const int n = p.count<float>();
  if (i >= n) return;
  const Half half(p.in<float>()[i]);
  const BFloat16 bfloat(p.in<float>()[i]);
  p.out<float>()[i] = static_cast<float>(half);
  p.out<float>()[n + i] = static_cast<float>(bfloat);
}

// Every 16-bit pattern as a float, of both types.
FASTLSTM_KERNEL void widen(const Params p) {
  const unsigned i = blockIdx.x * blockDim.x + threadIdx.x;
  Half half;
  BFloat16 bfloat;
  half.bits = bfloat.bits = static_cast<uint16_t>(i);
  p.out<float>()[i] = static_cast<float>(half);
  p.out<float>()[0x10000 + i] = static_cast<float>(bfloat);
}

// A kernel for sm_80: cvt.rna.
FASTLSTM_KERNEL void round_tf32(const Params p) {
  p.out<uint32_t>()[threadIdx.x] = to_tf32(p.in<float>()[threadIdx.x]);
}

// Two warps; the second uses its halves separately. Nine numbers a lane.
FASTLSTM_KERNEL void shuffles(const Params p) {
  const int l = lane();
  const unsigned half = l < 16 ? 0x0000ffffu : 0xffff0000u;
  const unsigned mask = warp() == 0 ? kWarpMask : half;
  const int i = static_cast<int>(threadIdx.x);
  const double x = p.in<double>()[i];
  const float y = static_cast<float>(x);
  const int base = warp() == 0 ? 0 : l / 16 * 16;
  double* out = p.out<double>() + 9 * i;
  out[0] = shuffle(mask, x, base + (l * 7 + 3) % 16);
  out[1] = shuffle(mask, y, base);
  out[2] = shuffle_xor(mask, x, 5);
  out[3] = shuffle_xor(mask, static_cast<int>(x), 15);
  // Within a half, a lane must not read from the other half.
  out[4] = shuffle_down(mask, x, warp() == 0 ? 3u : 0u);
  out[5] = shuffle_up(mask, y, warp() == 0 ? 4u : 0u);
  out[6] = shuffle_up(mask, static_cast<uint64_t>(x), warp() == 0 ? 16u : 0u);
  sync_warp(mask);
  out[7] = ballot(mask, x > 0);
  sync_warp();
  out[8] = l + 32 * warp();
}

// The sum over the block, in every thread of it, kRounds times with one buffer.
FASTLSTM_KERNEL void all_reduce(const Params p) {
  constexpr int kRounds = 3;
  float* sums = shared_memory<float>();
  const int i = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x);
  float x = p.in<float>()[i];
  for (int round = 0; round < kRounds; ++round) {
    float sum = x;
    for (int step = 16; step > 0; step /= 2) sum += shuffle_xor(kWarpMask, sum, step);
    if (lane() == 0) sums[warp()] = sum;
    sync_block();
    float total = 0;
    for (unsigned w = 0; w < blockDim.x / 32; ++w) total += sums[w];
    sync_block();
    x = total + static_cast<float>(threadIdx.x);
  }
  p.out<float>()[i] = x;
}

// out[i] = sum over the blocks of in[block][i], through a pipeline of two stages; odd columns of
// four are not valid and count as zero.
FASTLSTM_KERNEL void pipeline(const Params p) {
  float* stages = shared_memory<float>();  // [2][4 * threads]
  const int width = static_cast<int>(4 * blockDim.x), mine = static_cast<int>(4 * threadIdx.x);
  const int rows = p.count<float>() / width;
  const auto fetch = [&](int row) {
    const bool valid = row < rows && threadIdx.x % 2 == 0;
    cp_async_16(stages + row % 2 * width + mine, p.in<float>() + (valid ? row * width + mine : 0),
                valid);
    cp_async_commit();
  };
  // A thread sums what its neighbour has copied.
  const int theirs = (mine + 4) % width;
  float sum[4] = {};
  fetch(0);
  for (int row = 0; row < rows; ++row) {
    fetch(row + 1);
    cp_async_wait<1>();
    sync_block();
    for (int k = 0; k < 4; ++k) sum[k] += stages[row % 2 * width + theirs + k];
    sync_block();
  }
  for (int k = 0; k < 4; ++k) p.out<float>()[theirs + k] = sum[k];
}

// out[i] = in[n - 1 - j] with j = (i + 1) % n, or 0 where 3 divides j.
FASTLSTM_KERNEL void reversed(const Params p) {
  float* x = shared_memory<float>();
  const int n = p.count<float>(), i = static_cast<int>(threadIdx.x);
  const bool valid = i % 3 != 0;
  cp_async_4(x + i, p.in<float>() + (valid ? n - 1 - i : n), valid);
  cp_async_commit();
  cp_async_wait<0>();
  sync_block();
  p.out<float>()[i] = x[(i + 1) % n];
}

FASTLSTM_KERNEL void matrices(const Params p) {
  uint16_t* tile = shared_memory<uint16_t>();  // [32][8]
  const int l = lane();
  for (int k = 0; k < 8; ++k) tile[8 * l + k] = p.in<uint16_t>()[8 * l + k];
  sync_warp();
  uint32_t r[4];
  ldmatrix_x4(r, tile + 8 * l);
  for (int m = 0; m < 4; ++m) p.out<uint32_t>()[4 * l + m] = r[m];
  ldmatrix_x4_trans(r, tile + 8 * l);
  for (int m = 0; m < 4; ++m) p.out<uint32_t>()[128 + 4 * l + m] = r[m];
}

// out[32, 16] = A[32, K] B with two warps of 16 rows; in holds A and then B, as [16, K] or with
// kTrans as [K, 16].
template <class T, bool kTrans>
FASTLSTM_KERNEL void FASTLSTM_LAUNCH_BOUNDS(64) gemm(const Params p) {
  constexpr int kRows = 32, kColumns = 16, kDepth = 16;
  constexpr int kStride = kDepth + 8;  // rows 48 bytes apart: no bank conflicts in ldmatrix
  T* a_tile = shared_memory<T>();
  T* b_tile = a_tile + kRows * kStride;
  const int depth = p.count<T>() / (kRows + kColumns);
  const T* a = p.in<T>();
  const T* b = a + kRows * depth;
  const int thread = static_cast<int>(threadIdx.x), l = lane();
  float d[2][4] = {};
  for (int k = 0; k < depth; k += kDepth) {
    cp_async_16(a_tile + thread / 2 * kStride + thread % 2 * 8,
                a + thread / 2 * depth + k + thread % 2 * 8);
    if (thread < 32) {
      const int row = thread / 2, column = thread % 2 * 8;
      cp_async_16(b_tile + row * kStride + column,
                  kTrans ? b + (k + row) * kColumns + column : b + row * depth + k + column);
    }
    cp_async_commit();
    cp_async_wait<0>();
    sync_block();
    uint32_t fragment_a[4], r[4];
    ldmatrix_x4(fragment_a, a_tile + (16 * warp() + l % 16) * kStride + l / 16 * 8);
    if (kTrans) {
      ldmatrix_x4_trans(r, b_tile + l % 16 * kStride + l / 16 * 8);
    } else {
      ldmatrix_x4(r, b_tile + (l / 16 * 8 + l % 8) * kStride + l / 8 % 2 * 8);
    }
    for (int n = 0; n < 2; ++n) {
      const uint32_t fragment_b[2] = {r[2 * n], r[2 * n + 1]};
      mma_m16n8k16<T>(d[n], fragment_a, fragment_b);
    }
    sync_block();
  }
  for (int n = 0; n < 2; ++n) {
    for (int i = 0; i < 4; ++i) {
      const int row = 16 * warp() + l / 4 + i / 2 * 8, column = 8 * n + l % 4 * 2 + i % 2;
      p.out<float>()[row * kColumns + column] = d[n][i];
    }
  }
}

// out[16, 8] = A[16, K] B[8, K]^T.
FASTLSTM_KERNEL void gemm_tf32(const Params p) {
  const int depth = p.count<float>() / 24, g = lane() / 4, q = lane() % 4;
  const float* a = p.in<float>();
  const float* b = a + 16 * depth;
  float d[4] = {};
  for (int k = 0; k < depth; k += 8) {
    uint32_t fragment_a[4], fragment_b[2];
    for (int i = 0; i < 4; ++i)
      fragment_a[i] = to_tf32(a[(g + i % 2 * 8) * depth + k + q + i / 2 * 4]);
    for (int i = 0; i < 2; ++i) fragment_b[i] = to_tf32(b[g * depth + k + q + i * 4]);
    mma_m16n8k8_tf32(d, fragment_a, fragment_b);
  }
  for (int i = 0; i < 4; ++i) p.out<float>()[(g + i / 2 * 8) * 8 + q * 2 + i % 2] = d[i];
}

constexpr int kSteps = 5;

// A number a thread goes once around the cluster and gains the rank + 1 of each block.
FASTLSTM_KERNEL void cluster_exchange(const Params p) {
  float* buffers = shared_memory<float>();  // [2][threads]
  const int thread = static_cast<int>(threadIdx.x), threads = static_cast<int>(blockDim.x);
  const int i = static_cast<int>(blockIdx.x) * threads + thread;
  const int next = (cluster_rank() + 1) % cluster_size();
  float x = p.in<float>()[i];
  cluster_sync();
  for (int step = 0; step < cluster_size(); ++step) {
    float* buffer = buffers + step % 2 * threads;
    cluster_shared(buffer, next)[thread] = x + static_cast<float>(cluster_rank() + 1);
    cluster_arrive();
    cluster_wait();
    x = buffer[(thread + 1) % threads];
  }
  cluster_sync();
  p.out<float>()[i] = x;
}

// The same with stores that count bytes on a barrier, two buffers, and a barrier that says when a
// buffer may be written again. Four numbers a thread.
FASTLSTM_KERNEL void cluster_async(const Params p) {
  Word4* buffers = shared_memory<Word4>();  // [2][threads]
  const int thread = static_cast<int>(threadIdx.x), threads = static_cast<int>(blockDim.x);
  uint64_t* full = reinterpret_cast<uint64_t*>(buffers + 2 * threads);  // [2]
  uint64_t* empty = full + 2;                                           // [2]
  const int i = static_cast<int>(blockIdx.x) * threads + thread;
  const int size = cluster_size();
  const int next = (cluster_rank() + 1) % size, previous = (cluster_rank() + size - 1) % size;
  if (thread == 0) {
    for (int b = 0; b < 2; ++b) {
      mbarrier_init(full + b, 1);
      mbarrier_init(empty + b, threads);
    }
  }
  cluster_sync();
  Word4 x = p.in<Word4>()[i];
  for (int step = 0; step < kSteps; ++step) {
    const int b = step % 2, parity = step / 2 % 2;
    if (thread == 0) mbarrier_expect_tx(full + b, threads * 16);
    // Of the next block's buffer: nobody has written to it in the first two steps.
    if (step >= 2) mbarrier_wait(empty + b, parity ^ 1);
    for (uint32_t& word : x.w) word += static_cast<uint32_t>(cluster_rank() + 1);
    store_async_16(cluster_shared(buffers + b * threads + thread, next), x,
                   cluster_shared(full + b, next));
    mbarrier_wait(full + b, parity);
    x = buffers[b * threads + (thread + 1) % threads];
    mbarrier_arrive_remote(cluster_shared(empty + b, previous));
  }
  cluster_sync();
  p.out<Word4>()[i] = x;
}

// An mbarrier inside of one block: a wave front of arrivals, twice.
FASTLSTM_KERNEL void block_mbarrier(const Params p) {
  uint64_t* barrier = shared_memory<uint64_t>();
  float* x = reinterpret_cast<float*>(barrier + 2);
  const int thread = static_cast<int>(threadIdx.x), threads = static_cast<int>(blockDim.x);
  if (thread == 0) mbarrier_init(barrier, threads);
  x[thread] = p.in<float>()[thread];
  sync_block();
  float sum = 0;
  for (int phase = 0; phase < 2; ++phase) {
    x[thread] += static_cast<float>(phase + 1);
    mbarrier_arrive(barrier);
    mbarrier_wait(barrier, phase);
    sum += x[(thread + 1) % threads];
    sync_block();
  }
  p.out<float>()[thread] = sum;
}

// x[i] of the next step is 1 + x[i + 1] of the one before, over each of kGroups parts of the grid.
template <int kGroups>
FASTLSTM_KERNEL void ping_pong(const Params p) {
  const unsigned blocks = gridDim.x / kGroups, group = blockIdx.x / blocks;
  const unsigned n = blocks * blockDim.x, first = group * n;
  const unsigned i = blockIdx.x % blocks * blockDim.x + threadIdx.x;
  float* buffers[2] = {p.out<float>() + first, p.out<float>() + p.count<float>() + first};
  unsigned epoch = 0;
  buffers[0][i] = p.in<float>()[first + i];
  for (int step = 0; step < kSteps; ++step) {
    group_barrier(p.counter + group, blocks, epoch);
    buffers[(step + 1) % 2][i] = 1 + buffers[step % 2][(i + 1) % n];
  }
}

// Steps whose data is its own flag: out [steps + 1][n] is full of 0xFF at first, and a thread waits
// for the words of the step before until none of them is that.
FASTLSTM_KERNEL void flag_in_data(const Params p) {
  const int n = p.count<float>(),
            mine = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x) * 4;
  store_relaxed_16(p.out<float>() + mine, p.in<Word4>()[mine / 4]);
  for (int step = 0; step < kSteps; ++step) {
    Word4 v;
    bool poisoned = true;
    while (poisoned) {
      v = load_relaxed_16(p.out<float>() + step * n + (mine + 4) % n);
      poisoned = false;
      for (const uint32_t word : v.w) poisoned = poisoned || word == 0xffffffffu;
    }
    for (uint32_t& word : v.w) word = bit_cast<uint32_t>(bit_cast<float>(word) + 1);
    store_relaxed_16(p.out<float>() + (step + 1) * n + mine, v);
  }
}

// A block passes a number on to the next with a flag of 4 bytes, and back with one of 8.
FASTLSTM_KERNEL void messages(const Params p) {
  float* data = p.out<float>();
  unsigned* flag = p.counter;
  uint64_t* answered = reinterpret_cast<uint64_t*>(p.counter + 2);
  const int i = static_cast<int>(threadIdx.x);
  if (blockIdx.x == 0) {
    store_relaxed(data + i, p.in<float>()[i]);
    fence();
    sync_block();
    if (i == 0) store_release(flag, 1u);
    while (load_relaxed(answered) != 2) {
    }
    fence();
    data[2 * blockDim.x + i] = load_relaxed(data + blockDim.x + i) + 1;
  } else {
    while (load_acquire(flag) != 1) {
    }
    store_relaxed(data + blockDim.x + i, load_relaxed(data + i) * 2);
    sync_block();
    if (i == 0) store_release(answered, uint64_t{2});
  }
}

FASTLSTM_KERNEL void trapped(const Params) {
  if (threadIdx.x == 3) trap("the third thread gives up");
}

namespace {
const Test kTests[] = {
    {"indices", indices, dim3(3, 2, 2), dim3(8, 4, 2), 0, Kind::kNormal},
    {"conversions", conversions, dim3(64), dim3(128), 0, Kind::kNormal},
    {"widen", widen, dim3(256), dim3(256), 0, Kind::kNormal},
    {"round_tf32", round_tf32, dim3(1), dim3(256), 0, Kind::kNormal},
    {"shuffles", shuffles, dim3(1), dim3(64), 0, Kind::kNormal},
    {"all_reduce", all_reduce, dim3(3), dim3(96), 3 * sizeof(float), Kind::kNormal},
    {"pipeline", pipeline, dim3(1), dim3(32), 2 * 32 * 16, Kind::kNormal},
    {"reversed", reversed, dim3(1), dim3(32), 32 * 4, Kind::kNormal},
    {"matrices", matrices, dim3(1), dim3(32), 32 * 16, Kind::kNormal},
    {"gemm_f16", gemm<Half, false>, dim3(1), dim3(64), 48 * 48, Kind::kNormal},
    {"gemm_f16_trans", gemm<Half, true>, dim3(1), dim3(64), 48 * 48, Kind::kNormal},
    {"gemm_bf16", gemm<BFloat16, false>, dim3(1), dim3(64), 48 * 48, Kind::kNormal},
    {"gemm_bf16_trans", gemm<BFloat16, true>, dim3(1), dim3(64), 48 * 48, Kind::kNormal},
    {"gemm_tf32", gemm_tf32, dim3(1), dim3(32), 0, Kind::kNormal},
    {"cluster_exchange", cluster_exchange, dim3(8), dim3(32), 2 * 32 * 4, Kind::kCluster4},
    {"cluster_async", cluster_async, dim3(8), dim3(32), 2 * 32 * 16 + 32, Kind::kCluster4},
    {"block_mbarrier", block_mbarrier, dim3(1), dim3(64), 16 + 64 * 4, Kind::kNormal},
    {"grid_ping_pong", ping_pong<1>, dim3(6), dim3(32), 0, Kind::kCooperative},
    {"group_ping_pong", ping_pong<2>, dim3(6), dim3(32), 0, Kind::kCooperative},
    {"full_ping_pong", ping_pong<4>, dim3(132), dim3(256), 0, Kind::kCooperative},
    {"flag_in_data", flag_in_data, dim3(4), dim3(16), 0, Kind::kCooperative},
    {"messages", messages, dim3(2), dim3(32), 0, Kind::kCooperative},
    {"trap", trapped, dim3(2), dim3(32), 0, Kind::kNormal},
};
}  // namespace

FASTLSTM_SELFTESTS(run_selftest, kTests)

// cluster_size 0: of blocks alone.
extern "C" int max_active(int cluster_size, int threads, size_t shared_bytes) {
  return cluster_size == 0
             ? max_active_blocks(cluster_exchange, threads, shared_bytes)
             : max_active_clusters(cluster_exchange, cluster_size, threads, shared_bytes);
}

}  // namespace selftest
}  // namespace fastlstm
