// The register tile under every matrix product here: MR rows times NV vectors of columns, accumulated over K in registers.
#pragma once

#include "simd.h"

namespace fastlstm {
FASTLSTM_ISA_LOCAL_BEGIN

constexpr int kPanelVectors = 4;  // widest panel: with kMaxRows rows it fills the register file

// Walks over Rows in order, without a division a row.
template <class S>
class RowCursor {
 public:
  FASTLSTM_INLINE RowCursor(const Rows<S>& rows, int64_t k)
      : rows_(rows), column_(k % rows.inner), line_(rows.ptr + (k / rows.inner) * rows.outer_stride) {}
  FASTLSTM_INLINE S* next() {
    S* row = line_ + column_ * rows_.inner_stride;
    if (++column_ == rows_.inner) {
      column_ = 0;
      line_ += rows_.outer_stride;
    }
    return row;
  }

 private:
  const Rows<S>& rows_;
  int64_t column_;
  S* line_;
};

// acc[r][v] += sum_k a_r[k] * b[k][v], a_r in memory as it is.
template <class V, int MR, int NV>
FASTLSTM_INLINE void multiply_rows(const typename V::scalar* const* a, const typename V::scalar* b, int64_t K,
                                   V (&acc)[MR][NV]) {
  const typename V::scalar* rows[MR];
#pragma GCC unroll 8
  for (int r = 0; r < MR; ++r) rows[r] = a[r];
  for (int64_t k = 0; k < K; ++k) {
    V w[NV];
#pragma GCC unroll 8
    for (int v = 0; v < NV; ++v) w[v] = V::load(b + (k * NV + v) * V::kLanes);
#pragma GCC unroll 8
    for (int r = 0; r < MR; ++r) {
      const V x = V::broadcast(rows[r][k]);
#pragma GCC unroll 8
      for (int v = 0; v < NV; ++v) acc[r][v] = fma(x, w[v], acc[r][v]);
    }
  }
}

// The same with a packed as [K][MR].
template <class V, int MR, int NV>
FASTLSTM_INLINE void multiply_packed(const typename V::scalar* a, const typename V::scalar* b, int64_t K, V (&acc)[MR][NV]) {
  for (int64_t k = 0; k < K; ++k) {
    V w[NV];
#pragma GCC unroll 8
    for (int v = 0; v < NV; ++v) w[v] = V::load(b + (k * NV + v) * V::kLanes);
#pragma GCC unroll 8
    for (int r = 0; r < MR; ++r) {
      const V x = V::broadcast(a[k * MR + r]);
#pragma GCC unroll 8
      for (int v = 0; v < NV; ++v) acc[r][v] = fma(x, w[v], acc[r][v]);
    }
  }
}

// Calls f with n as a compile-time constant. 1 <= n <= kMax.
template <int kValue>
struct Constant {
  static constexpr int value = kValue;
};
template <int kMax, class F>
FASTLSTM_INLINE void with_constant(int n, F&& f) {
  if constexpr (kMax > 1) {
    if (n != kMax) return with_constant<kMax - 1>(n, static_cast<F&&>(f));
  }
  f(Constant<kMax>{});
}

// Part i of n parts of [begin, end), as even as can be.
FASTLSTM_INLINE int64_t part(int64_t begin, int64_t end, int64_t i, int64_t n) { return begin + (end - begin) * i / n; }
FASTLSTM_INLINE int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

FASTLSTM_ISA_LOCAL_END
}  // namespace fastlstm
