// The launches of group.h.
#pragma once

#include <iterator>
#include <stdexcept>
#include <string>

#include "../collect.cuh"
#include "bwd.cuh"
#include "fwd.cuh"

namespace fastlstm {
namespace cuda {

template <class Job, Exchange kExchange>
FASTLSTM_KERNEL void FASTLSTM_LAUNCH_BOUNDS(kGroupThreads, 1)
    group_kernel(const typename Job::Params p) {
  if constexpr (kExchange == Exchange::kCluster && !device::kHasClusters) {
    device::trap("clusters need sm_90");
  } else if constexpr (kExchange == Exchange::kCluster) {
    const GroupPlace here(p.plan);
    Job work(p, here, here.group);
    work();
    // A block has all that was sent to it when it gets here, but what it sent may still be under
    // way, and CUDA wants accesses to other blocks done before one leaves.
    device::cluster_sync();
  } else {
    const GroupPlace here(p.plan);
    const int64_t jobs = job_count(p.sequence.rows.N, p.sequence.directions, p.plan.rows);
    for (int64_t job = here.group; job < jobs; job += p.plan.groups) {
      Job work(p, here, job);
      work();
      device::sync_block();
    }
  }
}

template <class P>
using GroupKernel = void (*)(P);

template <class P>
void launch_group(GroupKernel<P> kernel, Exchange exchange, int64_t shared_bytes, const P& p,
                  cudaStream_t stream) {
  const dim3 grid(static_cast<unsigned>(p.plan.groups * p.plan.blocks), 1, 1);
  const dim3 block(kGroupThreads, 1, 1);
  if (exchange == Exchange::kCluster) {
    device::launch_cluster(kernel, grid, block, shared_bytes, stream, p, p.plan.blocks);
  } else {
    device::launch_cooperative(kernel, grid, block, shared_bytes, stream, p);
  }
}

// What the plan of a launch must hold for a layer of H units.
template <class S>
void check_plan(const GroupPlan& plan, Exchange exchange, const SequenceRows& rows,
                int directions) {
  const auto check = [](bool holds, const std::string& what) {
    if (!holds) throw std::invalid_argument("plan of a group: " + what);
  };
  check(plan.blocks > 0 && plan.groups > 0, "blocks and groups must be positive");
  check(exchange == Exchange::kGrid || Operand<S>::kKind != Operands::kTf32x3,
        "no cluster has exact products of float32");
  // Stores into a cluster of one are undefined.
  check(exchange == Exchange::kGrid || plan.blocks > 1, "a cluster has two blocks at least");
  check(plan.rows > 0 && plan.rows <= kGroupThreads && plan.rows % kRowTile == 0,
        "rows must be a multiple of 8 up to 256, got " + std::to_string(plan.rows));
  const int64_t H = rows.H, jobs = job_count(rows.N, directions, plan.rows);
  check(exchange == Exchange::kGrid || plan.groups == jobs,
        "a cluster takes one job: " + std::to_string(plan.groups) + " clusters for " +
            std::to_string(jobs));
  check(int64_t{plan.units} * plan.blocks >= H,
        std::to_string(plan.units * plan.blocks) + " units of " + std::to_string(H));
}

template <template <class> class Cell, class S, int kUnits>
GroupKernel<GroupFwd<S>> fwd_kernel(Exchange exchange) {
  if constexpr (Operand<S>::kKind != Operands::kTf32x3) {
    if (exchange == Exchange::kCluster)
      return &group_kernel<GroupFwdJob<Cell, S, kUnits, ClusterGather>, Exchange::kCluster>;
  }
  return &group_kernel<GroupFwdJob<Cell, S, kUnits, GridGather>, Exchange::kGrid>;
}
template <template <class> class Cell, class S, int kUnits>
GroupKernel<GroupBwd<S>> bwd_kernel(Exchange exchange) {
  if constexpr (Operand<S>::kKind != Operands::kTf32x3) {
    if (exchange == Exchange::kCluster)
      return &group_kernel<GroupBwdJob<Cell, S, kUnits, ClusterScatter>, Exchange::kCluster>;
  }
  return &group_kernel<GroupBwdJob<Cell, S, kUnits, GridScatter>, Exchange::kGrid>;
}

// The kernel for the units of a plan, from one for each of kUnitsChoices.
template <class Kernel>
Kernel of_units(const GroupPlan& plan, const Kernel (&kernels)[std::size(kUnitsChoices)]) {
  for (size_t i = 0; i < std::size(kUnitsChoices); ++i)
    if (plan.units == kUnitsChoices[i]) return kernels[i];
  throw std::invalid_argument("plan of a group: no kernel has " + std::to_string(plan.units) +
                              " units a block");
}

template <template <class> class Cell, class S>
GroupKernel<GroupFwd<S>> fwd_kernel(Exchange exchange, const GroupPlan& plan) {
  return of_units<GroupKernel<GroupFwd<S>>>(
      plan, {fwd_kernel<Cell, S, 16>(exchange), fwd_kernel<Cell, S, 32>(exchange),
             fwd_kernel<Cell, S, 48>(exchange)});
}
template <template <class> class Cell, class S>
GroupKernel<GroupBwd<S>> bwd_kernel(Exchange exchange, const GroupPlan& plan) {
  return of_units<GroupKernel<GroupBwd<S>>>(
      plan, {bwd_kernel<Cell, S, 16>(exchange), bwd_kernel<Cell, S, 32>(exchange),
             bwd_kernel<Cell, S, 48>(exchange)});
}

template <class S, template <class> class... Cells>
GroupKernel<GroupFwd<S>> fwd_kernel(CellList<Cells...>, CellKind cell, Exchange exchange,
                                    const GroupPlan& plan) {
  using Find = GroupKernel<GroupFwd<S>> (*)(Exchange, const GroupPlan&);
  static constexpr Find kFind[] = {&fwd_kernel<Cells, S>...};
  return kFind[cell](exchange, plan);
}
template <class S, template <class> class... Cells>
GroupKernel<GroupBwd<S>> bwd_kernel(CellList<Cells...>, CellKind cell, Exchange exchange,
                                    const GroupPlan& plan) {
  using Find = GroupKernel<GroupBwd<S>> (*)(Exchange, const GroupPlan&);
  static constexpr Find kFind[] = {&bwd_kernel<Cells, S>...};
  return kFind[cell](exchange, plan);
}

template <class S>
void group_fwd(CellKind cell, Exchange exchange, const GroupFwd<S>& p, cudaStream_t stream) {
  check_plan<S>(p.plan, exchange, p.sequence.rows, p.sequence.directions);
  const FwdLayout layout = fwd_layout(kCellTraits[cell], Operand<S>::kKind, exchange,
                                      static_cast<int>(p.sequence.rows.H), p.plan);
  launch_group(fwd_kernel<S>(AllCells{}, cell, exchange, p.plan), exchange, layout.end, p, stream);
}

template <class S>
void group_bwd(CellKind cell, Exchange exchange, const GroupBwd<S>& p, cudaStream_t stream) {
  check_plan<S>(p.plan, exchange, p.sequence.rows, p.sequence.directions);
  collect_h(p.sequence, stream);
  const BwdLayout layout = bwd_layout(kCellTraits[cell], Operand<S>::kKind, exchange, p.plan);
  launch_group(bwd_kernel<S>(AllCells{}, cell, exchange, p.plan), exchange, layout.end, p, stream);
}

#define FASTLSTM_INSTANTIATE_GROUP_FWD(S) \
  template void group_fwd<S>(CellKind, Exchange, const GroupFwd<S>&, cudaStream_t);
#define FASTLSTM_INSTANTIATE_GROUP_BWD(S) \
  template void group_bwd<S>(CellKind, Exchange, const GroupBwd<S>&, cudaStream_t);

}  // namespace cuda
}  // namespace fastlstm
