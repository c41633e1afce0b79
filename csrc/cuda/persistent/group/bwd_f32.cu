#include "launch.cuh"

namespace fastlstm {
namespace cuda {
FASTLSTM_INSTANTIATE_GROUP_BWD(float)
}  // namespace cuda
}  // namespace fastlstm
