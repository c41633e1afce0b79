// The lane types of AVX2 and AVX-512: what they share is written once, over a row of intrinsics for
// each.
#pragma once

#include <immintrin.h>

#include "../../cells/portable.h"

#if defined(__SANITIZE_ADDRESS__)
extern "C" void __asan_loadN(const void*, unsigned long);
extern "C" void __asan_storeN(void*, unsigned long);
#elif defined(__SANITIZE_THREAD__)
extern "C" void __tsan_read_range(const void*, unsigned long);
extern "C" void __tsan_write_range(void*, unsigned long);
#endif

namespace fastlstm {
FASTLSTM_ISA_LOCAL_BEGIN

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

// Isa: the types of a lane and of a register R, and an intrinsic for each thing that GCC's
// operators on vectors cannot say.
template <class Isa>
struct Lanes {
  using scalar = typename Isa::scalar;
  static constexpr int kLanes = sizeof(typename Isa::R) / sizeof(scalar);
  static constexpr int kMaxRows = Isa::kMaxRows;
  typename Isa::R v;
  static FASTLSTM_INLINE auto mask(int n) { return Isa::mask(n); }
  static FASTLSTM_INLINE Lanes load(const scalar* p) { return {Isa::load(p)}; }
  static FASTLSTM_INLINE Lanes load(const scalar* p, int n) {
    return n == kLanes ? load(p) : Lanes{Isa::load(masked_read(p, n), mask(n))};
  }
  static FASTLSTM_INLINE Lanes broadcast(scalar x) { return {Isa::broadcast(x)}; }
  FASTLSTM_INLINE void store(scalar* p) const { Isa::store(p, v); }
  FASTLSTM_INLINE void store(scalar* p, int n) const {
    n == kLanes ? store(p) : Isa::store(masked_write(p, n), mask(n), v);
  }
  friend FASTLSTM_INLINE Lanes operator+(Lanes a, Lanes b) { return {a.v + b.v}; }
  friend FASTLSTM_INLINE Lanes operator-(Lanes a, Lanes b) { return {a.v - b.v}; }
  friend FASTLSTM_INLINE Lanes operator*(Lanes a, Lanes b) { return {a.v * b.v}; }
  friend FASTLSTM_INLINE Lanes operator-(Lanes a) { return {Isa::negate(a.v)}; }
  friend FASTLSTM_INLINE Lanes fma(Lanes a, Lanes b, Lanes c) { return {Isa::fma(a.v, b.v, c.v)}; }
  friend FASTLSTM_INLINE Lanes fnma(Lanes a, Lanes b, Lanes c) {
    return {Isa::fnma(a.v, b.v, c.v)};
  }
  friend FASTLSTM_INLINE Lanes min(Lanes a, Lanes b) { return {Isa::min(a.v, b.v)}; }
  friend FASTLSTM_INLINE Lanes max(Lanes a, Lanes b) { return {Isa::max(a.v, b.v)}; }
  friend FASTLSTM_INLINE Lanes abs(Lanes a) { return {Isa::abs(a.v)}; }
  friend FASTLSTM_INLINE Lanes select_negative(Lanes x, Lanes a, Lanes b) {
    return {Isa::select_negative(x.v, a.v, b.v)};
  }
  friend FASTLSTM_INLINE Lanes divide(Lanes a, Lanes b) { return {Isa::divide(a.v, b.v)}; }
  friend FASTLSTM_INLINE Lanes round_nearest(Lanes x) { return {Isa::round_nearest(x.v)}; }
  friend FASTLSTM_INLINE Lanes pow2(Lanes n) { return {Isa::pow2(n.v)}; }
};

constexpr int kRoundNearest = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC;

#if defined(FASTLSTM_LANES_AVX2)

struct Avx2F32 {
  using scalar = float;
  using R = __m256;
  using Mask = __m256i;
  static constexpr int kMaxRows = 3;
  static FASTLSTM_INLINE Mask mask(int n) {
    return _mm256_cmpgt_epi32(_mm256_set1_epi32(n), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
  }
  static FASTLSTM_INLINE R load(const float* p) { return _mm256_loadu_ps(p); }
  static FASTLSTM_INLINE R load(const float* p, Mask m) { return _mm256_maskload_ps(p, m); }
  static FASTLSTM_INLINE void store(float* p, R v) { _mm256_storeu_ps(p, v); }
  static FASTLSTM_INLINE void store(float* p, Mask m, R v) { _mm256_maskstore_ps(p, m, v); }
  static FASTLSTM_INLINE R broadcast(float x) { return _mm256_set1_ps(x); }
  static FASTLSTM_INLINE R fma(R a, R b, R c) { return _mm256_fmadd_ps(a, b, c); }
  static FASTLSTM_INLINE R fnma(R a, R b, R c) { return _mm256_fnmadd_ps(a, b, c); }
  static FASTLSTM_INLINE R min(R a, R b) { return _mm256_min_ps(a, b); }
  static FASTLSTM_INLINE R max(R a, R b) { return _mm256_max_ps(a, b); }
  static FASTLSTM_INLINE R negate(R a) { return _mm256_xor_ps(a, _mm256_set1_ps(-0.0f)); }
  static FASTLSTM_INLINE R abs(R a) { return _mm256_andnot_ps(_mm256_set1_ps(-0.0f), a); }
  static FASTLSTM_INLINE R select_negative(R x, R a, R b) { return _mm256_blendv_ps(b, a, x); }
  static FASTLSTM_INLINE R divide(R a, R b) { return _mm256_div_ps(a, b); }
  static FASTLSTM_INLINE R round_nearest(R x) { return _mm256_round_ps(x, kRoundNearest); }
  // See pow2 in simd_scalar.h.
  static FASTLSTM_INLINE R pow2(R n) {
    const R shifted = _mm256_add_ps(n, _mm256_set1_ps(12582912.0f + 127.0f));
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_castps_si256(shifted), 23));
  }
};

struct Avx2F64 {
  using scalar = double;
  using R = __m256d;
  using Mask = __m256i;
  static constexpr int kMaxRows = 3;
  static FASTLSTM_INLINE Mask mask(int n) {
    return _mm256_cmpgt_epi64(_mm256_set1_epi64x(n), _mm256_setr_epi64x(0, 1, 2, 3));
  }
  static FASTLSTM_INLINE R load(const double* p) { return _mm256_loadu_pd(p); }
  static FASTLSTM_INLINE R load(const double* p, Mask m) { return _mm256_maskload_pd(p, m); }
  static FASTLSTM_INLINE void store(double* p, R v) { _mm256_storeu_pd(p, v); }
  static FASTLSTM_INLINE void store(double* p, Mask m, R v) { _mm256_maskstore_pd(p, m, v); }
  static FASTLSTM_INLINE R broadcast(double x) { return _mm256_set1_pd(x); }
  static FASTLSTM_INLINE R fma(R a, R b, R c) { return _mm256_fmadd_pd(a, b, c); }
  static FASTLSTM_INLINE R fnma(R a, R b, R c) { return _mm256_fnmadd_pd(a, b, c); }
  static FASTLSTM_INLINE R min(R a, R b) { return _mm256_min_pd(a, b); }
  static FASTLSTM_INLINE R max(R a, R b) { return _mm256_max_pd(a, b); }
  static FASTLSTM_INLINE R negate(R a) { return _mm256_xor_pd(a, _mm256_set1_pd(-0.0)); }
  static FASTLSTM_INLINE R abs(R a) { return _mm256_andnot_pd(_mm256_set1_pd(-0.0), a); }
  static FASTLSTM_INLINE R select_negative(R x, R a, R b) { return _mm256_blendv_pd(b, a, x); }
  static FASTLSTM_INLINE R divide(R a, R b) { return _mm256_div_pd(a, b); }
  static FASTLSTM_INLINE R round_nearest(R x) { return _mm256_round_pd(x, kRoundNearest); }
  static FASTLSTM_INLINE R pow2(R n) {
    const R shifted = _mm256_add_pd(n, _mm256_set1_pd(6755399441055744.0 + 1023.0));
    return _mm256_castsi256_pd(_mm256_slli_epi64(_mm256_castpd_si256(shifted), 52));
  }
};

using F32x8 = Lanes<Avx2F32>;
using F64x4 = Lanes<Avx2F64>;

#endif  // AVX2

#if defined(FASTLSTM_LANES_AVX512)

struct Avx512F32 {
  using scalar = float;
  using R = __m512;
  using Mask = __mmask16;
  static constexpr int kMaxRows = 6;
  static FASTLSTM_INLINE Mask mask(int n) { return static_cast<Mask>((1u << n) - 1); }
  static FASTLSTM_INLINE R load(const float* p) { return _mm512_loadu_ps(p); }
  static FASTLSTM_INLINE R load(const float* p, Mask m) { return _mm512_maskz_loadu_ps(m, p); }
  static FASTLSTM_INLINE void store(float* p, R v) { _mm512_storeu_ps(p, v); }
  static FASTLSTM_INLINE void store(float* p, Mask m, R v) { _mm512_mask_storeu_ps(p, m, v); }
  static FASTLSTM_INLINE R broadcast(float x) { return _mm512_set1_ps(x); }
  static FASTLSTM_INLINE R fma(R a, R b, R c) { return _mm512_fmadd_ps(a, b, c); }
  static FASTLSTM_INLINE R fnma(R a, R b, R c) { return _mm512_fnmadd_ps(a, b, c); }
  static FASTLSTM_INLINE R min(R a, R b) { return _mm512_min_ps(a, b); }
  static FASTLSTM_INLINE R max(R a, R b) { return _mm512_max_ps(a, b); }
  static FASTLSTM_INLINE R negate(R a) { return _mm512_xor_ps(a, _mm512_set1_ps(-0.0f)); }
  static FASTLSTM_INLINE R abs(R a) { return _mm512_andnot_ps(_mm512_set1_ps(-0.0f), a); }
  static FASTLSTM_INLINE R select_negative(R x, R a, R b) {
    return _mm512_mask_blend_ps(_mm512_movepi32_mask(_mm512_castps_si512(x)), b, a);
  }
  // A 14-bit reciprocal and one correction of the quotient: 2^-28 before the last rounding, and no
  // 512-bit division.
  static FASTLSTM_INLINE R divide(R a, R b) {
    const R r = _mm512_rcp14_ps(b);
    const R quotient = a * r;
    return fma(fnma(quotient, b, a), r, quotient);
  }
  static FASTLSTM_INLINE R round_nearest(R x) { return _mm512_roundscale_ps(x, kRoundNearest); }
  static FASTLSTM_INLINE R pow2(R n) { return _mm512_scalef_ps(_mm512_set1_ps(1.0f), n); }
};

struct Avx512F64 {
  using scalar = double;
  using R = __m512d;
  using Mask = __mmask8;
  static constexpr int kMaxRows = 6;
  static FASTLSTM_INLINE Mask mask(int n) { return static_cast<Mask>((1u << n) - 1); }
  static FASTLSTM_INLINE R load(const double* p) { return _mm512_loadu_pd(p); }
  static FASTLSTM_INLINE R load(const double* p, Mask m) { return _mm512_maskz_loadu_pd(m, p); }
  static FASTLSTM_INLINE void store(double* p, R v) { _mm512_storeu_pd(p, v); }
  static FASTLSTM_INLINE void store(double* p, Mask m, R v) { _mm512_mask_storeu_pd(p, m, v); }
  static FASTLSTM_INLINE R broadcast(double x) { return _mm512_set1_pd(x); }
  static FASTLSTM_INLINE R fma(R a, R b, R c) { return _mm512_fmadd_pd(a, b, c); }
  static FASTLSTM_INLINE R fnma(R a, R b, R c) { return _mm512_fnmadd_pd(a, b, c); }
  static FASTLSTM_INLINE R min(R a, R b) { return _mm512_min_pd(a, b); }
  static FASTLSTM_INLINE R max(R a, R b) { return _mm512_max_pd(a, b); }
  static FASTLSTM_INLINE R negate(R a) { return _mm512_xor_pd(a, _mm512_set1_pd(-0.0)); }
  static FASTLSTM_INLINE R abs(R a) { return _mm512_andnot_pd(_mm512_set1_pd(-0.0), a); }
  static FASTLSTM_INLINE R select_negative(R x, R a, R b) {
    return _mm512_mask_blend_pd(_mm512_movepi64_mask(_mm512_castpd_si512(x)), b, a);
  }
  static FASTLSTM_INLINE R divide(R a, R b) { return _mm512_div_pd(a, b); }
  static FASTLSTM_INLINE R round_nearest(R x) { return _mm512_roundscale_pd(x, kRoundNearest); }
  static FASTLSTM_INLINE R pow2(R n) { return _mm512_scalef_pd(_mm512_set1_pd(1.0), n); }
};

using F32x16 = Lanes<Avx512F32>;
using F64x8 = Lanes<Avx512F64>;

#endif  // AVX-512

FASTLSTM_ISA_LOCAL_END
}  // namespace fastlstm
