#include "launch.cuh"

namespace fastlstm {
namespace cuda {
FASTLSTM_INSTANTIATE_BLOCK_FWD(float)
}  // namespace cuda
}  // namespace fastlstm
