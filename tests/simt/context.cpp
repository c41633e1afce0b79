// In place of csrc/cuda/layer/context.cpp: there is no stream; TF32 and the device are what tests
// say.
#include "cuda/layer/context.h"

#include "simt.h"

namespace fastlstm {
namespace cuda {
namespace {

// An H100 (SXM). Of its clusters of 16 blocks, as many as it has parts with 16 multiprocessors.
DeviceProperties properties = {90, 132, 227 * 1024, 16, 7, 90};

}  // namespace

bool tf32_allowed = false;

cudaStream_t current_stream() { return nullptr; }

bool allows_tf32() { return tf32_allowed; }

DeviceProperties device_properties() { return properties; }

void set_device_properties(const DeviceProperties& device) {
  properties = device;
  simt::set_max_resident_blocks(device.multiprocessors);
}

}  // namespace cuda
}  // namespace fastlstm
