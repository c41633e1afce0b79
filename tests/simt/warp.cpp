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
  deliver_own_stores();
  Block& block = *current->block;
  if (++block.at_barrier < static_cast<int>(block.fibers.size())) return wait("sync_block");
  block.at_barrier = 0;
  for (Fiber& fiber : block.fibers) {
    if (&fiber != current) wake(fiber);
  }
  progress();
  yield("sync_block", false);
}

namespace {

constexpr unsigned kAllLanes = 0xffffffffu;

Fiber* lanes_of_current() { return &current->block->fibers[current->index / 32 * 32]; }

}  // namespace

void meet(const char* what, void* slot, Finish finish) {
  Warp& warp = current->block->warp_of(*current);
  Fiber* lanes = lanes_of_current();
  if (const unsigned absent = ~warp.present) {
    fail("%s: lane %d has left or never was", what, __builtin_ctz(absent));
  }
  for (int i = 0; i < 32; ++i) {
    if (warp.waiting >> i & 1 && strcmp(lanes[i].where, what) != 0) {
      fail("%s: lane %d is in %s", what, i, lanes[i].where);
    }
  }
  current->slot = slot;
  warp.waiting |= 1u << current->lane();
  if (warp.waiting != kAllLanes) return wait(what);
  void* slots[32];
  for (int i = 0; i < 32; ++i) slots[i] = lanes[i].slot;
  finish(slots);
  warp.waiting = 0;
  for (int i = 0; i < 32; ++i) {
    if (&lanes[i] != current) wake(lanes[i]);
  }
  progress();
  if (chance(2)) yield(what, false);
}

void leave_warp() {
  Warp& warp = current->block->warp_of(*current);
  if (warp.waiting != 0) {
    const int waiting = __builtin_ctz(warp.waiting);
    fail("lane %d has left, but lane %d waits for it in %s", current->lane(), waiting,
         lanes_of_current()[waiting].where);
  }
  warp.present &= ~(1u << current->lane());
}

void sync_warp() {
  deliver_own_stores();
  meet("sync_warp", nullptr, [](void* const*) {});
}

}  // namespace simt
