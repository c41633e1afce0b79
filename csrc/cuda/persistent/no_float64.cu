#include <stdexcept>

#include "block/block.h"
#include "group/group.h"

// Tensor cores have no float64 of these shapes.
namespace fastlstm {
namespace cuda {
template <>
size_t block_fwd_shared_bytes<double>(CellKind, int64_t, bool) {
  return 0;
}
template <>
size_t block_bwd_shared_bytes<double>(CellKind, int64_t, bool) {
  return 0;
}
template <>
void block_fwd<double>(CellKind, const SequenceFwd<double>&, cudaStream_t) {
  throw std::invalid_argument("block_fwd: takes no float64");
}
template <>
void block_bwd<double>(CellKind, const SequenceBwd<double>&, cudaStream_t) {
  throw std::invalid_argument("block_bwd: takes no float64");
}
template <>
void group_fwd<double>(CellKind, Exchange, const GroupFwd<double>&, cudaStream_t) {
  throw std::invalid_argument("group_fwd: takes no float64");
}
template <>
void group_bwd<double>(CellKind, Exchange, const GroupBwd<double>&, cudaStream_t) {
  throw std::invalid_argument("group_bwd: takes no float64");
}
}  // namespace cuda
}  // namespace fastlstm
