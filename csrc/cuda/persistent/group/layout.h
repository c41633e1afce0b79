// How a group of blocks divides a layer (group.h), and what a block needs of shared memory for
// that. Host code chooses by these numbers, kernels lay out their memory by them.
//
// A block computes `units` units of `rows` rows of the batch, and has their rows of W_hh on the
// chip. Those make tiles of 16 rows for mma, each of 16 units of one gate. Everything of W_hh comes
// in blocks of 64 bytes of a row (operands.cuh); a lane holds 32 bytes of a tile of such a block.
#pragma once

#include <stddef.h>
#include <stdint.h>

#include "../../../cells/cells.h"
#include "../tiles.h"

namespace fastlstm {
namespace cuda {

constexpr int kGroupWarps = 8, kGroupThreads = 32 * kGroupWarps;
// That are multiplied together, so that what of W is in shared memory is read once for both.
constexpr int kRowTilesTogether = 2;
constexpr int kLaneBytes = 32;
constexpr int kUnitsChoices[] = {16, 32, 48};
constexpr int64_t kMostUnits = 8192;

// Through what blocks exchange their part of a step.
enum class Exchange {
  kCluster,  // shared memory of the blocks of a cluster
  kGrid,     // global memory, which stays in L2
};

struct GroupPlan {
  int units;   // of a block: one of kUnitsChoices
  int blocks;  // of a group; units * blocks >= H
  int rows;    // of the batch in a tile, which a group computes: a multiple of 8
  int groups;  // at once. A tile in one direction is a job; each takes every groups-th
};

// Forward: K = H. The warps are warps_m by warps_k: each has `tiles` tiles, and every warps_k-th
// block of K; the first register_blocks of those are in registers. Sums of a split K go through
// shared memory, so more of warps_k cost more there, and less for reading h.
struct FwdSplit {
  int tiles, warps_m, warps_k, register_blocks;
};

// Registers: 8 for each tile of a block of W. What sm_80 and sm_90 hold without spills; of kTf32x3,
// whose operands are taken apart in registers, less.
FASTLSTM_HOST_DEVICE constexpr FwdSplit fwd_split(int gates, int units, Operands operands) {
  const bool x3 = operands == Operands::kTf32x3;
  return gates == 4   ? (units == 16   ? FwdSplit{2, 2, 4, x3 ? 6 : 8}
                         : units == 32 ? FwdSplit{2, 4, 2, x3 ? 5 : 8}
                                       : FwdSplit{3, 4, 2, x3 ? 1 : 5})
         : gates == 3 ? (units == 16   ? FwdSplit{3, 1, 8, x3 ? 3 : 5}
                         : units == 32 ? FwdSplit{3, 2, 4, x3 ? 3 : 5}
                                       : FwdSplit{5, 2, 4, x3 ? 1 : 2})
         : gates == 2 ? (units == 16   ? FwdSplit{2, 1, 8, x3 ? 6 : 8}
                         : units == 32 ? FwdSplit{2, 2, 4, x3 ? 6 : 8}
                                       : FwdSplit{3, 2, 4, x3 ? 3 : 5})
                      : (units == 16   ? FwdSplit{1, 1, 8, 12}
                         : units == 32 ? FwdSplit{1, 2, 4, 12}
                                       : FwdSplit{3, 1, 8, x3 ? 3 : 5});
}

// Blocks of K that a warp takes between two looks at whether there are more.
FASTLSTM_HOST_DEVICE constexpr int fwd_stride(const FwdSplit& split) {
  return split.warps_k >= 4 ? 1 : 2;
}

// Backward: K is the gates of the block, M = H. Every warp has every 8th tile; the first
// register_tiles of those are in registers.
struct BwdSplit {
  int blocks, register_tiles;
};

// Reading what other blocks sent through L2 takes registers as well.
FASTLSTM_HOST_DEVICE constexpr BwdSplit bwd_split(int gates, int units, Operands operands,
                                                  Exchange exchange) {
  const int blocks = ceil_div(gates * units * bytes_of(operands), kBlockBytes);
  const int registers = exchange == Exchange::kCluster  ? 128
                        : operands == Operands::kTf32x3 ? 48
                                                        : 96;
  const int tiles = registers / (8 * blocks);
  const int most = exchange == Exchange::kCluster ? 8 : 5;
  return {blocks, tiles > most ? most : tiles};
}

// Where the parts of a block's shared memory begin, in bytes. For H of at most kMostUnits.
struct FwdLayout {
  int k_blocks, row_bytes, tile_bytes, partial_stride;
  int tiles, partials, staging, igates, state, bias, queue, barriers, end;
};

FASTLSTM_HOST_DEVICE FwdLayout fwd_layout(CellTraits cell, Operands operands, Exchange exchange,
                                          int H, const GroupPlan& plan) {
  const FwdSplit split = fwd_split(cell.gates, plan.units, operands);
  const int element_bytes = bytes_of(operands);
  const int stride = fwd_stride(split) * split.warps_k, cells = plan.rows * plan.units;
  FwdLayout l{};
  l.k_blocks = ceil_div(H * element_bytes, kBlockBytes);
  // h of all units, whether they exist or not, and of what warps multiply beyond.
  const int width = ceil_div(plan.units * plan.blocks * element_bytes, kBlockBytes);
  const int multiplied = round_up(l.k_blocks, stride);
  l.row_bytes = padded_row_bytes(width > multiplied ? width : multiplied);
  l.tile_bytes = plan.rows * l.row_bytes;
  l.partial_stride = round_up(cell.gates * plan.units, 32);
  const int blocks = ceil_div(l.k_blocks, split.warps_k) - split.register_blocks;
  // One at least: on their way to registers they pass here.
  l.tiles = (blocks > 1 ? blocks : 1) * split.tiles * kLaneBytes * kGroupThreads;
  l.partials = l.tiles + (exchange == Exchange::kCluster ? 2 : 1) * l.tile_bytes;
  l.staging = l.partials + split.warps_k * plan.rows * l.partial_stride * 4;
  l.igates = l.staging + cells * element_bytes;
  l.state = l.igates + cells * cell.gates * 4;
  l.bias = l.state + cells * 4;
  l.queue = l.bias + (cell.gates + cell.separate) * plan.units * 4;
  l.barriers = l.queue + kQueueSteps * plan.rows * kQueueRowBytes;
  l.end = l.barriers + 16;
  return l;
}

// A job is a tile of so many rows in one direction.
FASTLSTM_HOST_DEVICE int64_t job_count(int64_t N, int directions, int rows) {
  return directions * ceil_div<int64_t>(N, rows);
}

// A slot for h of every step of a launch, of every job; that of the last is not used.
FASTLSTM_HOST_DEVICE int64_t grid_fwd_exchange_bytes(int64_t jobs, int64_t steps, int element_bytes,
                                                     const GroupPlan& plan) {
  return jobs * steps * plan.rows * plan.units * plan.blocks * element_bytes;
}

// How many of T steps a grid runs in one launch: what its blocks exchange is a part of L2, from
// where they read it.
FASTLSTM_HOST_DEVICE int64_t grid_fwd_steps(int64_t jobs, int element_bytes, const GroupPlan& plan,
                                            int64_t T) {
  constexpr int64_t kExchangeBytes = 16 << 20;
  const int64_t steps = kExchangeBytes / grid_fwd_exchange_bytes(jobs, 1, element_bytes, plan);
  return steps < 1 ? 1 : steps < T ? steps : T;
}

// In how many parts a block of a grid adds up what others have sent to it: as many as give every
// thread 16 bytes of 8 rows. The same for more rows, whose bits shall not depend on how many they
// are.
FASTLSTM_HOST_DEVICE constexpr int grid_sum_parts(int units) {
  return kGroupThreads * 4 / (kRowTile * units);
}

struct BwdLayout {
  int m_tiles, row_bytes, tile_bytes, sums_bytes;
  int tiles, sums, dh, carry, state, queue, barriers, end;
};

FASTLSTM_HOST_DEVICE BwdLayout bwd_layout(CellTraits cell, Operands operands, Exchange exchange,
                                          const GroupPlan& plan) {
  const BwdSplit split = bwd_split(cell.gates, plan.units, operands, exchange);
  const int cells = plan.rows * plan.units;
  BwdLayout l{};
  l.m_tiles = plan.units * plan.blocks / kMmaRows;
  l.row_bytes = padded_row_bytes(split.blocks);
  l.tile_bytes = plan.rows * l.row_bytes;
  const int tiles = ceil_div(l.m_tiles, kGroupWarps) - split.register_tiles;
  l.tiles = (tiles > 1 ? tiles : 1) * split.blocks * kLaneBytes * kGroupThreads;
  l.sums = l.tiles + 2 * l.tile_bytes;
  // Of dh: what every block of the cluster sends, twice; or the sums of what those of a grid sent.
  l.sums_bytes = 4 * cells;
  const int parts = exchange == Exchange::kCluster ? 2 * plan.blocks : grid_sum_parts(plan.units);
  l.dh = l.sums + parts * l.sums_bytes;
  l.carry = l.dh + 4 * cells;
  l.state = l.carry + (cell.has_carry ? 4 * cells : 0);
  l.queue = l.state + 4 * cells;
  l.barriers = l.queue + kQueueSteps * plan.rows * kQueueRowBytes;
  l.end = l.barriers + 16;
  return l;
}

}  // namespace cuda
}  // namespace fastlstm
