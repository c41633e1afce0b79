#include "backend_cuda.h"

#include "dtypes.h"

namespace fastlstm {
namespace cuda {

LayerInput for_cublas(LayerInput input) {
  for (DirectionWeights& w : input.weights) {
    w.w_ih = with_apart_rows(w.w_ih);
    w.w_hh = with_apart_rows(w.w_hh);
    if (w.w_hr) w.w_hr = with_apart_rows(*w.w_hr);
  }
  if (input.embedding) input.embedding = with_apart_rows(*input.embedding);
  return input;
}

const Backend kBackend = {true, &layer_fwd, &layer_bwd, &cell_fwd, &cell_bwd};

}  // namespace cuda
}  // namespace fastlstm
