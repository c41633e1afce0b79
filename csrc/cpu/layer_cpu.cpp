// One layer on the CPU: packs the weights, then walks over the sequence in chunks of steps. In each
// chunk the input projection (backward: dx and the weight gradients) is one product over all its
// rows, done while the chunk's gates are still in the cache.
#include <ATen/Dispatch.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>

#include <algorithm>
#include <vector>

#include "../layer.h"
#include "dispatch.h"
#include "schedule.h"

namespace fastlstm {
namespace cpu {
namespace {

constexpr int64_t kGates = 4;

// Gates of one chunk: what a core's share of L3 holds beside W_hh.
constexpr int64_t kChunkBytes = 4 << 20;

int64_t round_up(int64_t n, int64_t multiple) { return (n + multiple - 1) / multiple * multiple; }

template <class S>
const S* data(const Tensor& t) {
  return t.defined() ? t.const_data_ptr<S>() : nullptr;
}
template <class S>
const S* data(const std::optional<Tensor>& t) {
  return t ? t->const_data_ptr<S>() : nullptr;
}

template <class S>
class Layer {
 public:
  explicit Layer(const LayerInput& input)
      : input_(input),
        k_(kernels<S>()),
        tokens_(!input.x.is_floating_point()),
        T_(input.x.size(0)),
        N_(input.x.size(1)),
        I_(input.weights[0].w_ih.size(1)),
        H_(input.weights[0].w_hh.size(1)),
        D_(static_cast<int>(input.weights.size())),
        G_(kGates * H_),
        padded_H_(round_up(H_, k_.lanes)),
        dgates_stride_(round_up(G_, k_.lanes) + k_.lanes),
        threads_(num_threads()) {
    const int64_t steps = std::max<int64_t>(
        1, kChunkBytes / static_cast<int64_t>(sizeof(S)) / std::max<int64_t>(1, G_ * N_));
    const int64_t chunks = (T_ + steps - 1) / steps;
    for (int64_t i = 0; i <= chunks; ++i) chunk_.push_back(T_ * i / chunks);
  }

  void fwd(Keep keep, LayerOutput& out) {
    const bool keep_gates = keep == Keep::kAll, keep_c = keep != Keep::kNothing;
    std::vector<Tensor> w_hh(D_), bias(D_), w_ih(D_), table(D_), igates(D_);
    for (int d = 0; d < D_; ++d) {
      const DirectionWeights& w = input_.weights[d];
      w_hh[d] = scratch(padded_H_ * kGates * H_);
      bias[d] = scratch(padded_H_ * kGates);
      PackGates<S> pack{
          data<S>(w.w_hh), w.w_hh.stride(0),      data<S>(w.b_ih),      data<S>(w.b_hh), H_,
          kGates,          w_hh[d].data_ptr<S>(), bias[d].data_ptr<S>()};
      run(k_.pack_gates, pack);
      if (tokens_) {
        table[d] = projected_table(d);
      } else {
        w_ih[d] = packed(w.w_ih, 1, w.w_ih.stride(0), I_, G_);
        if (!keep_gates) igates[d] = scratch(longest_chunk() * N_ * G_);
      }
    }

    for (size_t i = 0; i + 1 < chunk_.size(); ++i) {
      RecurrenceFwd<S> p{};
      p.N = N_;
      p.H = H_;
      p.h_t_stride = N_ * D_ * H_;
      p.h_n_stride = D_ * H_;
      p.c_t_stride = keep_c ? p.h_t_stride : 0;
      p.c_n_stride = keep_c ? p.h_n_stride : H_;
      for (int d = 0; d < D_; ++d) {
        FwdDirection<S>& f = p.direction[d];
        f.reverse = d == 1;
        const size_t chunk = f.reverse ? chunk_.size() - 2 - i : i;
        f.t_begin = chunk_[chunk];
        f.t_end = chunk_[chunk + 1];
        f.w_hh_packed = data<S>(w_hh[d]);
        f.bias_packed = data<S>(bias[d]);
        f.gates = keep_gates ? out.gates.data_ptr<S>() + (d * T_ + f.t_begin) * N_ * G_ : nullptr;
        f.h = out.h.data_ptr<S>() + p.h_t_stride + d * H_;
        f.c = keep_c ? out.c.data_ptr<S>() + p.c_t_stride + d * H_
                     : out.c.data_ptr<S>() + d * N_ * H_;
        if (tokens_) {
          f.igates = data<S>(table[d]);
          f.tokens = input_.x.const_data_ptr<int64_t>() + f.t_begin * N_;
        } else {
          S* projected = keep_gates ? f.gates : igates[d].data_ptr<S>();
          const int64_t rows = (f.t_end - f.t_begin) * N_;
          run(k_.packed_matmul, PackedMatmul<S>{x_rows(f.t_begin),
                                                data<S>(w_ih[d]),
                                                {projected, rows, 0, G_},
                                                rows,
                                                G_,
                                                I_,
                                                false});
          f.igates = projected;
        }
      }
      recur(k_.lstm_fwd, p);
    }
  }

  void bwd(const LayerOutput& kept, const LayerOutputGrads& grads, LayerNeeds needs,
           LayerGrads& out) {
    std::vector<Tensor> w_hh(D_), w_ih(D_), dgates(D_), dtable(D_);
    const Tensor workspace =
        needs.weights || needs.embedding ? scratch(threads_ * k_.weight_grad_workspace) : Tensor();
    for (int d = 0; d < D_; ++d) {
      const DirectionWeights& w = input_.weights[d];
      w_hh[d] = packed(w.w_hh, w.w_hh.stride(0), 1, G_, H_);
      if (needs.x || needs.embedding) w_ih[d] = packed(w.w_ih, w.w_ih.stride(0), 1, G_, I_);
      dgates[d] = scratch((longest_chunk() + 1) * N_ * dgates_stride_);
      if (tokens_ && (needs.weights || needs.embedding))
        dtable[d] = at::zeros({table_rows(), G_}, input_.weights[d].w_ih.options());
    }
    const Tensor segments =
        dtable[0].defined() ? scratch(threads_ * table_rows() * k_.segment_columns) : Tensor();
    std::vector<bool> dx_written(chunk_.size(), false);
    const int64_t state_t_stride = N_ * D_ * H_, state_n_stride = D_ * H_;

    for (size_t i = 0; i + 1 < chunk_.size(); ++i) {
      RecurrenceBwd<S> p{};
      p.N = N_;
      p.H = H_;
      p.c_t_stride = state_t_stride;
      p.c_n_stride = state_n_stride;
      p.dgates_stride = dgates_stride_;
      if (grads.y) p.dy_t_stride = grads.y->stride(0), p.dy_n_stride = grads.y->stride(1);
      if (grads.c) p.dc_seq_t_stride = grads.c->stride(0), p.dc_seq_n_stride = grads.c->stride(1);
      size_t chunk[kMaxDirections] = {};
      for (int d = 0; d < D_; ++d) {
        BwdDirection<S>& b = p.direction[d];
        b.reverse = d == 1;
        chunk[d] = b.reverse ? i : chunk_.size() - 2 - i;
        b.t_begin = chunk_[chunk[d]];
        b.t_end = chunk_[chunk[d] + 1];
        b.w_hh_packed = data<S>(w_hh[d]);
        b.gates = data<S>(kept.gates) + (d * T_ + b.t_begin) * N_ * G_;
        b.c = data<S>(kept.c) + state_t_stride + d * H_;
        b.dy = grads.y ? data<S>(grads.y) + d * H_ : nullptr;
        b.dc_seq = grads.c ? data<S>(grads.c) + d * H_ : nullptr;
        b.first_call = i == 0;
        b.dh_n = grads.h_n ? data<S>(grads.h_n) + d * N_ * H_ : nullptr;
        b.dc_inout = out.dc0.data_ptr<S>() + d * N_ * H_;
        b.dgates = carry_dgates(dgates[d].data_ptr<S>(), b.reverse, chunk[d], i);
      }
      recur(k_.lstm_bwd, p);

      for (int d = 0; d < D_; ++d) {
        const BwdDirection<S>& b = p.direction[d];
        const int64_t rows = (b.t_end - b.t_begin) * N_;
        const Rows<const S> dgates_rows{b.dgates, rows, 0, dgates_stride_};
        if (needs.x) {
          S* dx = out.dx.data_ptr<S>() + b.t_begin * N_ * I_;
          run(k_.packed_matmul, PackedMatmul<S>{dgates_rows,
                                                data<S>(w_ih[d]),
                                                {dx, rows, 0, I_},
                                                rows,
                                                I_,
                                                G_,
                                                dx_written[chunk[d]]});
          dx_written[chunk[d]] = true;
        }
        if (dtable[d].defined()) {
          run(k_.segment_sum,
              SegmentSum<S>{b.dgates, dgates_stride_, rows, G_,
                            input_.x.const_data_ptr<int64_t>() + b.t_begin * N_, table_rows(),
                            dtable[d].data_ptr<S>(), segments.data_ptr<S>()});
        }
        if (needs.weights)
          weight_grad(d, b, kept, dgates_rows, rows, i > 0, workspace, out.dweights[d]);
      }
    }

    for (int d = 0; d < D_; ++d) {
      if (needs.state) {
        // The dgates of the step that reads h0, the last computed.
        const S* dgates_0 =
            data<S>(dgates[d]) +
            (d == 0 ? 0 : chunk_.back() - chunk_[chunk_.size() - 2]) * N_ * dgates_stride_;
        S* dh0 = out.dh0.data_ptr<S>() + d * N_ * H_;
        run(k_.packed_matmul, PackedMatmul<S>{{dgates_0, N_, 0, dgates_stride_},
                                              data<S>(w_hh[d]),
                                              {dh0, N_, 0, H_},
                                              N_,
                                              H_,
                                              G_,
                                              false});
      }
      if (dtable[d].defined()) table_grads(d, dtable[d], w_ih[d], needs, workspace, out);
    }
  }

 private:
  Tensor scratch(int64_t scalars) const {
    return at::empty({scalars}, input_.weights[0].w_ih.options());
  }
  int64_t table_rows() const { return input_.embedding ? input_.embedding->size(0) : I_; }
  int64_t longest_chunk() const {
    int64_t longest = 0;
    for (size_t i = 0; i + 1 < chunk_.size(); ++i)
      longest = std::max(longest, chunk_[i + 1] - chunk_[i]);
    return longest;
  }

  // Rows of x from step t on.
  Rows<const S> x_rows(int64_t t) const {
    const Tensor& x = input_.x;
    const S* p = data<S>(x) + t * x.stride(0);
    if (x.stride(0) == N_ * x.stride(1)) return {p, T_ * N_, 0, x.stride(1)};
    return {p, N_, x.stride(0), x.stride(1)};
  }

  template <class P>
  void run(void (*kernel)(const P&, int, int), const P& p) const {
    run_team(threads_, [&](int thread, int team) { kernel(p, thread, team); });
  }

  template <class P>
  void recur(void (*kernel)(const P&, const Share&, Barrier*), const P& p) const {
    std::vector<Barrier> barriers(threads_ * D_);
    // The team may come out smaller than asked for: each thread then plans for the team there is.
    run_team(threads_, [&](int thread, int team) {
      const std::vector<std::vector<Share>> shares = schedule(N_, H_, D_, team, k_.lanes);
      for (const Share& share : shares[thread]) kernel(p, share, &barriers[share.group]);
    });
  }

  // B [K, N] of a matrix product, packed.
  Tensor packed(const Tensor& b, int64_t k_stride, int64_t n_stride, int64_t K, int64_t N) const {
    Tensor out = scratch(round_up(N, k_.lanes) * K);
    run(k_.pack_panels,
        PackPanels<S>{data<S>(b), k_stride, n_stride, K, N, out.template data_ptr<S>()});
    return out;
  }

  // Row v: W_ih applied to token v. V rows of work instead of T * N.
  Tensor projected_table(int d) const {
    const Tensor& w_ih = input_.weights[d].w_ih;
    if (!input_.embedding) return w_ih.t().contiguous();
    const Tensor& e = *input_.embedding;
    Tensor table = scratch(e.size(0) * G_);
    const Tensor w = packed(w_ih, 1, w_ih.stride(0), I_, G_);
    run(k_.packed_matmul, PackedMatmul<S>{{data<S>(e), e.size(0), 0, e.stride(0)},
                                          data<S>(w),
                                          {table.template data_ptr<S>(), e.size(0), 0, G_},
                                          e.size(0),
                                          G_,
                                          I_,
                                          false});
    return table;
  }

  // Where the dgates of a chunk go: its buffer has one row of steps more, for the step computed
  // last in the chunk before.
  S* carry_dgates(S* buffer, bool reverse, size_t chunk, size_t i) const {
    const int64_t row = N_ * dgates_stride_, steps = chunk_[chunk + 1] - chunk_[chunk];
    if (reverse) {
      if (i > 0) std::copy_n(buffer + (chunk_[chunk] - chunk_[chunk - 1]) * row, row, buffer);
      return buffer + row;
    }
    if (i > 0) std::copy_n(buffer, row, buffer + steps * row);
    return buffer;
  }

  void weight_grad(int d, const BwdDirection<S>& b, const LayerOutput& kept,
                   const Rows<const S>& dgates, int64_t rows, bool accumulate,
                   const Tensor& workspace, DirectionWeights& dw) const {
    // h_prev of step t: slot t of the buffer, in the reverse direction slot t + 2.
    const S* h_prev = data<S>(kept.h) + (b.t_begin + (b.reverse ? 2 : 0)) * N_ * D_ * H_ + d * H_;
    const Rows<const S> h_rows{h_prev, rows, 0, D_ * H_};
    WeightGrad<S> p{};
    p.d = dgates;
    p.K = rows;
    p.M = G_;
    p.db = dw.b_ih->template data_ptr<S>();
    p.accumulate = accumulate;
    p.workspace = workspace.data_ptr<S>();
    auto add = [&](const Rows<const S>& x, int64_t width, const Tensor& grad) {
      p.x[p.num_x] = x;
      p.N[p.num_x] = width;
      p.dw[p.num_x++] = grad.data_ptr<S>();
    };
    add(h_rows, H_, dw.w_hh);
    if (!tokens_) add(x_rows(b.t_begin), I_, dw.w_ih);
    run(k_.weight_grad, p);
  }

  // Through the table to W_ih and the embedding.
  void table_grads(int d, const Tensor& dtable, const Tensor& w_ih, LayerNeeds needs,
                   const Tensor& workspace, LayerGrads& out) const {
    const int64_t V = table_rows();
    if (!input_.embedding) {
      if (needs.weights) out.dweights[d].w_ih.copy_(dtable.t());
      return;
    }
    const Tensor& e = *input_.embedding;
    const Rows<const S> rows{data<S>(dtable), V, 0, G_};
    if (needs.weights) {
      WeightGrad<S> p{};
      p.d = rows;
      p.K = V;
      p.M = G_;
      p.num_x = 1;
      p.x[0] = {data<S>(e), V, 0, e.stride(0)};
      p.N[0] = I_;
      p.dw[0] = out.dweights[d].w_ih.data_ptr<S>();
      p.workspace = workspace.data_ptr<S>();
      run(k_.weight_grad, p);
    }
    if (needs.embedding) {
      run(k_.packed_matmul,
          PackedMatmul<S>{
              rows, data<S>(w_ih), {out.dembedding.data_ptr<S>(), V, 0, I_}, V, I_, G_, d > 0});
    }
  }

  const LayerInput& input_;
  const Kernels<S>& k_;
  const bool tokens_;
  const int64_t T_, N_, I_, H_;
  const int D_;
  const int64_t G_, padded_H_;
  // One vector longer than the row: with H a power of two the rows would fall into the same few
  // cache sets, and the weight gradients take 3 % longer.
  const int64_t dgates_stride_;
  const int threads_;
  std::vector<int64_t> chunk_;  // first step of each chunk, and T
};

}  // namespace

void lstm_layer_fwd(const LayerInput& input, Keep keep, LayerOutput& output) {
  AT_DISPATCH_FLOATING_TYPES(input.weights[0].w_ih.scalar_type(), "lstm_layer_fwd",
                             [&] { Layer<scalar_t>(input).fwd(keep, output); });
}

void lstm_layer_bwd(const LayerInput& input, const LayerOutput& kept, const LayerOutputGrads& grads,
                    LayerNeeds needs, LayerGrads& result) {
  AT_DISPATCH_FLOATING_TYPES(input.weights[0].w_ih.scalar_type(), "lstm_layer_bwd",
                             [&] { Layer<scalar_t>(input).bwd(kept, grads, needs, result); });
}

}  // namespace cpu
}  // namespace fastlstm
