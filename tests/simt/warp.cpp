// How the threads of a block, and the lanes of a warp, meet.
#include "engine.h"

namespace simt {

void check_aligned(const char* what, const void* address, int bytes) {
  if (reinterpret_cast<uintptr_t>(address) % bytes != 0) {
    fail("%s: address %p is not aligned to %d bytes", what, address, bytes);
  }
}

bool inside(const Block& block, const void* address, size_t bytes) {
  const char* p = static_cast<const char*>(address);
  return p >= block.shared.data && p + bytes <= block.shared.data + block.shared.bytes;
}

void check_shared(const char* what, const void* address, int bytes) {
  check_aligned(what, address, bytes);
  if (!inside(*current->block, address, bytes)) {
    fail("%s: %p is not in the block's shared memory of %zu bytes", what, address,
         current->block->shared.bytes);
  }
}

const Block* block_with(const void* address, size_t bytes) {
  for (const Block& block : current->block->cluster->blocks) {
    if (inside(block, address, bytes)) return &block;
  }
  return nullptr;
}

void check_global(const char* what, const void* address, int bytes) {
  check_aligned(what, address, bytes);
  if (block_with(address, bytes)) fail("%s: %p is in shared memory", what, address);
}

int lane() { return current->index % 32; }

int warp() {
  if (blockDim.y * blockDim.z != 1) fail("warp: the block is not one-dimensional");
  return current->index / 32;
}

void* shared_memory() { return current->block->shared.data; }

void sync_block() {
  fence();
  Block& block = *current->block;
  if (++block.at_barrier < static_cast<int>(block.fibers.size())) return wait("sync_block");
  block.at_barrier = 0;
  for (Fiber& fiber : block.fibers) {
    if (&fiber != current) wake(fiber);
  }
  progress();
  yield("sync_block", false);
}

void meet(const char* what, unsigned mask, void* slot, Finish finish) {
  Block& block = *current->block;
  Warp& warp = block.warp_of(*current);
  Fiber* lanes = &block.fibers[current->index / 32 * 32];
  const int lane = current->lane();
  if (!(mask >> lane & 1))
    fail("%s: mask 0x%08x does not name the calling lane %d", what, mask, lane);
  if (const unsigned absent = mask & ~warp.present) {
    fail("%s: mask 0x%08x names lane %d, which has left or never was", what, mask,
         __builtin_ctz(absent));
  }
  current->mask = mask;
  current->slot = slot;
  current->finish = finish;
  bool complete = true;
  for (int i = 0; i < 32; ++i) {
    if (i == lane || !(mask >> i & 1)) continue;
    const bool waits = warp.waiting >> i & 1;
    complete = complete && waits && lanes[i].mask == mask;
    if (!waits || !(lanes[i].mask >> lane & 1)) continue;
    if (lanes[i].mask != mask) {
      fail("%s: mask 0x%08x, but lane %d, which it names, waits in %s with mask 0x%08x", what, mask,
           i, lanes[i].where, lanes[i].mask);
    }
    if (lanes[i].finish != finish || strcmp(lanes[i].where, what) != 0) {
      fail("%s: lane %d of the mask is in %s", what, i, lanes[i].where);
    }
  }
  if (!complete) {
    warp.waiting |= 1u << lane;
    return wait(what);
  }
  void* slots[32] = {};
  for (int i = 0; i < 32; ++i) {
    if (mask >> i & 1) slots[i] = lanes[i].slot;
  }
  finish(slots, mask);
  warp.waiting &= ~mask;
  for (int i = 0; i < 32; ++i) {
    if (i != lane && mask >> i & 1) wake(lanes[i]);
  }
  progress();
  if (chance(2)) yield(what, false);
}

void leave_warp() {
  Block& block = *current->block;
  Warp& warp = block.warp_of(*current);
  const int lane = current->lane();
  const Fiber* lanes = &block.fibers[current->index / 32 * 32];
  for (int i = 0; i < 32; ++i) {
    if (warp.waiting >> i & 1 && lanes[i].mask >> lane & 1) {
      fail("lane %d has left, but lane %d waits for it in %s with mask 0x%08x", lane, i,
           lanes[i].where, lanes[i].mask);
    }
  }
  warp.present &= ~(1u << lane);
}

void sync_warp(unsigned mask) {
  fence();
  meet("sync_warp", mask, nullptr, [](void* const*, unsigned) {});
}

namespace {
struct Shuffle {
  uint64_t value;
  int source;
  uint64_t result;
};
}  // namespace

uint64_t shuffle(const char* what, unsigned mask, uint64_t value, int source) {
  if (source < 0 || source > 31 || !(mask >> source & 1)) {
    fail("%s: reads from lane %d, which is not in mask 0x%08x", what, source, mask);
  }
  Shuffle slot{value, source, 0};
  meet(what, mask, &slot, [](void* const slots[32], unsigned mask) {
    for (int i = 0; i < 32; ++i) {
      if (!(mask >> i & 1)) continue;
      Shuffle& to = *static_cast<Shuffle*>(slots[i]);
      to.result = static_cast<Shuffle*>(slots[to.source])->value;
    }
  });
  return slot.result;
}

unsigned ballot(unsigned mask, bool predicate) {
  unsigned slot = predicate;
  meet("ballot", mask, &slot, [](void* const slots[32], unsigned mask) {
    unsigned votes = 0;
    for (int i = 0; i < 32; ++i) {
      if (mask >> i & 1) votes |= *static_cast<unsigned*>(slots[i]) << i;
    }
    for (int i = 0; i < 32; ++i) {
      if (mask >> i & 1) *static_cast<unsigned*>(slots[i]) = votes;
    }
  });
  return slot;
}

}  // namespace simt
