// One step of a cell alone, forward and backward: what LSTMCell, GRUCell and RNNCell call.
//
// N, I, H: batch, input size, hidden size. G: gates of the cell; R: its reserve (cells/traits.h).
#pragma once

#include <ATen/core/Tensor.h>

#include <optional>

#include "../cells/cells.h"

namespace fastlstm {

using at::Tensor;

struct CellInput {
  CellKind cell;
  Tensor x;                    // [N, I]
  Tensor h;                    // [N, H]
  std::optional<Tensor> c;     // [N, H], LSTM only
  Tensor w_ih;                 // [G * H, I]
  Tensor w_hh;                 // [G * H, H]
  std::optional<Tensor> b_ih;  // [G * H]
  std::optional<Tensor> b_hh;  // [G * H]
};

struct CellOutput {
  Tensor h;        // [N, H]
  Tensor c;        // [N, H], undefined but for the LSTM
  Tensor reserve;  // [N, R * H], undefined unless kept
};

CellOutput cell_fwd(const CellInput& input, bool keep);

struct CellNeeds {
  bool x, h, c, weights;
};

// Gradients, undefined where not asked for or not there.
struct CellGrads {
  Tensor dx, dh, dc, dw_ih, dw_hh, db_ih, db_hh;
};

// grad_h, grad_c: of the outputs, absent ones are zero. kept.h may be missing but for the RNN.
CellGrads cell_bwd(const CellInput& input, const CellOutput& kept,
                   const std::optional<Tensor>& grad_h, const std::optional<Tensor>& grad_c,
                   CellNeeds needs);

}  // namespace fastlstm
