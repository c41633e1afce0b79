#include "occupancy.h"

#include "../device/device.cuh"

namespace fastlstm {
namespace cuda {

struct NoParams {};

FASTLSTM_KERNEL void empty_kernel(const NoParams) {}

int active_clusters(int cluster_size, int threads, size_t shared_bytes) {
  return device::max_active_clusters(&empty_kernel, cluster_size, threads, shared_bytes);
}

int compiled_architecture() { return device::compiled_architecture(&empty_kernel); }

}  // namespace cuda
}  // namespace fastlstm
