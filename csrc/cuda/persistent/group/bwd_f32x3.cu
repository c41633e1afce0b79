#include "launch.cuh"

namespace fastlstm {
namespace cuda {
FASTLSTM_INSTANTIATE_GROUP_BWD(Float3x)
}  // namespace cuda
}  // namespace fastlstm
