// Kernels that use the functions of csrc/cuda/device/device.cuh as real kernels do. The emulator
// runs them in test_simt.py; nvcc compiles them, so that a GPU can be asked the same questions.
#include "selftest.h"

#include <math.h>

namespace fastlstm {
namespace selftest {

using namespace device;

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

// [numerators, denominators]
FASTLSTM_KERNEL void quotients(const Params p) {
  const int i = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x);
  const int n = p.count<float>() / 2;
  if (i < n) p.out<float>()[i] = divide(p.in<float>()[i], p.in<float>()[n + i]);
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

// The sum over the block, in every thread of it, kRounds times with the same buffers.
FASTLSTM_KERNEL void all_reduce(const Params p) {
  constexpr int kRounds = 3;
  float* values = shared_memory<float>();  // [threads]
  float* sums = values + blockDim.x;       // [warps]
  const int i = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x);
  float x = p.in<float>()[i];
  for (int round = 0; round < kRounds; ++round) {
    values[threadIdx.x] = x;
    sync_warp();
    if (lane() == 0) {
      sums[warp()] = 0;
      for (int l = 0; l < 32; ++l) sums[warp()] += values[32 * warp() + l];
    }
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

// out[32, 16] = A[32, K] B[16, K]^T with two warps of 16 rows; in holds A and then B. Elements lie
// two in a word.
template <class T>
FASTLSTM_KERNEL void FASTLSTM_LAUNCH_BOUNDS(64) gemm(const Params p) {
  constexpr int kRows = 32, kColumns = 16, kDepth = 8;
  constexpr int kStride = kDepth + 4;  // no bank conflicts: 8 rows of 4 words are in 32 banks
  uint32_t* a_tile = shared_memory<uint32_t>();
  uint32_t* b_tile = a_tile + kRows * kStride;
  const int depth = p.count<uint32_t>() / (kRows + kColumns);
  const uint32_t* a = p.in<uint32_t>();
  const uint32_t* b = a + kRows * depth;
  const int row = static_cast<int>(threadIdx.x) / 2, half = static_cast<int>(threadIdx.x) % 2 * 4;
  const int g = lane() / 4, q = lane() % 4;
  float d[2][4] = {};
  for (int k = 0; k < depth; k += kDepth) {
    cp_async_16(a_tile + row * kStride + half, a + row * depth + k + half);
    if (row < kColumns) cp_async_16(b_tile + row * kStride + half, b + row * depth + k + half);
    cp_async_commit();
    cp_async_wait<0>();
    sync_block();
    uint32_t fragment_a[4];
    for (int i = 0; i < 4; ++i)
      fragment_a[i] = a_tile[(16 * warp() + g + i % 2 * 8) * kStride + q + i / 2 * 4];
    for (int n = 0; n < 2; ++n) {
      const uint32_t* column = b_tile + (8 * n + g) * kStride + q;
      const uint32_t fragment_b[2] = {column[0], column[4]};
      mma_m16n8k16<T>(d[n], fragment_a, fragment_b);
    }
    sync_block();
  }
  for (int n = 0; n < 2; ++n) {
    for (int i = 0; i < 4; ++i) {
      const int to = 16 * warp() + g + i / 2 * 8, column = 8 * n + 2 * q + i % 2;
      p.out<float>()[to * kColumns + column] = d[n][i];
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

// Four numbers a thread: in each step every block gains its rank + 1, sends them to every block of
// the cluster and goes on with the sum of the (rank + 1)-fold of what has come. Two buffers are
// enough: who has all of a step knows that all have read the one before.
FASTLSTM_KERNEL void cluster_async(const Params p) {
  Word4* buffers = shared_memory<Word4>();  // [2][blocks][threads]
  const int thread = static_cast<int>(threadIdx.x), threads = static_cast<int>(blockDim.x);
  const int size = cluster_size(), words = size * threads;
  uint64_t* full = reinterpret_cast<uint64_t*>(buffers + 2 * words);  // [2]
  const int i = static_cast<int>(blockIdx.x) * threads + thread;
  if (thread == 0) {
    mbarrier_init(full, 1);
    mbarrier_init(full + 1, 1);
  }
  cluster_sync();
  Word4 x = p.in<Word4>()[i];
  for (int step = 0; step < kSteps; ++step) {
    const int b = step % 2, parity = step / 2 % 2;
    Word4* buffer = buffers + b * words;
    if (thread == 0) mbarrier_expect_tx(full + b, words * 16);
    for (uint32_t& word : x.w) word += static_cast<uint32_t>(cluster_rank() + 1);
    for (int to = 0; to < size; ++to) {
      store_async_16(cluster_shared(buffer + cluster_rank() * threads + thread, to), x,
                     cluster_shared(full + b, to));
    }
    mbarrier_wait(full + b, parity);
    x = Word4{};
    for (int from = 0; from < size; ++from) {
      const Word4& came = buffer[from * threads + (thread + 1) % threads];
      for (int w = 0; w < 4; ++w) x.w[w] += static_cast<uint32_t>(from + 1) * came.w[w];
    }
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
    mbarrier_expect_tx(barrier, 0);
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

// A block passes four numbers a thread on to the next, and gets them back.
FASTLSTM_KERNEL void messages(const Params p) {
  const int i = static_cast<int>(threadIdx.x), threads = static_cast<int>(blockDim.x);
  Word4* data = p.out<Word4>() + i;  // [3][threads]: sent, answered, read
  unsigned* sent = p.counter;
  unsigned* answered = p.counter + 1;
  if (blockIdx.x == 0) {
    store_relaxed_16(data, p.in<Word4>()[i]);
    sync_block();
    if (i == 0) add_release(sent, 1u);
    // Until every thread of the other block has answered.
    while (load_acquire(answered) != blockDim.x) {
    }
    data[2 * threads] = load_relaxed_16(data + threads);
  } else {
    while (load_acquire(sent) != 1) {
    }
    Word4 v = load_relaxed_16(data);
    for (uint32_t& word : v.w) word = bit_cast<uint32_t>(bit_cast<float>(word) * 2);
    store_relaxed_16(data + threads, v);
    add_release(answered, 1u);
  }
}

FASTLSTM_KERNEL void trapped(const Params) {
  if (threadIdx.x == 3) trap("the third thread gives up");
}

namespace {
const Test kTests[] = {
    {"indices", indices, dim3(3, 2, 2), dim3(8, 4, 2), 0, Kind::kNormal},
    {"conversions", conversions, dim3(64), dim3(128), 0, Kind::kNormal},
    {"quotients", quotients, dim3(256), dim3(256), 0, Kind::kNormal},
    {"widen", widen, dim3(256), dim3(256), 0, Kind::kNormal},
    {"round_tf32", round_tf32, dim3(1), dim3(256), 0, Kind::kNormal},
    {"all_reduce", all_reduce, dim3(3), dim3(96), 99 * sizeof(float), Kind::kNormal},
    {"pipeline", pipeline, dim3(1), dim3(32), 2 * 32 * 16, Kind::kNormal},
    {"reversed", reversed, dim3(1), dim3(32), 32 * 4, Kind::kNormal},
    {"gemm_f16", gemm<Half>, dim3(1), dim3(64), 48 * 48, Kind::kNormal},
    {"gemm_bf16", gemm<BFloat16>, dim3(1), dim3(64), 48 * 48, Kind::kNormal},
    {"gemm_tf32", gemm_tf32, dim3(1), dim3(32), 0, Kind::kNormal},
    {"cluster_exchange", cluster_exchange, dim3(8), dim3(32), 2 * 32 * 4, Kind::kCluster4},
    {"cluster_async", cluster_async, dim3(8), dim3(32), 2 * 4 * 32 * 16 + 16, Kind::kCluster4},
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

extern "C" int max_active(int cluster_size, int threads, size_t shared_bytes) {
  return max_active_clusters(cluster_exchange, cluster_size, threads, shared_bytes);
}

}  // namespace selftest
}  // namespace fastlstm
