#include "step.cuh"

namespace fastlstm {
namespace cuda {
FASTLSTM_INSTANTIATE_STEPS(Half)
}  // namespace cuda
}  // namespace fastlstm
