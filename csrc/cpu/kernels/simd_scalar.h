// The lane type of one lane: the path of every machine without a faster one.
#pragma once

#include <stdint.h>
#include <string.h>

#include "../../cells/portable.h"

namespace fastlstm {
FASTLSTM_ISA_LOCAL_BEGIN

template <class S>
struct Scalar {
  using scalar = S;
  static constexpr int kLanes = 1;
  static constexpr int kMaxRows = 3;
  S v;
  static FASTLSTM_INLINE Scalar load(const S* p) { return {*p}; }
  static FASTLSTM_INLINE Scalar load(const S* p, int) { return {*p}; }
  static FASTLSTM_INLINE Scalar broadcast(S x) { return {x}; }
  FASTLSTM_INLINE void store(S* p) const { *p = v; }
  FASTLSTM_INLINE void store(S* p, int) const { *p = v; }
};
template <class S>
FASTLSTM_INLINE Scalar<S> operator+(Scalar<S> a, Scalar<S> b) {
  return {a.v + b.v};
}
template <class S>
FASTLSTM_INLINE Scalar<S> operator-(Scalar<S> a, Scalar<S> b) {
  return {a.v - b.v};
}
template <class S>
FASTLSTM_INLINE Scalar<S> operator*(Scalar<S> a, Scalar<S> b) {
  return {a.v * b.v};
}
template <class S>
FASTLSTM_INLINE Scalar<S> operator-(Scalar<S> a) {
  return {-a.v};
}
template <class S>
FASTLSTM_INLINE Scalar<S> fma(Scalar<S> a, Scalar<S> b, Scalar<S> c) {
  return {a.v * b.v + c.v};
}
template <class S>
FASTLSTM_INLINE Scalar<S> fnma(Scalar<S> a, Scalar<S> b, Scalar<S> c) {
  return {c.v - a.v * b.v};
}
// Through double, one rounding as with a fused multiply-add: with two, some gradients were further
// from the truth than twice torch's.
template <>
FASTLSTM_INLINE Scalar<float> fma(Scalar<float> a, Scalar<float> b, Scalar<float> c) {
  return {static_cast<float>(static_cast<double>(a.v) * b.v + c.v)};
}
template <>
FASTLSTM_INLINE Scalar<float> fnma(Scalar<float> a, Scalar<float> b, Scalar<float> c) {
  return {static_cast<float>(c.v - static_cast<double>(a.v) * b.v)};
}
template <class S>
FASTLSTM_INLINE Scalar<S> min(Scalar<S> a, Scalar<S> b) {
  return {a.v < b.v ? a.v : b.v};
}
template <class S>
FASTLSTM_INLINE Scalar<S> max(Scalar<S> a, Scalar<S> b) {
  return {a.v > b.v ? a.v : b.v};
}
template <class S>
FASTLSTM_INLINE Scalar<S> abs(Scalar<S> a) {
  return {__builtin_fabs(a.v)};
}
template <>
FASTLSTM_INLINE Scalar<float> abs(Scalar<float> a) {
  return {__builtin_fabsf(a.v)};
}
template <class S>
FASTLSTM_INLINE Scalar<S> select_negative(Scalar<S> x, Scalar<S> a, Scalar<S> b) {
  return __builtin_signbit(x.v) ? a : b;
}
template <class S>
FASTLSTM_INLINE Scalar<S> divide(Scalar<S> a, Scalar<S> b) {
  return {a.v / b.v};
}

// Adding 1.5 * 2^(mantissa bits) leaves the nearest integer in the low bits; adding the exponent
// bias as well and shifting it up makes 2^n without a conversion instruction.
FASTLSTM_INLINE Scalar<float> round_nearest(Scalar<float> x) {
  volatile float shifted = x.v + 12582912.0f;
  return {shifted - 12582912.0f};
}
FASTLSTM_INLINE Scalar<double> round_nearest(Scalar<double> x) {
  volatile double shifted = x.v + 6755399441055744.0;
  return {shifted - 6755399441055744.0};
}
FASTLSTM_INLINE Scalar<float> pow2(Scalar<float> n) {
  const float shifted = n.v + (12582912.0f + 127.0f);
  uint32_t bits;
  memcpy(&bits, &shifted, sizeof bits);
  bits <<= 23;
  float r;
  memcpy(&r, &bits, sizeof r);
  return {r};
}
FASTLSTM_INLINE Scalar<double> pow2(Scalar<double> n) {
  const double shifted = n.v + (6755399441055744.0 + 1023.0);
  uint64_t bits;
  memcpy(&bits, &shifted, sizeof bits);
  bits <<= 52;
  double r;
  memcpy(&r, &bits, sizeof r);
  return {r};
}

FASTLSTM_ISA_LOCAL_END
}  // namespace fastlstm
