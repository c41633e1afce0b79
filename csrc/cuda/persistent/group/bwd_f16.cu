#include "launch.cuh"

namespace fastlstm {
namespace cuda {
FASTLSTM_INSTANTIATE_GROUP_BWD(Half)
}  // namespace cuda
}  // namespace fastlstm
