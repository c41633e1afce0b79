// Backward of one layer on CUDA. The steps, last first, compute dgates alone; gradients of input
// and weights are then products over all rows at once.
#include <ATen/ops/embedding_dense_backward.h>
#include <ATen/ops/zeros.h>

#include <type_traits>

#include "backend_cuda.h"
#include "biases.h"
#include "layer_base.h"

namespace fastlstm {
namespace cuda {
namespace {

template <class S>
class LayerBwd : LayerBase<S> {
  using Base = LayerBase<S>;
  using Base::input_, Base::plan_, Base::cell_, Base::tokens_, Base::projected_, Base::type_;
  using Base::reserve_stride_, Base::stream_, Base::options_;
  using Base::T_, Base::N_, Base::I_, Base::G_, Base::H_, Base::P_, Base::D_;
  using Base::time_of, Base::rows_of, Base::empty, Base::empty_sums, Base::matmul;
  using typename Base::A;

 public:
  LayerBwd(const LayerInput& input, const RowPlan& plan, const LayerOutput& kept,
           const LayerOutputGrads& grads, LayerNeeds needs, LayerGrads& out)
      : Base(input, plan),
        kept_(kept),
        grads_(grads),
        needs_(needs),
        out_(out),
        Q_(cell_.dgates * H_) {}

  void operator()() {
    allocate();
    const Choice choice = this->choose_kernels(true);
    if (choice.method != Method::kStepwise) {
      all_steps(choice);
    } else {
      for (int64_t s = T_ - 1; s >= 0; --s) step(s);
    }
    if (needs_.state) state_grads();
    for (int d = 0; d < D_; ++d) {
      if (needs_.x) input_grad(d);
      if (tokens_ && (needs_.weights || needs_.embedding)) table_grads(d);
      if (needs_.weights) weight_grads(d);
    }
    if (needs_.x && this->input_row_.defined())
      out_.dx.view({-1, I_}).index_copy_(0, this->input_row_, dx_);
  }

 private:
  int64_t rows() const { return plan_.rows(); }
  // Gates before those whose gradient stands apart from that of hgates.
  int64_t shared() const { return G_ - cell_.separate * H_; }

  void allocate() {
    w_hh_ = this->stacked(&DirectionWeights::w_hh);
    dgates_ = empty({D_, rows(), Q_});
    const auto sums = options_.dtype(scalar_type<A>());
    dh_ =
        grads_.h_n ? this->sorted(*grads_.h_n).to(scalar_type<A>()) : at::zeros({D_, N_, P_}, sums);
    // What goes from step to step beside W_hh: dc of the LSTM, part of dh of the GRU.
    if (cell_.has_c)
      carry_ = this->sorted(out_.dc0).to(scalar_type<A>());
    else if (cell_.has_carry)
      carry_ = at::zeros({D_, N_, H_}, sums);
    // Where h of the step before is not the row before, its rows are collected on the way.
    if (needs_.weights && (!plan_.complete || input_.reset)) h_operand_ = empty({D_, rows(), P_});
    if (projected_) {
      dh_whole_ = empty({D_, rows(), P_});
      dh_unprojected_ = empty_sums({N_, H_});
    }
    // Once for both directions: it may be a copy.
    if (needs_.weights || needs_.embedding) x_ = this->compact_x();
    if (needs_.x) dx_ = this->input_row_.defined() ? empty({rows(), I_}) : out_.dx.view({-1, I_});
  }

  // In one launch.
  void all_steps(const Choice& choice) {
    if (choice.method == Method::kBlock) {
      block_bwd<S>(input_.cell, sequence(), stream_);
      return;
    }
    // A unit's columns of all gates adjacent: those of a block are then loaded in whole pieces.
    const Tensor w_hh_t = empty({D_, H_, H_, cell_.gates});
    for (int d = 0; d < D_; ++d) {
      const Tensor w_hh = input_.weights[d].w_hh.unflatten(0, {cell_.gates, H_});
      w_hh_t.select(0, d).copy_(w_hh.permute({2, 1, 0}));
    }
    GroupBwd<S> g{sequence(), choice.plan, nullptr, nullptr};
    for (int d = 0; d < D_; ++d)
      g.sequence.direction[d].w_hh_t = data<S>(w_hh_t, d * H_ * H_ * cell_.gates);
    Tensor exchange, counters;
    if (choice.method == Method::kGrid) {
      exchange = this->empty_words(grid_bwd_exchange_bytes(g.plan));
      counters =
          at::zeros({job_count(N_, D_, g.plan.rows), kCounterStride}, options_.dtype(at::kInt));
      g.exchange = exchange.data_ptr();
      g.counters = reinterpret_cast<unsigned*>(counters.data_ptr<int32_t>());
    }
    run(g, this->exchange_of(choice.method));
  }

  void run(const GroupBwd<S>& g, Exchange exchange) const {
    if constexpr (std::is_same_v<S, float>) {
      if (!this->tf32_)
        return group_bwd<Float3x>(input_.cell, exchange, with_exact_products(g), stream_);
    }
    group_bwd<S>(input_.cell, exchange, g, stream_);
  }

  SequenceBwd<S> sequence() {
    SequenceBwd<S> p{};
    p.rows = this->sequence_rows();
    p.w_hh_stride = D_ == 1 ? row_stride(w_hh_) : P_;
    p.h_stride = D_ * P_;
    p.c_stride = D_ * H_;
    p.directions = D_;
    auto strides = [&](const std::optional<Tensor>& grad, int64_t& t_stride, int64_t& n_stride) {
      if (!grad) return;
      t_stride = plan_.packed ? 0 : grad->stride(0);
      n_stride = grad->stride(plan_.packed ? 0 : 1);
    };
    strides(grads_.y, p.dy_t_stride, p.dy_n_stride);
    strides(grads_.c, p.dc_seq_t_stride, p.dc_seq_n_stride);
    for (int d = 0; d < D_; ++d) {
      SequenceBwdDirection<S>& b = p.direction[d];
      b.reverse = d == 1;
      b.w_hh = data<S>(w_hh_, d * G_ * P_);
      if (reserve_stride_ > 0)
        b.reserve = data<S>(kept_.reserve, d * plan_.input_rows * reserve_stride_);
      const int64_t initial = plan_.initial_row(d);
      b.h = data<S>(kept_.h, N_ * p.h_stride + d * P_);
      b.h_initial = data<S>(kept_.h, initial * p.h_stride + d * P_);
      if (cell_.has_c) {
        b.c = data<A>(kept_.c, N_ * p.c_stride + d * H_);
        b.c_initial = data<A>(kept_.c, initial * p.c_stride + d * H_);
      }
      if (grads_.y) b.dy = data<S>(*grads_.y, d * P_);
      if (grads_.c) b.dc_seq = data<A>(*grads_.c, d * H_);
      b.dh = mutable_data<A>(dh_, d * N_ * P_);
      if (carry_.defined()) b.carry = mutable_data<A>(carry_, d * N_ * H_);
      b.dgates = mutable_data<S>(dgates_, d * rows() * Q_);
      if (h_operand_.defined()) b.h_operand = mutable_data<S>(h_operand_, d * rows() * P_);
    }
    return p;
  }

  void step(int64_t s) {
    StepBwd<S> p{};
    p.H = H_;
    p.P = P_;
    p.reserve_stride = reserve_stride_;
    p.h_stride = D_ * P_;
    p.c_stride = D_ * H_;
    p.dh_is_whole = projected_;
    p.batch_row = this->batch_row();
    p.directions = D_;
    // A gradient is [T, N, width] of any strides, or packed rows.
    const int last = plan_.packed ? 0 : 1;
    auto at_step = [&](const Tensor& grad, int64_t t, int64_t column) {
      return column + (plan_.packed ? plan_.step_begin[t] : t) * grad.stride(0);
    };
    if (grads_.y) p.dy_stride = grads_.y->stride(last);
    if (grads_.c) p.dc_seq_stride = grads_.c->stride(last);
    int64_t rows_of_step[kDirections] = {};
    for (int d = 0; d < D_; ++d) {
      const int64_t t = time_of(d, s), k = plan_.step_begin[t];
      StepBwdDirection<S>& b = p.direction[d];
      b.rows = rows_of_step[d] = rows_of(t);
      if (b.rows == 0) continue;
      b.continuing = this->rows_after(d, t);
      b.rows_before = this->rows_before(d, t);
      if (reserve_stride_ > 0)
        b.reserve = data<S>(kept_.reserve, (d * plan_.input_rows + k) * reserve_stride_);
      const int64_t initial = plan_.initial_row(d), row = this->buffer_row(t);
      const int64_t before = b.rows_before > 0 ? this->buffer_row(Base::prev(d, t)) : initial;
      b.h = data<S>(kept_.h, row * p.h_stride + d * P_);
      b.h_before = data<S>(kept_.h, before * p.h_stride + d * P_);
      b.h_initial = data<S>(kept_.h, initial * p.h_stride + d * P_);
      if (cell_.has_c) {
        b.c = data<A>(kept_.c, row * p.c_stride + d * H_);
        b.c_before = data<A>(kept_.c, before * p.c_stride + d * H_);
        b.c_initial = data<A>(kept_.c, initial * p.c_stride + d * H_);
      }
      if (grads_.y) b.dy = data<S>(*grads_.y, at_step(*grads_.y, t, d * P_));
      if (grads_.c) b.dc_seq = data<A>(*grads_.c, at_step(*grads_.c, t, d * H_));
      b.dh = data<A>(dh_, d * N_ * P_);
      if (carry_.defined()) b.carry = mutable_data<A>(carry_, d * N_ * H_);
      b.dgates = mutable_data<S>(dgates_, (d * rows() + k) * Q_);
      if (h_operand_.defined()) b.h_operand = mutable_data<S>(h_operand_, (d * rows() + k) * P_);
      b.cut_before = this->cut_before(d, t);
      b.cut_after = this->cut_after(d, t);
      b.cut_initial = d == 0;
    }
    if (!projected_) {
      step_bwd<S>(input_.cell, p, stream_);
    } else {
      for (int d = 0; d < D_; ++d) step_projected(p, d, time_of(d, s));
    }
    if (s > 0 || needs_.state) pull_back(p, rows_of_step);
  }

  // dh of the step before, by what W_hh passes on.
  void pull_back(const StepBwd<S>& p, const int64_t (&rows_of_step)[kDirections]) {
    Gemm g{};
    g.type = type_;
    g.c_type = scalar_type<A>();
    g.N = P_;
    g.K = G_;
    g.a_stride = Q_;
    g.b = w_hh_.const_data_ptr();
    g.b_stride = D_ == 1 ? row_stride(w_hh_) : P_;
    g.b_step = G_ * P_;
    g.c = dh_.data_ptr();
    g.c_stride = P_;
    g.c_step = N_ * P_;
    g.a = p.direction[0].rows > 0 ? static_cast<const void*>(p.direction[0].dgates)
                                  : dgates_.const_data_ptr();
    if (D_ == 2 && p.direction[1].rows > 0) {
      const char* first = static_cast<const char*>(g.a);
      const char* second = reinterpret_cast<const char*>(p.direction[1].dgates);
      g.a_step = (second - first) / static_cast<int64_t>(c10::elementSize(type_));
    }
    this->step_matmul(g, rows_of_step);
  }

  // Sak et al. 2014: what reaches h goes back through W_hr before the cell.
  void step_projected(const StepBwd<S>& both, int d, int64_t t) {
    StepBwd<S> p = both;
    p.directions = 1;
    StepBwdDirection<S>& b = p.direction[0];
    b = both.direction[d];
    if (b.rows == 0) return;
    const Tensor whole = dh_whole_.select(0, d).narrow(0, plan_.step_begin[t], b.rows);
    project_bwd<S>({b.rows, b.continuing, P_, p.dy_stride, b.dy, b.dh, mutable_data<S>(whole),
                    b.cut_after, p.batch_row},
                   stream_);
    matmul(whole, false, *input_.weights[d].w_hr, false, dh_unprojected_.narrow(0, 0, b.rows));
    b.dy = nullptr;
    b.dh = data<A>(dh_unprojected_);
    step_bwd<S>(input_.cell, p, stream_);
  }

  void state_grads() {
    // GRU: what reached h beside W_hh.
    if (cell_.has_carry && !cell_.has_c) dh_.add_(carry_);
    this->clear_cut_initial(dh_);
    if (cell_.has_c) this->clear_cut_initial(carry_);
    this->unsort(dh_, out_.dh0);
    if (cell_.has_c) this->unsort(carry_, out_.dc0);
  }

  // f(dgates, row, count) of the columns of dgates that igates had a part in, all but those of
  // separate hgates, and of the rows of W_ih that belong to them.
  template <class F>
  void for_each_igates_part(int d, F&& f) const {
    const Tensor dgates = dgates_.select(0, d);
    f(dgates.narrow(1, 0, shared()), 0, shared());
    if (cell_.separate) f(dgates.narrow(1, G_, G_ - shared()), shared(), G_ - shared());
  }

  void input_grad(int d) {
    bool accumulate = d > 0;
    for_each_igates_part(d, [&](const Tensor& dgates, int64_t row, int64_t count) {
      matmul(dgates, false, input_.weights[d].w_ih.narrow(0, row, count), false, dx_, accumulate);
      accumulate = true;
    });
  }

  // A table in place of x: row v gets the sum over the rows with token v.
  void table_grads(int d) {
    const int64_t V = input_.embedding ? input_.embedding->size(0) : I_;
    Tensor dtable = empty({V, G_});
    for_each_igates_part(d, [&](const Tensor& dgates, int64_t column, int64_t count) {
      dtable.narrow(1, column, count)
          .copy_(at::embedding_dense_backward(dgates.contiguous(), x_, V, -1, false));
    });
    if (!input_.embedding) {
      if (needs_.weights) out_.dweights[d].w_ih.copy_(dtable.t());
      return;
    }
    if (needs_.weights) matmul(dtable, true, *input_.embedding, false, out_.dweights[d].w_ih);
    if (needs_.embedding)
      matmul(dtable, false, input_.weights[d].w_ih, false, out_.dembedding, d > 0);
  }

  void weight_grads(int d) {
    DirectionWeights& dw = out_.dweights[d];
    const Tensor dgates = dgates_.select(0, d);
    matmul(dgates.narrow(1, 0, G_), true, h_operand(d), false, dw.w_hh);
    if (!tokens_) {
      for_each_igates_part(d, [&](const Tensor& part, int64_t row, int64_t count) {
        matmul(part, true, x_, false, dw.w_ih.narrow(0, row, count));
      });
    }
    if (dw.b_ih || dw.b_hh)
      copy_bias_grads(input_.cell, dgates, dw.b_ih.value_or(Tensor()), dw.b_hh.value_or(Tensor()));
    if (projected_) {
      const Tensor h_out =
          kept_.reserve.select(0, d).narrow(0, 0, rows()).narrow(1, cell_.reserve * H_, H_);
      matmul(dh_whole_.select(0, d), true, h_out, false, *dw.w_hr);
    }
  }

  // [rows, P]: h before each row.
  Tensor h_operand(int d) const {
    if (h_operand_.defined()) return h_operand_.select(0, d);
    const int64_t first = d == 0 ? 0 : 2 * N_;
    return kept_.h.narrow(0, first, rows()).narrow(1, d * P_, P_);
  }

  const LayerOutput& kept_;
  const LayerOutputGrads& grads_;
  const LayerNeeds needs_;
  LayerGrads& out_;
  const int64_t Q_;
  Tensor w_hh_, dgates_, dh_, carry_, h_operand_, dh_whole_, dh_unprojected_, x_, dx_;
};

}  // namespace

void layer_bwd(const LayerInput& input, RowPlan& plan, const LayerOutput& kept,
               const LayerOutputGrads& grads, LayerNeeds needs, LayerGrads& result) {
  with_scalar_type(input.weights[0].w_ih.scalar_type(), [&](auto* s) {
    LayerBwd<std::remove_pointer_t<decltype(s)>>(for_cublas(input), plan, kept, grads, needs,
                                                 result)();
  });
}

}  // namespace cuda
}  // namespace fastlstm
