// Forward of one layer on the CPU: packs the weights, then walks over the sequence in chunks of
// steps. In each chunk the input projection is one product over all its rows, done while the
// chunk's gates are still in the cache.
#include <ATen/Dispatch.h>
#include <ATen/ops/zeros.h>

#include "backend_cpu.h"
#include "layer_base.h"

namespace fastlstm {
namespace cpu {
namespace {

template <class S>
class LayerFwd : LayerBase<S> {
  using Base = LayerBase<S>;
  using Base::chunk_, Base::num_chunks, Base::step_begin, Base::chunk_rows, Base::longest_chunk;
  using Base::input_, Base::plan_, Base::k_, Base::cell_, Base::tokens_, Base::projected_;
  using Base::N_, Base::I_, Base::G_, Base::H_, Base::P_, Base::D_, Base::reserve_stride_;
  using Base::scratch, Base::packed_transposed, Base::matmul, Base::run, Base::recur;

 public:
  LayerFwd(const LayerInput& input, const RowPlan& plan, Keep keep, LayerOutput& out)
      : Base(input, plan),
        out_(out),
        keep_reserve_(keep == Keep::kAll),
        keep_c_(keep != Keep::kNothing) {}

  void operator()() {
    if (cell_.has_c && !keep_c_) input_.c0 ? out_.c_n.copy_(*input_.c0) : out_.c_n.zero_();
    this->make_input_rows();
    for (int d = 0; d < D_; ++d) pack(d);
    const int64_t* tokens = tokens_ ? this->compact_tokens() : nullptr;
    const Tensor zeros = at::zeros({H_}, input_.weights[0].w_ih.options());
    if (projected_ && !keep_reserve_) unprojected_ = scratch(N_ * H_);

    RecurrenceFwd<S> p{};
    p.N = N_;
    p.H = H_;
    p.P = P_;
    p.step_begin = plan_.step_begin.data();
    p.row = plan_.row.data();
    p.batch_row = plan_.batch_row.data();
    p.zero_row = plan_.zero_row();
    p.zeros = data<S>(zeros);
    p.h_stride = D_ * P_;
    p.c_stride = keep_c_ ? D_ * H_ : H_;
    p.c_in_place = !keep_c_;
    p.reserve_stride = reserve_stride_;
    const Tensor workspace = this->step_workspace(P_);
    p.workspace = workspace.defined() ? workspace.template data_ptr<S>() : nullptr;
    for (int i = 0; i < num_chunks(); ++i) {
      for (int d = 0; d < D_; ++d) {
        FwdDirection<S>& f = p.direction[d];
        const int chunk = d == 1 ? num_chunks() - 1 - i : i;
        f.reverse = d == 1;
        f.t_begin = chunk_[chunk];
        f.t_end = chunk_[chunk + 1];
        f.w_hh_packed = data<S>(w_hh_[d]);
        f.bias_packed = data<S>(bias_[d]);
        f.prev_row = plan_.prev_row[d].data();
        f.h = out_.h.template data_ptr<S>() + d * P_;
        f.c = !cell_.has_c ? nullptr
              : keep_c_    ? out_.c.template data_ptr<S>() + d * H_
                           : out_.c_n.template data_ptr<S>() + d * N_ * H_;
        f.reserve = keep_reserve_ ? reserve(d, step_begin(f.t_begin)) : nullptr;
        f.tokens = tokens;
        project_input(d, chunk, f, p);
      }
      if (!projected_) {
        recur(k_.recurrence_fwd[input_.cell], p, D_);
      } else {
        for (int d = 0; d < D_; ++d) run_projected(p, d);
      }
    }
    last_states(out_.h, P_, out_.h_n);
    if (cell_.has_c && keep_c_) last_states(out_.c, H_, out_.c_n);
  }

 private:
  S* reserve(int d, int64_t k) const {
    return out_.reserve.template data_ptr<S>() + (d * plan_.input_rows + k) * reserve_stride_;
  }

  void pack(int d) {
    const DirectionWeights& w = input_.weights[d];
    bias_[d] = scratch(round_up(H_, k_.lanes) * (cell_.gates + cell_.separate));
    run(k_.pack_bias, PackBias<S>{data<S>(w.b_ih), data<S>(w.b_hh), H_, cell_.gates, cell_.separate,
                                  bias_[d].template data_ptr<S>()});
    w_hh_[d] = scratch(round_up(H_, k_.lanes) * cell_.gates * P_);
    run(k_.pack_gates,
        PackGates<S>{data<S>(w.w_hh), w.w_hh.stride(0), H_, P_, cell_.gates,
                     w_hh_[d].template data_ptr<S>()},
        this->threads_for(G_ * P_ * kPackingCost));
    if (projected_) w_hr_[d] = packed_transposed(*w.w_hr);
    if (tokens_) {
      table_[d] = projected_table(w.w_ih);
    } else {
      w_ih_[d] = packed_transposed(w.w_ih);
      if (!igates_in_reserve() && !igates_in_h()) igates_[d] = scratch(longest_chunk() * G_);
    }
  }

  // Row v: W_ih applied to token v. V rows of work instead of T * N.
  Tensor projected_table(const Tensor& w_ih) const {
    if (!input_.embedding) return w_ih.t().contiguous();
    const Tensor& e = *input_.embedding;
    Tensor table = scratch(e.size(0) * G_);
    matmul({data<S>(e), e.size(0), 0, e.stride(0)}, packed_transposed(w_ih),
           {table.template data_ptr<S>(), e.size(0), 0, G_}, e.size(0), G_, I_);
    return table;
  }

  // The cell reads igates before it writes where they lie.
  bool igates_in_reserve() const { return keep_reserve_ && cell_.reserve >= cell_.gates; }
  bool igates_in_h() const { return cell_.gates == 1 && (plan_.packed || plan_.complete); }

  void project_input(int d, int chunk, FwdDirection<S>& f, RecurrenceFwd<S>& p) const {
    if (tokens_) {
      f.igates = data<S>(table_[d]);
      p.igates_stride = G_;
      return;
    }
    const int64_t k = step_begin(f.t_begin), rows = chunk_rows(chunk);
    S* igates = igates_in_reserve() ? f.reserve
                : igates_in_h()     ? f.h + (N_ + k) * p.h_stride
                                    : igates_[d].template data_ptr<S>();
    p.igates_stride = igates_in_reserve() ? reserve_stride_ : igates_in_h() ? p.h_stride : G_;
    matmul(this->x_rows(k), w_ih_[d], {igates, rows, 0, p.igates_stride}, rows, G_, I_);
    f.igates = igates;
  }

  // The states after the last step: rows of the buffer -> [D, N, width].
  void last_states(const Tensor& buffer, int64_t width, Tensor& last) const {
    Tensor rows = at::empty({N_}, at::kLong);
    for (int d = 0; d < D_; ++d) {
      const Tensor columns = buffer.narrow(1, d * width, width);
      if (plan_.complete) {
        last.select(0, d).copy_(columns.narrow(0, plan_.last_row(d, 0), N_));
        continue;
      }
      for (int64_t n = 0; n < N_; ++n)
        rows.data_ptr<int64_t>()[plan_.batch_row[n]] = plan_.last_row(d, n);
      last.select(0, d).copy_(columns.index_select(0, rows));
    }
  }

  // h = W_hr (o tanh(c)), Sak et al. 2014, needs all units of a step before the next one begins.
  void run_projected(const RecurrenceFwd<S>& chunk, int d) const {
    RecurrenceFwd<S> p = chunk;
    const FwdDirection<S>& all = chunk.direction[d];
    FwdDirection<S>& f = p.direction[0];
    p.h_out_stride = keep_reserve_ ? reserve_stride_ : H_;
    for (int64_t s = 0; s < all.t_end - all.t_begin; ++s) {
      const int64_t t = all.reverse ? all.t_end - 1 - s : all.t_begin + s;
      const int64_t k = step_begin(t), rows = step_begin(t + 1) - k;
      const int64_t before = k - step_begin(all.t_begin);
      f = all;
      f.t_begin = t;
      f.t_end = t + 1;
      if (!tokens_) f.igates = all.igates + before * p.igates_stride;
      if (keep_reserve_) f.reserve = all.reserve + before * reserve_stride_;
      f.h_out =
          keep_reserve_ ? f.reserve + cell_.reserve * H_ : unprojected_.template data_ptr<S>();
      recur(k_.recurrence_fwd[input_.cell], p, 1);
      matmul({f.h_out, rows, 0, p.h_out_stride}, w_hr_[d],
             {all.h, 0, 0, p.h_stride, plan_.row.data() + k}, rows, P_, H_);
    }
  }

  LayerOutput& out_;
  const bool keep_reserve_, keep_c_;
  Tensor w_hh_[kMaxDirections], w_ih_[kMaxDirections], bias_[kMaxDirections],
      table_[kMaxDirections], igates_[kMaxDirections], w_hr_[kMaxDirections], unprojected_;
};

}  // namespace

void layer_fwd(const LayerInput& input, RowPlan& plan, Keep keep, LayerOutput& output) {
  prepare(input, plan);
  AT_DISPATCH_FLOATING_TYPES(input.weights[0].w_ih.scalar_type(), "layer_fwd",
                             [&] { LayerFwd<scalar_t>(input, plan, keep, output)(); });
}

}  // namespace cpu
}  // namespace fastlstm
