// float32 whose products are made of three of TF32: as exact as float32, where float, to kernels of
// tensor cores, is what torch lets them round to TF32.
#pragma once

#include "host_device.h"

namespace fastlstm {
namespace cuda {

// Laid out as float.
struct Float3x {
  float value;
  Float3x() = default;
  FASTLSTM_HOST_DEVICE explicit Float3x(float x) : value(x) {}
  FASTLSTM_HOST_DEVICE explicit operator float() const { return value; }
};

}  // namespace cuda
}  // namespace fastlstm
