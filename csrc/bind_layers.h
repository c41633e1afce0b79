#pragma once

#include <torch/csrc/utils/pybind.h>

namespace fastlstm {

// layer_fwd, layer_bwd, cell_fwd and cell_bwd.
void bind_layers(pybind11::module_& m);

}  // namespace fastlstm
