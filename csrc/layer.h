// One recurrent layer, one or two directions, forward and backward: check -> big matrix product ->
// recurrence -> big matrix products. Device-agnostic here; the work is in cpu/layer_cpu.cpp.
//
// T, N, I, H: time, batch, input size, hidden size. D: directions (2: the second runs from T - 1 to
// 0). V: rows of a table.
#pragma once

#include <ATen/core/Tensor.h>

#include <optional>
#include <vector>

namespace fastlstm {

using at::Tensor;

struct DirectionWeights {
  Tensor w_ih;                 // [4H, I], gates i, f, g, o
  Tensor w_hh;                 // [4H, H]
  std::optional<Tensor> b_ih;  // [4H]
  std::optional<Tensor> b_hh;  // [4H]
};

// What the layer reads. Exactly one kind of input: x, or tokens (one-hot), or tokens and embedding.
struct LayerInput {
  Tensor x;                               // [T, N, I] of any strides; or int64 tokens [T, N]
  std::optional<Tensor> embedding;        // [V, I]: x = embedding[tokens]
  std::optional<Tensor> h0;               // [D, N, H], zero if absent
  std::optional<Tensor> c0;               // [D, N, H], zero if absent
  std::vector<DirectionWeights> weights;  // D of them
};

// How much forward keeps. kAll is what backward needs.
enum class Keep { kNothing = 0, kCellStates = 1, kAll = 2 };

struct LayerOutput {
  Tensor h;  // [T + D, N, D * H]: y of step t in slot t + 1; slot 0 holds h0, slot T + 1 h0 of the
             // reverse direction
  Tensor c;  // likewise, with Keep::kNothing [D, N, H], c_n
  Tensor gates;  // [D, T, N, 4H] activated gates, with Keep::kAll
  Tensor h_n;    // [D, N, H]
  Tensor c_n;    // [D, N, H]
};

LayerOutput lstm_layer_fwd(const LayerInput& input, Keep keep);

// Gradients that reach the layer; an absent one is zero.
struct LayerOutputGrads {
  std::optional<Tensor> y;    // [T, N, D * H]
  std::optional<Tensor> c;    // [T, N, D * H], of every cell state
  std::optional<Tensor> h_n;  // [D, N, H]
  std::optional<Tensor> c_n;  // [D, N, H]
};

struct LayerNeeds {
  bool x, embedding, state, weights;
};

struct LayerGrads {
  Tensor dx;                               // [T, N, I]
  Tensor dembedding;                       // [V, I]
  Tensor dh0, dc0;                         // [D, N, H]
  std::vector<DirectionWeights> dweights;  // b_ih only: the gradient of b_hh is the same
};

LayerGrads lstm_layer_bwd(const LayerInput& input, const LayerOutput& kept,
                          const LayerOutputGrads& grads, LayerNeeds needs);

// The CPU's part of the two functions above, arguments checked and outputs allocated
// (cpu/layer_cpu.cpp).
namespace cpu {
void lstm_layer_fwd(const LayerInput& input, Keep keep, LayerOutput& output);
void lstm_layer_bwd(const LayerInput& input, const LayerOutput& kept, const LayerOutputGrads& grads,
                    LayerNeeds needs, LayerGrads& result);
}  // namespace cpu

}  // namespace fastlstm
