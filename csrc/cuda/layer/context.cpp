#include "context.h"

#include <ATen/Context.h>
#include <ATen/cuda/CUDAContext.h>
#include <c10/cuda/CUDAStream.h>

#include <map>
#include <mutex>

#include "../choice/occupancy.h"

namespace fastlstm {
namespace cuda {
namespace {

DeviceProperties asked_properties() {
  const cudaDeviceProp& device = *at::cuda::getCurrentDeviceProperties();
  const size_t shared_bytes = device.sharedMemPerBlockOptin;
  const auto clusters = [&](int size) {
    return active_clusters(size, kGroupThreads, shared_bytes);
  };
  return {10 * device.major + device.minor,
          device.multiProcessorCount,
          shared_bytes,
          clusters(8),
          clusters(16),
          compiled_architecture()};
}

}  // namespace

cudaStream_t current_stream() { return c10::cuda::getCurrentCUDAStream(); }

bool allows_tf32() { return at::globalContext().allowTF32CuDNN(at::Float32Op::RNN); }

DeviceProperties device_properties() {
  static std::mutex mutex;
  static std::map<c10::DeviceIndex, DeviceProperties> known;
  const c10::DeviceIndex device = c10::cuda::current_device();
  const std::lock_guard<std::mutex> lock(mutex);
  auto entry = known.find(device);
  if (entry == known.end()) entry = known.emplace(device, asked_properties()).first;
  return entry->second;
}

}  // namespace cuda
}  // namespace fastlstm
