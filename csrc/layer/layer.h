// One recurrent layer, one or two directions, forward and backward: check -> big matrix product ->
// recurrence -> big matrix products. Device-agnostic here; the work is that of a backend
// (backend.h): layer_fwd.cpp and layer_bwd.cpp of ../cpu and ../cuda/layer.
//
// T, N, I, H: time, batch, input size, hidden size. P: width of h, H unless it is projected. G:
// gates of the cell. D: directions (2: the second runs from T - 1 to 0). V: rows of a table.
#pragma once

#include <ATen/core/Tensor.h>

#include <optional>
#include <vector>

#include "../cells/cells.h"
#include "row_plan.h"

namespace fastlstm {

using at::Tensor;

struct DirectionWeights {
  Tensor w_ih;                 // [G * H, I]
  Tensor w_hh;                 // [G * H, P]
  std::optional<Tensor> b_ih;  // [G * H]
  std::optional<Tensor> b_hh;  // [G * H]
  std::optional<Tensor> w_hr;  // [P, H], LSTM only: h is projected
};

// What the layer reads, all of one dtype. On the CPU, with bfloat16 weights everything else is
// float32: sums and states are, and only the operands of products are rounded, where the processor
// has an instruction for it. Exactly one kind of input: x, or tokens (one-hot), or tokens and
// embedding. "rows" stands for T, N, or with batch_sizes for one dimension, all rows of a packed
// sequence. batch_sizes and lengths are on the CPU, all else on one device.
struct LayerInput {
  CellKind cell;
  Tensor x;                               // [rows, I] of any strides; or int64 tokens [rows]
  std::optional<Tensor> embedding;        // [V, I]: x = embedding[tokens]
  std::optional<Tensor> h0;               // [D, N, P], zero if absent
  std::optional<Tensor> c0;               // [D, N, H], zero if absent; LSTM only
  std::vector<DirectionWeights> weights;  // D of them
  std::optional<Tensor> batch_sizes;      // [T] int64: rows of each step, never more than before
  std::optional<Tensor> lengths;          // [N] int64: steps of each row, 0 to T
  std::optional<Tensor> reset;  // [T, N] bool: no state passes from step t - 1 to step t of row n
  bool bf16_products = false;   // set by the layer
};

// How much forward keeps. kAll is what backward needs.
enum class Keep { kNothing = 0, kCellStates = 1, kAll = 2 };

struct LayerOutput {
  Tensor h;  // [D * N + rows + 1, D * P]: N rows h0, y, N rows h0 of the reverse direction, zeros
  Tensor c;  // likewise [.., D * H], float32 if h is of 16 bits; empty with Keep::kNothing and but
             // for the LSTM
  Tensor reserve;  // [D, rows, R * H] with Keep::kAll, else empty; see cells/; R one more with w_hr
  Tensor h_n;      // [D, N, P]
  Tensor c_n;      // [D, N, H], empty but for the LSTM
};

LayerOutput layer_fwd(const LayerInput& input, Keep keep);

// Gradients that reach the layer; an absent one is zero.
struct LayerOutputGrads {
  std::optional<Tensor> y;    // [rows, D * P]
  std::optional<Tensor> c;    // [rows, D * H], of every cell state
  std::optional<Tensor> h_n;  // [D, N, P]
  std::optional<Tensor> c_n;  // [D, N, H]
};

struct LayerNeeds {
  bool x, embedding, state, weights;
};

struct LayerGrads {
  Tensor dx;                               // as x
  Tensor dembedding;                       // [V, I]
  Tensor dh0;                              // [D, N, P]
  Tensor dc0;                              // [D, N, H], LSTM only
  std::vector<DirectionWeights> dweights;  // of the weights there are
};

// Of `kept` h, c and reserve; h may be missing for an LSTM whose weights need no gradient.
LayerGrads layer_bwd(const LayerInput& input, const LayerOutput& kept,
                     const LayerOutputGrads& grads, LayerNeeds needs);

}  // namespace fastlstm
