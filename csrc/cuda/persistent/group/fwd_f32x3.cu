#include "launch.cuh"

namespace fastlstm {
namespace cuda {
FASTLSTM_INSTANTIATE_GROUP_FWD(Float3x)
}  // namespace cuda
}  // namespace fastlstm
