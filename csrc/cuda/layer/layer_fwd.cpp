// Forward of one layer on CUDA. The input projection is one product for a chunk of steps; the steps
// of the chunk follow, in one launch or step by step.
#include <ATen/ops/zeros.h>

#include <type_traits>

#include "backend_cuda.h"
#include "biases.h"
#include "layer_base.h"

namespace fastlstm {
namespace cuda {
namespace {

// Gates of a chunk, in bytes, step by step: a part of the L2 cache of a data centre GPU (40 MB and
// more), so that the gates are still there when their step comes. An estimate: no other was
// measured.
constexpr int64_t kChunkBytes = 16 << 20;

template <class S>
class LayerFwd : LayerBase<S> {
  using Base = LayerBase<S>;
  using Base::input_, Base::plan_, Base::cell_, Base::tokens_, Base::projected_, Base::type_;
  using Base::matmul;
  using Base::reserve_stride_, Base::stream_, Base::options_;
  using Base::T_, Base::N_, Base::I_, Base::G_, Base::H_, Base::P_, Base::D_;
  using Base::time_of, Base::rows_of, Base::rows_after, Base::empty, Base::empty_sums;
  using typename Base::A;

 public:
  LayerFwd(const LayerInput& input, const RowPlan& plan, Keep keep, LayerOutput& out)
      : Base(input, plan),
        out_(out),
        keep_reserve_(keep == Keep::kAll),
        keep_c_(cell_.has_c && keep != Keep::kNothing) {}

  void operator()() {
    allocate();
    choice_ = this->choose_kernels(false);
    const bool stepwise = choice_.method == Method::kStepwise;
    int64_t steps = steps_within(stepwise ? kChunkBytes : kPersistentChunkBytes,
                                 N_ * G_ * static_cast<int64_t>(sizeof(A)), T_);
    if (choice_.method == Method::kGrid) {
      steps = grid_fwd_steps(job_count(N_, D_, choice_.plan.rows), this->element_bytes(),
                             choice_.plan, steps);
    }
    for (int64_t begin = 0; begin < T_; begin += steps) {
      const int64_t end = std::min(begin + steps, T_);
      for (int d = 0; d < D_ && !tokens_; ++d) project_input(d, begin, end);
      if (!stepwise) {
        all_steps(begin, end);
      } else {
        for (int64_t s = begin; s < end; ++s) step(s);
      }
    }
    this->unsort(h_operand_, out_.h_n);
    if (cell_.has_c) this->unsort(state_, out_.c_n);
  }

 private:
  void allocate() {
    w_hh_ = this->stacked(&DirectionWeights::w_hh);
    hgates_ = empty_sums({D_, N_, G_});
    if (projected_) projected_h_ = empty_sums({N_, P_});
    if (projected_ && !keep_reserve_) unprojected_ = empty({N_, H_});
    h_operand_ = input_.h0 ? this->sorted(*input_.h0) : at::zeros({D_, N_, P_}, options_);
    if (cell_.has_c) {
      const auto sums = options_.dtype(scalar_type<A>());
      state_ =
          input_.c0 ? this->sorted(*input_.c0).to(scalar_type<A>()) : at::zeros({D_, N_, H_}, sums);
    } else if (cell_.has_carry) {
      // Of a 16-bit layer, what goes from step to step beside W_hh is not rounded.
      state_ = h_operand_.to(scalar_type<A>(), false, /*copy=*/true);
    }
    this->clear_cut_initial(h_operand_);
    this->clear_cut_initial(state_);
    for (int d = 0; d < D_; ++d) {
      const DirectionWeights& w = input_.weights[d];
      bias_[d] = packed_bias(input_.cell, w.b_ih, w.b_hh, scalar_type<A>());
      if (tokens_) {
        if (!input_.embedding) {
          table_[d] = w.w_ih.t().to(scalar_type<A>()).contiguous();
        } else {
          table_[d] = empty_sums({input_.embedding->size(0), G_});
          matmul(*input_.embedding, false, w.w_ih, true, table_[d]);
        }
      }
    }
    if (!tokens_) x_ = this->compact_x();
  }

  // Of steps [s_begin, s_end), in the order of the direction. As sums they are not rounded to
  // 16 bits: the buffer is used again for every chunk, and stays in the cache.
  void project_input(int d, int64_t s_begin, int64_t s_end) {
    const int64_t t_begin = d == 0 ? s_begin : T_ - s_end, t_end = d == 0 ? s_end : T_ - s_begin;
    const int64_t k = plan_.step_begin[t_begin], rows = plan_.step_begin[t_end] - k;
    igates_begin_[d] = k;
    if (rows == 0) return;
    if (!igates_[d].defined() || igates_[d].size(0) < rows) igates_[d] = empty_sums({rows, G_});
    matmul(x_.narrow(0, k, rows), false, input_.weights[d].w_ih, true,
           igates_[d].narrow(0, 0, rows));
  }

  // Steps [s_begin, s_end) in one launch.
  void all_steps(int64_t s_begin, int64_t s_end) {
    if (!h_after_.defined()) h_after_ = empty(h_operand_.sizes());
    const SequenceFwd<S> p = sequence(s_begin, s_end);
    if (choice_.method == Method::kBlock) {
      block_fwd<S>(input_.cell, p, stream_);
    } else {
      GroupFwd<S> g{p, choice_.plan, nullptr};
      if (choice_.method == Method::kGrid) {
        if (!exchange_.defined()) exchange_ = this->empty_words(exchange_bytes(s_end - s_begin));
        exchange_.fill_(static_cast<int32_t>(kNotSent));
        g.exchange = exchange_.data_ptr();
      }
      run(g, this->exchange_of(choice_.method));
    }
    std::swap(h_operand_, h_after_);
  }

  int64_t exchange_bytes(int64_t steps) const {
    return grid_fwd_exchange_bytes(job_count(N_, D_, choice_.plan.rows), steps,
                                   this->element_bytes(), choice_.plan);
  }

  void run(const GroupFwd<S>& g, Exchange exchange) const {
    if constexpr (std::is_same_v<S, float>) {
      if (!this->tf32_)
        return group_fwd<Float3x>(input_.cell, exchange, with_exact_products(g), stream_);
    }
    group_fwd<S>(input_.cell, exchange, g, stream_);
  }

  SequenceFwd<S> sequence(int64_t s_begin, int64_t s_end) {
    SequenceFwd<S> p{};
    p.rows = this->sequence_rows();
    p.w_hh_stride = D_ == 1 ? row_stride(w_hh_) : P_;
    p.h_stride = D_ * P_;
    p.c_stride = D_ * H_;
    p.directions = D_;
    for (int d = 0; d < D_; ++d) {
      SequenceFwdDirection<S>& f = p.direction[d];
      f.reverse = d == 1;
      f.t_begin = d == 0 ? s_begin : T_ - s_end;
      f.t_end = d == 0 ? s_end : T_ - s_begin;
      if (tokens_) {
        p.V = table_[d].size(0);
        f.igates = data<A>(table_[d]);
        f.tokens = input_.x.template const_data_ptr<int64_t>();
      } else {
        f.igates = igates_[d].defined() ? data<A>(igates_[d]) : nullptr;
      }
      f.w_hh = data<S>(w_hh_, d * G_ * P_);
      f.bias = bias_[d].defined() ? data<A>(bias_[d]) : nullptr;
      f.state = state_.defined() ? mutable_data<A>(state_, d * N_ * H_) : nullptr;
      f.h_begin = data<S>(h_operand_, d * N_ * P_);
      f.h_end = mutable_data<S>(h_after_, d * N_ * P_);
      f.h = mutable_data<S>(out_.h, N_ * p.h_stride + d * P_);
      f.c = keep_c_ ? mutable_data<A>(out_.c, N_ * p.c_stride + d * H_) : nullptr;
      f.reserve = keep_reserve_ && reserve_stride_ > 0
                      ? mutable_data<S>(out_.reserve, d * plan_.input_rows * reserve_stride_)
                      : nullptr;
    }
    return p;
  }

  void step(int64_t s) {
    StepFwd<S> p{};
    p.H = H_;
    p.P = P_;
    p.reserve_stride = reserve_stride_;
    p.h_stride = D_ * P_;
    p.c_stride = D_ * H_;
    p.h_out_stride = keep_reserve_ ? reserve_stride_ : H_;
    p.batch_row = this->batch_row();
    p.directions = D_;
    int64_t rows[kDirections] = {};
    for (int d = 0; d < D_; ++d) {
      const int64_t t = time_of(d, s), k = plan_.step_begin[t];
      StepFwdDirection<S>& f = p.direction[d];
      f.rows = rows[d] = rows_of(t);
      f.continuing = rows_after(d, t);
      if (f.rows == 0) continue;
      if (tokens_) {
        p.V = table_[d].size(0);
        f.igates = data<A>(table_[d]);
        f.tokens = input_.x.template const_data_ptr<int64_t>() + this->input_row(t);
      } else {
        f.igates = data<A>(igates_[d], (k - igates_begin_[d]) * G_);
      }
      f.hgates = data<A>(hgates_, d * N_ * G_);
      f.bias = bias_[d].defined() ? data<A>(bias_[d]) : nullptr;
      f.state = state_.defined() ? mutable_data<A>(state_, d * N_ * H_) : nullptr;
      f.h_operand = mutable_data<S>(h_operand_, d * N_ * P_);
      const int64_t row = this->buffer_row(t);
      f.h = mutable_data<S>(out_.h, row * p.h_stride + d * P_);
      f.c = keep_c_ ? mutable_data<A>(out_.c, row * p.c_stride + d * H_) : nullptr;
      f.reserve = keep_reserve_ && reserve_stride_ > 0
                      ? mutable_data<S>(out_.reserve, (d * plan_.input_rows + k) * reserve_stride_)
                      : nullptr;
      f.cut = this->cut_after(d, t);
    }
    Gemm g{};
    g.type = type_;
    g.c_type = scalar_type<A>();
    g.N = G_;
    g.K = P_;
    g.a = h_operand_.const_data_ptr();
    g.a_stride = P_;
    g.a_step = N_ * P_;
    g.b = w_hh_.const_data_ptr();
    g.b_stride = D_ == 1 ? row_stride(w_hh_) : P_;
    g.b_transposed = true;
    g.b_step = G_ * P_;
    g.c = hgates_.data_ptr();
    g.c_stride = G_;
    g.c_step = N_ * G_;
    this->step_matmul(g, rows);
    if (!projected_) {
      step_fwd<S>(input_.cell, p, stream_);
    } else {
      step_projected(p, s);
    }
  }

  // [rows, H]: h before its projection, behind the gates if they are kept.
  S* h_out(int d, int64_t s) const {
    if (!keep_reserve_) return mutable_data<S>(unprojected_);
    const int64_t k = plan_.step_begin[time_of(d, s)];
    return mutable_data<S>(out_.reserve,
                           (d * plan_.input_rows + k) * reserve_stride_ + cell_.reserve * H_);
  }

  // h = W_hr (o tanh(c)), Sak et al. 2014: a product more, one direction after the other.
  void step_projected(const StepFwd<S>& both, int64_t s) {
    for (int d = 0; d < D_; ++d) {
      StepFwd<S> p = both;
      p.directions = 1;
      StepFwdDirection<S>& f = p.direction[0];
      f = both.direction[d];
      if (f.rows == 0) continue;
      f.h_out = h_out(d, s);
      step_fwd<S>(input_.cell, p, stream_);
      const Tensor& w_hr = *input_.weights[d].w_hr;
      Gemm g{};
      g.type = type_;
      g.c_type = scalar_type<A>();
      g.M = f.rows;
      g.N = P_;
      g.K = H_;
      g.a = f.h_out;
      g.a_stride = p.h_out_stride;
      g.b = w_hr.const_data_ptr();
      g.b_stride = row_stride(w_hr);
      g.b_transposed = true;
      g.c = projected_h_.data_ptr();
      g.c_stride = P_;
      this->blas_.gemm(g);
      project_fwd<S>({f.rows, f.continuing, P_, p.h_stride, data<A>(projected_h_), f.h_operand, f.h,
                      f.cut, p.batch_row},
                     stream_);
    }
  }

  LayerOutput& out_;
  const bool keep_reserve_, keep_c_;
  Choice choice_{};
  Tensor w_hh_, x_, hgates_, h_operand_, h_after_, exchange_, state_, projected_h_, unprojected_;
  Tensor bias_[kDirections], table_[kDirections], igates_[kDirections];
  int64_t igates_begin_[kDirections] = {};  // compact row that igates begin with
};

}  // namespace

void layer_fwd(const LayerInput& input, RowPlan& plan, Keep keep, LayerOutput& output) {
  with_scalar_type(input.weights[0].w_ih.scalar_type(), [&](auto* s) {
    LayerFwd<std::remove_pointer_t<decltype(s)>>(for_cublas(input), plan, keep, output)();
  });
}

}  // namespace cuda
}  // namespace fastlstm
