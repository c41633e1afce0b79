// One step of a cell on CUDA: the kernels of a layer's step, between products of its own.
#include <ATen/ops/empty.h>

#include "../step/step.h"
#include "backend_cuda.h"
#include "biases.h"
#include "context.h"
#include "dtypes.h"
#include "gemm.h"

namespace fastlstm {
namespace cuda {
namespace {

// c (+)= op(a) op(b) of contiguous matrices, but for columns [a_column, a_column + count) of a.
class Products {
 public:
  Products() : blas_(allows_tf32()) {}

  void operator()(const Tensor& a, int64_t a_column, int64_t count, bool a_transposed,
                  const Tensor& b, bool b_transposed, const Tensor& c, bool accumulate) const {
    Gemm p = gemm_of(a.narrow(1, a_column, count), a_transposed, b, b_transposed, c, accumulate);
    p.a_stride = a.size(1);  // of a single row too
    blas_.gemm(p);
  }
  void operator()(const Tensor& a, bool a_transposed, const Tensor& b, bool b_transposed,
                  const Tensor& c) const {
    (*this)(a, 0, a.size(1), a_transposed, b, b_transposed, c, false);
  }

 private:
  Blas blas_;
};

template <class S>
void fwd(const CellInput& in, CellOutput& out) {
  using A = Accumulator<S>;
  const CellTraits& cell = kCellTraits[in.cell];
  const int64_t N = in.x.size(0), H = in.h.size(1), G = cell.gates * H;
  const auto options = in.w_ih.options(), sums = options.dtype(scalar_type<A>());
  const Products product;
  const Tensor igates = at::empty({N, G}, sums), hgates = at::empty({N, G}, sums);
  product(in.x, false, in.w_ih, true, igates);
  product(in.h, false, in.w_hh, true, hgates);
  const Tensor bias = packed_bias(in.cell, in.b_ih, in.b_hh, scalar_type<A>());
  Tensor state;
  if (cell.has_carry) state = (cell.has_c ? *in.c : in.h).to(scalar_type<A>(), false, true);
  const Tensor unused = at::empty({N, H}, options);  // the operand of a next step

  StepFwd<S> p{};
  p.H = p.P = H;
  p.reserve_stride = cell.reserve * H;
  p.h_stride = H;
  p.directions = 1;
  StepFwdDirection<S>& f = p.direction[0];
  f.rows = N;
  f.igates = data<A>(igates);
  f.hgates = data<A>(hgates);
  f.bias = bias.defined() ? data<A>(bias) : nullptr;
  f.state = state.defined() ? mutable_data<A>(state) : nullptr;
  f.h_operand = mutable_data<S>(unused);
  f.h = mutable_data<S>(out.h);
  f.reserve = out.reserve.defined() && cell.reserve > 0 ? mutable_data<S>(out.reserve) : nullptr;
  step_fwd<S>(in.cell, p, current_stream());
  if (cell.has_c) out.c.copy_(state);
}

template <class S>
void bwd(const CellInput& in, const CellOutput& kept, const std::optional<Tensor>& grad_h,
         Tensor& carry, CellNeeds needs, CellGrads& out) {
  using A = Accumulator<S>;
  const CellTraits& cell = kCellTraits[in.cell];
  const int64_t N = in.x.size(0), H = in.h.size(1), G = cell.gates * H, Q = cell.dgates * H;
  const int64_t shared = G - cell.separate * H;
  const Products product;
  const Tensor dgates = at::empty({N, Q}, in.w_ih.options());
  auto wide = [](const Tensor& t) { return t.to(scalar_type<A>()); };
  Tensor c, c_before, carry_sums;
  if (cell.has_c) {
    c = wide(kept.c);
    c_before = wide(*in.c);
  }
  if (cell.has_carry) carry_sums = wide(carry);

  StepBwd<S> p{};
  p.H = p.P = H;
  p.reserve_stride = cell.reserve * H;
  p.h_stride = p.c_stride = p.dy_stride = H;
  p.directions = 1;
  StepBwdDirection<S>& b = p.direction[0];
  b.rows = N;
  b.reserve = data<S>(kept.reserve);
  b.h = data<S>(kept.h);
  b.h_initial = data<S>(in.h);
  if (cell.has_c) {
    b.c = data<A>(c);
    b.c_initial = data<A>(c_before);
  }
  if (grad_h) b.dy = data<S>(*grad_h);
  if (cell.has_carry) b.carry = mutable_data<A>(carry_sums);
  b.dgates = mutable_data<S>(dgates);
  step_bwd<S>(in.cell, p, current_stream());
  // Where it is the gradient of c, or begins that of h.
  if (cell.has_carry && (cell.has_c ? needs.c : needs.h)) carry.copy_(carry_sums);

  auto columns = [&](const Tensor& w, int64_t row, int64_t count) {
    return w.narrow(0, row, count);
  };
  if (needs.x) {
    product(dgates, 0, shared, false, columns(in.w_ih, 0, shared), false, out.dx, false);
    if (cell.separate)
      product(dgates, G, G - shared, false, columns(in.w_ih, shared, G - shared), false, out.dx,
              true);
  }
  if (needs.h) product(dgates, 0, G, false, in.w_hh, false, out.dh, cell.has_carry && !cell.has_c);
  if (!needs.weights) return;

  product(dgates, 0, G, true, in.h, false, out.dw_hh, false);
  product(dgates, 0, shared, true, in.x, false, columns(out.dw_ih, 0, shared), false);
  if (cell.separate)
    product(dgates, G, G - shared, true, in.x, false, columns(out.dw_ih, shared, G - shared),
            false);
  if (out.db_ih.defined() || out.db_hh.defined())
    copy_bias_grads(in.cell, dgates, out.db_ih, out.db_hh);
}

}  // namespace

void cell_fwd(const CellInput& input, CellOutput& output) {
  with_scalar_type(input.w_ih.scalar_type(),
                   [&](auto* s) { fwd<std::remove_pointer_t<decltype(s)>>(input, output); });
}

void cell_bwd(const CellInput& input, const CellOutput& kept, const std::optional<Tensor>& grad_h,
              Tensor& carry, CellNeeds needs, CellGrads& result) {
  with_scalar_type(input.w_ih.scalar_type(), [&](auto* s) {
    bwd<std::remove_pointer_t<decltype(s)>>(input, kept, grad_h, carry, needs, result);
  });
}

}  // namespace cuda
}  // namespace fastlstm
