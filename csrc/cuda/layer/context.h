// What torch says of the device: all that a layer asks of it beside memory.
#pragma once

#include <cuda_runtime_api.h>

#include "../choice/heuristics.h"

namespace fastlstm {
namespace cuda {

// The stream that torch's own kernels would run on.
cudaStream_t current_stream();

// Whether float32 products may use TF32: torch.backends.cudnn.allow_tf32 (rnn.fp32_precision), the
// switch that torch.nn's recurrent layers obey.
bool allows_tf32();

// Of the current device, which is asked once.
DeviceProperties device_properties();

}  // namespace cuda
}  // namespace fastlstm
