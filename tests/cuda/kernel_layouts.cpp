// Prints what the persistent kernels need of a device: a line for each, with the largest H that it
// has room for, the threads of a block there, and its bytes of shared memory. H is 0 where no H
// fits.
//
//     kernel_layouts MULTIPROCESSORS KIB CLUSTER
//     family direction cell operands size H threads bytes
//
// KIB: of shared memory that a block may have. CLUSTER: the most blocks of a cluster, 0 without
// them. size: the units of a block of a group; of one block alone, the largest H of its class.
#include <stdio.h>
#include <stdlib.h>

#include <initializer_list>

#include "cuda/persistent/block/bwd.cuh"
#include "cuda/persistent/block/fwd.cuh"
#include "cuda/persistent/group/layout.h"

using namespace fastlstm;
using namespace fastlstm::cuda;

namespace {

struct Limits {
  int multiprocessors, shared_bytes, most_cluster;
};

constexpr const char* kOperandNames[] = {"16-bit", "TF32", "float32"};

struct Fit {
  int H, threads;
  size_t bytes;
};

void print(const char* family, bool backward, CellKind cell, Operands operands, int size, Fit fit) {
  printf("%s %s %s %s %d %d %d %zu\n", family, backward ? "backward" : "forward",
         kCellTraits[cell].mode, kOperandNames[static_cast<int>(operands)], size, fit.H,
         fit.threads, fit.bytes);
}

// Blocks that H units take, 0 where no group has so many.
int blocks_of_group(const Limits& device, Exchange exchange, int units, int H) {
  const int needed = ceil_div(H, units);
  if (exchange == Exchange::kGrid) return needed <= device.multiprocessors ? needed : 0;
  int blocks = 2;
  while (blocks < needed) blocks *= 2;
  return blocks <= device.most_cluster ? blocks : 0;
}

Fit group_fit(const Limits& device, bool backward, Exchange exchange, CellKind cell,
              Operands operands, int units) {
  Fit best{};
  for (int H = 1; H <= kMostUnits; ++H) {
    const GroupPlan plan = {units, blocks_of_group(device, exchange, units, H), kRowTile, 1};
    if (plan.blocks == 0) break;
    const CellTraits& traits = kCellTraits[cell];
    const int bytes = backward ? bwd_layout(traits, operands, exchange, plan).end
                               : fwd_layout(traits, operands, exchange, H, plan).end;
    if (bytes <= device.shared_bytes) best = {H, kGroupThreads, static_cast<size_t>(bytes)};
  }
  return best;
}

void print_groups(const Limits& device) {
  for (const Exchange exchange : {Exchange::kCluster, Exchange::kGrid})
    for (const bool backward : {false, true})
      for (int i = 0; i < kNumCells; ++i)
        for (const Operands operands : {Operands::k16Bit, Operands::kTf32, Operands::kTf32x3})
          for (const int units : kUnitsChoices) {
            if (exchange == Exchange::kCluster && operands == Operands::kTf32x3) continue;
            const auto cell = static_cast<CellKind>(i);
            print(exchange == Exchange::kCluster ? "cluster" : "grid", backward, cell, operands,
                  units, group_fit(device, backward, exchange, cell, operands, units));
          }
}

template <class Block>
void print_block(const Limits& device, bool backward, CellKind cell, Operands operands, int least) {
  const int most = static_cast<int>(Block::kShape.units());
  Fit best{};
  for (int H = least; H <= most; ++H) {
    const auto layout = Block::layout(H);
    const size_t bytes = layout.words() * sizeof(uint32_t) + Block::kQueueBytes;
    if (bytes <= static_cast<size_t>(device.shared_bytes)) best = {H, layout.threads, bytes};
  }
  print("block", backward, cell, operands, most, best);
}

template <template <class> class Cell, class S, int kIndex = 0>
void print_classes(const Limits& device, CellKind cell, Operands operands, int fwd_least = 1,
                   int bwd_least = 1) {
  if constexpr (kIndex < kShapeCount) {
    constexpr int kGates = Cell<Lane<float>>::kGates;
    constexpr BlockShape kFwd = fwd_shape<S>(kGates, kIndex), kBwd = bwd_shape<S>(kGates, kIndex);
    if constexpr (kFwd.warps > 0)
      print_block<BlockFwd<Cell, S, kIndex>>(device, false, cell, operands, fwd_least);
    if constexpr (kBwd.warps > 0)
      print_block<BlockBwd<Cell, S, kIndex>>(device, true, cell, operands, bwd_least);
    print_classes<Cell, S, kIndex + 1>(device, cell, operands, static_cast<int>(kFwd.units()) + 1,
                                       static_cast<int>(kBwd.units()) + 1);
  }
}

template <class S, template <class> class... Cells>
void print_blocks(const Limits& device, Operands operands, CellList<Cells...>) {
  int kind = 0;
  (print_classes<Cells, S>(device, static_cast<CellKind>(kind++), operands), ...);
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 4) return 2;
  const Limits device = {atoi(argv[1]), atoi(argv[2]) * 1024, atoi(argv[3])};
  print_blocks<BFloat16>(device, Operands::k16Bit, AllCells{});
  print_blocks<float>(device, Operands::kTf32, AllCells{});
  print_groups(device);
}
