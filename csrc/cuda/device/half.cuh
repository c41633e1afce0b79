// The 16-bit types: storage with explicit conversions, laid out as c10::Half and c10::BFloat16, so
// that host code may reinterpret_cast pointers. Conversion rounds to nearest even; NaN stays NaN.
// Only device.cuh includes this file: what converts bits is its business.
#pragma once

#include <stdint.h>

namespace fastlstm {
namespace device {

struct Half {
  uint16_t bits;
  Half() = default;
  FASTLSTM_HOST_DEVICE explicit Half(float value) : bits(half_from_float(value)) {}
  FASTLSTM_HOST_DEVICE explicit operator float() const { return half_to_float(bits); }
};

struct BFloat16 {
  uint16_t bits;
  BFloat16() = default;
  FASTLSTM_HOST_DEVICE explicit BFloat16(float value) : bits(bfloat16_from_float(value)) {}
  FASTLSTM_HOST_DEVICE explicit operator float() const { return bfloat16_to_float(bits); }
};

static_assert(sizeof(Half) == 2 && sizeof(BFloat16) == 2, "layout of c10's types");

}  // namespace device
}  // namespace fastlstm
