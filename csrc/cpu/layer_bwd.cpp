// Backward of one layer on the CPU. Walks over the sequence in chunks of steps, last first: in
// each, the recurrence computes dgates, and dx and the weight gradients are products over all its
// rows, done while the dgates are still in the cache.
#include <ATen/Dispatch.h>
#include <ATen/ops/zeros.h>

#include "backend_cpu.h"
#include "layer_base.h"

namespace fastlstm {
namespace cpu {
namespace {

template <class S>
class LayerBwd : LayerBase<S> {
  using Base = LayerBase<S>;
  using Base::chunk_, Base::num_chunks, Base::step_begin, Base::chunk_rows, Base::longest_chunk;
  using Base::input_, Base::plan_, Base::k_, Base::cell_, Base::tokens_, Base::projected_;
  using Base::N_, Base::I_, Base::G_, Base::H_, Base::P_, Base::D_, Base::reserve_stride_;
  using Base::scratch, Base::packed, Base::matmul, Base::run, Base::recur, Base::table_rows;
  using Base::threads_;

 public:
  LayerBwd(const LayerInput& input, const RowPlan& plan, const LayerOutput& kept,
           const LayerOutputGrads& grads, LayerNeeds needs, LayerGrads& out)
      : Base(input, plan),
        kept_(kept),
        grads_(grads),
        needs_(needs),
        out_(out),
        Q_(cell_.dgates * H_),
        shared_((cell_.gates - cell_.separate) * H_),
        dgates_stride_(round_up(Q_, k_.lanes) + k_.lanes) {}

  void operator()() {
    this->make_input_rows();
    if (tokens_) tokens_of_rows_ = this->compact_tokens();
    allocate();
    RecurrenceBwd<S> p = params();
    std::vector<bool> dx_written(num_chunks(), false);
    for (int i = 0; i < num_chunks(); ++i) {
      int chunk[kMaxDirections] = {};
      for (int d = 0; d < D_; ++d) {
        BwdDirection<S>& b = p.direction[d];
        chunk[d] = d == 1 ? i : num_chunks() - 1 - i;
        b.t_begin = chunk_[chunk[d]];
        b.t_end = chunk_[chunk[d] + 1];
        b.reserve = data<S>(kept_.reserve) +
                    (d * plan_.input_rows + step_begin(b.t_begin)) * reserve_stride_;
        b.dgates = dgates_of_chunk(d, chunk[d], i);
        if (grads_.y) b.dy = grad_of_chunk(*grads_.y, d * P_, b.t_begin);
        if (grads_.c) b.dc_seq = grad_of_chunk(*grads_.c, d * H_, b.t_begin);
      }
      if (!projected_) {
        recur(k_.recurrence_bwd[input_.cell], p, D_);
      } else {
        for (int d = 0; d < D_; ++d) run_projected(p, d, i > 0);
      }
      for (int d = 0; d < D_; ++d) {
        const BwdDirection<S>& b = p.direction[d];
        if (needs_.state) keep_first_dgates(d, b);
        if (needs_.x) {
          input_grad(d, b, dx_written[chunk[d]]);
          dx_written[chunk[d]] = true;
        }
        if (dtable_[d].defined()) table_grad(d, b);
        if (needs_.weights) weight_grads(d, b, i > 0);
      }
    }
    for (int d = 0; d < D_; ++d) {
      if (needs_.state) state_grads(d);
      if (dtable_[d].defined()) embedding_grads(d);
      if (needs_.weights) copy_bias_grads(d);
    }
  }

 private:
  void allocate() {
    const auto options = input_.weights[0].w_ih.options();
    step_workspace_ = this->step_workspace(G_);
    zeros_ = at::zeros({std::max({dgates_stride_, H_, P_})}, options);
    if (needs_.weights) workspace_ = scratch(threads_ * k_.weight_grad_workspace);
    for (int d = 0; d < D_; ++d) {
      const DirectionWeights& w = input_.weights[d];
      next_[d] = plan_.next(d);
      w_hh_[d] = packed(w.w_hh);
      if (projected_) w_hr_[d] = packed(*w.w_hr);
      if (needs_.x || needs_.embedding) {
        // Gates whose gradient stands apart from that of hgates are a product of their own.
        w_ih_[d] = packed(data<S>(w.w_ih), w.w_ih.stride(0), 1, shared_, I_);
        if (cell_.separate)
          w_ih_separate_[d] = packed(data<S>(w.w_ih) + shared_ * w.w_ih.stride(0), w.w_ih.stride(0),
                                     1, cell_.separate * H_, I_);
      }
      dgates_[d] = scratch((longest_chunk() + N_ + 1) * dgates_stride_);
      if (projected_)
        dgates_[d].narrow(0, (longest_chunk() + N_) * dgates_stride_, dgates_stride_).zero_();
      if (needs_.state) first_dgates_[d] = at::zeros({N_ * dgates_stride_}, options);
      if (needs_.weights) db_[d] = scratch(Q_);
      if (tokens_ && (needs_.weights || needs_.embedding))
        dtable_[d] = at::zeros({table_rows(), G_}, options);
    }
    if (dtable_[0].defined()) segments_ = scratch(threads_ * table_rows() * k_.segment_columns);
    // What goes from step to step beside W_hh: dc of the LSTM, part of dh of the GRU.
    if (cell_.has_c)
      carry_ = out_.dc0;
    else if (cell_.has_carry)
      carry_ = at::zeros({D_, N_, H_}, options);
    if (projected_) {
      dh_ = scratch(longest_chunk() * P_);
      dh_unprojected_ = scratch(N_ * H_);
    }
  }

  RecurrenceBwd<S> params() const {
    RecurrenceBwd<S> p{};
    p.N = N_;
    p.H = H_;
    p.K = G_;
    p.step_begin = plan_.step_begin.data();
    p.row = plan_.row.data();
    p.batch_row = plan_.batch_row.data();
    p.zeros = data<S>(zeros_);
    p.zero_row = plan_.zero_row();
    const Tensor& state = cell_.has_c ? kept_.c : kept_.h;
    p.state_stride = state.size(1);
    p.dy_compact = p.dc_seq_compact = plan_.packed;
    auto strides = [&](const std::optional<Tensor>& grad, int64_t& t_stride, int64_t& n_stride) {
      if (!grad) return;
      t_stride = plan_.packed ? 0 : grad->stride(0);
      n_stride = grad->stride(plan_.packed ? 0 : 1);
    };
    strides(grads_.y, p.dy_t_stride, p.dy_n_stride);
    strides(grads_.c, p.dc_seq_t_stride, p.dc_seq_n_stride);
    p.reserve_stride = reserve_stride_;
    p.dgates_stride = dgates_stride_;
    p.workspace = step_workspace_.defined() ? step_workspace_.template data_ptr<S>() : nullptr;
    for (int d = 0; d < D_; ++d) {
      BwdDirection<S>& b = p.direction[d];
      b.reverse = d == 1;
      b.w_hh_packed = data<S>(w_hh_[d]);
      b.state = data<S>(state) + d * H_;
      b.dh_n = grads_.h_n ? data<S>(grads_.h_n) + d * N_ * P_ : nullptr;
      b.carry = carry_.defined() ? carry_.template data_ptr<S>() + d * N_ * H_ : nullptr;
      b.prev_row = plan_.prev_row[d].data();
      b.next = next_[d].data();
    }
    return p;
  }

  // Packed gradients are read from the first row of the chunk on, others from step 0 on.
  const S* grad_of_chunk(const Tensor& grad, int64_t column, int64_t t_begin) const {
    return data<S>(grad) + column + (plan_.packed ? step_begin(t_begin) * grad.stride(0) : 0);
  }

  // Where the dgates of a chunk go. Its buffer has room for one step more, that of the chunk before
  // which comes after it in time (reverse: before it).
  S* dgates_of_chunk(int d, int chunk, int i) {
    S* buffer = dgates_[d].template data_ptr<S>();
    auto rows_of = [&](int64_t t) { return step_begin(t + 1) - step_begin(t); };
    if (d == 0) {
      if (i > 0)
        std::copy_n(buffer, rows_of(chunk_[chunk + 1]) * dgates_stride_,
                    buffer + this->chunk_rows(chunk) * dgates_stride_);
      return buffer;
    }
    S* begin = buffer + N_ * dgates_stride_;
    if (i > 0) {
      const int64_t rows = rows_of(chunk_[chunk] - 1);
      std::copy_n(begin + (this->chunk_rows(chunk - 1) - rows) * dgates_stride_,
                  rows * dgates_stride_, begin - rows * dgates_stride_);
    }
    return begin;
  }

  // dgates of the first step of each sequence, in the order of the batch: h0 is multiplied there.
  // It stays zero where no state enters.
  void keep_first_dgates(int d, const BwdDirection<S>& b) {
    const int64_t base = step_begin(b.t_begin);
    S* first = first_dgates_[d].template data_ptr<S>();
    for (int64_t n = 0; n < N_; ++n) {
      const int64_t t = d == 0 ? 0 : plan_.length[n] - 1;
      if (plan_.length[n] == 0 || t < b.t_begin || t >= b.t_end) continue;
      const int64_t k = step_begin(t) + n;
      if (b.prev_row[k] == plan_.zero_row()) continue;
      std::copy_n(b.dgates + (k - base) * dgates_stride_, dgates_stride_,
                  first + plan_.batch_row[n] * dgates_stride_);
    }
  }

  void state_grads(int d) {
    S* dh0 = out_.dh0.template data_ptr<S>() + d * N_ * P_;
    const bool add_carry = cell_.has_carry && !cell_.has_c;
    if (add_carry) std::copy_n(data<S>(carry_) + d * N_ * H_, N_ * P_, dh0);
    matmul({data<S>(first_dgates_[d]), N_, 0, dgates_stride_}, w_hh_[d], {dh0, N_, 0, P_}, N_, P_,
           G_, add_carry);
    S* dc0 = cell_.has_c ? out_.dc0.template data_ptr<S>() + d * N_ * H_ : nullptr;
    for (int64_t n = 0; n < N_; ++n) {
      const int64_t row = plan_.batch_row[n];
      if (plan_.length[n] == 0) {
        // The state went through as it was; so did dc.
        if (grads_.h_n) std::copy_n(data<S>(grads_.h_n) + (d * N_ + row) * P_, P_, dh0 + row * P_);
      } else if (d == 0 && plan_.cut(0, n)) {
        std::fill_n(dh0 + row * P_, P_, S(0));
        if (dc0) std::fill_n(dc0 + row * H_, H_, S(0));
      }
    }
  }

  // Columns of dgates that igates had a part in: all but those of the separate hgates.
  void input_grad(int d, const BwdDirection<S>& b, bool accumulate) const {
    const int64_t k = step_begin(b.t_begin), rows = step_begin(b.t_end) - k;
    const Rows<S> dx = this->input_shaped_rows(out_.dx.template data_ptr<S>(), k, I_);
    matmul({b.dgates, rows, 0, dgates_stride_}, w_ih_[d], dx, rows, I_, shared_, accumulate);
    if (cell_.separate)
      matmul({b.dgates + G_, rows, 0, dgates_stride_}, w_ih_separate_[d], dx, rows, I_,
             cell_.separate * H_, true);
  }

  void table_grad(int d, const BwdDirection<S>& b) const {
    const int64_t k = step_begin(b.t_begin), rows = step_begin(b.t_end) - k;
    S* table = dtable_[d].template data_ptr<S>();
    auto sum = [&](const S* dgates, int64_t columns, S* out) {
      run(k_.segment_sum, SegmentSum<S>{dgates, dgates_stride_, rows, columns, tokens_of_rows_ + k,
                                        table_rows(), out, G_, segments_.template data_ptr<S>()});
    };
    sum(b.dgates, shared_, table);
    if (cell_.separate) sum(b.dgates + G_, cell_.separate * H_, table + shared_);
  }

  // Rows that are summed before they are added to the total, about the root of their number:
  // torch.nn adds up the weight gradients of GRU, RNN, projections and float64 step by step. With
  // chains of 128 the error of RNN's dW_hh was 1.28 times torch's, with 32 still 1.21 at 35 rows.
  // The float32 LSTM is one product in torch too: there 128 keep the rule, as in every other
  // product.
  int64_t grad_chain() const {
    if (std::is_same_v<S, float> && cell_.has_c && !projected_) return 128;
    return plan_.rows() <= 16 ? 4 : plan_.rows() <= 64 ? 8 : 16;
  }

  void weight_grads(int d, const BwdDirection<S>& b, bool accumulate) {
    const int64_t k = step_begin(b.t_begin), rows = step_begin(b.t_end) - k;
    DirectionWeights& dw = out_.dweights[d];
    const Rows<const S> h_prev{data<S>(kept_.h) + d * P_, 0, 0, D_ * P_, b.prev_row + k};
    const Rows<const S> x = tokens_ ? Rows<const S>{} : this->x_rows(k);
    S* dw_hh = dw.w_hh.template data_ptr<S>();
    S* dw_ih = dw.w_ih.template data_ptr<S>();
    S* db = db_[d].template data_ptr<S>();
    // Of columns [column, column + columns) of dgates.
    auto add = [&](int64_t column, int64_t columns, S* dw_hh_rows, S* dw_ih_rows) {
      WeightGrad<S> p{};
      p.d = {b.dgates + column, rows, 0, dgates_stride_};
      p.K = rows;
      p.M = columns;
      p.db = db + column;
      p.accumulate = accumulate;
      p.last_first = d == 0;
      p.chain = grad_chain();
      p.workspace = workspace_.template data_ptr<S>();
      if (dw_hh_rows) p.add(h_prev, P_, dw_hh_rows);
      if (dw_ih_rows && !tokens_) p.add(x, I_, dw_ih_rows);
      run(k_.weight_grad, p, this->threads_for(rows * columns * (p.N[0] + p.N[1])));
    };
    add(0, shared_, dw_hh, dw_ih);
    if (cell_.separate) {
      add(shared_, cell_.separate * H_, dw_hh + shared_ * P_, nullptr);
      add(G_, cell_.separate * H_, nullptr, dw_ih + shared_ * I_);
    }
  }

  void copy_bias_grads(int d) {
    const S* db = data<S>(db_[d]);
    const DirectionWeights& dw = out_.dweights[d];
    if (dw.b_hh) std::copy_n(db, G_, dw.b_hh->template data_ptr<S>());
    if (dw.b_ih) {
      S* db_ih = dw.b_ih->template data_ptr<S>();
      std::copy_n(db, shared_, db_ih);
      std::copy_n(db + Q_ - (G_ - shared_), G_ - shared_, db_ih + shared_);
    }
  }

  // Through the table to W_ih and the embedding.
  void embedding_grads(int d) const {
    const int64_t V = table_rows();
    const Tensor& dtable = dtable_[d];
    if (!input_.embedding) {
      if (needs_.weights) out_.dweights[d].w_ih.copy_(dtable.t());
      return;
    }
    const Tensor& e = *input_.embedding;
    if (needs_.weights) {
      WeightGrad<S> p{};
      p.d = {data<S>(dtable), V, 0, G_};
      p.K = V;
      p.M = G_;
      p.chain = grad_chain();
      p.workspace = workspace_.template data_ptr<S>();
      p.add({data<S>(e), V, 0, e.stride(0)}, I_, out_.dweights[d].w_ih.template data_ptr<S>());
      run(k_.weight_grad, p);
    }
    if (needs_.embedding) {
      const Rows<S> to{out_.dembedding.template data_ptr<S>(), V, 0, I_};
      matmul({data<S>(dtable), V, 0, G_}, w_ih_[d], to, V, I_, shared_, d > 0);
      if (cell_.separate)
        matmul({data<S>(dtable) + shared_, V, 0, G_}, w_ih_separate_[d], to, V, I_,
               cell_.separate * H_, true);
    }
  }

  // dh of the projected h needs all units of the step after, and dh of the unprojected all of it:
  // two products a step, then the cell alone.
  void run_projected(const RecurrenceBwd<S>& chunk, int d, bool accumulate) {
    const BwdDirection<S>& all = chunk.direction[d];
    const int64_t base = step_begin(all.t_begin), rows_in_chunk = step_begin(all.t_end) - base;
    S* unprojected = dh_unprojected_.template data_ptr<S>();
    RecurrenceBwd<S> p = chunk;
    p.K = 0;
    p.dy_compact = true;
    p.dy_n_stride = H_;
    for (int64_t s = 0; s < all.t_end - all.t_begin; ++s) {
      const int64_t t = all.reverse ? all.t_begin + s : all.t_end - 1 - s;
      const int64_t k = step_begin(t), rows = step_begin(t + 1) - k;
      S* dh = dh_.template data_ptr<S>() + (k - base) * P_;
      sum_dh(chunk, d, t, dh);
      matmul({dh, rows, 0, P_}, w_hr_[d], {unprojected, rows, 0, H_}, rows, H_, P_);
      BwdDirection<S>& b = p.direction[0];
      b = all;
      b.t_begin = t;
      b.t_end = t + 1;
      b.reserve = all.reserve + (k - base) * reserve_stride_;
      b.dgates = all.dgates + (k - base) * dgates_stride_;
      b.dy = unprojected;
      b.dh_n = nullptr;
      if (all.dc_seq && p.dc_seq_compact) b.dc_seq = all.dc_seq + (k - base) * p.dc_seq_n_stride;
      recur(k_.recurrence_bwd[input_.cell], p, 1);
    }
    if (!needs_.weights) return;
    WeightGrad<S> g{};
    g.d = {dh_.template data_ptr<S>(), rows_in_chunk, 0, P_};
    g.K = rows_in_chunk;
    g.M = P_;
    g.accumulate = accumulate;
    g.chain = grad_chain();
    g.workspace = workspace_.template data_ptr<S>();
    g.add({all.reserve + cell_.reserve * H_, rows_in_chunk, 0, reserve_stride_}, H_,
          out_.dweights[d].w_hr->template data_ptr<S>());
    run(k_.weight_grad, g);
  }

  // All that reaches h of the rows of step t: dy, dh_n, and the step after through W_hh.
  void sum_dh(const RecurrenceBwd<S>& p, int d, int64_t t, S* dh) {
    const BwdDirection<S>& b = p.direction[d];
    const int64_t base = step_begin(b.t_begin), k = step_begin(t), rows = step_begin(t + 1) - k;
    // The row of zeros at the end of the buffer.
    const S* zero = data<S>(dgates_[d]) + (longest_chunk() + N_) * dgates_stride_;
    const int64_t zero_index = (zero - b.dgates) / dgates_stride_;
    std::vector<int64_t> after(rows);
    for (int64_t n = 0; n < rows; ++n) {
      const int64_t row = plan_.batch_row[n], next = b.next[k + n];
      const S* dy = !b.dy          ? nullptr
                    : p.dy_compact ? b.dy + (k + n - base) * p.dy_n_stride
                                   : b.dy + t * p.dy_t_stride + row * p.dy_n_stride;
      const S* dh_n = b.dh_n && next == kSequenceEnds ? b.dh_n + row * P_ : nullptr;
      for (int64_t j = 0; j < P_; ++j)
        dh[n * P_ + j] = (dy ? dy[j] : S(0)) + (dh_n ? dh_n[j] : S(0));
      after[n] = next < 0 ? zero_index : next - base;
    }
    matmul({b.dgates, 0, 0, dgates_stride_, after.data()}, w_hh_[d], {dh, rows, 0, P_}, rows, P_,
           G_, true);
  }

  const LayerOutput& kept_;
  const LayerOutputGrads& grads_;
  const LayerNeeds needs_;
  LayerGrads& out_;
  const int64_t Q_;
  const int64_t shared_;  // columns of dgates that input and hidden state see alike
  // One vector longer than the row: with H a power of two the rows would fall into the same few
  // cache sets, and the weight gradients take 3 % longer.
  const int64_t dgates_stride_;
  const int64_t* tokens_of_rows_ = nullptr;
  std::vector<int64_t> next_[kMaxDirections];
  Tensor zeros_, step_workspace_, workspace_, segments_, carry_, dh_, dh_unprojected_;
  Tensor w_hh_[kMaxDirections], w_ih_[kMaxDirections], w_ih_separate_[kMaxDirections],
      w_hr_[kMaxDirections], dgates_[kMaxDirections], first_dgates_[kMaxDirections],
      db_[kMaxDirections], dtable_[kMaxDirections];
};

}  // namespace

void layer_bwd(const LayerInput& input, RowPlan& plan, const LayerOutput& kept,
               const LayerOutputGrads& grads, LayerNeeds needs, LayerGrads& result) {
  prepare(input, plan);
  AT_DISPATCH_FLOATING_TYPES(input.weights[0].w_ih.scalar_type(), "layer_bwd", [&] {
    LayerBwd<scalar_t>(input, plan, kept, grads, needs, result)();
  });
}

}  // namespace cpu
}  // namespace fastlstm
