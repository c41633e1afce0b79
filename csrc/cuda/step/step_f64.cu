#include "step.cuh"

namespace fastlstm {
namespace cuda {
FASTLSTM_INSTANTIATE_STEPS(double)
}  // namespace cuda
}  // namespace fastlstm
