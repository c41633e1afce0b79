#include "biases.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/sum.h>
#include <ATen/ops/zeros_like.h>

#include "../../layer/backend.h"

namespace fastlstm {
namespace cuda {

using at::Tensor;

Tensor packed_bias(CellKind kind, const std::optional<Tensor>& b_ih,
                   const std::optional<Tensor>& b_hh, at::ScalarType type) {
  if (!b_ih && !b_hh) return Tensor();
  const CellTraits& cell = kCellTraits[kind];
  const Tensor ih = (b_ih ? *b_ih : at::zeros_like(*b_hh)).to(type);
  const Tensor hh = (b_hh ? *b_hh : at::zeros_like(*b_ih)).to(type);
  if (cell.separate == 0) return ih + hh;
  const int64_t G = ih.size(0), apart = G / cell.gates * cell.separate, shared = G - apart;
  return at::cat({ih.narrow(0, 0, shared) + hh.narrow(0, 0, shared), ih.narrow(0, shared, apart),
                  hh.narrow(0, shared, apart)});
}

void copy_bias_grads(CellKind kind, const Tensor& dgates, const Tensor& db_ih,
                     const Tensor& db_hh) {
  const CellTraits& cell = kCellTraits[kind];
  const int64_t Q = dgates.size(1), H = Q / cell.dgates, G = cell.gates * H;
  const int64_t apart = cell.separate * H, shared = G - apart;
  const Tensor db = at::sum(dgates, 0, /*keepdim=*/false, state_type(dgates.scalar_type()));
  if (db_hh.defined()) db_hh.copy_(db.narrow(0, 0, G));
  if (db_ih.defined()) {
    db_ih.narrow(0, 0, shared).copy_(db.narrow(0, 0, shared));
    db_ih.narrow(0, shared, apart).copy_(db.narrow(0, Q - apart, apart));
  }
}

}  // namespace cuda
}  // namespace fastlstm
