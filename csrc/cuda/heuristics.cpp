#include "heuristics.h"

#include <cstdlib>
#include <cstring>
#include <stdexcept>
#include <string>

namespace fastlstm {
namespace cuda {

Method choose_method(const MethodProblem& problem, const DeviceProperties& device,
                     const char* wanted) {
  const auto is = [&](const char* word) { return std::strcmp(wanted, word) == 0; };
  if (is("auto") || is("stepwise")) return Method::kStepwise;
  if (!is("block")) {
    throw std::invalid_argument(
        std::string("FASTLSTM_CUDA_KERNEL must be auto, stepwise or block, got ") + wanted);
  }
  const bool fits =
      problem.block_shared_bytes > 0 && problem.block_shared_bytes <= device.shared_bytes;
  return fits && !problem.projected ? Method::kBlock : Method::kStepwise;
}

const char* wanted_kernel() {
  const char* wanted = std::getenv("FASTLSTM_CUDA_KERNEL");
  return wanted && *wanted ? wanted : "auto";
}

}  // namespace cuda
}  // namespace fastlstm
