// What every instruction set offers: one table of functions per scalar type. Filled by avx512.cpp,
// avx2.cpp, scalar.cpp, chosen by dispatch.cpp. Each function does the part of one thread of a
// team; none allocates, locks or knows ATen.
#pragma once

#include "../../cells/cells.h"
#include "../../recurrence.h"

namespace fastlstm {
namespace cpu {

constexpr int kPanelVectors = 4;  // widest panel: with kMaxRows rows it fills the register file

// Panels of at most `widest` vectors that `vectors` vectors of columns are cut into: an even number
// where there are several, so that two threads can share them evenly. Static, so that no file gets
// another's instruction set.
static constexpr int64_t panel_count(int64_t vectors, int widest = kPanelVectors) {
  return widest == 1         ? vectors
         : vectors <= widest ? (vectors > 0 ? 1 : 0)
                             : 2 * ((vectors + 2 * widest - 1) / (2 * widest));
}

// A matrix B [K, N] as the register tile wants to read it: its columns in panels of 1 to 4 vectors,
// each panel [K][vectors][lanes] and zero beyond column N. Panel p of P holds vectors [p * V / P,
// (p + 1) * V / P) of V = ceil(N / lanes); P = panel_count(V).
template <class S>
struct PackPanels {
  const S* b;
  int64_t k_stride, n_stride;  // one of them is 1
  int64_t K, N;
  S* packed;  // [ceil(N / lanes) * lanes * K]
};

// W_hh [G * H, K] for the forward tile: its hidden units in panels of at most kPanelVectors / G
// vectors, cut as in PackPanels, each panel [K][vectors][G][lanes].
template <class S>
struct PackGates {
  const S* w_hh;  // rows w_hh_stride apart
  int64_t w_hh_stride;
  int64_t H, K;
  int gates;
  S* packed;
};

// The biases (either may be null) for the cell: [ceil(H / lanes)][G + separate][lanes], b_ih + b_hh
// of the first G - separate gates, then b_ih of the separate gates, then their b_hh.
template <class S>
struct PackBias {
  const S* b_ih;  // [G * H]
  const S* b_hh;  // [G * H]
  int64_t H;
  int gates, separate;
  S* packed;
};

// c[m, n] (+)= sum_k a[m, k] * b[k, n]
template <class S>
struct PackedMatmul {
  Rows<const S> a;    // M rows of K
  const S* b_packed;  // PackPanels of [K, N]
  Rows<S> c;          // M rows of N
  int64_t M, N, K;
  bool accumulate;
};

// c[m, n] (+)= sum_k a[m, k] * b[k, n] with B where it is: for products too small to pay for
// packing.
template <class S>
struct PlainMatmul {
  const S* a;  // [M, K], rows a_stride apart
  int64_t a_stride;
  const S* b;  // [K, N] contiguous
  S* c;        // [M, N] contiguous
  int64_t M, N, K;
  bool accumulate;
};

// dw[m, n] (+)= sum_k d[k, m] * x[k, n] for up to two x with the same d, and db[m] (+)= sum_k d[k,
// m]. The sum over k runs in one order, whatever the number of threads: results are bit-identical.
template <class S>
struct WeightGrad {
  Rows<const S> d;  // K rows of M
  int64_t K, M;
  int num_x;
  Rows<const S> x[2];  // K rows of N[i]
  int64_t N[2];
  S* dw[2];  // [M, N[i]] contiguous
  S* db;     // [M] or null
  bool accumulate;
  // The sum begins with the last rows. h0 may be much larger than any h: added last, as in
  // torch.nn, it does not make every addition round at its size.
  bool last_first;
  int64_t chain;  // packed rows that are summed before they are added to the total
  S* workspace;   // [threads][workspace_size of the table]

  void add(const Rows<const S>& rows, int64_t width, S* grad) {
    x[num_x] = rows;
    N[num_x] = width;
    dw[num_x++] = grad;
  }
};

// table[v, m] += sum over rows k with token v of d[k, m]: the weight gradient of a one-hot input.
template <class S>
struct SegmentSum {
  const S* d;  // [K, M], rows d_stride apart
  int64_t d_stride;
  int64_t K, M;
  const int64_t* tokens;  // [K]
  int64_t V;
  S* table;  // [V, M], rows table_stride apart
  int64_t table_stride;
  S* workspace;  // [threads][V, segment_columns of the table of kernels]
};

template <class S>
struct Kernels {
  int lanes;
  bool converts;  // products have operands of their own: the recurrence needs workspace
  int64_t weight_grad_workspace;  // scalars a thread
  int64_t segment_columns;        // columns of M that segment_sum takes at a time
  void (*pack_panels)(const PackPanels<S>&, int thread, int threads);
  void (*pack_gates)(const PackGates<S>&, int thread, int threads);
  void (*pack_bias)(const PackBias<S>&, int thread, int threads);
  void (*packed_matmul)(const PackedMatmul<S>&, int thread, int threads);
  void (*weight_grad)(const WeightGrad<S>&, int thread, int threads);
  void (*segment_sum)(const SegmentSum<S>&, int thread, int threads);
  void (*recurrence_fwd[kNumCells])(const RecurrenceFwd<S>&, const Share&, Barrier*);
  void (*recurrence_bwd[kNumCells])(const RecurrenceBwd<S>&, const Share&, Barrier*);
  void (*cell_fwd[kNumCells])(const CellFwd<S>&, int thread, int threads);
  void (*cell_bwd[kNumCells])(const CellBwd<S>&, int thread, int threads);
  void (*plain_matmul)(const PlainMatmul<S>&, int thread, int threads);
  void (*activation)(int which, const S* x, S* y,
                     int64_t n);            // 0 exp, 1 sigmoid, 2 tanh: for the tests
  double (*fma_flops)(int64_t iterations);  // runs 2 * lanes * 24 * iterations flops in registers
};

// Null where this build or this processor lacks the instruction set.
const Kernels<float>* avx512_f32();
const Kernels<float>* avx512_bf16();  // operands of products rounded to bfloat16
const Kernels<double>* avx512_f64();
const Kernels<float>* avx2_f32();
const Kernels<double>* avx2_f64();
const Kernels<float>* scalar_f32();
const Kernels<double>* scalar_f64();

}  // namespace cpu
}  // namespace fastlstm
