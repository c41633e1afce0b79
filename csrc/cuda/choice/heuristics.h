// Which kernels run the recurrence of a layer on CUDA: a pure function of the problem, the device,
// and what the environment asks for.
#pragma once

#include <cstddef>
#include <cstdint>

#include "../../cells/cells.h"
#include "../persistent/group/layout.h"

namespace fastlstm {
namespace cuda {

enum class Method {
  kStepwise,  // a product and a kernel for each step: takes everything
  kBlock,     // persistent/block
  kCluster,   // persistent/group, Exchange::kCluster
  kGrid,      // persistent/group, Exchange::kGrid
};

// As FASTLSTM_CUDA_KERNEL has it.
const char* name_of(Method method);

struct DeviceProperties {
  int capability;  // 10 * major + minor of the compute capability
  int multiprocessors;
  size_t shared_bytes;  // that a block may have, if it asks for them
  // Clusters of 8 and of 16 blocks with all of that, that can run at once; 0: none.
  int clusters_of_8, clusters_of_16;
  // As capability: what the kernels that run there were compiled for, of which there may be less
  // (TORCH_CUDA_ARCH_LIST="8.0+PTX"). It says which instructions they have.
  int compiled_for;
};

struct Problem {
  CellKind cell;
  bool backward;
  int64_t T, N, H;  // T: the steps of a launch of a persistent kernel
  int directions;
  int element_bytes;  // of the operands of a product: 2, 4, 8
  bool is_bfloat16, tf32, projected;
  size_t block_shared_bytes;  // block_fwd_shared_bytes or block_bwd_shared_bytes; 0: not taken
};

struct Choice {
  Method method;
  // kBlock: one block of H units a group; kCluster: groups is the number of jobs, a cluster for
  // each; kStepwise: zeros.
  GroupPlan plan;
  size_t shared_bytes;  // of a block; kStepwise: 0
  // Of a step of all jobs, in microseconds, with its share of what a launch costs. An estimate.
  double step_us;
};

// wanted: what FASTLSTM_CUDA_KERNEL says, "auto" if it says nothing: "auto", "stepwise", "block",
// "cluster", "grid". "auto" is what a model of the hardware expects to be fastest; the others are
// that method by its best plan, or stepwise where no plan is possible. "cluster:32x16x8" and
// "grid:32x16x8x4" ask for one plan: units, blocks, rows, and groups of a grid. Throws
// std::invalid_argument for another word.
//
// The model is in step_model.cpp. It was made from published numbers: none of its results has been
// measured.
Choice choose(const Problem& problem, const DeviceProperties& device, const char* wanted);

// The value of FASTLSTM_CUDA_KERNEL, read at every call.
const char* wanted_kernel();

}  // namespace cuda
}  // namespace fastlstm
