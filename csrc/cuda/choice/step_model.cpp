// The constants of the model are published numbers and estimates: none of them, and none of what
// comes of them, was measured here.
#include "step_model.h"

#include <algorithm>

namespace fastlstm {
namespace cuda {
namespace {

// ---- The constants ----
// In clocks of a multiprocessor, and in bytes a clock that one multiprocessor gets when all are at
// it. Those of an H100, for every GPU: what matters is how they compare with one another.

constexpr double kClocksPerUs = 1755;  // data sheet

// Luo et al. 2024 (arXiv 2402.13499), H800: a load from shared memory; from that of another block
// of the cluster.
constexpr double kSharedLatency = 29, kClusterLatency = 180;
// Looks at memory until what comes is seen, on average: one is under way when it comes.
constexpr double kLooks = 1.5;
// A store to L2, and looks at it: 0.35 us, an estimate from the 263 clocks of a load (Luo et al.).
constexpr double kFlagLatency = 614;
// A barrier on a counter in L2: 0.75 us. That of cooperative groups took 0.73 us on an RTX 3090
// (MegaQwen, RESULTS.md).
constexpr double kCounterLatency = 1316;
constexpr double kBlockBarrier = 40;  // an estimate
constexpr double kMmaLatency = 33;    // until another mma can add to the same sum; unconfirmed

constexpr double kSharedBytes = 128;  // 32 banks of 4 bytes
constexpr double kL2Bytes = 24;       // 5.5 TB/s over 132 (Chips and Cheese 2023, H100 PCIe)
constexpr double kPortBytes = 64;     // from L2 while others are idle; unconfirmed
constexpr double kMemoryBytes = 13;   // 3 TB/s over 132
// Between the blocks of a cluster: 2.65 TB/s over 132, in clusters of 4 (Luo et al.). In clusters
// of 2 it was 3.27 TB/s; of larger ones nothing is known.
constexpr double kClusterBytes = 11;

// Of kTf32x3, to take the operands of an mma apart and to add up what comes of it: some 46
// instructions of a warp, of which there are four a clock. An estimate.
constexpr double kTakeApart = 11.5;

// A cell: for each gate exp and 1 / x, of which there are 16 a clock, and some ten instructions, of
// 128 a clock. And what one takes from begin to end, exp, 1 / x and tanh one after the other: as
// the instructions for sm_90 read. Estimates.
constexpr double kClocksPerGate = 0.25, kCellLatency = 370;

// From one launch to the next: 1.54 us on an RTX 3090 (MegaQwen, RESULTS.md).
constexpr double kLaunch = 2700;
// Before the first step registers get W in some eight turns, each a way to memory. An estimate.
constexpr double kFillLatency = 8 * 600;
// Of a step by itself: its launches, and what the host does for them. An estimate.
constexpr double kStepwiseLatency = 8 * kClocksPerUs;

// mma, of m16n8k16 or with TF32 m16n8k8, a clock: from data sheets. On sm_90 mma gets to 62 % of
// the peak, as wgmma alone gets further (unconfirmed); of sm_100 no more is known. GeForce cards
// have this, others of sm_86, sm_89 and sm_120 twice as much.
double mma_per_clock(const DeviceProperties& device) {
  if (device.capability < 80) return 0.25;
  if (device.capability < 86) return 0.5;
  if (device.capability < 90 || device.capability >= 120) return 0.125;
  return 0.62;
}

}  // namespace

std::optional<Operands> operands_of(const Problem& p, const DeviceProperties& device) {
  switch (p.element_bytes) {
    case 2:
      if (device.compiled_for >= (p.is_bfloat16 ? 80 : 75)) return Operands::k16Bit;
      return std::nullopt;
    case 4:
      if (device.compiled_for >= 80) return p.tf32 ? Operands::kTf32 : Operands::kTf32x3;
      return std::nullopt;
    default:
      return std::nullopt;
  }
}

namespace {

// Of a product of torch.
double multiply_adds_per_clock(const Problem& problem, const DeviceProperties& device) {
  constexpr double kOfMma = 16 * 8 * 16, kOfCores = 64;  // of 16-bit and of 64-bit operands
  const std::optional<Operands> operands = operands_of(problem, device);
  return operands && *operands != Operands::kTf32x3
             ? mma_per_clock(device) * kOfMma * 2 / problem.element_bytes
             : kOfCores * 8 / problem.element_bytes;
}

int gates_of(const Problem& p) { return kCellTraits[p.cell].gates; }

// ---- What a step takes ----

// What a block does in a step.
struct Work {
  int mma;        // of the block
  int chain;      // of mma of a warp that wait for each other
  int read;       // bytes of W and of the other operand, from shared memory
  int exchanged;  // bytes that the block gets from all blocks of its group
  int added;      // bytes of partial sums through shared memory, there and back
  int cells;
};

// D[M, 8] = W[M, K] X[8, K]^T, for eight rows of the batch.
Work block_work(const Problem& p) {
  const int H = static_cast<int>(p.H), gated = gates_of(p) * H;
  const int M = p.backward ? H : gated, K = p.backward ? gated : H;
  const int tiles = ceil_div(M, kMmaRows), k_blocks = ceil_div(K * p.element_bytes, kBlockBytes);
  const int warps = ceil_div(H, p.backward ? 16 : 8);  // persistent/block/shape.cuh, mostly
  Work w{};
  w.mma = 2 * tiles * k_blocks;
  w.chain = w.mma / std::max(16, tiles);  // ResidentMatrix: 16 sums at least
  // What is not in registers is in shared memory, and little else.
  w.read = warps * kRowTile * padded_row_bytes(k_blocks) + static_cast<int>(p.block_shared_bytes);
  w.cells = kRowTile * H;
  return w;
}

// How often W is read.
int passes(const GroupPlan& plan) { return ceil_div(plan.rows, kRowTilesTogether * kRowTile); }

Work fwd_work(const Problem& p, Operands operands, const GroupPlan& plan, const FwdLayout& layout) {
  const FwdSplit split = fwd_split(gates_of(p), plan.units, operands);
  const int k_blocks = ceil_div(layout.k_blocks, split.warps_k);  // of a warp
  const int in_shared = std::max(0, k_blocks - split.register_blocks);
  const int operand = plan.rows * layout.k_blocks * kBlockBytes;
  const int partials = split.warps_k * plan.rows * layout.partial_stride * 4;
  Work w{};
  w.mma = 2 * kGroupWarps * split.tiles * k_blocks * (plan.rows / kRowTile);
  w.chain = 2 * k_blocks * passes(plan);
  w.read =
      split.warps_m * operand + in_shared * split.tiles * kLaneBytes * kGroupThreads * passes(plan);
  w.exchanged = plan.rows * static_cast<int>(p.H) * p.element_bytes;
  w.added = 2 * partials;
  w.cells = plan.rows * plan.units;
  return w;
}

Work bwd_work(const Problem& p, Operands operands, Exchange exchange, const GroupPlan& plan,
              const BwdLayout& layout) {
  const BwdSplit split = bwd_split(gates_of(p), plan.units, operands, exchange);
  const int tiles = ceil_div(layout.m_tiles, kGroupWarps);  // of a warp
  const int in_registers = std::min(tiles, split.register_tiles);
  const int in_shared = tiles - in_registers;
  const int turns = ceil_div(in_registers, 2) + in_shared;  // those in registers two at a time
  Work w{};
  w.mma = 2 * kGroupWarps * split.blocks * tiles * (plan.rows / kRowTile);
  w.chain = 2 * split.blocks * turns * passes(plan);
  w.read = kGroupWarps * turns * layout.tile_bytes +
           in_shared * split.blocks * kLaneBytes * kGroupThreads * passes(plan);
  w.exchanged = 4 * plan.rows * plan.units * plan.blocks;
  w.added = exchange == Exchange::kCluster ? w.exchanged : 0;
  w.cells = plan.rows * plan.units;
  return w;
}

double compute_clocks(const Work& w, const Problem& p, const DeviceProperties& device) {
  const bool exact = operands_of(p, device) == Operands::kTf32x3;
  const double mma_clocks =
      exact ? 3 / mma_per_clock(device) + kTakeApart : 1 / mma_per_clock(device);
  const double mma = std::max(w.mma * mma_clocks, w.chain * kMmaLatency * (exact ? 3 : 1));
  const double product = std::max(mma, w.read / kSharedBytes);
  const double cells = kCellLatency + w.cells * gates_of(p) * kClocksPerGate;
  return product + w.added / kSharedBytes + cells + kBlockBarrier;
}

double cluster_clocks(const Work& w) {
  return kClusterLatency + kLooks * kSharedLatency + w.exchanged / kClusterBytes;
}

// blocks: all that run at once, which share the bandwidth of L2. Forward reads what others wrote,
// in words that say themselves whether they have come. Backward writes, waits, and reads.
double grid_clocks(const Work& w, const Problem& p, const DeviceProperties& device, int blocks) {
  const double all = static_cast<double>(w.exchanged) * blocks / device.multiprocessors;
  const double bytes = std::max(w.exchanged / kPortBytes, all / kL2Bytes);
  return kBlockBarrier + (p.backward ? kCounterLatency + 2 * bytes : kFlagLatency + bytes);
}

// What comes before the first step: W on its way to the block that has the rows of `units` units.
double load_clocks(const Problem& p, double units) {
  return kFillLatency + gates_of(p) * units * static_cast<double>(p.H) * p.element_bytes / kL2Bytes;
}

// Of all rows.
double units_of(const Problem& p) { return 1.0 * p.directions * p.N * p.H; }

// What a step takes at least to read its input projections, float32, and to write what backward
// needs; backward is much the same.
double memory_clocks(const Problem& p, const DeviceProperties& device) {
  const int of_unit =
      gates_of(p) * (4 + p.element_bytes) + p.element_bytes + (kCellTraits[p.cell].has_c ? 4 : 0);
  return units_of(p) * of_unit / (kMemoryBytes * device.multiprocessors);
}

double microseconds(double clocks) { return clocks / kClocksPerUs; }

// What a run of several steps costs beside them.
struct Once {
  int64_t steps;  // of a launch
  int launches;   // the kernel, and what gets ready what it reads
  double load;    // of each wave
  double copies;  // before the kernel
};

// A step of all jobs, which take `waves` runs of what runs at once.
double persistent_us(const Problem& p, const DeviceProperties& device, double waves, double step,
                     const Once& once) {
  const double beside = once.launches * kLaunch + waves * once.load + once.copies;
  return microseconds(std::max(waves * step, memory_clocks(p, device)) + beside / once.steps);
}

// W_hh read and written once more.
double transposition_clocks(const Problem& p, const DeviceProperties& device) {
  const double elements = 1.0 * p.directions * gates_of(p) * p.H * p.H;
  return 2 * elements * p.element_bytes / (kMemoryBytes * device.multiprocessors);
}

}  // namespace

// Two launches; a product on all multiprocessors, for which W comes from L2 anew; and its sums
// through L2, beside what a step reads and writes anyway.
double stepwise_us(const Problem& p, const DeviceProperties& device) {
  const double weights = 1.0 * p.directions * gates_of(p) * p.H * p.H;
  const double product = std::max(weights * p.N / multiply_adds_per_clock(p, device),
                                  weights * p.element_bytes / kL2Bytes);
  const int summed = p.backward ? 1 : gates_of(p);  // of a unit
  const double sums = units_of(p) * summed * 2 * 4 / kL2Bytes;
  return microseconds(kStepwiseLatency + (product + sums) / device.multiprocessors +
                      memory_clocks(p, device));
}

double block_us(const Problem& p, const DeviceProperties& device, int64_t jobs) {
  const double step = compute_clocks(block_work(p), p, device) + kSharedLatency;
  return persistent_us(p, device, ceil_div<int64_t>(jobs, device.multiprocessors), step,
                       {p.T, 1, load_clocks(p, p.H), 0});
}

double group_us(const Problem& p, const DeviceProperties& device, Exchange exchange,
                const GroupPlan& plan, int64_t waves) {
  const CellTraits& cell = kCellTraits[p.cell];
  const int H = static_cast<int>(p.H);
  const Operands operands = operands_of(p, device).value();
  const Work work =
      p.backward ? bwd_work(p, operands, exchange, plan, bwd_layout(cell, operands, exchange, plan))
                 : fwd_work(p, operands, plan, fwd_layout(cell, operands, exchange, H, plan));
  const bool grid = exchange == Exchange::kGrid;
  const double exchanged =
      grid ? grid_clocks(work, p, device, plan.groups * plan.blocks) : cluster_clocks(work);
  // Before the kernel, words or counters of a grid are set, and backward has W_hh transposed.
  Once once{};
  once.steps = grid && !p.backward ? grid_fwd_steps(job_count(p.N, p.directions, plan.rows),
                                                    p.element_bytes, plan, p.T)
                                   : p.T;
  once.launches = 1 + (grid ? 1 : 0) + (p.backward ? p.directions : 0);
  once.load = load_clocks(p, plan.units);
  once.copies = p.backward ? transposition_clocks(p, device) : 0;
  return persistent_us(p, device, waves, exchanged + compute_clocks(work, p, device), once);
}

}  // namespace cuda
}  // namespace fastlstm
