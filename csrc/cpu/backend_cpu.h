// The four functions of the CPU's backend, and what the two of a layer begin with.
#pragma once

#include "../layer/backend.h"
#include "../layer/checks.h"

namespace fastlstm {
namespace cpu {

void layer_fwd(const LayerInput& input, RowPlan& plan, Keep keep, LayerOutput& output);
void layer_bwd(const LayerInput& input, RowPlan& plan, const LayerOutput& kept,
               const LayerOutputGrads& grads, LayerNeeds needs, LayerGrads& result);
void cell_fwd(const CellInput& input, CellOutput& output);
void cell_bwd(const CellInput& input, const CellOutput& kept, const std::optional<Tensor>& grad_h,
              Tensor& carry, CellNeeds needs, CellGrads& result);

// Where values can be looked at: the range of tokens, and the tables.
inline void prepare(const LayerInput& input, RowPlan& plan) {
  if (!input.x.is_floating_point())
    check_tokens(input.x,
                 input.embedding ? input.embedding->size(0) : input.weights[0].w_ih.size(1));
  plan.fill_tables();
}

}  // namespace cpu
}  // namespace fastlstm
