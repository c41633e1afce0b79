// One step of a cell on the CPU.
#include <ATen/Dispatch.h>
#include <ATen/ops/empty.h>

#include <algorithm>

#include "backend_cpu.h"
#include "host.h"

namespace fastlstm {
namespace cpu {
namespace {

int threads_for(int64_t work) { return threads_for_work(work, num_threads()); }

template <class S>
void fwd(const CellInput& in, CellOutput& out) {
  CellFwd<S> p{};
  p.N = in.x.size(0);
  p.I = in.x.size(1);
  p.H = in.h.size(1);
  p.x = data<S>(in.x);
  p.h = data<S>(in.h);
  p.c = data<S>(in.c);
  p.w_ih = data<S>(in.w_ih);
  p.w_hh = data<S>(in.w_hh);
  p.b_ih = data<S>(in.b_ih);
  p.b_hh = data<S>(in.b_hh);
  p.h_out = out.h.data_ptr<S>();
  p.c_out = out.c.defined() ? out.c.data_ptr<S>() : nullptr;
  p.reserve = out.reserve.defined() ? out.reserve.data_ptr<S>() : nullptr;
  const int64_t work = p.N * in.w_ih.size(0) * (p.I + p.H);
  run_kernel(threads_for(work), kernels<S>().cell_fwd[in.cell], p);
}

template <class S>
void bwd(const CellInput& in, const CellOutput& kept, const std::optional<Tensor>& grad_h,
         Tensor& carry, CellNeeds needs, CellGrads& out) {
  const CellTraits& cell = kCellTraits[in.cell];
  const Kernels<S>& k = kernels<S>();
  const int64_t N = in.x.size(0), I = in.x.size(1), H = in.h.size(1);
  const int64_t G = cell.gates * H, Q = cell.dgates * H;
  // Gates before those whose gradient stands apart from that of hgates.
  const int64_t shared = G - cell.separate * H;
  const int threads = threads_for(N * G * std::max(I, H));
  const auto options = in.w_ih.options();
  const Tensor dgates = at::empty({N, Q}, options);
  S* d = dgates.data_ptr<S>();

  CellBwd<S> p{};
  p.N = N;
  p.H = H;
  p.reserve = data<S>(kept.reserve);
  p.state = data<S>(cell.has_c ? kept.c : kept.h);
  p.state_prev = cell.has_c ? data<S>(in.c) : data<S>(in.h);
  p.dh = data<S>(grad_h);
  p.carry = carry.defined() ? carry.data_ptr<S>() : nullptr;
  p.dgates = d;
  run_kernel(threads_for(N * H * 64), k.cell_bwd[in.cell], p);

  auto matmul = [&](const S* a, const S* b, const Tensor& c, int64_t width, int64_t depth,
                    bool accumulate) {
    run_kernel(threads, k.plain_matmul,
               PlainMatmul<S>{a, Q, b, c.data_ptr<S>(), N, width, depth, accumulate});
  };
  if (needs.x) {
    matmul(d, data<S>(in.w_ih), out.dx, I, shared, false);
    if (cell.separate)
      matmul(d + G, data<S>(in.w_ih) + shared * I, out.dx, I, cell.separate * H, true);
  }
  if (needs.h) matmul(d, data<S>(in.w_hh), out.dh, H, G, cell.has_carry && !cell.has_c);
  if (!needs.weights) return;

  const Tensor workspace = at::empty({threads * k.weight_grad_workspace}, options);
  const Tensor db = at::empty({Q}, options);
  S* dw_ih = out.dw_ih.data_ptr<S>();
  S* dw_hh = out.dw_hh.data_ptr<S>();
  auto weight_grad = [&](int64_t column, int64_t columns, S* dw_hh_rows, S* dw_ih_rows) {
    WeightGrad<S> g{};
    g.d = {d + column, N, 0, Q};
    g.K = N;
    g.M = columns;
    g.db = db.data_ptr<S>() + column;
    g.workspace = workspace.data_ptr<S>();
    g.chain = N;  // one product, as in torch.nn
    if (dw_hh_rows) g.add({data<S>(in.h), N, 0, H}, H, dw_hh_rows);
    if (dw_ih_rows) g.add({data<S>(in.x), N, 0, I}, I, dw_ih_rows);
    run_kernel(threads, k.weight_grad, g);
  };
  weight_grad(0, shared, dw_hh, dw_ih);
  if (cell.separate) {
    weight_grad(shared, cell.separate * H, dw_hh + shared * H, nullptr);
    weight_grad(G, cell.separate * H, nullptr, dw_ih + shared * I);
  }
  const S* sums = data<S>(db);
  if (out.db_hh.defined()) std::copy_n(sums, G, out.db_hh.data_ptr<S>());
  if (out.db_ih.defined()) {
    std::copy_n(sums, shared, out.db_ih.data_ptr<S>());
    std::copy_n(sums + Q - (G - shared), G - shared, out.db_ih.data_ptr<S>() + shared);
  }
}

}  // namespace

void cell_fwd(const CellInput& input, CellOutput& output) {
  AT_DISPATCH_FLOATING_TYPES(input.w_ih.scalar_type(), "cell_fwd",
                             [&] { fwd<scalar_t>(input, output); });
}

void cell_bwd(const CellInput& input, const CellOutput& kept, const std::optional<Tensor>& grad_h,
              Tensor& carry, CellNeeds needs, CellGrads& result) {
  AT_DISPATCH_FLOATING_TYPES(input.w_ih.scalar_type(), "cell_bwd",
                             [&] { bwd<scalar_t>(input, kept, grad_h, carry, needs, result); });
}

}  // namespace cpu
}  // namespace fastlstm
