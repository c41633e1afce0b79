// The Python face of the kernels: names, argument names, one line each. Arguments are checked in
// layer.cpp.
#include <ATen/ops/empty_like.h>
#include <torch/csrc/utils/pybind.h>

#include <chrono>

#include "cpu/dispatch.h"
#include "cpu/schedule.h"
#include "layer.h"

namespace py = pybind11;

namespace fastlstm {
namespace {

using OptionalTensor = std::optional<Tensor>;

// weights: w_ih, w_hh, b_ih, b_hh of each direction, one after the other.
LayerInput layer_input(const Tensor& x, const OptionalTensor& embedding, const OptionalTensor& h0,
                       const OptionalTensor& c0, const std::vector<OptionalTensor>& weights) {
  TORCH_CHECK(weights.size() % 4 == 0,
              "weights must hold w_ih, w_hh, b_ih, b_hh for each direction, got ", weights.size(),
              " tensors");
  LayerInput input{x, embedding, h0, c0, {}};
  for (size_t i = 0; i < weights.size(); i += 4) {
    TORCH_CHECK(weights[i] && weights[i + 1], "w_ih and w_hh must not be None");
    input.weights.push_back({*weights[i], *weights[i + 1], weights[i + 2], weights[i + 3]});
  }
  return input;
}

py::tuple layer_fwd(const Tensor& x, const OptionalTensor& embedding, const OptionalTensor& h0,
                    const OptionalTensor& c0, const std::vector<OptionalTensor>& weights,
                    int keep) {
  LayerOutput out;
  {
    py::gil_scoped_release release;
    out = lstm_layer_fwd(layer_input(x, embedding, h0, c0, weights), static_cast<Keep>(keep));
  }
  return py::make_tuple(out.h, out.c, out.gates, out.h_n, out.c_n);
}

py::tuple layer_bwd(const Tensor& x, const OptionalTensor& embedding, const OptionalTensor& h0,
                    const OptionalTensor& c0, const std::vector<OptionalTensor>& weights,
                    const Tensor& h, const Tensor& c, const Tensor& gates,
                    const OptionalTensor& grad_y, const OptionalTensor& grad_c,
                    const OptionalTensor& grad_h_n, const OptionalTensor& grad_c_n, bool needs_x,
                    bool needs_embedding, bool needs_state, bool needs_weights) {
  LayerGrads g;
  {
    py::gil_scoped_release release;
    g = lstm_layer_bwd(layer_input(x, embedding, h0, c0, weights),
                       {h, c, gates, Tensor(), Tensor()}, {grad_y, grad_c, grad_h_n, grad_c_n},
                       {needs_x, needs_embedding, needs_state, needs_weights});
  }
  py::list dweights;
  for (const DirectionWeights& dw : g.dweights)
    dweights.append(py::make_tuple(dw.w_ih, dw.w_hh, *dw.b_ih));
  return py::make_tuple(g.dx, g.dembedding, g.dh0, g.dc0, dweights);
}

constexpr const char* kActivations[] = {"exp", "sigmoid", "tanh"};

int activation_index(const std::string& name) {
  for (int i = 0; i < 3; ++i) {
    if (name == kActivations[i]) return i;
  }
  TORCH_CHECK_VALUE(false, "name must be exp, sigmoid or tanh, got ", name);
}

Tensor activation(const std::string& name, const Tensor& x, const std::string& capability) {
  const int which = activation_index(name);
  const Tensor in = x.contiguous();
  Tensor out = at::empty_like(in);
  TORCH_CHECK(in.scalar_type() == at::kFloat || in.scalar_type() == at::kDouble,
              "x must be float32 or float64, got ", in.scalar_type());
  auto apply = [&](auto* from, auto* to, const auto& kernels) {
    cpu::run_team(1, [&](int, int) { kernels.activation(which, from, to, in.numel()); });
  };
  in.scalar_type() == at::kFloat
      ? apply(in.const_data_ptr<float>(), out.data_ptr<float>(), cpu::kernels<float>(capability))
      : apply(in.const_data_ptr<double>(), out.data_ptr<double>(),
              cpu::kernels<double>(capability));
  return out;
}

py::list schedule(int64_t num_steps, int64_t batch_size, int64_t hidden_size, int num_directions,
                  int num_threads, int lanes) {
  (void)num_steps;  // the plan is the same for every step
  TORCH_CHECK_VALUE(num_threads > 0 && lanes > 0, "num_threads and lanes must be positive, got ",
                    num_threads, " and ", lanes);
  py::list threads;
  for (const std::vector<Share>& shares :
       cpu::schedule(batch_size, hidden_size, num_directions, num_threads, lanes)) {
    py::list list;
    for (const Share& s : shares) {
      list.append(py::dict(py::arg("direction") = s.direction, py::arg("row_begin") = s.row_begin,
                           py::arg("row_end") = s.row_end,
                           py::arg("unit_begin") = std::min(s.vector_begin * lanes, hidden_size),
                           py::arg("unit_end") = std::min(s.vector_end * lanes, hidden_size),
                           py::arg("group") = s.group, py::arg("group_size") = s.group_size));
    }
    threads.append(list);
  }
  return threads;
}

template <class S>
double fma_peak(int threads, double seconds) {
  const cpu::Kernels<S>& kernels = cpu::kernels<S>();
  double flops = 0;
  std::vector<double> done(threads, 0.0);
  const auto start = std::chrono::steady_clock::now();
  auto elapsed = [&] {
    return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  };
  cpu::run_team(threads, [&](int thread, int) {
    while (elapsed() < seconds) done[thread] += kernels.fma_flops(100000);
  });
  const double total = elapsed();
  for (double d : done) flops += d;
  return flops / total / 1e9;
}

}  // namespace
}  // namespace fastlstm

PYBIND11_MODULE(TORCH_EXTENSION_NAME, m) {
  using namespace fastlstm;
  m.doc() =
      "Fused recurrent kernels of fastlstm. Use the modules and functions of the package instead.";
  m.def("lstm_layer_fwd", &layer_fwd, "One LSTM layer: h, c, gates, h_n, c_n (csrc/layer.h)",
        py::arg("x"), py::arg("embedding"), py::arg("h0"), py::arg("c0"), py::arg("weights"),
        py::arg("keep"));
  m.def("lstm_layer_bwd", &layer_bwd,
        "Its backward: dx, dembedding, dh0, dc0, [(dw_ih, dw_hh, db)]", py::arg("x"),
        py::arg("embedding"), py::arg("h0"), py::arg("c0"), py::arg("weights"), py::arg("h"),
        py::arg("c"), py::arg("gates"), py::arg("grad_y"), py::arg("grad_c"), py::arg("grad_h_n"),
        py::arg("grad_c_n"), py::arg("needs_x"), py::arg("needs_embedding"), py::arg("needs_state"),
        py::arg("needs_weights"));
  m.def("cpu_capability", &cpu::capability, "The instruction set in use: AVX512, AVX2 or DEFAULT");
  m.def("capabilities", &cpu::capabilities, "Every instruction set that can run here, best first");
  m.def("schedule", &schedule, "Shares of the recurrence, one list a thread", py::arg("num_steps"),
        py::arg("batch_size"), py::arg("hidden_size"), py::arg("num_directions"),
        py::arg("num_threads"), py::arg("lanes"));
  m.def("activation", &activation, "exp, sigmoid or tanh of the kernels, element by element",
        py::arg("name"), py::arg("x"), py::arg("capability"));
  m.def(
      "fma_peak",
      [](const std::string& dtype, int threads, double seconds) {
        TORCH_CHECK_VALUE(dtype == "float32" || dtype == "float64",
                          "dtype must be float32 or float64, got ", dtype);
        TORCH_CHECK_VALUE(threads > 0, "threads must be positive, got ", threads);
        py::gil_scoped_release release;
        return dtype == "float32" ? fma_peak<float>(threads, seconds)
                                  : fma_peak<double>(threads, seconds);
      },
      "GFLOP/s of fused multiply-adds on registers alone", py::arg("dtype"), py::arg("threads"),
      py::arg("seconds"));
}
