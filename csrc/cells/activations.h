// exp, sigmoid and tanh on a lane type V, and their derivatives from the activated value.
//
// V is any type of cpu/kernels/simd.h (or a plain CUDA scalar): arithmetic operators, fma, min,
// max, abs, select_negative, round_nearest, pow2, divide.
//
// All three share one core: with t = n ln2 + r, |r| <= ln2 / 2, expm1(r) = r + r^2 q(r), and e^t =
// 2^n + 2^n expm1(r). The coefficients of q interpolate (e^r - 1 - r) / r^2 at Chebyshev nodes of
// [-ln2/2, ln2/2], fitted in 60-digit arithmetic. Error over all fp32 values: at most 4 ULP, tested
// exhaustively (tests/kernels/test_activations.py).
#pragma once

#include "portable.h"

namespace fastlstm {
FASTLSTM_ISA_LOCAL_BEGIN

// The coefficients are a function, as device code has no static arrays.
template <class S>
struct ExpConstants;

template <>
struct ExpConstants<float> {
  static constexpr float kLog2e = 1.44269504f;
  static constexpr float kLn2Hi = 0.693359375f;  // 9 bits: n * kLn2Hi is exact for every n in range
  static constexpr float kLn2Lo = -2.12194440e-4f;
  static constexpr float kMaxExponent = 87.0f;  // keeps 2^n and 1 + 2^n normal
  static constexpr float kTanhSaturates = 20.0f;
  static constexpr int kDegree = 5;  // relative error of expm1(r): 2^-30.8
  static FASTLSTM_INLINE float q(int i) {
    constexpr float kQ[kDegree + 1] = {0.500000001354f,   0.166666666817f,   0.0416664641974f,
                                       0.00833331084465f, 0.00139337307158f, 0.00019891080464f};
    return kQ[i];
  }
};

template <>
struct ExpConstants<double> {
  static constexpr double kLog2e = 1.4426950408889634074;
  static constexpr double kLn2Hi = 0.6931471803691238;  // 32 bits
  static constexpr double kLn2Lo = 1.9082149292705878161e-10;
  static constexpr double kMaxExponent = 708.0;
  static constexpr double kTanhSaturates = 44.0;
  static constexpr int kDegree = 10;  // relative error of expm1(r): 2^-60.7
  static FASTLSTM_INLINE double q(int i) {
    constexpr double kQ[kDegree + 1] = {0.5,
                                        0.1666666666666667103,
                                        0.041666666666666669783,
                                        0.0083333333333260831202,
                                        0.0013888888888883711167,
                                        0.00019841269875002278793,
                                        0.0000248015873256774619,
                                        2.7557255170000887438e-6,
                                        2.7557273478718580474e-7,
                                        2.5105312729622101787e-8,
                                        2.09147553258932022e-9};
    return kQ[i];
  }
};

// e^t = scale * (1 + r + r^2 q), r = r_hi + r_lo. |t| must not exceed kMaxExponent.
template <class V>
struct ExpParts {
  V scale;       // 2^n
  V r_hi, r_lo;  // t - n ln2: the first without rounding error
  V r;
  V q;
};

template <class V>
FASTLSTM_INLINE ExpParts<V> exp_parts(V t) {
  using C = ExpConstants<typename V::scalar>;
  const V n = round_nearest(t * V::broadcast(C::kLog2e));
  const V r_hi = fma(n, V::broadcast(-C::kLn2Hi), t);
  const V r_lo = n * V::broadcast(-C::kLn2Lo);
  const V r = r_hi + r_lo;
  V q = V::broadcast(C::q(C::kDegree));
  FASTLSTM_UNROLL
  for (int i = C::kDegree - 1; i >= 0; --i) q = fma(q, r, V::broadcast(C::q(i)));
  return {pow2(n), r_hi, r_lo, r, q};
}

// e^t
template <class V>
FASTLSTM_INLINE V exp_of(const ExpParts<V>& e) {
  return (fma(e.r * e.r, e.q, e.r) + V::broadcast(1)) * e.scale;
}

// min and max return their second argument when either is NaN: a NaN goes through every clamp.
template <class V>
FASTLSTM_INLINE V clamp(V x, typename V::scalar bound) {
  return max(V::broadcast(-bound), min(V::broadcast(bound), x));
}

// exp(x) for |x| <= kMaxExponent; beyond, the value at the bound.
template <class V>
FASTLSTM_INLINE V exp(V x) {
  return exp_of(exp_parts(clamp(x, ExpConstants<typename V::scalar>::kMaxExponent)));
}

// 1 / (1 + e^-x) through e^-|x|: for x > 0 as 1 - e / (1 + e), so that values near 1 are correctly
// rounded. Backward needs
// 1 - sigmoid(x): with a plain 1 / (1 + e) here and no such care in tanh, gradients of saturated
// gates had 2.8 times torch's error. Keeps its relative accuracy for negative x down to
// -kMaxExponent, where it is about 2^-125 in fp32.
template <class V>
FASTLSTM_INLINE V sigmoid(V x) {
  const V one = V::broadcast(1);
  const V t = max(V::broadcast(-ExpConstants<typename V::scalar>::kMaxExponent), -abs(x));
  const V e = exp_of(exp_parts(t));
  const V complement = divide(e, e + one);
  return select_negative(x, complement, one - complement);
}

// Of |x|, with the sign of x. With d = e^2|x| + 1 it is expm1(2|x|) / d for small |x|, where
// nothing cancels, and 1 - 2 / d for large, where values near 1 are then correctly rounded:
// backward needs 1 - tanh(x)^2.
template <class V>
FASTLSTM_INLINE V tanh(V x) {
  using S = typename V::scalar;
  const V a = abs(x), one = V::broadcast(1), two = V::broadcast(2);
  const ExpParts<V> parts = exp_parts(min(V::broadcast(ExpConstants<S>::kTanhSaturates), a + a));
  // What cancels is rounded last. It gains little: 0.498 instead of 0.505 ULP in the mean square
  // over [0.008, 6] than with 1 + r + r^2 q summed first, and 2.42 at most with either.
  const V tail = fma(parts.r * parts.r, parts.q, parts.r_lo);
  const V expm1 = fma(parts.scale, tail, fma(parts.scale, parts.r_hi, parts.scale - one));
  const V small_minus_a = V::broadcast(S(0.5)) - a;
  const V quotient = divide(select_negative(small_minus_a, two, expm1), expm1 + two);
  const V y = select_negative(small_minus_a, one - quotient, quotient);
  return select_negative(x, -y, y);
}

template <class V>
FASTLSTM_INLINE V d_sigmoid(V y) {
  return y * (V::broadcast(1) - y);
}

template <class V>
FASTLSTM_INLINE V d_tanh(V y) {
  return V::broadcast(1) - y * y;
}

FASTLSTM_ISA_LOCAL_END
}  // namespace fastlstm
