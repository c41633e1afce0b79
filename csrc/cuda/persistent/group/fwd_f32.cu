#include "launch.cuh"

namespace fastlstm {
namespace cuda {
FASTLSTM_INSTANTIATE_GROUP_FWD(float)
}  // namespace cuda
}  // namespace fastlstm
