// In place of csrc/cuda/context.cpp: there is no stream, and TF32 is a switch of the tests.
#include "context.h"

namespace fastlstm {
namespace cuda {

bool tf32_allowed = false;

cudaStream_t current_stream() { return nullptr; }

bool allows_tf32() { return tf32_allowed; }

// As much as the emulator's blocks may have.
DeviceProperties device_properties() { return {227 * 1024}; }

}  // namespace cuda
}  // namespace fastlstm
