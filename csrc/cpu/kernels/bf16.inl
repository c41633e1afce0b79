// Products of bfloat16 operands on AVX-512 lanes: sums, cells and everything stored stay in
// float32, and two terms of a sum go through one instruction. Rounding an operand that was bfloat16
// to begin with (weights, x) changes nothing; h and dgates lose 16 bits on their way into a
// product, as they do in torch.nn.
#pragma once

#include "tile.inl"

namespace fastlstm {
FASTLSTM_ISA_LOCAL_BEGIN

// Two bfloat16 terms of a sum, the first in the low half.
FASTLSTM_INLINE __m512i pair_of(__m512 low, __m512 high) {
  // Rounds to nearest even and quiets NaN, as torch does; denormals become zero.
  const __m512i l = _mm512_cvtepu16_epi32(reinterpret_cast<__m256i>(_mm512_cvtneps_pbh(low)));
  const __m512i h = _mm512_cvtepu16_epi32(reinterpret_cast<__m256i>(_mm512_cvtneps_pbh(high)));
  return _mm512_or_si512(l, _mm512_slli_epi32(h, 16));
}

template <>
struct Product<F32x16> {
  using Packed = uint32_t;
  using Operand = __m512i;
  static constexpr int kDepth = 2;
  static FASTLSTM_INLINE Operand load(const Packed* p) { return _mm512_loadu_si512(p); }
  static FASTLSTM_INLINE Operand broadcast(Packed x) {
    return _mm512_set1_epi32(static_cast<int>(x));
  }
  static FASTLSTM_INLINE F32x16 multiply_add(Operand a, Operand b, F32x16 sum) {
    return {_mm512_dpbf16_ps(sum.v, reinterpret_cast<__m512bh>(a), reinterpret_cast<__m512bh>(b))};
  }
  static FASTLSTM_INLINE void store(const F32x16 (&rows)[2], Packed* p) {
    _mm512_storeu_si512(p, pair_of(rows[0].v, rows[1].v));
  }
};

// A row of K floats as pairs of adjacent terms, the last padded with zero.
FASTLSTM_INLINE void convert_row(const float* from, int64_t K, uint32_t* to) {
  for (int64_t k = 0; k < K; k += 32) {
    const int64_t left = K - k;
    const __m512 low = F32x16::load(from + k, left < 16 ? static_cast<int>(left) : 16).v;
    const __m512 high = left <= 16  ? _mm512_setzero_ps()
                        : left < 32 ? F32x16::load(from + k + 16, static_cast<int>(left - 16)).v
                                    : F32x16::load(from + k + 16).v;
    const __m512i pairs = reinterpret_cast<__m512i>(_mm512_cvtne2ps_pbh(high, low));
    const int n = static_cast<int>((left + 1) / 2);
    if (n >= 16)
      _mm512_storeu_si512(to + k / 2, pairs);
    else
      _mm512_mask_storeu_epi32(masked_write(to + k / 2, n), F32x16::mask(n), pairs);
  }
}

template <>
struct StepOperands<F32x16> {
  static constexpr bool kConverts = true;
  uint32_t* rows;
  int64_t stride;
  FASTLSTM_INLINE StepOperands(float* workspace, int thread, int64_t N, int64_t K)
      : rows(as_packed<F32x16>(workspace) + thread * N * depth_of<F32x16>(K)),
        stride(depth_of<F32x16>(K)) {}
  FASTLSTM_INLINE void convert(int64_t i, const float* from, int64_t K) {
    convert_row(from, K, rows + i * stride);
  }
  FASTLSTM_INLINE const uint32_t* row(int64_t i, const float*, int64_t k0) const {
    return rows + i * stride + k0 / 2;
  }
  FASTLSTM_INLINE const uint32_t* zeros(const float* zeros) const {
    return as_packed<F32x16>(zeros);
  }
};

FASTLSTM_ISA_LOCAL_END
namespace cpu {
FASTLSTM_ISA_LOCAL_BEGIN

// Converted once for all panels that they meet.
template <>
struct OperandRows<F32x16> {
  uint32_t rows[kBlockRows * kBlockK<float> / 2];
  FASTLSTM_INLINE const uint32_t* row(int64_t m, const float* from, int64_t K) {
    uint32_t* to = rows + m * (kBlockK<float> / 2);
    convert_row(from, K, to);
    return to;
  }
};

FASTLSTM_ISA_LOCAL_END
}  // namespace cpu
}  // namespace fastlstm
