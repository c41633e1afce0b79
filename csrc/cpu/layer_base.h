// What forward and backward of a layer on the CPU share: sizes, scratch, packing, and running a
// kernel on a team of threads.
#pragma once

#include <ATen/ops/empty.h>

#include <algorithm>
#include <type_traits>
#include <vector>

#include "../layer/layer.h"
#include "cores.h"
#include "host.h"
#include "schedule.h"

namespace fastlstm {
namespace cpu {

// Gates of one chunk: what a core's share of L3 holds beside W_hh.
constexpr int64_t kChunkBytes = 4 << 20;

// Multiply-adds that count for a packed scalar: an estimate, as kMinWorkPerThread.
constexpr int64_t kPackingCost = 4;

inline int64_t round_up(int64_t n, int64_t multiple) {
  return (n + multiple - 1) / multiple * multiple;
}

template <class S>
class LayerBase {
 protected:
  LayerBase(const LayerInput& input, const RowPlan& plan)
      : input_(input),
        plan_(plan),
        k_(kernels_for(input)),
        cell_(kCellTraits[input.cell]),
        tokens_(!input.x.is_floating_point()),
        projected_(input.weights[0].w_hr.has_value()),
        N_(plan.N),
        I_(input.weights[0].w_ih.size(1)),
        G_(input.weights[0].w_ih.size(0)),
        H_(G_ / cell_.gates),
        P_(input.weights[0].w_hh.size(1)),
        D_(plan.directions),
        reserve_stride_((cell_.reserve + projected_) * H_),
        threads_(layer_threads(plan.rows() * G_ * std::max(I_, P_))) {
    const int64_t bytes = static_cast<int64_t>(sizeof(S)) * std::max(G_, cell_.dgates * H_);
    const int64_t rows = std::max<int64_t>(1, kChunkBytes / std::max<int64_t>(1, bytes));
    const int64_t steps = std::max<int64_t>(1, rows / std::max<int64_t>(1, N_));
    const int64_t chunks = (plan.T + steps - 1) / steps;
    for (int64_t i = 0; i <= chunks; ++i) chunk_.push_back(plan.T * i / chunks);
    // Behind the longest sequence there is nothing to do.
    while (chunk_.size() > 2 && step_begin(chunk_[chunk_.size() - 2]) == plan.rows())
      chunk_.pop_back();
  }

  // On crowded cores even the end of a team may wait for a turn of another process, of
  // milliseconds: a layer whose products take a thread no longer than that is computed by one.
  static int layer_threads(int64_t multiply_adds) {
    constexpr int64_t kWorkOfATurn = 100000000;
    return is_crowded() && multiply_adds < kWorkOfATurn ? 1 : num_threads();
  }

  static const Kernels<S>& kernels_for(const LayerInput& input) {
    if constexpr (std::is_same_v<S, float>) {
      if (input.bf16_products && bf16_kernels()) return *bf16_kernels();
    }
    (void)input;
    return kernels<S>();
  }

  int num_chunks() const { return static_cast<int>(chunk_.size()) - 1; }
  int64_t step_begin(int64_t t) const { return plan_.step_begin[t]; }
  int64_t chunk_rows(int chunk) const {
    return step_begin(chunk_[chunk + 1]) - step_begin(chunk_[chunk]);
  }
  int64_t longest_chunk() const {
    int64_t longest = 0;
    for (int i = 0; i < num_chunks(); ++i) longest = std::max(longest, chunk_rows(i));
    return longest;
  }

  Tensor scratch(int64_t scalars) const {
    return at::empty({scalars}, input_.weights[0].w_ih.options());
  }
  // For the operands of a step, K wide.
  Tensor step_workspace(int64_t K) const {
    return k_.converts ? scratch(threads_ * N_ * K) : Tensor();
  }
  int64_t table_rows() const { return input_.embedding ? input_.embedding->size(0) : I_; }

  // Rows of x or of a tensor shaped like it, `width` wide and contiguous, from compact row k on.
  Rows<const S> x_rows(int64_t k) const {
    const Tensor& x = input_.x;
    const S* p = data<S>(x);
    if (plan_.packed) return {p + k * x.stride(0), plan_.input_rows, 0, x.stride(0)};
    if (!plan_.complete) return {p, 0, 0, x.stride(1), input_row_.data() + k};
    if (x.stride(0) == N_ * x.stride(1))
      return {p + k * x.stride(1), plan_.input_rows, 0, x.stride(1)};
    return {p + k / N_ * x.stride(0), N_, x.stride(0), x.stride(1)};
  }
  Rows<S> input_shaped_rows(S* p, int64_t k, int64_t width) const {
    if (plan_.packed || plan_.complete) return {p + k * width, plan_.input_rows, 0, width};
    return {p, 0, 0, width, input_row_.data() + k};
  }

  // For the two above, where compact rows are not those of the input.
  void make_input_rows() {
    if (plan_.packed || plan_.complete) return;
    for (int64_t row : plan_.row) input_row_.push_back(row - N_);
  }
  // Tokens of the compact rows.
  const int64_t* compact_tokens() {
    const int64_t* tokens = input_.x.const_data_ptr<int64_t>();
    if (plan_.packed || plan_.complete) return tokens;
    for (int64_t row : input_row_) tokens_of_rows_.push_back(tokens[row]);
    return tokens_of_rows_.data();
  }

  // Threads for `work` multiply-adds, or what takes as long.
  int threads_for(int64_t work) const { return threads_for_work(work, threads_); }

  template <class P>
  void run(void (*kernel)(const P&, int, int), const P& p, int threads) const {
    run_kernel(threads, kernel, p);
  }
  template <class P>
  void run(void (*kernel)(const P&, int, int), const P& p) const {
    run(kernel, p, threads_);
  }

  template <class P>
  void recur(void (*kernel)(const P&, const Share&, Barrier*), const P& p, int directions) const {
    std::vector<Barrier> barriers(threads_ * directions);
    const ScheduleProblem problem{N_, H_, cell_.gates, directions, !plan_.complete, is_crowded()};
    int busy = 1;
    bool has_groups = false;
    const std::vector<std::vector<Share>> of_all = schedule(problem, threads_, k_.lanes);
    for (int i = 0; i < threads_; ++i) {
      if (!of_all[i].empty()) busy = i + 1;
      for (const Share& share : of_all[i]) has_groups = has_groups || share.group_size > 1;
    }
    const int64_t begin = has_groups ? now_in_nanoseconds() : 0;
    // The team may come out smaller than asked for: each thread then plans for the team there is.
    run_team(busy, [&](int thread, int team) {
      const auto shares = team == threads_ ? of_all : schedule(problem, team, k_.lanes);
      for (const Share& share : shares[thread]) kernel(p, share, &barriers[share.group]);
    });
    if (has_groups) {
      int64_t late = 0;
      for (const Barrier& barrier : barriers) late += barrier.late;
      report_team(late, (now_in_nanoseconds() - begin) * busy);
    }
  }

  void matmul(const Rows<const S>& a, const Tensor& b_packed, const Rows<S>& c, int64_t M,
              int64_t N, int64_t K, bool accumulate = false) const {
    run(k_.packed_matmul, PackedMatmul<S>{a, data<S>(b_packed), c, M, N, K, accumulate},
        threads_for(M * N * K));
  }

  // B [K, N] of a matrix product, packed.
  Tensor packed(const S* b, int64_t k_stride, int64_t n_stride, int64_t K, int64_t N) const {
    Tensor out = scratch(round_up(N, k_.lanes) * K);
    run(k_.pack_panels, PackPanels<S>{b, k_stride, n_stride, K, N, out.template data_ptr<S>()},
        threads_for(K * N * kPackingCost));
    return out;
  }
  // W as the right side of a W, and of a W^T.
  Tensor packed(const Tensor& w) const {
    return packed(data<S>(w), w.stride(0), 1, w.size(0), w.size(1));
  }
  Tensor packed_transposed(const Tensor& w) const {
    return packed(data<S>(w), 1, w.stride(0), w.size(1), w.size(0));
  }

  const LayerInput& input_;
  const RowPlan& plan_;
  const Kernels<S>& k_;
  const CellTraits cell_;
  const bool tokens_, projected_;
  const int64_t N_, I_, G_, H_, P_;  // G: gates times H
  const int D_;
  const int64_t reserve_stride_;
  const int threads_;
  std::vector<int64_t> chunk_;  // first step of each chunk, and T
  std::vector<int64_t> input_row_, tokens_of_rows_;
};

}  // namespace cpu
}  // namespace fastlstm
