// One step alone, for loops that an attention decoder or a control task runs in Python. The weights
// are read once a call, so nothing is packed: the gates are dot products of rows of x and h with
// rows of W as they lie, several at a time, and dx is a product with W as it lies.
#pragma once

#include "gemm.inl"
#include "recurrence_fwd.inl"
#include "tile.inl"

namespace fastlstm {
FASTLSTM_ISA_LOCAL_BEGIN

// Rows and columns of a tile of dot products: as many as there are lanes, so that one tree of
// halves adds up all of them.
template <class V>
struct DotTile {
  static constexpr int kRows = V::kLanes >= 8 ? 4 : V::kLanes >= 4 ? 2 : 1;
  static constexpr int kColumns = V::kLanes / kRows;
};

// Rows of x and of W whose products are summed: rows of a and of b are K long and K apart.
template <class S>
struct DotOperands {
  const S* a;
  const S* b;
  int64_t K;
};

// out[r * out_stride + c] = sum over operands of sum_k a[r][k] * b[c][k]
template <class V, int MR, int NC>
__attribute__((noinline)) void dot_tile(const DotOperands<typename V::scalar>* operands,
                                        int num_operands, int64_t row, int64_t column,
                                        typename V::scalar* out, int64_t out_stride) {
  using S = typename V::scalar;
  constexpr int L = V::kLanes;
  V acc[MR][NC], total[MR][NC];
  clear(acc);
  // As in multiply(): no lane sums more than a chain without adding it to the total.
  int chains = 0;
  auto end_chain = [&] {
#pragma GCC unroll 8
    for (int r = 0; r < MR; ++r) {
#pragma GCC unroll 16
      for (int c = 0; c < NC; ++c) total[r][c] = chains == 0 ? acc[r][c] : total[r][c] + acc[r][c];
    }
    ++chains;
  };
  for (int i = 0; i < num_operands; ++i) {
    const int64_t K = operands[i].K;
    const S *a = operands[i].a + row * K, *b = operands[i].b + column * K;
    auto step = [&](int64_t k, auto load) {
      V x[MR];
#pragma GCC unroll 8
      for (int r = 0; r < MR; ++r) x[r] = load(a + r * K + k);
#pragma GCC unroll 16
      for (int c = 0; c < NC; ++c) {
        const V w = load(b + c * K + k);
#pragma GCC unroll 8
        for (int r = 0; r < MR; ++r) acc[r][c] = fma(x[r], w, acc[r][c]);
      }
    };
    int64_t k = 0;
    for (int64_t terms = 0; k + L <= K; k += L, ++terms) {
      if (terms == kChain) {
        end_chain();
        clear(acc);
        terms = 0;
      }
      step(k, [](const S* p) { return V::load(p); });
    }
    if (k < K) step(k, [n = static_cast<int>(K - k)](const S* p) { return V::load(p, n); });
  }
  if (chains > 0) {
    end_chain();
#pragma GCC unroll 8
    for (int r = 0; r < MR; ++r) {
#pragma GCC unroll 16
      for (int c = 0; c < NC; ++c) acc[r][c] = total[r][c];
    }
  }
  V rows[L];
#pragma GCC unroll 16
  for (int i = 0; i < L; ++i) rows[i] = i < MR * NC ? acc[i / NC][i % NC] : V::broadcast(0);
  S sums[L];
  sums_of(rows).store(sums);
#pragma GCC unroll 8
  for (int r = 0; r < MR; ++r) memcpy(out + r * out_stride, sums + r * NC, NC * sizeof(S));
}

// out[m][c] = sum over operands of a row m . b row c, for M rows and C columns.
template <class V>
void dots(const DotOperands<typename V::scalar>* operands, int num_operands, int64_t M, int64_t C,
          typename V::scalar* out, int64_t out_stride) {
  using T = DotTile<V>;
  int64_t c = 0;
  auto columns = [&](auto nc) {
    constexpr int NC = decltype(nc)::value;
    for (; c + NC <= C; c += NC) {
      int64_t m = 0;
      if constexpr (T::kRows * NC <= V::kLanes) {
        for (; m + T::kRows <= M; m += T::kRows)
          dot_tile<V, T::kRows, NC>(operands, num_operands, m, c, out + m * out_stride + c,
                                    out_stride);
      }
      for (; m < M; ++m)
        dot_tile<V, 1, NC>(operands, num_operands, m, c, out + m * out_stride + c, out_stride);
    }
  };
  // A single row has no use for its weights but this one: more columns at a time instead.
  if (M < T::kRows) columns(Constant<V::kLanes>{});
  columns(Constant<T::kColumns>{});
  columns(Constant<1>{});
}

constexpr int64_t kCellRows = 32;  // of gates that wait for the cell, 16 KB with 16 floats a vector

template <template <class> class Cell, class V>
void cell_fwd(const CellFwd<typename V::scalar>& p, int thread, int threads) {
  using S = typename V::scalar;
  using C = Cell<V>;
  constexpr CellTraits traits = C::kTraits;
  constexpr int G = traits.gates, B = G + traits.separate, R = traits.reserve, L = V::kLanes;
  const int64_t H = p.H, vectors = ceil_div(H, L);
  S igates[kCellRows * G * L], hgates[kCellRows * G * L];
  for (int64_t n0 = 0; n0 < p.N; n0 += kCellRows) {
    const int64_t rows = p.N - n0 < kCellRows ? p.N - n0 : kCellRows;
    for (int64_t vector = part(0, vectors, thread, threads);
         vector < part(0, vectors, thread + 1, threads); ++vector) {
      const int64_t j = vector * L;
      const int units = H - j < L ? static_cast<int>(H - j) : L;
      V bias[B];
#pragma GCC unroll 8
      for (int b = 0; b < B; ++b) {
        const S* b_ih = b < G && p.b_ih ? p.b_ih + b * H + j : nullptr;
        const S* b_hh = !p.b_hh                   ? nullptr
                        : b < G - traits.separate ? p.b_hh + b * H + j
                        : b >= G                  ? p.b_hh + (b - traits.separate) * H + j
                                                  : nullptr;
        bias[b] = b_ih ? V::load(b_ih, units) : V::broadcast(0);
        if (b_hh) bias[b] = bias[b] + V::load(b_hh, units);
      }
      for (int g = 0; g < G; ++g) {
        const DotOperands<S> operands[] = {
            {p.x + n0 * p.I, p.w_ih + (g * H + j) * p.I, p.I},
            {p.h + n0 * H, p.w_hh + (g * H + j) * H, H},
        };
        if (g < G - traits.separate) {
          dots<V>(operands, 2, rows, units, igates + g * L, G * L);
        } else {
          dots<V>(operands, 1, rows, units, igates + g * L, G * L);
          dots<V>(operands + 1, 1, rows, units, hgates + g * L, G * L);
        }
      }
#pragma GCC unroll 1
      for (int64_t r = 0; r < rows; ++r) {
        const int64_t at = (n0 + r) * H + j;
        V i[G], h[G], reserve[R > 0 ? R : 1], state = V::broadcast(0);
#pragma GCC unroll 8
        for (int g = 0; g < G; ++g) {
          i[g] = V::load(igates + (r * G + g) * L, units);
          // A gate that does not need them apart has both sums in igates.
          h[g] =
              g < G - traits.separate ? V::broadcast(0) : V::load(hgates + (r * G + g) * L, units);
        }
        if constexpr (C::kTraits.fwd_reads_state)
          state = V::load((traits.has_c ? p.c : p.h) + at, units);
        C::fwd(i, h, bias, state, reserve).store(p.h_out + at, units);
        if constexpr (traits.has_c) state.store(p.c_out + at, units);
        if (R > 0 && p.reserve) {
#pragma GCC unroll 8
          for (int k = 0; k < R; ++k)
            reserve[k].store(p.reserve + ((n0 + r) * R + k) * H + j, units);
        }
      }
    }
  }
}

template <template <class> class Cell, class V>
void cell_bwd(const CellBwd<typename V::scalar>& p, int thread, int threads) {
  using C = Cell<V>;
  constexpr CellTraits traits = C::kTraits;
  constexpr int R = traits.reserve, Q = traits.dgates, L = V::kLanes;
  const int64_t H = p.H;
  for (int64_t n = part(0, p.N, thread, threads); n < part(0, p.N, thread + 1, threads); ++n) {
    for (int64_t j = 0; j < H; j += L) {
      const int units = H - j < L ? static_cast<int>(H - j) : L;
      const int64_t at = n * H + j;
      const V zero = V::broadcast(0);
      V reserve[R > 0 ? R : 1], dgates[Q], state = zero, state_prev = zero, carry = zero;
#pragma GCC unroll 8
      for (int i = 0; i < R; ++i) reserve[i] = V::load(p.reserve + (n * R + i) * H + j, units);
      if constexpr (C::kTraits.bwd_reads_state) state = V::load(p.state + at, units);
      if constexpr (C::kTraits.bwd_reads_prev_state) state_prev = V::load(p.state_prev + at, units);
      if constexpr (traits.has_carry) carry = V::load(p.carry + at, units);
      C::bwd(reserve, state, state_prev, p.dh ? V::load(p.dh + at, units) : zero, dgates, carry);
#pragma GCC unroll 8
      for (int i = 0; i < Q; ++i) dgates[i].store(p.dgates + (n * Q + i) * H + j, units);
      if constexpr (traits.has_carry) carry.store(p.carry + at, units);
    }
  }
}

template <class V, int MR, int NV>
__attribute__((noinline)) void plain_tile(const typename V::scalar* const* a,
                                          const RowsOfB<V, NV>& b, int64_t K,
                                          typename V::scalar* const* c, int64_t column,
                                          int64_t columns, bool accumulate) {
  V acc[MR][NV];
  multiply(RowsOfA<typename V::scalar, MR>(a), b, K, acc);
  cpu::add_to_rows(acc, c, column, columns, accumulate);
}

// Threads share the columns: each weight is read by one of them.
template <class V>
void plain_matmul(const cpu::PlainMatmul<typename V::scalar>& p, int thread, int threads) {
  using S = typename V::scalar;
  const cpu::Panels<V> panels(p.N);
  for (int64_t panel = part(0, panels.count, thread, threads);
       panel < part(0, panels.count, thread + 1, threads); ++panel) {
    const int64_t v0 = panels.begin(panel), n0 = v0 * V::kLanes;
    const int vectors = static_cast<int>(panels.begin(panel + 1) - v0);
    const int64_t left = p.N - n0 - (vectors - 1) * V::kLanes;
    const int last = left < V::kLanes ? static_cast<int>(left) : V::kLanes;
    for (int64_t k0 = 0; k0 < p.K; k0 += kBlockK<S>) {
      const int64_t K = p.K - k0 < kBlockK<S> ? p.K - k0 : kBlockK<S>;
      with_constant<kPanelVectors>(vectors, [&](auto nv) {
        const RowsOfB<V, nv.value> b{p.b + k0 * p.N + n0, p.N, last};
        for_each_tile<V::kMaxRows>(p.M, [&](int64_t m, auto mr) {
          const S* a[mr.value];
          S* c[mr.value];
          for (int r = 0; r < mr.value; ++r) {
            a[r] = p.a + (m + r) * p.a_stride + k0;
            c[r] = p.c + (m + r) * p.N;
          }
          plain_tile<V, mr.value, nv.value>(a, b, K, c, n0, p.N - n0, p.accumulate || k0 > 0);
        });
      });
    }
  }
}

FASTLSTM_ISA_LOCAL_END
}  // namespace fastlstm
