// Which kernels run the recurrence of a layer on CUDA: a pure function of the problem, the device,
// and what the environment asks for.
#pragma once

#include <cstddef>
#include <cstdint>

namespace fastlstm {
namespace cuda {

enum class Method {
  kStepwise,  // a product and a kernel for each step: takes everything
  kBlock,     // persistent_block.h
};

struct DeviceProperties {
  size_t shared_bytes;  // that a block may have, if it asks for them
};

struct MethodProblem {
  bool projected;
  size_t block_shared_bytes;  // block_fwd_shared_bytes or block_bwd_shared_bytes
};

// wanted: what FASTLSTM_CUDA_KERNEL says, "auto" if it says nothing: "auto", "stepwise", "block".
// Throws std::invalid_argument for another word. A kernel that does not take the problem is not
// chosen, wanted or not.
//
// "auto" is stepwise throughout: the others have not been measured on a GPU yet.
Method choose_method(const MethodProblem& problem, const DeviceProperties& device,
                     const char* wanted);

// The value of FASTLSTM_CUDA_KERNEL, read at every call.
const char* wanted_kernel();

}  // namespace cuda
}  // namespace fastlstm
