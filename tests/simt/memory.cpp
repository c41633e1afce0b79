#include <sys/mman.h>
#include <unistd.h>

#include <deque>
#include <map>
#include <mutex>
#include <new>

#include "engine.h"

namespace simt {
namespace {

constexpr size_t kPage = 4096;
constexpr unsigned char kPoison = 0xFF;
// Freed buffers that stay out of bounds. They are address space, not memory.
constexpr size_t kQuarantine = 1024;

std::mutex mutex;
std::map<char*, Region> regions;  // by the first byte of their pages
std::deque<char*> freed;

size_t round_up(size_t n, size_t multiple) { return (n + multiple - 1) / multiple * multiple; }

bool is_poison(const char* from, const char* to) {
  if (from >= to) return true;
  return static_cast<unsigned char>(*from) == kPoison && memcmp(from, from + 1, to - from - 1) == 0;
}

void protect(const Region& region, int protection, const char* what) {
  std::lock_guard<std::mutex> lock(mutex);
  regions[region.pages].what = what;
  mprotect(region.pages, region.page_bytes, protection);
}

}  // namespace

Region map_region(const char* what, size_t bytes) {
  Region region;
  region.what = what;
  region.bytes = bytes;
  region.page_bytes = round_up(bytes, kPage);
  void* all = mmap(nullptr, region.page_bytes + 2 * kPage, PROT_NONE,
                   MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (all == MAP_FAILED) throw std::bad_alloc();
  region.pages = static_cast<char*>(all) + kPage;
  region.data = region.pages + region.page_bytes - round_up(bytes, 16);
  if (bytes > 0 && mprotect(region.pages, region.page_bytes, PROT_READ | PROT_WRITE) != 0) {
    munmap(all, region.page_bytes + 2 * kPage);
    throw std::bad_alloc();
  }
  if (what == nullptr) return region;
  std::lock_guard<std::mutex> lock(mutex);
  regions[region.pages] = region;
  return region;
}

void unmap_region(const Region& region) {
  std::lock_guard<std::mutex> lock(mutex);
  regions.erase(region.pages);
  munmap(region.pages - kPage, region.page_bytes + 2 * kPage);
}

void poison(const Region& region) { memset(region.pages, kPoison, region.page_bytes); }

void close_region(const Region& region, const char* what) { protect(region, PROT_NONE, what); }

void open_region(const Region& region, const char* what) {
  protect(region, PROT_READ | PROT_WRITE, what);
}

bool intact(const Region& region) {
  return is_poison(region.pages, region.data) &&
         is_poison(region.data + region.bytes, region.pages + region.page_bytes);
}

std::string damaged_buffer() {
  std::lock_guard<std::mutex> lock(mutex);
  for (const auto& [pages, region] : regions) {
    if (strcmp(region.what, "buffer") == 0 && !intact(region)) {
      return "a buffer of " + std::to_string(region.bytes) + " bytes";
    }
  }
  return "";
}

std::string describe_fault(const char* address, bool write) {
  char start[64];
  snprintf(start, sizeof start, "%s at %p, ", write ? "write" : "read",
           static_cast<const void*>(address));
  std::lock_guard<std::mutex> lock(mutex);
  auto next = regions.upper_bound(const_cast<char*>(address) + kPage);
  if (next == regions.begin()) return std::string(start) + "near no buffer";
  const Region& region = std::prev(next)->second;
  const std::string buffer =
      std::string("a ") + region.what + " of " + std::to_string(region.bytes) + " bytes";
  const ptrdiff_t offset = address - region.data;
  const ptrdiff_t past = offset - static_cast<ptrdiff_t>(region.bytes);
  if (past >= static_cast<ptrdiff_t>(16 * kPage)) return std::string(start) + "near no buffer";
  if (past >= 0) return start + std::to_string(past) + " bytes past the end of " + buffer;
  if (offset < 0) return start + std::to_string(-offset) + " bytes before the start of " + buffer;
  return start + std::string("byte ") + std::to_string(offset) + " of " + buffer;
}

void* guarded_alloc(size_t bytes) {
  if (bytes == 0) return nullptr;
  const Region region = map_region("buffer", bytes);
  poison(region);
  return region.data;
}

void guarded_free(void* p) {
  if (p == nullptr) return;
  Region old;
  {
    std::lock_guard<std::mutex> lock(mutex);
    Region& region = std::prev(regions.upper_bound(static_cast<char*>(p)))->second;
    region.what = "freed buffer";
    // Mapped anew, the pages give their memory back.
    mmap(region.pages, region.page_bytes, PROT_NONE,
         MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED, -1, 0);
    freed.push_back(region.pages);
    if (freed.size() <= kQuarantine) return;
    old = regions[freed.front()];
    freed.pop_front();
  }
  unmap_region(old);
}

}  // namespace simt
