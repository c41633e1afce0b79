// Thread-block clusters: barriers, distributed shared memory, mbarriers.
#include "engine.h"

namespace simt {

void end_phase_if_due(Mbarrier& barrier) {
  if (barrier.pending > 0 || barrier.bytes != 0) return;
  barrier.pending = barrier.arrivals;
  barrier.phase ^= 1;
}

int cluster_size() { return launch_spec().cluster_size; }

void cluster_arrive() {
  deliver_own_stores();
  if (current->arrived) fail("cluster_arrive: twice without cluster_wait");
  Cluster& cluster = *current->block->cluster;
  current->arrived = true;
  current->phase = cluster.phase;
  if (++cluster.arrived < cluster.threads) return;
  cluster.arrived = 0;
  ++cluster.phase;
  for (Block& block : cluster.blocks) {
    for (Fiber& fiber : block.fibers) {
      if (fiber.state == State::kWaiting && strcmp(fiber.where, "cluster_wait") == 0) wake(fiber);
    }
  }
  progress();
}

void cluster_wait() {
  if (!current->arrived) fail("cluster_wait: without cluster_arrive");
  current->arrived = false;
  if (current->phase == current->block->cluster->phase) return wait("cluster_wait");
  yield("cluster_wait", false);
}

void* cluster_shared(const void* shared, int rank) {
  Block& own = *current->block;
  if (rank < 0 || rank >= cluster_size()) {
    fail("cluster_shared: rank %d, but the cluster has %d blocks", rank, cluster_size());
  }
  if (!inside(own, shared, 1))
    fail("cluster_shared: %p is not in the block's shared memory", shared);
  return own.cluster->blocks[rank].shared.data +
         (static_cast<const char*>(shared) - own.shared.data);
}

namespace {
Mbarrier read_barrier(const char* what, const uint64_t* address) {
  check_aligned(what, address, 8);
  if (!block_with(address, 8))
    fail("%s: the mbarrier %p is not in shared memory", what, static_cast<const void*>(address));
  Mbarrier barrier;
  memcpy(&barrier, address, sizeof barrier);
  if (barrier.arrivals == 0 || barrier.arrivals == 0x7fff) {
    fail("%s: the mbarrier was not initialised", what);
  }
  return barrier;
}
}  // namespace

void mbarrier_init(uint64_t* address, int arrivals) {
  check_shared("mbarrier_init", address, 8);
  if (arrivals < 1 || arrivals > 1024) fail("mbarrier_init: %d arrivals", arrivals);
  Mbarrier barrier = {};
  barrier.pending = static_cast<uint16_t>(arrivals);
  barrier.arrivals = static_cast<uint16_t>(arrivals) & 0x7fff;
  memcpy(address, &barrier, sizeof barrier);
}

void mbarrier_expect_tx(uint64_t* address, int bytes) {
  deliver_own_stores();
  Mbarrier barrier = read_barrier("mbarrier_expect_tx", address);
  if (barrier.pending == 0) fail("mbarrier_expect_tx: more arrivals than the mbarrier was told");
  barrier.bytes += bytes;
  --barrier.pending;
  end_phase_if_due(barrier);
  memcpy(address, &barrier, sizeof barrier);
  progress();
}

bool mbarrier_try_wait(uint64_t* address, int parity) {
  check_shared("mbarrier_try_wait", address, 8);
  if (read_barrier("mbarrier_try_wait", address).phase != static_cast<unsigned>(parity))
    return true;
  yield("mbarrier_try_wait", true);
  return read_barrier("mbarrier_try_wait", address).phase != static_cast<unsigned>(parity);
}

void store_async(void* remote, const void* value, uint64_t* remote_barrier) {
  check_aligned("store_async_16", remote, 16);
  read_barrier("store_async_16", remote_barrier);
  if (!block_with(remote, 16) || block_with(remote, 16) != block_with(remote_barrier, 8)) {
    fail("store_async_16: %p and its mbarrier are not in one block's shared memory", remote);
  }
  Store store{0, static_cast<char*>(remote), {}, 16, remote_barrier};
  memcpy(store.value, value, 16);
  add_store(store);
}

}  // namespace simt
