#pragma once

#include <torch/csrc/utils/pybind.h>

namespace fastlstm {
namespace cuda {

// cuda_choice: which kernels a layer would take.
void bind_choice(pybind11::module_& m);

}  // namespace cuda
}  // namespace fastlstm
