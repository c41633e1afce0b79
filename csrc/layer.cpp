#include "layer.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/stack.h>
#include <ATen/ops/zeros.h>

#include "checks.h"

namespace fastlstm {
namespace {

struct Sizes {
  int64_t T, N, I, H, D;
};

bool has_tokens(const LayerInput& input) { return !input.x.is_floating_point(); }

void check_device(const Tensor& t) {
  TORCH_CHECK(t.device().is_cpu(), "this build of fastlstm runs on the CPU only, got a tensor on ",
              t.device(), "; move the module and its input to the CPU");
}

Sizes check_input(const LayerInput& input) {
  TORCH_CHECK(!input.weights.empty() && input.weights.size() <= 2,
              "weights must hold 1 or 2 directions, got ", input.weights.size());
  const Tensor& w_ih = input.weights[0].w_ih;
  const Tensor& w_hh = input.weights[0].w_hh;
  check_device(input.x);
  check_device(w_ih);
  TORCH_CHECK(w_ih.dim() == 2 && w_hh.dim() == 2, "w_ih and w_hh must be matrices, got ",
              w_ih.sizes(), " and ", w_hh.sizes());
  const bool tokens = has_tokens(input);
  TORCH_CHECK(input.x.dim() == (tokens ? 2 : 3),
              tokens ? "tokens must have shape [T, N]" : "x must have shape [T, N, I]", ", got ",
              input.x.sizes());
  const Sizes s{input.x.size(0), input.x.size(1), w_ih.size(1), w_hh.size(1),
                static_cast<int64_t>(input.weights.size())};
  if (tokens) {
    TORCH_CHECK(input.x.device() == w_ih.device(), "tokens must be on device ", w_ih.device(),
                ", got ", input.x.device());
    if (input.embedding) {
      TORCH_CHECK(input.embedding->dim() == 2, "embedding must have shape [V, ", s.I, "], got ",
                  input.embedding->sizes());
      check_like("embedding", *input.embedding, w_ih, {input.embedding->size(0), s.I});
    }
  } else {
    TORCH_CHECK(!input.embedding, "embedding goes with integer input, got input of dtype ",
                input.x.scalar_type());
    check_like("x", input.x, w_ih, {s.T, s.N, s.I});
  }
  for (const DirectionWeights& w : input.weights) {
    check_like("w_ih", w.w_ih, w_ih, {4 * s.H, s.I});
    check_like("w_hh", w.w_hh, w_ih, {4 * s.H, s.H});
    check_like("b_ih", w.b_ih, w_ih, {4 * s.H});
    check_like("b_hh", w.b_hh, w_ih, {4 * s.H});
  }
  check_like("h0", input.h0, w_ih, {s.D, s.N, s.H});
  check_like("c0", input.c0, w_ih, {s.D, s.N, s.H});
  return s;
}

// The kernels walk rows of any stride, but the elements of a row must be adjacent.
Tensor with_adjacent_elements(const Tensor& t) {
  return t.dim() == 0 || t.size(-1) <= 1 || t.stride(-1) == 1 ? t : t.contiguous();
}

LayerInput normalized(const LayerInput& input) {
  LayerInput n = input;
  if (has_tokens(input)) {
    n.x = input.x.to(at::kLong).contiguous();
    check_tokens(n.x, input.embedding ? input.embedding->size(0) : input.weights[0].w_ih.size(1));
    if (n.embedding) n.embedding = with_adjacent_elements(*n.embedding);
  } else {
    n.x = with_adjacent_elements(input.x);
  }
  for (DirectionWeights& w : n.weights) {
    w.w_ih = with_adjacent_elements(w.w_ih);
    w.w_hh = with_adjacent_elements(w.w_hh);
    if (w.b_ih) w.b_ih = w.b_ih->contiguous();
    if (w.b_hh) w.b_hh = w.b_hh->contiguous();
  }
  return n;
}

}  // namespace

LayerOutput lstm_layer_fwd(const LayerInput& input, Keep keep) {
  const Sizes s = check_input(input);
  const auto options = input.weights[0].w_ih.options();
  LayerOutput out;
  out.h = at::empty({s.T + s.D, s.N, s.D * s.H}, options);
  out.c = keep == Keep::kNothing ? at::empty({s.D, s.N, s.H}, options)
                                 : at::empty({s.T + s.D, s.N, s.D * s.H}, options);
  if (keep == Keep::kAll) out.gates = at::empty({s.D, s.T, s.N, 4 * s.H}, options);
  for (int64_t d = 0; d < s.D; ++d) {
    const int64_t initial = d == 0 ? 0 : s.T + 1;
    auto slot = [&](const Tensor& states) {
      return states.select(0, initial).narrow(1, d * s.H, s.H);
    };
    const Tensor h = slot(out.h);
    const Tensor c = keep == Keep::kNothing ? out.c.select(0, d) : slot(out.c);
    input.h0 ? h.copy_(input.h0->select(0, d)) : h.zero_();
    input.c0 ? c.copy_(input.c0->select(0, d)) : c.zero_();
  }
  if (s.T > 0 && s.N > 0) cpu::lstm_layer_fwd(normalized(input), keep, out);
  auto last = [&](const Tensor& states) {
    std::vector<Tensor> parts{states.select(0, s.T).narrow(1, 0, s.H)};
    if (s.D == 2) parts.push_back(states.select(0, s.T > 0 ? 1 : s.T + 1).narrow(1, s.H, s.H));
    return at::stack(parts);
  };
  out.h_n = last(out.h);
  out.c_n = keep == Keep::kNothing ? out.c : last(out.c);
  return out;
}

LayerGrads lstm_layer_bwd(const LayerInput& input, const LayerOutput& kept,
                          const LayerOutputGrads& grads, LayerNeeds needs) {
  const Sizes s = check_input(input);
  const Tensor& like = input.weights[0].w_ih;
  check_like("h", kept.h, like, {s.T + s.D, s.N, s.D * s.H});
  check_like("c", kept.c, like, {s.T + s.D, s.N, s.D * s.H});
  check_like("gates", kept.gates, like, {s.D, s.T, s.N, 4 * s.H});
  check_like("grad_y", grads.y, like, {s.T, s.N, s.D * s.H});
  check_like("grad_c", grads.c, like, {s.T, s.N, s.D * s.H});
  check_like("grad_h_n", grads.h_n, like, {s.D, s.N, s.H});
  check_like("grad_c_n", grads.c_n, like, {s.D, s.N, s.H});

  const auto options = like.options();
  // Nothing to sum over leaves zeros; otherwise the kernels write every element.
  const bool empty = s.T == 0 || s.N == 0;
  auto allocate = [&](at::IntArrayRef shape) {
    return empty ? at::zeros(shape, options) : at::empty(shape, options);
  };
  LayerGrads out;
  if (needs.x) out.dx = allocate({s.T, s.N, s.I});
  if (needs.embedding) out.dembedding = allocate({input.embedding->size(0), s.I});
  // dc is carried in place from c_n to c0.
  out.dc0 = grads.c_n ? grads.c_n->clone(at::MemoryFormat::Contiguous)
                      : at::zeros({s.D, s.N, s.H}, options);
  if (needs.state) {
    out.dh0 = empty && grads.h_n ? grads.h_n->clone(at::MemoryFormat::Contiguous)
                                 : allocate({s.D, s.N, s.H});
  }
  for (int64_t d = 0; d < s.D && needs.weights; ++d) {
    DirectionWeights dw;
    dw.w_ih = allocate({4 * s.H, s.I});
    dw.w_hh = allocate({4 * s.H, s.H});
    dw.b_ih = allocate({4 * s.H});
    out.dweights.push_back(dw);
  }
  if (!empty) {
    LayerOutputGrads normal = grads;
    if (normal.y) normal.y = with_adjacent_elements(*normal.y);
    if (normal.c) normal.c = with_adjacent_elements(*normal.c);
    if (normal.h_n) normal.h_n = normal.h_n->contiguous();
    cpu::lstm_layer_bwd(normalized(input), kept, normal, needs, out);
  }
  return out;
}

}  // namespace fastlstm
