#include "backend_cuda.h"

namespace fastlstm {
namespace cuda {

const Backend kBackend = {true, &layer_fwd, &layer_bwd, &cell_fwd, &cell_bwd};

}  // namespace cuda
}  // namespace fastlstm
