// Stores and copies that are under way: done at once, or as late as the rules allow.
#include <algorithm>

#include "engine.h"

namespace simt {

namespace {

constexpr size_t kMostPending = 64;

std::vector<Store> stores;
unsigned delay_one_in = 2;  // stores and copies; 0: none is delayed

bool delayed() { return delay_one_in != 0 && chance(delay_one_in); }

void deliver(size_t i) {
  const Store store = stores[i];
  stores.erase(stores.begin() + i);
  memcpy(store.to, store.value, store.size);
  if (store.barrier) {
    Mbarrier barrier;
    memcpy(&barrier, store.barrier, sizeof barrier);
    barrier.bytes -= store.size;
    end_phase_if_due(barrier);
    memcpy(store.barrier, &barrier, sizeof barrier);
  }
  progress();
}

// A thread's stores to one address stay in order; to different addresses they do not.
void deliver_in_order(size_t i) {
  for (size_t j = 0; j < i; ++j) {
    if (stores[j].owner == stores[i].owner && stores[j].overlaps(stores[i].to, stores[i].size)) {
      i = j;
      break;
    }
  }
  deliver(i);
}

// Faults here, in the thread that is to blame, and not when the store or the copy is done.
void touch(const void* address) { *static_cast<const volatile char*>(address); }

template <class Condition>
void deliver_where(Condition condition) {
  for (size_t i = 0; i < stores.size();) {
    if (condition(stores[i])) {
      deliver(i);
    } else {
      ++i;
    }
  }
}

}  // namespace

void add_store(const Store& store) {
  touch(store.to);
  stores.push_back(store);
  if (!delayed()) {
    deliver_in_order(stores.size() - 1);
  } else if (stores.size() > kMostPending) {
    deliver_some_store();
  }
}

bool stores_pending() { return !stores.empty(); }
void deliver_some_store() { deliver_in_order(random_bits() % stores.size()); }
void drop_stores() { stores.clear(); }
void reset_delays() {
  constexpr unsigned kDelays[3] = {0, 1, 2};
  delay_one_in = kDelays[random_bits() % 3];
}

bool deliver_stores_into(const Block& block) {
  bool only_plain = true;
  deliver_where([&](const Store& store) {
    if (!inside(block, store.to, store.size)) return false;
    only_plain = only_plain && store.barrier == nullptr;
    return true;
  });
  return only_plain;
}

// ---- asynchronous copies ----

namespace {
void perform(const Copy& copy) {
  if (copy.valid) {
    memcpy(copy.shared, copy.global, copy.size);
  } else {
    memset(copy.shared, 0, copy.size);
  }
}
}  // namespace

void cp_async(const char* what, void* shared, const void* global, int size, bool valid) {
  check_shared(what, shared, size);
  check_global(what, global, size);
  if (valid) touch(global);
  const Copy copy{shared, global, size, valid, current->group};
  if (delayed()) {
    current->copies.push_back(copy);
  } else {
    perform(copy);
  }
}

void cp_async_commit() { ++current->group; }

void cp_async_wait(int pending) {
  auto& copies = current->copies;
  const int last = current->group - pending;
  const auto rest = std::stable_partition(copies.begin(), copies.end(),
                                          [&](const Copy& copy) { return copy.group < last; });
  std::for_each(copies.begin(), rest, perform);
  copies.erase(copies.begin(), rest);
}

// ---- memory shared between blocks ----

void load(const char* what, const void* address, void* value, int size) {
  check_global(what, address, size);
  const char* from = static_cast<const char*>(address);
  deliver_where(
      [&](const Store& store) { return store.owner == current->id && store.overlaps(from, size); });
  if (chance(2)) yield(what, true);
  memcpy(value, address, size);
}

void store_relaxed_16(void* address, const void* value) {
  check_global("store_relaxed_16", address, 16);
  Store store{current->id, static_cast<char*>(address), {}, 16, nullptr};
  memcpy(store.value, value, 16);
  add_store(store);
}

void deliver_own_stores() {
  deliver_where([](const Store& store) { return store.owner == current->id; });
}

void add_release(unsigned* address, unsigned value) {
  check_global("add_release", address, sizeof value);
  deliver_own_stores();
  *address += value;
  progress();
}

}  // namespace simt
