// What the schemes share: where a block stands, the numbers of a step, and their checksum. The
// module docstring (__init__.py) says what is measured.
#pragma once

#include "cuda/device/device.cuh"

namespace fastlstm {
namespace exchange {

using namespace device;

constexpr int kThreadsMax = 256;
constexpr uint32_t kPoison = 0xffffffffu;
// Which expected.py has as well.
constexpr uint32_t kStepFactor = 0x9e3779b1u, kWordFactor = 0x85ebca77u, kMixFactor = 0x2c1b3c6du;
constexpr uint32_t kGroupTerm = 0x01000001u, kHashFactor = 0x01000193u;
constexpr int kGroupsMax = 160;

struct Params {
  Word4* state;       // [groups, slots, chunks], full of kPoison
  unsigned* counter;  // [groups, kCounterStride], zero
  uint32_t* hashes;   // [groups * blocks, threads]
  int blocks;         // of a group
  int chunks;         // of 16 bytes, of the state of a group
  int steps;
  int most_looks;
  uint32_t zero;  // 0, which the compiler does not know
};

// A line of L2 for each counter.
constexpr int kCounterStride = 32;

// Mistakes for the tests.
enum class Fault { kNone, kNoWait, kOneBuffer, kNothingSent };

struct Place {
  int group;
  int begin, end;  // the chunks that this block makes
};

FASTLSTM_DEVICE Place place(const Params& p) {
  const int block = static_cast<int>(blockIdx.x);
  const int member = block % p.blocks;
  return {block / p.blocks, p.chunks * member / p.blocks, p.chunks * (member + 1) / p.blocks};
}

// A number for each word of a step, which differs from those of other steps, words and groups, and
// is never kPoison.
FASTLSTM_DEVICE Word4 numbers(int group, int step, int chunk, uint32_t carry) {
  Word4 v;
  for (int i = 0; i < 4; ++i) {
    uint32_t x = static_cast<uint32_t>(step + 1) * kStepFactor ^
                 static_cast<uint32_t>(4 * chunk + i) * kWordFactor;
    x ^= x >> 15;
    x *= kMixFactor;
    x ^= x >> 13;
    v.w[i] = (x & 0x3fffffffu) + static_cast<uint32_t>(group) * kGroupTerm + carry;
  }
  return v;
}

FASTLSTM_DEVICE uint32_t sum_of(const Word4& v) { return v.w[0] + v.w[1] + v.w[2] + v.w[3]; }

// Chunks that a thread has under way at once: 32 registers.
constexpr int kBatch = 8;

// The sum over the chunks first, first + stride, ... of the state, each from load(chunk).
template <class Load>
FASTLSTM_DEVICE uint32_t sum_chunks(int first, int stride, int chunks, Load load) {
  uint32_t sum = 0;
  for (int c = first; c < chunks; c += kBatch * stride) {
    Word4 v[kBatch];
    for (int i = 0; i < kBatch; ++i) {
      v[i] = Word4{};
      if (c + i * stride < chunks) v[i] = load(c + i * stride);
    }
    for (int i = 0; i < kBatch; ++i) sum += sum_of(v[i]);
  }
  return sum;
}

// 0, made of what every thread of the block has read, in the way a kernel adds up what its warps
// have of a split sum. partial: [2, threads] in shared memory.
FASTLSTM_DEVICE uint32_t block_carry(const Params& p, uint32_t* partial, int step, uint32_t sum) {
  const int threads = static_cast<int>(blockDim.x);
  // Two buffers, so that one barrier a step is enough.
  uint32_t* mine = partial + step % 2 * threads;
  mine[threadIdx.x] = sum;
  sync_block();
  uint32_t total = 0;
  for (int t = lane(); t < threads; t += 32) total += mine[t];
  return total & p.zero;
}

// Which chunks of its block a thread makes, and which of their copies it sends: threads that are
// too many for the chunks share the copies of one.
struct Share {
  int first, stride;
  int part, parts;
};

FASTLSTM_DEVICE Share share(const Place& here, int copies) {
  const int threads = static_cast<int>(blockDim.x), thread = static_cast<int>(threadIdx.x);
  const int own = here.end - here.begin;
  if (own >= threads) return {here.begin + thread, threads, 0, 1};
  const int parts = threads / own < copies ? threads / own : copies;
  const int part = thread / own;
  return {part < parts ? here.begin + thread % own : here.end, own, part, parts};
}

// The steps of one launch. Scheme has
//   kReduces          whether a step ends with block_carry, or the carry is the thread's own
//   Scheme(p, place, shared), with shared memory behind the partial sums
//   copies()          of each chunk
//   send(step, chunk, numbers, share), the copies of the share
//   receive(step)     waits for the step, and sums the chunks that this thread reads
//   finish()
template <class Scheme>
FASTLSTM_KERNEL void FASTLSTM_LAUNCH_BOUNDS(kThreadsMax, 1) run_steps(const Params p) {
  uint32_t* partial = shared_memory<uint32_t>();
  const Place here = place(p);
  Scheme scheme(p, here, partial + 2 * blockDim.x);
  const Share mine = share(here, scheme.copies());
  uint32_t hash = 0, carry = 0;
  for (int step = 0; step < p.steps; ++step) {
    for (int chunk = mine.first; chunk < here.end; chunk += mine.stride) {
      scheme.send(step, chunk, numbers(here.group, step, chunk, carry), mine);
    }
    const uint32_t sum = scheme.receive(step);
    hash = hash * kHashFactor + sum;
    carry = Scheme::kReduces ? block_carry(p, partial, step, sum) : sum & p.zero;
  }
  scheme.finish();
  p.hashes[blockIdx.x * blockDim.x + threadIdx.x] = hash;
}

}  // namespace exchange
}  // namespace fastlstm
