#include "step.cuh"

namespace fastlstm {
namespace cuda {
FASTLSTM_INSTANTIATE_STEPS(float)
}  // namespace cuda
}  // namespace fastlstm
