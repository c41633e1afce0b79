// The 16-bit types and TF32 in plain arithmetic.
#include <math.h>
#include <string.h>

#include "simt.h"

namespace simt {

uint16_t bfloat16_from_float(float value) {
  if (isnan(value)) return 0x7FFF;
  uint32_t bits;
  memcpy(&bits, &value, sizeof bits);
  return static_cast<uint16_t>((bits + 0x7FFF + (bits >> 16 & 1)) >> 16);
}

float bfloat16_to_float(uint16_t half) {
  const uint32_t bits = static_cast<uint32_t>(half) << 16;
  float value;
  memcpy(&value, &bits, sizeof value);
  return value;
}

// The magnitude in units of the last place: exact in double, which nearbyint rounds to even.
uint16_t half_from_float(float value) {
  if (isnan(value)) return 0x7FFF;
  const uint16_t sign = signbit(value) ? 0x8000 : 0;
  const double magnitude = fabs(static_cast<double>(value));
  if (magnitude >= 65520.0) return sign | 0x7C00;
  const int exponent = magnitude < 0x1p-14 ? -14 : ilogb(magnitude);
  const int units = static_cast<int>(nearbyint(ldexp(magnitude, 10 - exponent)));
  // A normal number has 1024 units or more, which add the one that is missing to the exponent.
  return sign | static_cast<uint16_t>((exponent + 14) * 1024 + units);
}

float half_to_float(uint16_t half) {
  const uint32_t sign = half >> 15, exponent = half >> 10 & 31, fraction = half & 1023;
  if (exponent == 0) return (sign ? -0x1p-24f : 0x1p-24f) * static_cast<float>(fraction);
  const uint32_t bits = sign << 31 | (exponent == 31 ? 255 : exponent + 112) << 23 | fraction << 13;
  float value;
  memcpy(&value, &bits, sizeof value);
  return value;
}

uint32_t to_tf32(float value) {
  uint32_t bits;
  memcpy(&bits, &value, sizeof bits);
  if (isnan(value)) return 0x7FFFE000u;
  return (bits + 0x1000u) & 0xffffe000u;
}

}  // namespace simt
