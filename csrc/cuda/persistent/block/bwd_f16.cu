#include "launch.cuh"

namespace fastlstm {
namespace cuda {
FASTLSTM_INSTANTIATE_BLOCK_BWD(Half)
}  // namespace cuda
}  // namespace fastlstm
