#include "launch.cuh"

namespace fastlstm {
namespace cuda {
FASTLSTM_INSTANTIATE_BLOCK_BWD(BFloat16)
}  // namespace cuda
}  // namespace fastlstm
