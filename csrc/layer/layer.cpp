#include "layer.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>
#include <c10/core/DeviceGuard.h>

#include "backend.h"
#include "checks.h"

namespace fastlstm {
namespace {

struct Sizes {
  int64_t T, N, I, H, P, D;
  int64_t rows;               // of x and y
  std::vector<int64_t> lead;  // leading dimensions of x and y: T, N or rows

  std::vector<int64_t> with_width(int64_t width) const {
    std::vector<int64_t> shape = lead;
    shape.push_back(width);
    return shape;
  }
};

bool has_tokens(const LayerInput& input) { return !input.x.is_floating_point(); }

// Reads the values of batch_sizes: they decide every other shape.
void check_batch_sizes(const Tensor& batch_sizes, int64_t rows) {
  const int64_t* sizes = batch_sizes.const_data_ptr<int64_t>();
  int64_t sum = 0;
  for (int64_t t = 0; t < batch_sizes.size(0); ++t) {
    TORCH_CHECK(sizes[t] > 0 && (t == 0 || sizes[t] <= sizes[t - 1]),
                "batch_sizes must be positive and never grow, got ", sizes[t], " at step ", t);
    sum += sizes[t];
  }
  TORCH_CHECK(sum == rows, "batch_sizes must sum to the rows of the input, ", rows, ", got ", sum);
}

void check_index_tensor(const char* name, const Tensor& t, at::Device device, at::ScalarType dtype,
                        at::IntArrayRef shape) {
  TORCH_CHECK(t.device() == device, name, " must be on device ", device, ", got ", t.device());
  TORCH_CHECK(t.scalar_type() == dtype, name, " must have dtype ", dtype, ", got ",
              t.scalar_type());
  TORCH_CHECK(t.sizes() == shape, name, " must have shape ", shape, ", got ", t.sizes());
}

void check_lengths(const Tensor& lengths, int64_t T) {
  const int64_t* values = lengths.const_data_ptr<int64_t>();
  for (int64_t n = 0; n < lengths.size(0); ++n) {
    TORCH_CHECK_VALUE(values[n] >= 0 && values[n] <= T, "lengths must be in [0, ", T, "], got ",
                      values[n]);
  }
}

Sizes check_input(const LayerInput& input) {
  const CellTraits& cell = kCellTraits[input.cell];
  TORCH_CHECK(!input.weights.empty() && input.weights.size() <= 2,
              "weights must hold 1 or 2 directions, got ", input.weights.size());
  const Tensor& w_ih = input.weights[0].w_ih;
  const Tensor& w_hh = input.weights[0].w_hh;
  TORCH_CHECK(w_ih.device() == input.x.device(), "w_ih must be on device ", input.x.device(),
              ", got ", w_ih.device());
  TORCH_CHECK(w_ih.is_floating_point(), "w_ih must be floating-point, got ", w_ih.scalar_type());
  TORCH_CHECK(w_ih.dim() == 2 && w_hh.dim() == 2, "w_ih and w_hh must be matrices, got ",
              w_ih.sizes(), " and ", w_hh.sizes());
  TORCH_CHECK(w_ih.size(0) % cell.gates == 0, "w_ih must have ", cell.gates,
              " times hidden_size rows, got ", w_ih.sizes());
  const bool tokens = has_tokens(input), packed = input.batch_sizes.has_value();
  const int64_t dims = (packed ? 1 : 2) + (tokens ? 0 : 1);
  TORCH_CHECK(input.x.dim() == dims, tokens ? "tokens" : "x", " must have shape ",
              packed ? "[rows" : "[T, N", tokens ? "]" : ", I]", ", got ", input.x.sizes());
  Sizes s;
  s.D = static_cast<int64_t>(input.weights.size());
  s.I = w_ih.size(1);
  s.H = w_ih.size(0) / cell.gates;
  s.P = w_hh.size(1);
  if (packed) {
    const Tensor& sizes = *input.batch_sizes;
    check_index_tensor("batch_sizes", sizes, at::kCPU, at::kLong, {sizes.numel()});
    TORCH_CHECK(!input.lengths && !input.reset,
                "lengths and reset go with padded input, not with batch_sizes");
    s.rows = input.x.size(0);
    check_batch_sizes(sizes, s.rows);
    s.T = sizes.size(0);
    s.N = s.T > 0 ? sizes.const_data_ptr<int64_t>()[0] : 0;
    s.lead = {s.rows};
  } else {
    s.T = input.x.size(0);
    s.N = input.x.size(1);
    s.rows = s.T * s.N;
    s.lead = {s.T, s.N};
  }
  if (input.lengths) {
    check_index_tensor("lengths", *input.lengths, at::kCPU, at::kLong, {s.N});
    check_lengths(*input.lengths, s.T);
  }
  if (input.reset)
    check_index_tensor("reset", *input.reset, input.x.device(), at::kBool, {s.T, s.N});
  if (tokens) {
    if (input.embedding) {
      TORCH_CHECK(input.embedding->dim() == 2, "embedding must have shape [V, ", s.I, "], got ",
                  input.embedding->sizes());
      check_like("embedding", *input.embedding, w_ih, {input.embedding->size(0), s.I});
    }
  } else {
    TORCH_CHECK(!input.embedding, "embedding goes with integer input, got input of dtype ",
                input.x.scalar_type());
    check_like("x", input.x, w_ih, s.with_width(s.I));
  }
  const bool projected = input.weights[0].w_hr.has_value();
  TORCH_CHECK(!projected || cell.has_c, "w_hr goes with the LSTM, got it with ", cell.mode);
  for (const DirectionWeights& w : input.weights) {
    check_like("w_ih", w.w_ih, w_ih, {cell.gates * s.H, s.I});
    check_like("w_hh", w.w_hh, w_ih, {cell.gates * s.H, projected ? s.P : s.H});
    check_like("b_ih", w.b_ih, w_ih, {cell.gates * s.H});
    check_like("b_hh", w.b_hh, w_ih, {cell.gates * s.H});
    TORCH_CHECK(w.w_hr.has_value() == projected, "w_hr must be given for both directions or none");
    check_like("w_hr", w.w_hr, w_ih, {s.P, s.H});
  }
  check_like("h0", input.h0, w_ih, {s.D, s.N, s.P});
  TORCH_CHECK(cell.has_c || !input.c0, "c0 goes with the LSTM, got it with ", cell.mode);
  check_like("c0", input.c0, w_ih, {s.D, s.N, s.H});
  return s;
}

// A matrix, or [T, N, width], for kernels that walk rows of any stride whose elements are adjacent.
// The stride of a dimension of size 0 or 1 says nothing and may be any number. Here it becomes the
// one under which rows still lie as a single stride apart as they can, so that whatever is computed
// from strides holds.
Tensor as_rows(const Tensor& given) {
  const int64_t width = given.size(-1), last = given.dim() - 1;
  const Tensor t = width <= 1 || given.stride(last) == 1 ? given : given.contiguous();
  c10::DimVector strides(t.strides().begin(), t.strides().end());
  if (width <= 1) strides[last] = 1;
  for (int64_t d = last - 1; d >= 0; --d) {
    if (t.size(d) > 1) continue;
    const bool has_outer = d > 0 && t.size(d - 1) > 1;
    strides[d] = has_outer ? strides[d - 1] : std::max<int64_t>(1, t.size(d + 1)) * strides[d + 1];
  }
  return t.strides() == c10::IntArrayRef(strides) ? t : t.as_strided(t.sizes(), strides);
}
std::optional<Tensor> as_rows(const std::optional<Tensor>& t) {
  return t ? std::optional<Tensor>(as_rows(*t)) : std::nullopt;
}

bool is_dense(const Tensor& t) { return t.dim() < 3 || t.stride(0) == t.size(1) * t.stride(1); }

LayerInput normalized(const LayerInput& input, const RowPlan& plan) {
  LayerInput n = input;
  if (has_tokens(input)) {
    n.x = input.x.to(at::kLong).contiguous();
    n.embedding = as_rows(n.embedding);
  } else {
    n.x = as_rows(input.x);
    // A table of rows has one stride.
    if (!plan.complete && !is_dense(n.x)) n.x = as_rows(n.x.contiguous());
  }
  for (DirectionWeights& w : n.weights) {
    w.w_ih = as_rows(w.w_ih);
    w.w_hh = as_rows(w.w_hh);
    if (w.b_ih) w.b_ih = w.b_ih->contiguous();
    if (w.b_hh) w.b_hh = w.b_hh->contiguous();
    w.w_hr = as_rows(w.w_hr);
  }
  return n;
}

RowPlan plan_rows(const LayerInput& input, const Sizes& s) {
  const int D = static_cast<int>(s.D);
  if (input.batch_sizes)
    return RowPlan::of_packed(s.T, D, input.batch_sizes->const_data_ptr<int64_t>());
  const bool* cuts = input.reset ? input.reset->const_data_ptr<bool>() : nullptr;
  if (!input.lengths) return RowPlan::of_padded(s.T, s.N, D, cuts);
  return RowPlan::of_lengths(s.T, s.N, D, input.lengths->const_data_ptr<int64_t>(), cuts);
}

std::optional<Tensor> contiguous(const std::optional<Tensor>& t) {
  return t ? std::optional<Tensor>(t->contiguous()) : std::nullopt;
}

// Every tensor as what its memory says, and where the backend has no 16-bit tensors, bfloat16
// weights as float32 ones, which lose nothing when products round them again.
LayerInput prepared(LayerInput input, const Backend& backend) {
  input.x = readable("x", input.x);
  input.embedding = readable("embedding", input.embedding);
  input.h0 = readable("h0", input.h0);
  input.c0 = readable("c0", input.c0);
  input.batch_sizes = readable("batch_sizes", input.batch_sizes);
  input.lengths = readable("lengths", input.lengths);
  input.reset = readable("reset", input.reset);
  for (DirectionWeights& w : input.weights) {
    w.w_ih = readable("w_ih", w.w_ih);
    w.w_hh = readable("w_hh", w.w_hh);
    w.b_ih = readable("b_ih", w.b_ih);
    w.b_hh = readable("b_hh", w.b_hh);
    w.w_hr = readable("w_hr", w.w_hr);
    input.bf16_products =
        input.bf16_products || (!backend.native_half && w.w_ih.scalar_type() == at::kBFloat16);
  }
  if (input.bf16_products) {
    auto widened = [](const Tensor& t) {
      TORCH_CHECK(t.scalar_type() == at::kBFloat16, "weights must all have dtype BFloat16, got ",
                  t.scalar_type());
      return t.to(at::kFloat);
    };
    auto widen = [&](std::optional<Tensor>& t) {
      if (t) t = widened(*t);
    };
    for (DirectionWeights& w : input.weights) {
      w.w_ih = widened(w.w_ih);
      w.w_hh = widened(w.w_hh);
      widen(w.b_ih);
      widen(w.b_hh);
      widen(w.w_hr);
    }
  }
  input.batch_sizes = contiguous(input.batch_sizes);
  input.lengths = contiguous(input.lengths);
  input.reset = contiguous(input.reset);
  return input;
}

}  // namespace

LayerOutput layer_fwd(const LayerInput& given, Keep keep) {
  const Backend& backend = backend_of(given.x);
  const c10::DeviceGuard guard(given.x.device());
  const LayerInput input = prepared(given, backend);
  const CellTraits& cell = kCellTraits[input.cell];
  const Sizes s = check_input(input);
  RowPlan plan = plan_rows(input, s);
  const bool projected = input.weights[0].w_hr.has_value();
  const auto options = input.weights[0].w_ih.options();
  // Rows that no step writes.
  const bool padding = plan.rows() < s.rows;
  auto buffer = [&](int64_t width, at::TensorOptions like) {
    const std::vector<int64_t> shape{plan.buffer_rows(), s.D * width};
    Tensor t = padding ? at::zeros(shape, like) : at::empty(shape, like);
    if (!padding) t.select(0, plan.zero_row()).zero_();
    return t;
  };
  const bool keep_c = cell.has_c && keep != Keep::kNothing;
  const auto state = options.dtype(state_type(input.weights[0].w_ih.scalar_type()));
  LayerOutput out;
  out.h = buffer(s.P, options);
  out.c = keep_c ? buffer(s.H, state) : at::empty({0}, state);
  out.reserve = keep == Keep::kAll
                    ? at::empty({s.D, s.rows, (cell.reserve + projected) * s.H}, options)
                    : at::empty({0}, options);
  auto initialize = [](const Tensor& to, const std::optional<Tensor>& from) {
    from ? to.copy_(*from) : to.zero_();
  };
  for (int d = 0; d < s.D; ++d) {
    auto slot = [&](const Tensor& states, int64_t width) {
      return states.narrow(0, plan.initial_row(d), s.N).narrow(1, d * width, width);
    };
    auto part = [&](const std::optional<Tensor>& t) {
      return t ? std::optional<Tensor>(t->select(0, d)) : std::nullopt;
    };
    initialize(slot(out.h, s.P), part(input.h0));
    if (keep_c) initialize(slot(out.c, s.H), part(input.c0));
  }
  // Without a step, the last states are the first.
  out.h_n = at::empty({s.D, s.N, s.P}, options);
  out.c_n = cell.has_c ? at::empty({s.D, s.N, s.H}, options) : at::empty({0}, options);
  if (plan.rows() > 0) {
    backend.layer_fwd(normalized(input, plan), plan, keep, out);
  } else {
    initialize(out.h_n, input.h0);
    if (cell.has_c) initialize(out.c_n, input.c0);
  }
  return out;
}

LayerGrads layer_bwd(const LayerInput& given, const LayerOutput& given_kept,
                     const LayerOutputGrads& given_grads, LayerNeeds needs) {
  const Backend& backend = backend_of(given.x);
  const c10::DeviceGuard guard(given.x.device());
  const LayerInput input = prepared(given, backend);
  LayerOutput kept;
  if (given_kept.h.defined()) kept.h = readable("h", given_kept.h);
  kept.c = readable("c", given_kept.c);
  kept.reserve = readable("reserve", given_kept.reserve);
  const LayerOutputGrads grads{readable("grad_y", given_grads.y), readable("grad_c", given_grads.c),
                               readable("grad_h_n", given_grads.h_n),
                               readable("grad_c_n", given_grads.c_n)};
  const CellTraits& cell = kCellTraits[input.cell];
  const Sizes s = check_input(input);
  RowPlan plan = plan_rows(input, s);
  const bool projected = input.weights[0].w_hr.has_value();
  const Tensor& like = input.weights[0].w_ih;
  TORCH_CHECK(kept.h.defined() || (cell.has_c && !needs.weights),
              "h must be given where weights need a gradient, and but for the LSTM, got None");
  if (kept.h.defined()) check_like("h", kept.h, like, {plan.buffer_rows(), s.D * s.P});
  if (cell.has_c)
    check_like("c", kept.c, state_type(like.scalar_type()), like, {plan.buffer_rows(), s.D * s.H});
  check_like("reserve", kept.reserve, like, {s.D, s.rows, (cell.reserve + projected) * s.H});
  TORCH_CHECK(cell.has_c || (!grads.c && !grads.c_n), "grad_c and grad_c_n go with the LSTM, got ",
              "them with ", cell.mode);
  check_like("grad_y", grads.y, like, s.with_width(s.D * s.P));
  if (grads.c)
    check_like("grad_c", *grads.c, state_type(like.scalar_type()), like, s.with_width(s.D * s.H));
  check_like("grad_h_n", grads.h_n, like, {s.D, s.N, s.P});
  check_like("grad_c_n", grads.c_n, like, {s.D, s.N, s.H});

  const auto options = like.options();
  // The kernels write every element, unless there are no rows at all or rows that are padding.
  const bool empty = plan.rows() == 0;
  auto allocate = [&](at::IntArrayRef shape) {
    return empty ? at::zeros(shape, options) : at::empty(shape, options);
  };
  LayerGrads out;
  if (needs.x) {
    const auto shape = s.with_width(s.I);
    out.dx = plan.rows() < s.rows ? at::zeros(shape, options) : allocate(shape);
  }
  if (needs.embedding) out.dembedding = allocate({input.embedding->size(0), s.I});
  // dc is carried in place from c_n to c0.
  if (cell.has_c) {
    out.dc0 = grads.c_n ? grads.c_n->clone(at::MemoryFormat::Contiguous)
                        : at::zeros({s.D, s.N, s.H}, options);
  }
  if (needs.state) {
    out.dh0 = empty && grads.h_n ? grads.h_n->clone(at::MemoryFormat::Contiguous)
                                 : allocate({s.D, s.N, s.P});
  }
  for (int64_t d = 0; d < s.D && needs.weights; ++d) {
    const DirectionWeights& w = input.weights[d];
    out.dweights.emplace_back();
    DirectionWeights& dw = out.dweights.back();
    dw.w_ih = allocate({cell.gates * s.H, s.I});
    dw.w_hh = allocate({cell.gates * s.H, s.P});
    if (w.b_ih) dw.b_ih = allocate({cell.gates * s.H});
    if (w.b_hh) dw.b_hh = allocate({cell.gates * s.H});
    if (w.w_hr) dw.w_hr = allocate({s.P, s.H});
  }
  if (!empty) {
    const LayerOutputGrads normal{as_rows(grads.y), as_rows(grads.c), contiguous(grads.h_n),
                                  grads.c_n};
    const LayerOutput rows{kept.h.defined() ? kept.h.contiguous() : kept.h, kept.c.contiguous(),
                           kept.reserve.contiguous(), kept.h_n, kept.c_n};
    backend.layer_bwd(normalized(input, plan), plan, rows, normal, needs, out);
  }
  if (input.bf16_products) {
    auto narrow = [](std::optional<Tensor>& t) {
      if (t) t = t->to(at::kBFloat16);
    };
    for (DirectionWeights& dw : out.dweights) {
      dw.w_ih = dw.w_ih.to(at::kBFloat16);
      dw.w_hh = dw.w_hh.to(at::kBFloat16);
      narrow(dw.b_ih);
      narrow(dw.b_hh);
      narrow(dw.w_hr);
    }
  }
  return out;
}

}  // namespace fastlstm
