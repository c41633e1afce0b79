// Lane types V: the only file that knows an instruction set. A kernel is a template on V and reads
// like scalar code.
//
// Every V offers: scalar, kLanes, kMaxRows (rows of the register tile: kMaxRows * 4 accumulators +
// 4 weights + 1 broadcast must fit the register file), load / store of kLanes or of the first n
// lanes, broadcast, + - *, fma(a, b, c) = a * b + c, fnma(a, b, c) = c - a * b, min / max (second
// argument wins when either is NaN), abs, select_negative(x, a, b) = a where the sign of x is set,
// else b, round_nearest, pow2(n) for integral n with 2^n normal, divide(a, b) for normal finite b,
// prefetch.
#pragma once

#include <stdint.h>
#include <string.h>
#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include "../cells/portable.h"

#if defined(__SANITIZE_ADDRESS__)
extern "C" void __asan_loadN(const void*, unsigned long);
extern "C" void __asan_storeN(void*, unsigned long);
#elif defined(__SANITIZE_THREAD__)
extern "C" void __tsan_read_range(const void*, unsigned long);
extern "C" void __tsan_write_range(void*, unsigned long);
#endif

namespace fastlstm {
FASTLSTM_ISA_LOCAL_BEGIN

// One lane: the path of every machine without a faster one.
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
FASTLSTM_INLINE void prefetch(const void* p) { __builtin_prefetch(p, 0, 3); }

// Pass on the pointer of a masked access to n elements. Compilers do not instrument masked
// instructions: a sanitizer has to be told.
template <class S>
FASTLSTM_INLINE const S* masked_read(const S* p, int n) {
#if defined(__SANITIZE_ADDRESS__)
  __asan_loadN(p, n * sizeof(S));
#elif defined(__SANITIZE_THREAD__)
  __tsan_read_range(p, n * sizeof(S));
#endif
  (void)n;
  return p;
}
template <class S>
FASTLSTM_INLINE S* masked_write(S* p, int n) {
#if defined(__SANITIZE_ADDRESS__)
  __asan_storeN(p, n * sizeof(S));
#elif defined(__SANITIZE_THREAD__)
  __tsan_write_range(p, n * sizeof(S));
#endif
  (void)n;
  return p;
}

#if defined(FASTLSTM_LANES_AVX2)

struct F32x8 {
  using scalar = float;
  static constexpr int kLanes = 8;
  static constexpr int kMaxRows = 3;
  __m256 v;
  static FASTLSTM_INLINE __m256i mask(int n) {
    return _mm256_cmpgt_epi32(_mm256_set1_epi32(n), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
  }
  static FASTLSTM_INLINE F32x8 load(const float* p) { return {_mm256_loadu_ps(p)}; }
  static FASTLSTM_INLINE F32x8 load(const float* p, int n) {
    return n == kLanes ? load(p) : F32x8{_mm256_maskload_ps(masked_read(p, n), mask(n))};
  }
  static FASTLSTM_INLINE F32x8 broadcast(float x) { return {_mm256_set1_ps(x)}; }
  FASTLSTM_INLINE void store(float* p) const { _mm256_storeu_ps(p, v); }
  FASTLSTM_INLINE void store(float* p, int n) const {
    n == kLanes ? store(p) : _mm256_maskstore_ps(masked_write(p, n), mask(n), v);
  }
};
FASTLSTM_INLINE F32x8 operator+(F32x8 a, F32x8 b) { return {_mm256_add_ps(a.v, b.v)}; }
FASTLSTM_INLINE F32x8 operator-(F32x8 a, F32x8 b) { return {_mm256_sub_ps(a.v, b.v)}; }
FASTLSTM_INLINE F32x8 operator*(F32x8 a, F32x8 b) { return {_mm256_mul_ps(a.v, b.v)}; }
FASTLSTM_INLINE F32x8 operator-(F32x8 a) { return {_mm256_xor_ps(a.v, _mm256_set1_ps(-0.0f))}; }
FASTLSTM_INLINE F32x8 fma(F32x8 a, F32x8 b, F32x8 c) { return {_mm256_fmadd_ps(a.v, b.v, c.v)}; }
FASTLSTM_INLINE F32x8 fnma(F32x8 a, F32x8 b, F32x8 c) { return {_mm256_fnmadd_ps(a.v, b.v, c.v)}; }
FASTLSTM_INLINE F32x8 min(F32x8 a, F32x8 b) { return {_mm256_min_ps(a.v, b.v)}; }
FASTLSTM_INLINE F32x8 max(F32x8 a, F32x8 b) { return {_mm256_max_ps(a.v, b.v)}; }
FASTLSTM_INLINE F32x8 abs(F32x8 a) { return {_mm256_andnot_ps(_mm256_set1_ps(-0.0), a.v)}; }
FASTLSTM_INLINE F32x8 select_negative(F32x8 x, F32x8 a, F32x8 b) {
  return {_mm256_blendv_ps(b.v, a.v, x.v)};
}
FASTLSTM_INLINE F32x8 divide(F32x8 a, F32x8 b) { return {_mm256_div_ps(a.v, b.v)}; }
FASTLSTM_INLINE F32x8 round_nearest(F32x8 x) {
  return {_mm256_round_ps(x.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)};
}
FASTLSTM_INLINE F32x8 pow2(F32x8 n) {
  const __m256 shifted = _mm256_add_ps(n.v, _mm256_set1_ps(12582912.0f + 127.0f));
  return {_mm256_castsi256_ps(_mm256_slli_epi32(_mm256_castps_si256(shifted), 23))};
}

struct F64x4 {
  using scalar = double;
  static constexpr int kLanes = 4;
  static constexpr int kMaxRows = 3;
  __m256d v;
  static FASTLSTM_INLINE __m256i mask(int n) {
    return _mm256_cmpgt_epi64(_mm256_set1_epi64x(n), _mm256_setr_epi64x(0, 1, 2, 3));
  }
  static FASTLSTM_INLINE F64x4 load(const double* p) { return {_mm256_loadu_pd(p)}; }
  static FASTLSTM_INLINE F64x4 load(const double* p, int n) {
    return n == kLanes ? load(p) : F64x4{_mm256_maskload_pd(masked_read(p, n), mask(n))};
  }
  static FASTLSTM_INLINE F64x4 broadcast(double x) { return {_mm256_set1_pd(x)}; }
  FASTLSTM_INLINE void store(double* p) const { _mm256_storeu_pd(p, v); }
  FASTLSTM_INLINE void store(double* p, int n) const {
    n == kLanes ? store(p) : _mm256_maskstore_pd(masked_write(p, n), mask(n), v);
  }
};
FASTLSTM_INLINE F64x4 operator+(F64x4 a, F64x4 b) { return {_mm256_add_pd(a.v, b.v)}; }
FASTLSTM_INLINE F64x4 operator-(F64x4 a, F64x4 b) { return {_mm256_sub_pd(a.v, b.v)}; }
FASTLSTM_INLINE F64x4 operator*(F64x4 a, F64x4 b) { return {_mm256_mul_pd(a.v, b.v)}; }
FASTLSTM_INLINE F64x4 operator-(F64x4 a) { return {_mm256_xor_pd(a.v, _mm256_set1_pd(-0.0))}; }
FASTLSTM_INLINE F64x4 fma(F64x4 a, F64x4 b, F64x4 c) { return {_mm256_fmadd_pd(a.v, b.v, c.v)}; }
FASTLSTM_INLINE F64x4 fnma(F64x4 a, F64x4 b, F64x4 c) { return {_mm256_fnmadd_pd(a.v, b.v, c.v)}; }
FASTLSTM_INLINE F64x4 min(F64x4 a, F64x4 b) { return {_mm256_min_pd(a.v, b.v)}; }
FASTLSTM_INLINE F64x4 max(F64x4 a, F64x4 b) { return {_mm256_max_pd(a.v, b.v)}; }
FASTLSTM_INLINE F64x4 abs(F64x4 a) { return {_mm256_andnot_pd(_mm256_set1_pd(-0.0), a.v)}; }
FASTLSTM_INLINE F64x4 select_negative(F64x4 x, F64x4 a, F64x4 b) {
  return {_mm256_blendv_pd(b.v, a.v, x.v)};
}
FASTLSTM_INLINE F64x4 divide(F64x4 a, F64x4 b) { return {_mm256_div_pd(a.v, b.v)}; }
FASTLSTM_INLINE F64x4 round_nearest(F64x4 x) {
  return {_mm256_round_pd(x.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)};
}
FASTLSTM_INLINE F64x4 pow2(F64x4 n) {
  const __m256d shifted = _mm256_add_pd(n.v, _mm256_set1_pd(6755399441055744.0 + 1023.0));
  return {_mm256_castsi256_pd(_mm256_slli_epi64(_mm256_castpd_si256(shifted), 52))};
}

#endif  // AVX2

#if defined(FASTLSTM_LANES_AVX512)

struct F32x16 {
  using scalar = float;
  static constexpr int kLanes = 16;
  static constexpr int kMaxRows = 6;
  __m512 v;
  static FASTLSTM_INLINE __mmask16 mask(int n) { return static_cast<__mmask16>((1u << n) - 1); }
  static FASTLSTM_INLINE F32x16 load(const float* p) { return {_mm512_loadu_ps(p)}; }
  static FASTLSTM_INLINE F32x16 load(const float* p, int n) {
    return n == kLanes ? load(p) : F32x16{_mm512_maskz_loadu_ps(mask(n), masked_read(p, n))};
  }
  static FASTLSTM_INLINE F32x16 broadcast(float x) { return {_mm512_set1_ps(x)}; }
  FASTLSTM_INLINE void store(float* p) const { _mm512_storeu_ps(p, v); }
  FASTLSTM_INLINE void store(float* p, int n) const {
    n == kLanes ? store(p) : _mm512_mask_storeu_ps(masked_write(p, n), mask(n), v);
  }
};
FASTLSTM_INLINE F32x16 operator+(F32x16 a, F32x16 b) { return {_mm512_add_ps(a.v, b.v)}; }
FASTLSTM_INLINE F32x16 operator-(F32x16 a, F32x16 b) { return {_mm512_sub_ps(a.v, b.v)}; }
FASTLSTM_INLINE F32x16 operator*(F32x16 a, F32x16 b) { return {_mm512_mul_ps(a.v, b.v)}; }
FASTLSTM_INLINE F32x16 operator-(F32x16 a) { return {_mm512_xor_ps(a.v, _mm512_set1_ps(-0.0f))}; }
FASTLSTM_INLINE F32x16 fma(F32x16 a, F32x16 b, F32x16 c) {
  return {_mm512_fmadd_ps(a.v, b.v, c.v)};
}
FASTLSTM_INLINE F32x16 fnma(F32x16 a, F32x16 b, F32x16 c) {
  return {_mm512_fnmadd_ps(a.v, b.v, c.v)};
}
FASTLSTM_INLINE F32x16 min(F32x16 a, F32x16 b) { return {_mm512_min_ps(a.v, b.v)}; }
FASTLSTM_INLINE F32x16 max(F32x16 a, F32x16 b) { return {_mm512_max_ps(a.v, b.v)}; }
FASTLSTM_INLINE F32x16 abs(F32x16 a) { return {_mm512_andnot_ps(_mm512_set1_ps(-0.0f), a.v)}; }
FASTLSTM_INLINE F32x16 select_negative(F32x16 x, F32x16 a, F32x16 b) {
  return {_mm512_mask_blend_ps(_mm512_movepi32_mask(_mm512_castps_si512(x.v)), b.v, a.v)};
}
// A 14-bit reciprocal and one correction of the quotient: 2^-28 before the last rounding, and no
// 512-bit division.
FASTLSTM_INLINE F32x16 divide(F32x16 a, F32x16 b) {
  const F32x16 r{_mm512_rcp14_ps(b.v)};
  const F32x16 quotient = a * r;
  return fma(fnma(quotient, b, a), r, quotient);
}
FASTLSTM_INLINE F32x16 round_nearest(F32x16 x) {
  return {_mm512_roundscale_ps(x.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)};
}
FASTLSTM_INLINE F32x16 pow2(F32x16 n) { return {_mm512_scalef_ps(_mm512_set1_ps(1.0f), n.v)}; }

struct F64x8 {
  using scalar = double;
  static constexpr int kLanes = 8;
  static constexpr int kMaxRows = 6;
  __m512d v;
  static FASTLSTM_INLINE __mmask8 mask(int n) { return static_cast<__mmask8>((1u << n) - 1); }
  static FASTLSTM_INLINE F64x8 load(const double* p) { return {_mm512_loadu_pd(p)}; }
  static FASTLSTM_INLINE F64x8 load(const double* p, int n) {
    return n == kLanes ? load(p) : F64x8{_mm512_maskz_loadu_pd(mask(n), masked_read(p, n))};
  }
  static FASTLSTM_INLINE F64x8 broadcast(double x) { return {_mm512_set1_pd(x)}; }
  FASTLSTM_INLINE void store(double* p) const { _mm512_storeu_pd(p, v); }
  FASTLSTM_INLINE void store(double* p, int n) const {
    n == kLanes ? store(p) : _mm512_mask_storeu_pd(masked_write(p, n), mask(n), v);
  }
};
FASTLSTM_INLINE F64x8 operator+(F64x8 a, F64x8 b) { return {_mm512_add_pd(a.v, b.v)}; }
FASTLSTM_INLINE F64x8 operator-(F64x8 a, F64x8 b) { return {_mm512_sub_pd(a.v, b.v)}; }
FASTLSTM_INLINE F64x8 operator*(F64x8 a, F64x8 b) { return {_mm512_mul_pd(a.v, b.v)}; }
FASTLSTM_INLINE F64x8 operator-(F64x8 a) { return {_mm512_xor_pd(a.v, _mm512_set1_pd(-0.0))}; }
FASTLSTM_INLINE F64x8 fma(F64x8 a, F64x8 b, F64x8 c) { return {_mm512_fmadd_pd(a.v, b.v, c.v)}; }
FASTLSTM_INLINE F64x8 fnma(F64x8 a, F64x8 b, F64x8 c) { return {_mm512_fnmadd_pd(a.v, b.v, c.v)}; }
FASTLSTM_INLINE F64x8 min(F64x8 a, F64x8 b) { return {_mm512_min_pd(a.v, b.v)}; }
FASTLSTM_INLINE F64x8 max(F64x8 a, F64x8 b) { return {_mm512_max_pd(a.v, b.v)}; }
FASTLSTM_INLINE F64x8 abs(F64x8 a) { return {_mm512_andnot_pd(_mm512_set1_pd(-0.0), a.v)}; }
FASTLSTM_INLINE F64x8 select_negative(F64x8 x, F64x8 a, F64x8 b) {
  return {_mm512_mask_blend_pd(_mm512_movepi64_mask(_mm512_castpd_si512(x.v)), b.v, a.v)};
}
FASTLSTM_INLINE F64x8 divide(F64x8 a, F64x8 b) { return {_mm512_div_pd(a.v, b.v)}; }
FASTLSTM_INLINE F64x8 round_nearest(F64x8 x) {
  return {_mm512_roundscale_pd(x.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)};
}
FASTLSTM_INLINE F64x8 pow2(F64x8 n) { return {_mm512_scalef_pd(_mm512_set1_pd(1.0), n.v)}; }

#endif  // AVX-512

// Transposes the kLanes x kLanes block in rows: block by block, halves first. 64 shuffles for 16
// x 16.
template <class V>
FASTLSTM_INLINE void transpose(V (&rows)[V::kLanes]) {
  if constexpr (V::kLanes > 1) {
    using S = typename V::scalar;
    constexpr int L = V::kLanes;
    typedef S Vector __attribute__((vector_size(L * sizeof(S))));
    typedef decltype(Vector{} < Vector{}) Index;
#pragma GCC unroll 8
    for (int half = L / 2; half > 0; half /= 2) {
      Index low, high;
#pragma GCC unroll 16
      for (int l = 0; l < L; ++l) {
        low[l] = l & half ? L + l - half : l;
        high[l] = l & half ? L + l : l + half;
      }
#pragma GCC unroll 16
      for (int i = 0; i < L; ++i) {
        if (i & half) continue;
        const Vector a = reinterpret_cast<const Vector&>(rows[i].v),
                     b = reinterpret_cast<const Vector&>(rows[i + half].v);
        reinterpret_cast<Vector&>(rows[i].v) = __builtin_shuffle(a, b, low);
        reinterpret_cast<Vector&>(rows[i + half].v) = __builtin_shuffle(a, b, high);
      }
    }
  }
}

// Lane i of the result: the sum of all lanes of rows[i]. Halves of two rows are added at a time, so
// that a level of the tree has half the vectors of the one before: 30 shuffles for 16 rows where a
// transposition has 64.
template <class V>
FASTLSTM_INLINE V sums_of(V (&rows)[V::kLanes]) {
  if constexpr (V::kLanes > 1) {
    using S = typename V::scalar;
    constexpr int L = V::kLanes;
    typedef S Vector __attribute__((vector_size(L * sizeof(S))));
    typedef decltype(Vector{} < Vector{}) Index;
#pragma GCC unroll 8
    for (int half = L / 2; half > 0; half /= 2) {
      Index low, high;
#pragma GCC unroll 16
      for (int l = 0; l < L; ++l) {
        low[l] = l & half ? L + l - half : l;
        high[l] = l & half ? L + l : l + half;
      }
#pragma GCC unroll 8
      for (int i = 0; i < half; ++i) {
        const Vector a = reinterpret_cast<const Vector&>(rows[i].v),
                     b = reinterpret_cast<const Vector&>(rows[i + half].v);
        reinterpret_cast<Vector&>(rows[i].v) =
            __builtin_shuffle(a, b, low) + __builtin_shuffle(a, b, high);
      }
    }
  }
  return rows[0];
}

FASTLSTM_ISA_LOCAL_END
}  // namespace fastlstm
