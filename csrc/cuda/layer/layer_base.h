// What forward and backward of a layer on CUDA share: sizes, pointers, products, and which rows a
// step has.
//
// The path of any shape and dtype: for each step one product with W_hh and one kernel for the rest
// (step.h), all of them queued on the current stream without waiting for any.
#pragma once

#include <ATen/ops/empty.h>

#include <algorithm>
#include <vector>

#include "../../layer/layer.h"
#include "../choice/layer_choice.h"
#include "../persistent/block/block.h"
#include "../persistent/group/group.h"
#include "../step/step.h"
#include "context.h"
#include "dtypes.h"
#include "gemm.h"

namespace fastlstm {
namespace cuda {

template <class S>
class LayerBase {
 protected:
  using A = Accumulator<S>;

  LayerBase(const LayerInput& input, const RowPlan& plan)
      : input_(input),
        plan_(plan),
        cell_(kCellTraits[input.cell]),
        tokens_(!input.x.is_floating_point()),
        projected_(input.weights[0].w_hr.has_value()),
        type_(input.weights[0].w_ih.scalar_type()),
        options_(input.weights[0].w_ih.options()),
        T_(plan.T),
        N_(plan.N),
        I_(input.weights[0].w_ih.size(1)),
        G_(input.weights[0].w_ih.size(0)),
        H_(G_ / cell_.gates),
        P_(input.weights[0].w_hh.size(1)),
        D_(plan.directions),
        reserve_stride_((cell_.reserve + projected_) * H_),
        tf32_(allows_tf32()),
        stream_(current_stream()),
        blas_(tf32_) {
    if (!plan.packed && !plan.complete) make_row_tables();
  }

  // Step s of a direction, in the order it is computed in.
  int64_t time_of(int d, int64_t s) const { return d == 0 ? s : T_ - 1 - s; }
  int64_t rows_of(int64_t t) const { return t < 0 || t >= T_ ? 0 : plan_.rows_of(t); }
  int64_t rows_after(int d, int64_t t) const { return std::min(rows_of(t), rows_of(next(d, t))); }
  int64_t rows_before(int d, int64_t t) const { return std::min(rows_of(t), rows_of(prev(d, t))); }
  static int64_t next(int d, int64_t t) { return d == 0 ? t + 1 : t - 1; }
  static int64_t prev(int d, int64_t t) { return d == 0 ? t - 1 : t + 1; }

  // Row of x and y that belongs to batch row 0 at step t.
  int64_t input_row(int64_t t) const { return plan_.packed ? plan_.step_begin[t] : t * N_; }
  // The same of the buffers of states.
  int64_t buffer_row(int64_t t) const { return N_ + input_row(t); }

  // Whether no state passes from step t - 1 to step t, by batch row; null where one always does.
  const bool* cut(int64_t t) const {
    return input_.reset && t >= 0 && t < T_ ? input_.reset->const_data_ptr<bool>() + t * N_
                                            : nullptr;
  }
  const bool* cut_before(int d, int64_t t) const { return cut(d == 0 ? t : t + 1); }
  const bool* cut_after(int d, int64_t t) const { return cut(d == 0 ? t + 1 : t); }

  Choice choose_kernels(bool backward) const {
    return layer_choice({input_.cell, backward, T_, N_, H_, D_, type_, tf32_, projected_},
                        device_properties(), wanted_kernel());
  }
  int element_bytes() const { return static_cast<int>(c10::elementSize(type_)); }
  static Exchange exchange_of(Method method) {
    return method == Method::kCluster ? Exchange::kCluster : Exchange::kGrid;
  }
  // 32-bit words.
  Tensor empty_words(int64_t bytes) const {
    return at::empty({ceil_div<int64_t>(bytes, 4)}, options_.dtype(at::kInt));
  }

  // For the persistent kernels, which find the rows of a step themselves.
  SequenceRows sequence_rows() {
    const bool ragged = !plan_.complete;
    if (ragged && !step_begin_.defined()) step_begin_ = device_table(plan_.step_begin);
    return {T_,          N_,
            H_,          ragged ? step_begin_.const_data_ptr<int64_t>() : nullptr,
            batch_row(), input_.reset ? input_.reset->const_data_ptr<bool>() : nullptr,
            plan_.packed};
  }

  // [D, N, width] in the order of the batch -> a copy in the order of n, and back.
  Tensor sorted(const Tensor& t) const {
    return batch_row_.defined() ? t.index_select(1, batch_row_)
                                : t.clone(at::MemoryFormat::Contiguous);
  }
  void unsort(const Tensor& from, const Tensor& to) const {
    batch_row_.defined() ? to.index_copy_(1, batch_row_, from.to(to.scalar_type()))
                         : to.copy_(from);
  }

  // Zero in a tensor [D, N, width], in the order of n, for sequences that begin anew at their first
  // step: no initial state enters there, in the direction that begins there.
  void clear_cut_initial(const Tensor& t) const {
    if (!input_.reset || !t.defined()) return;
    const int64_t rows = rows_of(0);
    const Tensor cut = input_.reset->select(0, 0);
    t.select(0, 0)
        .narrow(0, 0, rows)
        .masked_fill_((batch_row_.defined() ? cut.index_select(0, batch_row_) : cut)
                          .narrow(0, 0, rows)
                          .unsqueeze(1),
                      0);
  }

  // Rows of x in compact order.
  Tensor compact_x() const {
    const Tensor& x = input_.x;
    const Tensor rows = tokens_ ? x.reshape({-1}) : with_apart_rows(x.reshape({-1, I_}));
    return input_row_.defined() ? rows.index_select(0, input_row_) : rows;
  }

  Tensor empty(at::IntArrayRef shape) const { return at::empty(shape, options_); }
  Tensor empty_sums(at::IntArrayRef shape) const {
    return at::empty(shape, options_.dtype(scalar_type<A>()));
  }

  // c (+)= op(a) op(b), as gemm_of has it.
  void matmul(const Tensor& a, bool a_transposed, const Tensor& b, bool b_transposed,
              const Tensor& c, bool accumulate = false) const {
    blas_.gemm(gemm_of(a, a_transposed, b, b_transposed, c, accumulate));
  }

  // A product of the rows of one step in each direction: a [D, .., K], b [D, ..], c [D, N, ..]. One
  // call where the directions have as many rows.
  void step_matmul(const Gemm& p, const int64_t (&rows)[kDirections]) const {
    Gemm q = p;
    q.M = rows[0];
    if (D_ == 2 && rows[0] == rows[1]) {
      q.count = 2;
      if (q.M > 0) blas_.gemm(q);
      return;
    }
    for (int d = 0; d < D_; ++d) {
      q.M = rows[d];
      q.a = offset(p.a, d * p.a_step, p.type);
      q.b = offset(p.b, d * p.b_step, p.type);
      q.c = const_cast<void*>(offset(p.c, d * p.c_step, p.c_type));
      if (q.M > 0) blas_.gemm(q);
    }
  }

  // W of every direction after one another, as step_matmul wants it.
  Tensor stacked(Tensor DirectionWeights::* w) const {
    if (D_ == 1) return input_.weights[0].*w;
    Tensor all = empty({D_, (input_.weights[0].*w).size(0), (input_.weights[0].*w).size(1)});
    for (int d = 0; d < D_; ++d) all.select(0, d).copy_(input_.weights[d].*w);
    return all;
  }

  static const void* offset(const void* p, int64_t elements, at::ScalarType type) {
    return static_cast<const char*>(p) + elements * static_cast<int64_t>(c10::elementSize(type));
  }

  const int64_t* batch_row() const {
    return batch_row_.defined() ? batch_row_.const_data_ptr<int64_t>() : nullptr;
  }

  const LayerInput& input_;
  const RowPlan& plan_;
  const CellTraits cell_;
  const bool tokens_, projected_;
  const at::ScalarType type_;
  const at::TensorOptions options_;
  const int64_t T_, N_, I_, G_, H_, P_;  // G: gates times H
  const int D_;
  const int64_t reserve_stride_;
  const bool tf32_;
  const cudaStream_t stream_;
  const Blas blas_;
  // Where sequences have several lengths: [N] batch row of the n-th longest, [rows] row of x of
  // each compact row.
  Tensor batch_row_, input_row_;

 private:
  Tensor device_table(const std::vector<int64_t>& values) const {
    const int64_t size = static_cast<int64_t>(values.size());
    Tensor table = at::empty({size}, options_.dtype(at::kLong));
    WriteTable w{};
    for (int64_t i = 0; i < size; i += w.count) {
      w.table = table.data_ptr<int64_t>() + i;
      w.count = static_cast<int>(std::min<int64_t>(kTableChunk, size - i));
      std::copy_n(values.begin() + i, w.count, w.values);
      write_table(w, stream_);
    }
    return table;
  }

  void make_row_tables() {
    batch_row_ = device_table(plan_.batch_row);
    input_row_ = at::empty({plan_.rows()}, options_.dtype(at::kLong));
    WriteInputRows p{};
    p.input_row = input_row_.data_ptr<int64_t>();
    p.batch_row = batch_row();
    p.N = N_;
    for (int64_t t = 0; t < T_; t += p.steps) {
      p.t_begin = t;
      p.steps = static_cast<int>(std::min<int64_t>(kTableChunk, T_ - t));
      std::copy_n(plan_.step_begin.begin() + t, p.steps + 1, p.step_begin);
      write_input_rows(p, stream_);
    }
  }

  Tensor step_begin_;
};

}  // namespace cuda
}  // namespace fastlstm
