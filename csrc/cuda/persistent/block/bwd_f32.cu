#include "launch.cuh"

namespace fastlstm {
namespace cuda {
FASTLSTM_INSTANTIATE_BLOCK_BWD(float)
}  // namespace cuda
}  // namespace fastlstm
