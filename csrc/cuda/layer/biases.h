// Biases as the kernels of a step want them, and their gradients from dgates.
#pragma once

#include <ATen/core/Tensor.h>

#include <optional>

#include "../../cells/cells.h"

namespace fastlstm {
namespace cuda {

// [(G + separate) * H]: b_ih + b_hh, but of the gates that keep them apart b_ih, then b_hh.
// Undefined without any. `type`: that of sums.
at::Tensor packed_bias(CellKind cell, const std::optional<at::Tensor>& b_ih,
                       const std::optional<at::Tensor>& b_hh, at::ScalarType type);

// Sums of the rows of dgates [rows, Q * H], into those of db_ih and db_hh [G * H] that are defined.
void copy_bias_grads(CellKind cell, const at::Tensor& dgates, const at::Tensor& db_ih,
                     const at::Tensor& db_hh);

}  // namespace cuda
}  // namespace fastlstm
