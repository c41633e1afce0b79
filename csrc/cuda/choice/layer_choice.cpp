#include "layer_choice.h"

#include <algorithm>

#include "../layer/dtypes.h"
#include "../persistent/block/block.h"

namespace fastlstm {
namespace cuda {

int64_t steps_within(int64_t bytes, int64_t step_bytes, int64_t T) {
  return std::clamp<int64_t>(bytes / std::max<int64_t>(1, step_bytes), 1, std::max<int64_t>(1, T));
}

Choice layer_choice(const LayerSizes& layer, const DeviceProperties& device, const char* wanted) {
  Problem p{};
  p.cell = layer.cell;
  p.backward = layer.backward;
  p.T = layer.T;
  p.N = layer.N;
  p.H = layer.H;
  p.directions = layer.directions;
  p.element_bytes = static_cast<int>(c10::elementSize(layer.type));
  p.is_bfloat16 = layer.type == at::kBFloat16;
  p.tf32 = layer.tf32;
  p.projected = layer.projected;
  with_scalar_type(layer.type, [&](auto* scalar) {
    using S = std::remove_pointer_t<decltype(scalar)>;
    p.block_shared_bytes = layer.backward
                               ? block_bwd_shared_bytes<S>(layer.cell, layer.H, layer.tf32)
                               : block_fwd_shared_bytes<S>(layer.cell, layer.H, layer.tf32);
    // Backward is one launch; what forward reads is made in chunks.
    const int64_t gates = layer.N * kCellTraits[layer.cell].gates * layer.H;
    if (!layer.backward && layer.T > 0) {
      p.T = steps_within(kPersistentChunkBytes, gates * sizeof(Accumulator<S>), layer.T);
    }
  });
  return choose(p, device, wanted);
}

}  // namespace cuda
}  // namespace fastlstm
