// The four functions of the backend of CUDA.
#pragma once

#include "../../layer/backend.h"

namespace fastlstm {
namespace cuda {

// The layer's input, with matrices that cuBLAS takes.
LayerInput for_cublas(LayerInput input);

void layer_fwd(const LayerInput& input, RowPlan& plan, Keep keep, LayerOutput& output);
void layer_bwd(const LayerInput& input, RowPlan& plan, const LayerOutput& kept,
               const LayerOutputGrads& grads, LayerNeeds needs, LayerGrads& result);
void cell_fwd(const CellInput& input, CellOutput& output);
void cell_bwd(const CellInput& input, const CellOutput& kept, const std::optional<Tensor>& grad_h,
              Tensor& carry, CellNeeds needs, CellGrads& result);

}  // namespace cuda
}  // namespace fastlstm
