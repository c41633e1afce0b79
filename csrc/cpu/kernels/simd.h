// Lane types V: the only files that know an instruction set. A kernel is a template on V and reads
// like scalar code.
//
// Every V offers: scalar, kLanes, kMaxRows (rows of the register tile: kMaxRows * 4 accumulators +
// 4 weights + 1 broadcast must fit the register file), load / store of kLanes or of the first n
// lanes, broadcast, + - *, fma(a, b, c) = a * b + c, fnma(a, b, c) = c - a * b, min / max (second
// argument wins when either is NaN), abs, select_negative(x, a, b) = a where the sign of x is set,
// else b, round_nearest, pow2(n) for integral n with 2^n normal, divide(a, b) for normal finite b.
#pragma once

#include "simd_scalar.h"
#if defined(__x86_64__)
#include "simd_x86.h"
#endif

namespace fastlstm {
FASTLSTM_ISA_LOCAL_BEGIN

FASTLSTM_INLINE void prefetch(const void* p) { __builtin_prefetch(p, 0, 3); }

// The i-th and the (i + half)-th of L vectors, row by row of an L x L block, taken apart into their
// lower and upper halves: the vectors of one level of a tree.
template <class V>
struct Halves {
  static constexpr int L = V::kLanes;
  using S = typename V::scalar;
  typedef S Vector __attribute__((vector_size(L * sizeof(S))));
  Vector low, high;
  FASTLSTM_INLINE Halves(const V& row, const V& other, int half) {
    typedef decltype(Vector{} < Vector{}) Index;
    Index of_low, of_high;
#pragma GCC unroll 16
    for (int l = 0; l < L; ++l) {
      of_low[l] = l & half ? L + l - half : l;
      of_high[l] = l & half ? L + l : l + half;
    }
    const Vector a = reinterpret_cast<const Vector&>(row.v),
                 b = reinterpret_cast<const Vector&>(other.v);
    low = __builtin_shuffle(a, b, of_low);
    high = __builtin_shuffle(a, b, of_high);
  }
};

// Transposes the kLanes x kLanes block in rows: block by block, halves first. 64 shuffles for 16
// x 16.
template <class V>
FASTLSTM_INLINE void transpose(V (&rows)[V::kLanes]) {
  if constexpr (V::kLanes > 1) {
    using Vector = typename Halves<V>::Vector;
#pragma GCC unroll 8
    for (int half = V::kLanes / 2; half > 0; half /= 2) {
#pragma GCC unroll 16
      for (int i = 0; i < V::kLanes; ++i) {
        if (i & half) continue;
        const Halves<V> halves(rows[i], rows[i + half], half);
        reinterpret_cast<Vector&>(rows[i].v) = halves.low;
        reinterpret_cast<Vector&>(rows[i + half].v) = halves.high;
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
    using Vector = typename Halves<V>::Vector;
#pragma GCC unroll 8
    for (int half = V::kLanes / 2; half > 0; half /= 2) {
#pragma GCC unroll 8
      for (int i = 0; i < half; ++i) {
        const Halves<V> halves(rows[i], rows[i + half], half);
        reinterpret_cast<Vector&>(rows[i].v) = halves.low + halves.high;
      }
    }
  }
  return rows[0];
}

FASTLSTM_ISA_LOCAL_END
}  // namespace fastlstm
