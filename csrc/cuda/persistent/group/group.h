// A group of blocks a batch tile: each has the rows of W_hh of some units on the chip for the whole
// sequence, and they exchange their part of every step. For H too large for one block.
//
// Forward, each block computes h of its units and gives it to all blocks. Backward, each multiplies
// dgates of its units with its rows of W_hh, and gives what that adds to dh of a unit to the block
// that has the unit.
#pragma once

#include <string.h>

#include "../../device/float3x.h"
#include "../sequence.h"
#include "layout.h"

namespace fastlstm {
namespace cuda {

template <class S>
struct GroupFwd {
  SequenceFwd<S> sequence;
  GroupPlan plan;
  // kGrid: grid_fwd_exchange_bytes, every word of them kNotSent. 16-byte aligned.
  void* exchange;
};

template <class S>
struct GroupBwd {
  SequenceBwd<S> sequence;  // with w_hh_t
  GroupPlan plan;
  // kGrid: grid_bwd_exchange_bytes, 16-byte aligned; and a zero for each job, kCounterStride apart.
  void* exchange;
  unsigned* counters;
};

// A word that no block sends: as float and as two 16-bit numbers a NaN that is stored as another.
constexpr uint32_t kNotSent = 0xffffffffu;
// In words: a line of L2 for each counter.
constexpr int kCounterStride = 32;

// From every block to every block of each group, twice.
FASTLSTM_HOST_DEVICE int64_t grid_bwd_exchange_bytes(const GroupPlan& plan) {
  return int64_t{2} * 4 * plan.groups * plan.blocks * plan.blocks * plan.rows * plan.units;
}

// The same with products of Float3x, which is laid out as float.
template <template <class> class Group>
Group<Float3x> with_exact_products(const Group<float>& p) {
  Group<Float3x> exact;
  static_assert(sizeof exact == sizeof p, "Float3x is laid out as float");
  memcpy(&exact, &p, sizeof exact);
  return exact;
}

// S: double has no kernels. float is rounded to TF32, Float3x not.
// Throw std::invalid_argument for a plan whose shape does not exist, std::runtime_error where the
// device refuses the launch: too much shared memory, or blocks that cannot all be resident.
template <class S>
void group_fwd(CellKind cell, Exchange exchange, const GroupFwd<S>& p, cudaStream_t stream);
template <class S>
void group_bwd(CellKind cell, Exchange exchange, const GroupBwd<S>& p, cudaStream_t stream);

}  // namespace cuda
}  // namespace fastlstm
