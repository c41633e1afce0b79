#include "launch.cuh"

namespace fastlstm {
namespace cuda {
FASTLSTM_INSTANTIATE_BLOCK_FWD(Half)
}  // namespace cuda
}  // namespace fastlstm
