// The lane type V of a CUDA thread: one unit of one row, for the cells of csrc/cells/.
#pragma once

#include <math.h>
#include <stdint.h>
#include <string.h>

#include "../../cells/portable.h"
#include "device.cuh"

namespace fastlstm {
FASTLSTM_ISA_LOCAL_BEGIN

template <class A>
struct Lane {
  using scalar = A;
  A v;
  static FASTLSTM_INLINE Lane broadcast(A x) { return {x}; }
};

template <class A>
FASTLSTM_INLINE Lane<A> operator+(Lane<A> a, Lane<A> b) {
  return {a.v + b.v};
}
template <class A>
FASTLSTM_INLINE Lane<A> operator-(Lane<A> a, Lane<A> b) {
  return {a.v - b.v};
}
template <class A>
FASTLSTM_INLINE Lane<A> operator*(Lane<A> a, Lane<A> b) {
  return {a.v * b.v};
}
template <class A>
FASTLSTM_INLINE Lane<A> operator-(Lane<A> a) {
  return {-a.v};
}
FASTLSTM_INLINE Lane<float> fma(Lane<float> a, Lane<float> b, Lane<float> c) {
  return {::fmaf(a.v, b.v, c.v)};
}
FASTLSTM_INLINE Lane<double> fma(Lane<double> a, Lane<double> b, Lane<double> c) {
  return {::fma(a.v, b.v, c.v)};
}
// The second argument wins when either is NaN; fminf and fmaxf would drop it.
template <class A>
FASTLSTM_INLINE Lane<A> min(Lane<A> a, Lane<A> b) {
  return a.v < b.v ? a : b;
}
template <class A>
FASTLSTM_INLINE Lane<A> max(Lane<A> a, Lane<A> b) {
  return a.v > b.v ? a : b;
}
FASTLSTM_INLINE Lane<float> abs(Lane<float> a) { return {::fabsf(a.v)}; }
FASTLSTM_INLINE Lane<double> abs(Lane<double> a) { return {::fabs(a.v)}; }

FASTLSTM_INLINE uint32_t bits_of(float x) {
  uint32_t bits;
  memcpy(&bits, &x, sizeof bits);
  return bits;
}
FASTLSTM_INLINE uint64_t bits_of(double x) {
  uint64_t bits;
  memcpy(&bits, &x, sizeof bits);
  return bits;
}
template <class A>
FASTLSTM_INLINE Lane<A> select_negative(Lane<A> x, Lane<A> a, Lane<A> b) {
  return bits_of(x.v) >> (8 * sizeof(A) - 1) ? a : b;
}

FASTLSTM_INLINE Lane<float> round_nearest(Lane<float> x) { return {::rintf(x.v)}; }
FASTLSTM_INLINE Lane<double> round_nearest(Lane<double> x) { return {::rint(x.v)}; }

// 2^n, for integral n in the range of normal numbers.
FASTLSTM_INLINE Lane<float> pow2(Lane<float> n) {
  const uint32_t bits = static_cast<uint32_t>(static_cast<int>(n.v) + 127) << 23;
  Lane<float> r;
  memcpy(&r.v, &bits, sizeof bits);
  return r;
}
FASTLSTM_INLINE Lane<double> pow2(Lane<double> n) {
  const uint64_t bits = static_cast<uint64_t>(static_cast<int>(n.v) + 1023) << 52;
  Lane<double> r;
  memcpy(&r.v, &bits, sizeof bits);
  return r;
}

FASTLSTM_INLINE Lane<float> divide(Lane<float> a, Lane<float> b) {
  return {device::divide(a.v, b.v)};
}
FASTLSTM_INLINE Lane<double> divide(Lane<double> a, Lane<double> b) { return {a.v / b.v}; }

FASTLSTM_ISA_LOCAL_END
}  // namespace fastlstm
