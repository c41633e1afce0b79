// The Python face of the kernels: names, argument names, one line each. Arguments are checked in
// layer.cpp.
#include <ATen/ops/empty_like.h>
#include <torch/csrc/utils/pybind.h>

#include <chrono>

#include "cell.h"
#include "cpu/dispatch.h"
#include "cpu/schedule.h"
#include "layer.h"

namespace py = pybind11;

namespace fastlstm {
namespace {

using OptionalTensor = std::optional<Tensor>;

CellKind cell_kind(const std::string& mode) {
  for (int kind = 0; kind < kNumCells; ++kind) {
    if (mode == kCellTraits[kind].mode) return static_cast<CellKind>(kind);
  }
  TORCH_CHECK_VALUE(false, "mode must be LSTM, GRU, RNN_TANH or RNN_RELU, got ", mode);
}

// An absent tensor is None in Python.
OptionalTensor present(const Tensor& t) { return t.defined() ? OptionalTensor(t) : std::nullopt; }

// weights: w_ih, w_hh, b_ih, b_hh, w_hr of each direction, one after the other.
LayerInput layer_input(const std::string& mode, const Tensor& x, const OptionalTensor& embedding,
                       const OptionalTensor& h0, const OptionalTensor& c0,
                       const std::vector<OptionalTensor>& weights,
                       const OptionalTensor& batch_sizes, const OptionalTensor& lengths,
                       const OptionalTensor& reset) {
  TORCH_CHECK(weights.size() % 5 == 0,
              "weights must hold w_ih, w_hh, b_ih, b_hh, w_hr for each direction, got ",
              weights.size(), " tensors");
  LayerInput input{cell_kind(mode), x, embedding, h0, c0, {}, batch_sizes, lengths, reset};
  for (size_t i = 0; i < weights.size(); i += 5) {
    TORCH_CHECK(weights[i] && weights[i + 1], "w_ih and w_hh must not be None");
    input.weights.push_back(
        {*weights[i], *weights[i + 1], weights[i + 2], weights[i + 3], weights[i + 4]});
  }
  return input;
}

py::tuple py_layer_fwd(const std::string& mode, const Tensor& x, const OptionalTensor& embedding,
                       const OptionalTensor& h0, const OptionalTensor& c0,
                       const std::vector<OptionalTensor>& weights,
                       const OptionalTensor& batch_sizes, const OptionalTensor& lengths,
                       const OptionalTensor& reset, int keep) {
  LayerOutput out;
  {
    py::gil_scoped_release release;
    out = layer_fwd(layer_input(mode, x, embedding, h0, c0, weights, batch_sizes, lengths, reset),
                    static_cast<Keep>(keep));
  }
  return py::make_tuple(out.h, out.c, out.reserve, out.h_n, out.c_n);
}

py::tuple py_layer_bwd(const std::string& mode, const Tensor& x, const OptionalTensor& embedding,
                       const OptionalTensor& h0, const OptionalTensor& c0,
                       const std::vector<OptionalTensor>& weights,
                       const OptionalTensor& batch_sizes, const OptionalTensor& lengths,
                       const OptionalTensor& reset, const Tensor& h, const Tensor& c,
                       const Tensor& reserve, const OptionalTensor& grad_y,
                       const OptionalTensor& grad_c, const OptionalTensor& grad_h_n,
                       const OptionalTensor& grad_c_n, bool needs_x, bool needs_embedding,
                       bool needs_state, bool needs_weights) {
  LayerGrads g;
  {
    py::gil_scoped_release release;
    g = layer_bwd(layer_input(mode, x, embedding, h0, c0, weights, batch_sizes, lengths, reset),
                  {h, c, reserve, Tensor(), Tensor()}, {grad_y, grad_c, grad_h_n, grad_c_n},
                  {needs_x, needs_embedding, needs_state, needs_weights});
  }
  std::vector<OptionalTensor> dweights;
  for (const DirectionWeights& dw : g.dweights) {
    for (const OptionalTensor& t :
         {OptionalTensor(dw.w_ih), OptionalTensor(dw.w_hh), dw.b_ih, dw.b_hh, dw.w_hr})
      dweights.push_back(t);
  }
  return py::make_tuple(present(g.dx), present(g.dembedding), present(g.dh0), present(g.dc0),
                        dweights);
}

py::tuple py_cell_fwd(const std::string& mode, const Tensor& x, const Tensor& h,
                      const OptionalTensor& c, const Tensor& w_ih, const Tensor& w_hh,
                      const OptionalTensor& b_ih, const OptionalTensor& b_hh, bool keep) {
  CellOutput out;
  {
    py::gil_scoped_release release;
    out = cell_fwd({cell_kind(mode), x, h, c, w_ih, w_hh, b_ih, b_hh}, keep);
  }
  return py::make_tuple(out.h, present(out.c), present(out.reserve));
}

py::tuple py_cell_bwd(const std::string& mode, const Tensor& x, const Tensor& h,
                      const OptionalTensor& c, const Tensor& w_ih, const Tensor& w_hh,
                      const OptionalTensor& b_ih, const OptionalTensor& b_hh, const Tensor& h_out,
                      const OptionalTensor& c_out, const Tensor& reserve,
                      const OptionalTensor& grad_h, const OptionalTensor& grad_c, bool needs_x,
                      bool needs_h, bool needs_c, bool needs_weights) {
  CellGrads g;
  {
    py::gil_scoped_release release;
    g = cell_bwd({cell_kind(mode), x, h, c, w_ih, w_hh, b_ih, b_hh},
                 {h_out, c_out.value_or(Tensor()), reserve}, grad_h, grad_c,
                 {needs_x, needs_h, needs_c, needs_weights});
  }
  return py::make_tuple(present(g.dx), present(g.dh), present(g.dc), present(g.dw_ih),
                        present(g.dw_hh), present(g.db_ih), present(g.db_hh));
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

py::list schedule(int64_t batch_size, int64_t hidden_size, int gates, int num_directions,
                  bool ragged, int num_threads, int lanes) {
  TORCH_CHECK_VALUE(num_threads > 0 && lanes > 0, "num_threads and lanes must be positive, got ",
                    num_threads, " and ", lanes);
  const cpu::ScheduleProblem problem{batch_size, hidden_size, gates, num_directions, ragged};
  py::list threads;
  for (const std::vector<Share>& shares : cpu::schedule(problem, num_threads, lanes)) {
    py::list list;
    for (const Share& s : shares) {
      list.append(py::dict(py::arg("direction") = s.direction, py::arg("row_begin") = s.row_begin,
                           py::arg("row_end") = s.row_end, py::arg("row_step") = s.row_step,
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
  m.def("layer_fwd", &py_layer_fwd, "One layer: h, c, reserve, h_n, c_n (csrc/layer.h)",
        py::arg("mode"), py::arg("x"), py::arg("embedding"), py::arg("h0"), py::arg("c0"),
        py::arg("weights"), py::arg("batch_sizes"), py::arg("lengths"), py::arg("reset"),
        py::arg("keep"));
  m.def("layer_bwd", &py_layer_bwd, "Its backward: dx, dembedding, dh0, dc0, dweights",
        py::arg("mode"), py::arg("x"), py::arg("embedding"), py::arg("h0"), py::arg("c0"),
        py::arg("weights"), py::arg("batch_sizes"), py::arg("lengths"), py::arg("reset"),
        py::arg("h"), py::arg("c"), py::arg("reserve"), py::arg("grad_y"), py::arg("grad_c"),
        py::arg("grad_h_n"), py::arg("grad_c_n"), py::arg("needs_x"), py::arg("needs_embedding"),
        py::arg("needs_state"), py::arg("needs_weights"));
  m.def("cell_fwd", &py_cell_fwd, "One step of a cell: h, c, reserve (csrc/cell.h)",
        py::arg("mode"), py::arg("x"), py::arg("h"), py::arg("c"), py::arg("w_ih"), py::arg("w_hh"),
        py::arg("b_ih"), py::arg("b_hh"), py::arg("keep"));
  m.def("cell_bwd", &py_cell_bwd, "Its backward: dx, dh, dc, dw_ih, dw_hh, db_ih, db_hh",
        py::arg("mode"), py::arg("x"), py::arg("h"), py::arg("c"), py::arg("w_ih"), py::arg("w_hh"),
        py::arg("b_ih"), py::arg("b_hh"), py::arg("h_out"), py::arg("c_out"), py::arg("reserve"),
        py::arg("grad_h"), py::arg("grad_c"), py::arg("needs_x"), py::arg("needs_h"),
        py::arg("needs_c"), py::arg("needs_weights"));
  m.def("cpu_capability", &cpu::capability, "The instruction set in use: AVX512, AVX2 or DEFAULT");
  m.def("capabilities", &cpu::capabilities, "Every instruction set that can run here, best first");
  m.def("schedule", &schedule, "Shares of the recurrence, one list a thread", py::arg("batch_size"),
        py::arg("hidden_size"), py::arg("gates"), py::arg("num_directions"), py::arg("ragged"),
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
