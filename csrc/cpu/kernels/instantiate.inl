// The body of avx512.cpp, avx2.cpp and scalar.cpp: one table of kernels for the lane type V.
#pragma once

#if defined(__GNUC__)
// The sums of earlier chains (tile.inl) are read only where there were any; GCC 12 does not see it.
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#endif

#include "cell.inl"
#include "gemm.inl"
#include "recurrence_bwd.inl"
#include "recurrence_fwd.inl"
#include "weight_grad.inl"
#if defined(FASTLSTM_LANES_BF16)
#include "bf16.inl"
#endif

namespace fastlstm {
namespace cpu {
FASTLSTM_ISA_LOCAL_BEGIN

template <class V>
void activation(int which, const typename V::scalar* x, typename V::scalar* y, int64_t n) {
  for (int64_t i = 0; i < n; i += V::kLanes) {
    const int count = n - i < V::kLanes ? static_cast<int>(n - i) : V::kLanes;
    const V v = V::load(x + i, count);
    (which == 0   ? fastlstm::exp(v)
     : which == 1 ? fastlstm::sigmoid(v)
                  : fastlstm::tanh(v))
        .store(y + i, count);
  }
}

// The chains of a full register tile hide the latency of every FMA pipe we know (2 pipes x 5
// cycles). They start from different values, or the compiler would compute one for all.
template <class V>
double fma_flops(int64_t iterations) {
  V acc[V::kMaxRows][kPanelVectors];
#pragma GCC unroll 8
  for (int r = 0; r < V::kMaxRows; ++r) {
#pragma GCC unroll 8
    for (int v = 0; v < kPanelVectors; ++v)
      acc[r][v] = V::broadcast(static_cast<typename V::scalar>(r * kPanelVectors + v));
  }
  const V x = V::broadcast(typename V::scalar(0.5)), y = V::broadcast(typename V::scalar(1e-3));
  for (int64_t i = 0; i < iterations; ++i) {
#pragma GCC unroll 8
    for (int r = 0; r < V::kMaxRows; ++r) {
#pragma GCC unroll 8
      for (int v = 0; v < kPanelVectors; ++v) acc[r][v] = fma(acc[r][v], x, y);
    }
  }
  double sum = 0;
  typename V::scalar lanes[V::kLanes];
  for (int r = 0; r < V::kMaxRows; ++r) {
    for (int v = 0; v < kPanelVectors; ++v) {
      acc[r][v].store(lanes);
      for (int l = 0; l < V::kLanes; ++l) sum += lanes[l];
    }
  }
  // The sum is returned through a value nobody can predict, so that the loop is not removed.
  return 2.0 * V::kLanes * V::kMaxRows * kPanelVectors * static_cast<double>(iterations) +
         (sum < 0 ? 1 : 0);
}

template <class V, template <class> class... Cells>
const Kernels<typename V::scalar>* kernels(CellList<Cells...>) {
  static constexpr Kernels<typename V::scalar> table = {
      V::kLanes,
      StepOperands<V>::kConverts,
      weight_grad_workspace<V>(),
      kSegmentVectors * V::kLanes,
      pack_panels<V>,
      pack_gates<V>,
      pack_bias<V>,
      packed_matmul<V>,
      weight_grad<V>,
      segment_sum<V>,
      {recurrence_fwd<Cells, V>...},
      {recurrence_bwd<Cells, V>...},
#if defined(FASTLSTM_LANES_BF16)
      // A cell alone reads every weight once: there is nothing to convert for.
      {},
      {},
      nullptr,
#else
      {cell_fwd<Cells, V>...},
      {cell_bwd<Cells, V>...},
      plain_matmul<V>,
#endif
      activation<V>,
      fma_flops<V>,
  };
  return &table;
}

template <class V>
const Kernels<typename V::scalar>* kernels() {
  return kernels<V>(AllCells{});
}

FASTLSTM_ISA_LOCAL_END
}  // namespace cpu
}  // namespace fastlstm
