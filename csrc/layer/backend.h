// Who computes on a kind of device. The checks of layer.cpp and cell.cpp are the same for all.
#pragma once

#include <ATen/core/Tensor.h>

#include "cell.h"
#include "layer.h"

namespace fastlstm {

struct Backend {
  // Whether kernels take 16-bit tensors as they are. If not, only weights may be bfloat16, and
  // mean float32 with products rounded to bfloat16.
  bool native_half;
  // Fills in everything of the output; outputs are allocated, initial states are in their rows.
  void (*layer_fwd)(const LayerInput&, RowPlan&, Keep, LayerOutput&);
  void (*layer_bwd)(const LayerInput&, RowPlan&, const LayerOutput& kept, const LayerOutputGrads&,
                    LayerNeeds, LayerGrads&);
  void (*cell_fwd)(const CellInput&, CellOutput&);
  // carry: gradient of c_out, or zero; becomes what reaches the state before beside W_hh.
  void (*cell_bwd)(const CellInput&, const CellOutput& kept, const std::optional<Tensor>& grad_h,
                   Tensor& carry, CellNeeds, CellGrads&);
};

// The backend of the device of `input`; throws, with what to do, where this build has none.
const Backend& backend_of(const Tensor& input);

// Dtype of the states that are kept for backward: sums and states are at least float32.
inline at::ScalarType state_type(at::ScalarType type) {
  return type == at::kHalf || type == at::kBFloat16 ? at::kFloat : type;
}

namespace cpu {
extern const Backend kBackend;
}
namespace cuda {
extern const Backend kBackend;
}

}  // namespace fastlstm
