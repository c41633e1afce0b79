// Which kernels a layer takes: the question of heuristics.h in a layer's own terms.
#pragma once

#include <c10/core/ScalarType.h>

#include "heuristics.h"

namespace fastlstm {
namespace cuda {

struct LayerSizes {
  CellKind cell;
  bool backward;
  int64_t T, N, H;
  int directions;
  at::ScalarType type;   // of the weights
  bool tf32, projected;  // tf32: float32 products may be rounded to TF32
};

// Input projections of one launch of a persistent kernel. More than step by step: every launch
// loads W_hh, and projections are loaded ahead. An estimate: no other was measured.
constexpr int64_t kPersistentChunkBytes = 128 << 20;

// How many of T steps fit into so many bytes; at least one.
int64_t steps_within(int64_t bytes, int64_t step_bytes, int64_t T);

// wanted: as in choose.
Choice layer_choice(const LayerSizes& layer, const DeviceProperties& device, const char* wanted);

}  // namespace cuda
}  // namespace fastlstm
