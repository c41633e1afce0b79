#include "launch.cuh"

namespace fastlstm {
namespace cuda {
FASTLSTM_INSTANTIATE_GROUP_FWD(Half)
}  // namespace cuda
}  // namespace fastlstm
