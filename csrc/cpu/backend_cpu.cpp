#include "backend_cpu.h"

namespace fastlstm {
namespace cpu {

const Backend kBackend = {false, &layer_fwd, &layer_bwd, &cell_fwd, &cell_bwd};

}  // namespace cpu
}  // namespace fastlstm
