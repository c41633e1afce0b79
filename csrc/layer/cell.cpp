#include "cell.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>
#include <c10/core/DeviceGuard.h>

#include "backend.h"
#include "checks.h"

namespace fastlstm {
namespace {

struct Sizes {
  int64_t N, I, H;
};

Sizes check_input(const CellInput& input) {
  const CellTraits& cell = kCellTraits[input.cell];
  const Tensor& w_ih = input.w_ih;
  TORCH_CHECK(w_ih.device() == input.x.device(), "w_ih must be on device ", input.x.device(),
              ", got ", w_ih.device());
  TORCH_CHECK(w_ih.is_floating_point(), "w_ih must be floating-point, got ", w_ih.scalar_type());
  TORCH_CHECK(input.x.dim() == 2, "x must have shape [N, I], got ", input.x.sizes());
  TORCH_CHECK(w_ih.dim() == 2 && w_ih.size(0) % cell.gates == 0, "w_ih must have shape [",
              cell.gates, " * H, I], got ", w_ih.sizes());
  const Sizes s{input.x.size(0), w_ih.size(1), w_ih.size(0) / cell.gates};
  check_like("x", input.x, w_ih, {s.N, s.I});
  check_like("h", input.h, w_ih, {s.N, s.H});
  TORCH_CHECK(cell.has_c == input.c.has_value(), "c goes with the LSTM and only with it, got ",
              input.c ? "it" : "none", " with ", cell.mode);
  check_like("c", input.c, w_ih, {s.N, s.H});
  check_like("w_hh", input.w_hh, w_ih, {cell.gates * s.H, s.H});
  check_like("b_ih", input.b_ih, w_ih, {cell.gates * s.H});
  check_like("b_hh", input.b_hh, w_ih, {cell.gates * s.H});
  return s;
}

Tensor contiguous(const Tensor& t) { return t.defined() ? t.contiguous() : t; }
std::optional<Tensor> contiguous(const std::optional<Tensor>& t) {
  return t ? std::optional<Tensor>(t->contiguous()) : std::nullopt;
}
CellInput contiguous(const CellInput& input) {
  return {input.cell,
          contiguous(input.x),
          contiguous(input.h),
          contiguous(input.c),
          contiguous(input.w_ih),
          contiguous(input.w_hh),
          contiguous(input.b_ih),
          contiguous(input.b_hh)};
}

CellInput all_readable(const CellInput& input) {
  return {input.cell,
          readable("x", input.x),
          readable("h", input.h),
          readable("c", input.c),
          readable("w_ih", input.w_ih),
          readable("w_hh", input.w_hh),
          readable("b_ih", input.b_ih),
          readable("b_hh", input.b_hh)};
}

// Asked first, so that everyday arguments are not copied once more.
bool all_plain(const CellInput& input) {
  auto plain = [](const std::optional<Tensor>& t) { return !t || is_plain(*t); };
  return is_plain(input.x) && is_plain(input.h) && plain(input.c) && is_plain(input.w_ih) &&
         is_plain(input.w_hh) && plain(input.b_ih) && plain(input.b_hh);
}

}  // namespace

CellOutput cell_fwd(const CellInput& input, bool keep) {
  if (!all_plain(input)) return cell_fwd(all_readable(input), keep);
  const Backend& backend = backend_of(input.x);
  const c10::DeviceGuard guard(input.x.device());
  const CellTraits& cell = kCellTraits[input.cell];
  const Sizes s = check_input(input);
  const auto options = input.w_ih.options();
  CellOutput out;
  out.h = at::empty({s.N, s.H}, options);
  if (cell.has_c) out.c = at::empty({s.N, s.H}, options);
  if (keep) out.reserve = at::empty({s.N, cell.reserve * s.H}, options);
  if (s.N > 0) backend.cell_fwd(contiguous(input), out);
  return out;
}

CellGrads cell_bwd(const CellInput& input, const CellOutput& given_kept,
                   const std::optional<Tensor>& given_grad_h,
                   const std::optional<Tensor>& given_grad_c, CellNeeds needs) {
  if (!all_plain(input))
    return cell_bwd(all_readable(input), given_kept, given_grad_h, given_grad_c, needs);
  const Backend& backend = backend_of(input.x);
  const c10::DeviceGuard guard(input.x.device());
  const CellTraits& cell = kCellTraits[input.cell];
  const Sizes s = check_input(input);
  const Tensor& like = input.w_ih;
  CellOutput kept;
  if (given_kept.h.defined()) kept.h = contiguous(readable("h_out", given_kept.h));
  if (cell.has_c) kept.c = contiguous(readable("c_out", given_kept.c));
  kept.reserve = contiguous(readable("reserve", given_kept.reserve));
  const std::optional<Tensor> grad_h = readable("grad_h", given_grad_h),
                              grad_c = readable("grad_c", given_grad_c);
  TORCH_CHECK(kept.h.defined() || cell.has_carry, "h_out must be given with ", cell.mode,
              ", got None");
  if (kept.h.defined()) check_like("h_out", kept.h, like, {s.N, s.H});
  if (cell.has_c) check_like("c_out", kept.c, like, {s.N, s.H});
  check_like("reserve", kept.reserve, like, {s.N, cell.reserve * s.H});
  check_like("grad_h", grad_h, like, {s.N, s.H});
  TORCH_CHECK(cell.has_c || !grad_c, "grad_c goes with the LSTM, got it with ", cell.mode);
  check_like("grad_c", grad_c, like, {s.N, s.H});

  const auto options = like.options();
  // The kernels write every element, but where there is no row to sum over.
  auto allocate = [&](at::IntArrayRef shape) {
    return s.N == 0 ? at::zeros(shape, options) : at::empty(shape, options);
  };
  CellGrads out;
  Tensor carry;
  if (cell.has_carry)
    carry = grad_c ? grad_c->clone(at::MemoryFormat::Contiguous) : at::zeros({s.N, s.H}, options);
  if (cell.has_c && needs.c) out.dc = carry;
  if (needs.x) out.dx = allocate({s.N, s.I});
  // What reaches h beside W_hh is added to in place.
  if (needs.h) out.dh = cell.has_carry && !cell.has_c ? carry : allocate({s.N, s.H});
  if (needs.weights) {
    out.dw_ih = allocate({cell.gates * s.H, s.I});
    out.dw_hh = allocate({cell.gates * s.H, s.H});
    if (input.b_ih) out.db_ih = allocate({cell.gates * s.H});
    if (input.b_hh) out.db_hh = allocate({cell.gates * s.H});
  }
  if (s.N > 0) {
    backend.cell_bwd(contiguous(input), kept, contiguous(grad_h), carry, needs, out);
  }
  return out;
}

}  // namespace fastlstm
