// What the parts of the emulator share.
#pragma once

#include <string.h>

#include <memory>
#include <random>
#include <string>
#include <vector>

#include "fiber.h"
#include "simt.h"

namespace simt {

// ---- memory.cpp ----

// Whole pages between two guard pages; [data, data + bytes) is what may be used of them.
struct Region {
  const char* what = nullptr;  // a string literal, for messages
  char* pages = nullptr;
  size_t page_bytes = 0;
  char* data = nullptr;
  size_t bytes = 0;
};
// what: nullptr for memory that messages need not know. Throws std::bad_alloc.
Region map_region(const char* what, size_t bytes);
void unmap_region(const Region& region);
void poison(const Region& region);
// Makes every access a fault.
void close_region(const Region& region, const char* what);
void open_region(const Region& region, const char* what);
// Whether nothing was stored between the data and the guard pages.
bool intact(const Region& region);
// The first buffer of guarded_alloc that is not intact, or an empty string.
std::string damaged_buffer();
// What lies at or near an address no access was allowed to.
std::string describe_fault(const char* address, bool write);

// ---- scheduler.cpp ----

struct Block;
struct Cluster;

struct Copy {
  void* shared;
  const void* global;
  int size;
  bool valid;
  int group;
};

enum class State { kReady, kWaiting, kLeft };

struct Fiber {
  Context context;
  void* stack;
  Block* block;
  uint64_t id;  // never used again: stores may be delivered after their fiber is gone
  int index;    // in the block
  uint3 thread;
  State state = State::kReady;
  const char* where = nullptr;  // the primitive it waits in
  uint64_t priority;
  void* slot;            // what it brought to the meeting of its warp
  bool arrived = false;  // at the cluster's barrier, in this phase of it
  unsigned phase;
  std::vector<Copy> copies;  // cp.async under way
  int group = 0;             // of the next copy

  int lane() const { return index % 32; }
};

struct Warp {
  unsigned present = 0;  // lanes that have not left
  unsigned waiting = 0;  // lanes that wait in meet()
};

struct Block {
  uint3 index;
  Cluster* cluster;
  Region shared;
  bool started = false;
  int live = 0;
  int at_barrier = 0;
  std::vector<Fiber> fibers;
  std::vector<Warp> warps;

  Warp& warp_of(const Fiber& fiber) { return warps[fiber.index / 32]; }
};

struct Cluster {
  std::vector<Block> blocks;
  int live = 0;
  int threads = 0;
  int arrived = 0;
  unsigned phase = 0;
};

extern Fiber* current;
extern std::mt19937_64 random_bits;

inline bool chance(unsigned n) { return random_bits() % n == 0; }

// The current fiber waits in `where` until somebody wakes it.
void wait(const char* where);
void wake(Fiber& fiber);
// Lets others run. Vain looks count towards the spin limit.
void yield(const char* where, bool vain);
// Something happened that another thread may wait for.
void progress();
const LaunchSpec& launch_spec();
// The whole grid. What went wrong, or an empty string.
std::string run_blocks(const LaunchSpec& spec);
std::string name_of(const Fiber& fiber);

// ---- warp.cpp ----

// The lanes of the current warp meet; the last to come calls finish with what each lane brought.
using Finish = void (*)(void* const slots[32]);
void meet(const char* what, void* slot, Finish finish);
// The current fiber will meet nobody any more.
void leave_warp();
bool inside(const Block& block, const void* address, size_t bytes);
void check_aligned(const char* what, const void* address, int bytes);
// Also that it lies in the shared memory of the current block.
void check_shared(const char* what, const void* address, int bytes);
// Also that it lies in no shared memory.
void check_global(const char* what, const void* address, int bytes);
// The block of the current cluster in whose shared memory it lies, or nullptr.
const Block* block_with(const void* address, size_t bytes);

// ---- stores.cpp ----

struct Store {
  uint64_t owner;  // id of the fiber; 0 for store_async, which no release waits for
  char* to;
  unsigned char value[16];
  int size;
  uint64_t* barrier;

  bool overlaps(const char* from, int bytes) const { return to < from + bytes && from < to + size; }
};

// Delivered at once or later.
void add_store(const Store& store);
// All of the current fiber, as a release does.
void deliver_own_stores();
bool stores_pending();
void deliver_some_store();
// Of the stores into the shared memory of a block that leaves. False if one was a store_async.
bool deliver_stores_into(const Block& block);
void drop_stores();
// Draws how often stores and copies of this launch are delayed.
void reset_delays();

// ---- cluster.cpp ----

// In shared memory, in place of the hardware's own layout.
struct Mbarrier {
  int32_t bytes;  // that have still to come
  uint16_t pending;
  uint16_t arrivals : 15;
  uint16_t phase : 1;
};
static_assert(sizeof(Mbarrier) == sizeof(uint64_t), "an mbarrier is 8 bytes");

void end_phase_if_due(Mbarrier& barrier);

}  // namespace simt
