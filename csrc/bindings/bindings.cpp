// The Python face of the kernels: the layers (bind_layers.cpp), and what tests and benchmarks ask
// of the CPU's kernels.
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty_like.h>

#include <chrono>

#include "../cpu/cores.h"
#include "../cpu/dispatch.h"
#include "../cpu/schedule.h"
#include "bind_layers.h"
#ifdef FASTLSTM_CUDA
#include "../cuda/choice/bind_choice.h"
#endif

// Set by setup.py where there are CUDA kernels.
#ifndef FASTLSTM_CUDA_ARCHS
#define FASTLSTM_CUDA_ARCHS ""
#endif

namespace py = pybind11;

namespace fastlstm {
namespace {

using at::Tensor;

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
                  bool ragged, int num_threads, int lanes, bool crowded) {
  TORCH_CHECK_VALUE(num_threads > 0 && lanes > 0, "num_threads and lanes must be positive, got ",
                    num_threads, " and ", lanes);
  const cpu::ScheduleProblem problem{batch_size,     hidden_size, gates,
                                     num_directions, ragged,      crowded};
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
  bind_layers(m);
  m.def("cpu_capability", &cpu::capability, "The instruction set in use: AVX512, AVX2 or DEFAULT");
  m.def(
      "cuda_arch_list", [] { return FASTLSTM_CUDA_ARCHS; },
      "GPU architectures of the CUDA kernels, \"\" without any");
#ifdef FASTLSTM_CUDA
  cuda::bind_choice(m);
#endif
  m.def("capabilities", &cpu::capabilities, "Every instruction set that can run here, best first");
  m.def("schedule", &schedule, "Shares of the recurrence, one list a thread", py::arg("batch_size"),
        py::arg("hidden_size"), py::arg("gates"), py::arg("num_directions"), py::arg("ragged"),
        py::arg("num_threads"), py::arg("lanes"), py::arg("crowded") = false);
  m.def("num_threads", &cpu::num_threads, "Threads that a call of enough work takes here and now");
  m.def("is_crowded", &cpu::is_crowded, "Whether threads are not to wait for each other now");
  m.def("quota_cores", &cpu::quota_cores, "Cores by the quota of the control group, 0 without one",
        py::arg("root") = "");
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
