#include "context.h"

#include <ATen/Context.h>
#include <ATen/cuda/CUDAContext.h>
#include <c10/cuda/CUDAStream.h>

namespace fastlstm {
namespace cuda {

cudaStream_t current_stream() { return c10::cuda::getCurrentCUDAStream(); }

bool allows_tf32() { return at::globalContext().allowTF32CuDNN(at::Float32Op::RNN); }

DeviceProperties device_properties() {
  return {at::cuda::getCurrentDeviceProperties()->sharedMemPerBlockOptin};
}

}  // namespace cuda
}  // namespace fastlstm
