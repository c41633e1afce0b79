// For Python: which kernels a layer would take on the current device, without running it.
#include "bind_choice.h"

#include "../../bindings/bind_layers.h"
#include "../layer/context.h"
#include "../step/step.h"
#include "layer_choice.h"

namespace py = pybind11;

namespace fastlstm {
namespace cuda {
namespace {

py::dict cuda_choice(const std::string& mode, bool backward, int64_t T, int64_t N, int64_t H,
                     at::ScalarType dtype, int directions, std::optional<bool> tf32, bool projected,
                     const std::optional<std::string>& wanted) {
  TORCH_CHECK_VALUE(T >= 0 && N >= 0 && H >= 0, "T, N and H must not be negative, got ", T, ", ", N,
                    " and ", H);
  TORCH_CHECK_VALUE(directions == 1 || directions == kDirections, "directions must be 1 or 2, got ",
                    directions);
  TORCH_CHECK_VALUE(
      dtype == at::kDouble || dtype == at::kFloat || dtype == at::kHalf || dtype == at::kBFloat16,
      "dtype must be torch.float64, float32, float16 or bfloat16, got ", dtype);
  const LayerSizes layer{
      cell_kind(mode), backward, T, N, H, directions, dtype, tf32.value_or(allows_tf32()),
      projected};
  const Choice choice =
      layer_choice(layer, device_properties(), wanted ? wanted->c_str() : wanted_kernel());
  return py::dict(py::arg("method") = name_of(choice.method), py::arg("units") = choice.plan.units,
                  py::arg("blocks") = choice.plan.blocks, py::arg("rows") = choice.plan.rows,
                  py::arg("groups") = choice.plan.groups,
                  py::arg("shared_bytes") = choice.shared_bytes,
                  py::arg("step_us") = choice.step_us);
}

}  // namespace

void bind_choice(py::module_& m) {
  m.def("cuda_choice", &cuda_choice,
        "The kernels that a layer would take on the current CUDA device, by "
        "csrc/cuda/choice/heuristics.h."
        "\n\nmode: LSTM, GRU, RNN_TANH or RNN_RELU. dtype: of the weights. tf32: whether float32 "
        "products may be rounded to TF32, as torch's switch says by default. wanted: as "
        "FASTLSTM_CUDA_KERNEL has it, which is the default. projected: with proj_size. step_us is "
        "an estimate. Raises ValueError for a mode, dtype, number of directions or word that does "
        "not exist, and for negative sizes.",
        py::kw_only(), py::arg("mode"), py::arg("backward"), py::arg("T"), py::arg("N"),
        py::arg("H"), py::arg("dtype"), py::arg("directions") = 1, py::arg("tf32") = py::none(),
        py::arg("projected") = false, py::arg("wanted") = py::none());
}

}  // namespace cuda
}  // namespace fastlstm
