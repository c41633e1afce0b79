#include "launch.cuh"

namespace fastlstm {
namespace cuda {
FASTLSTM_INSTANTIATE_BLOCK_FWD(BFloat16)
}  // namespace cuda
}  // namespace fastlstm
