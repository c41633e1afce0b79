#include "step.cuh"

namespace fastlstm {
namespace cuda {
FASTLSTM_INSTANTIATE_STEPS(BFloat16)
}  // namespace cuda
}  // namespace fastlstm
