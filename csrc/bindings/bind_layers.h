#pragma once

#include <torch/csrc/utils/pybind.h>

#include <string>

#include "../cells/cells.h"

namespace fastlstm {

// By the mode of its traits. Throws ValueError for another word.
CellKind cell_kind(const std::string& mode);

// layer_fwd, layer_bwd, cell_fwd and cell_bwd.
void bind_layers(pybind11::module_& m);

}  // namespace fastlstm
