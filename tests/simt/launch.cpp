// What a launch is checked for, and how its errors read.
#include <cxxabi.h>
#include <dlfcn.h>
#include <stdlib.h>

#include <mutex>
#include <stdexcept>

#include "engine.h"

namespace simt {
namespace {

constexpr size_t kSharedLimit = 232448;  // of sm_90, the most there is
constexpr int kClusterLimit = 16;
constexpr uint64_t kThreadsLimit = 1024;

std::mutex launch_mutex;
uint64_t seed = 0;
int launches = 0;  // since set_seed
int resident_limit = 132;

std::string text(dim3 d) {
  return "(" + std::to_string(d.x) + ", " + std::to_string(d.y) + ", " + std::to_string(d.z) + ")";
}

std::string demangled(const char* name) {
  int status = 0;
  char* plain = abi::__cxa_demangle(name, nullptr, nullptr, &status);
  std::string result = status == 0 ? plain : name;
  free(plain);
  return result;
}

// Kernels with internal linkage have no name at run time: then the type of their parameters.
std::string kernel_name(const LaunchSpec& spec) {
  Dl_info info;
  if (dladdr(spec.kernel, &info) && info.dli_saddr == spec.kernel && info.dli_sname) {
    return demangled(info.dli_sname);
  }
  return "a kernel of " + demangled(spec.params_type);
}

std::string shape(const LaunchSpec& spec) {
  return "grid " + text(spec.grid) + ", block " + text(spec.block) + ", " +
         std::to_string(spec.shared_bytes) + " bytes of shared memory";
}

[[noreturn]] void refuse(const LaunchSpec& spec, const char* name, const std::string& why) {
  throw std::runtime_error("launch of " + kernel_name(spec) + ": " + name + ": " + why + " (" +
                           shape(spec) + ")");
}

void check(const LaunchSpec& spec) {
  const dim3 grid = spec.grid, block = spec.block;
  const uint64_t threads = uint64_t{block.x} * block.y * block.z;
  if (threads == 0 || threads > kThreadsLimit || block.z > 64) {
    refuse(spec, "cudaErrorInvalidConfiguration", "a block has 1 to 1024 threads");
  }
  if (grid.x > 0x7fffffffu || grid.y > 65535 || grid.z > 65535) {
    refuse(spec, "cudaErrorInvalidConfiguration", "at most (2^31 - 1, 65535, 65535) blocks");
  }
  if (spec.shared_bytes > kSharedLimit) {
    refuse(spec, "cudaErrorInvalidValue",
           "at most " + std::to_string(kSharedLimit) + " bytes of shared memory");
  }
  if (spec.cluster_size < 1 || spec.cluster_size > kClusterLimit ||
      grid.x % spec.cluster_size != 0) {
    refuse(spec, "cudaErrorInvalidClusterSize",
           "cluster size " + std::to_string(spec.cluster_size) +
               " must divide the grid and be 1 to " + std::to_string(kClusterLimit));
  }
  const uint64_t blocks = uint64_t{grid.x} * grid.y * grid.z;
  if (spec.cooperative && blocks > static_cast<uint64_t>(resident_limit)) {
    refuse(spec, "cudaErrorCooperativeLaunchTooLarge",
           std::to_string(blocks) + " blocks, but only " + std::to_string(resident_limit) +
               " can be resident");
  }
}

}  // namespace

void set_seed(uint64_t value) {
  seed = value;
  launches = 0;
}

void set_max_resident_blocks(int blocks) { resident_limit = blocks; }
int max_resident_blocks() { return resident_limit; }

int max_active_clusters(int cluster_size, int threads, size_t shared_bytes) {
  if (cluster_size < 1 || cluster_size > kClusterLimit) return 0;
  if (threads < 1 || static_cast<uint64_t>(threads) > kThreadsLimit) return 0;
  if (shared_bytes > kSharedLimit) return 0;
  return resident_limit / cluster_size;
}

void run(const LaunchSpec& spec) {
  std::lock_guard<std::mutex> lock(launch_mutex);
  if (spec.grid.x == 0 || spec.grid.y == 0 || spec.grid.z == 0) return;
  check(spec);
  const int number = launches++;
  std::seed_seq bits{static_cast<uint32_t>(seed), static_cast<uint32_t>(seed >> 32),
                     static_cast<uint32_t>(number)};
  random_bits.seed(bits);
  std::string error = run_blocks(spec);
  if (error.empty()) {
    const std::string buffer = damaged_buffer();
    if (!buffer.empty()) error = "write next to " + buffer;
  }
  if (error.empty()) return;
  throw std::runtime_error("kernel " + kernel_name(spec) + ", " + error + "\n  (" + shape(spec) +
                           "; seed " + std::to_string(seed) + ", launch " + std::to_string(number) +
                           " since it was set)");
}

}  // namespace simt
