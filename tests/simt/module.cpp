// The layers and cells of CUDA on the emulator, with the names of fastlstm._C: what it is given are
// tensors on the CPU, and every tensor made while `guard_memory` is on has guard pages around it.
#include <c10/core/CPUAllocator.h>

#include "bindings/bind_layers.h"
#include "cuda/choice/bind_choice.h"
#include "cuda/layer/context.h"
#include "cuda/persistent/block/block.h"
#include "layer/backend.h"
#include "simt.h"

namespace fastlstm {

namespace cuda {
extern bool tf32_allowed;
void set_device_properties(const DeviceProperties& device);
}  // namespace cuda

const Backend& backend_of(const Tensor&) { return cuda::kBackend; }

namespace {

namespace py = pybind11;

struct GuardedAllocator final : c10::Allocator {
  c10::DataPtr allocate(size_t bytes) override {
    void* p = simt::guarded_alloc(bytes);
    return {p, p, &simt::guarded_free, at::kCPU};
  }
  c10::DeleterFnPtr raw_deleter() const override { return &simt::guarded_free; }
  void copy_data(void* to, const void* from, size_t bytes) const override {
    default_copy_data(to, from, bytes);
  }
};

void guard_memory(bool on) {
  static GuardedAllocator guarded;
  static c10::Allocator* const before = c10::GetCPUAllocator();
  c10::SetCPUAllocator(on ? &guarded : before);
}

py::dict choose(int cell, bool backward, int64_t T, int64_t N, int64_t H, int directions,
                int element_bytes, bool is_bfloat16, bool tf32, bool projected,
                size_t block_shared_bytes, const cuda::DeviceProperties& device,
                const char* wanted) {
  const cuda::Choice choice =
      cuda::choose({static_cast<CellKind>(cell), backward, T, N, H, directions, element_bytes,
                    is_bfloat16, tf32, projected, block_shared_bytes},
                   device, wanted);
  py::dict all;
  all["method"] = cuda::name_of(choice.method);
  all["units"] = choice.plan.units;
  all["blocks"] = choice.plan.blocks;
  all["rows"] = choice.plan.rows;
  all["groups"] = choice.plan.groups;
  all["shared_bytes"] = choice.shared_bytes;
  all["step_us"] = choice.step_us;
  return all;
}

// bfloat16 or float32; float16 is as bfloat16.
size_t block_shared_bytes(int cell, bool backward, int64_t H, int element_bytes, bool tf32) {
  const auto of = [&](auto* s) {
    using S = std::remove_pointer_t<decltype(s)>;
    const auto bytes =
        backward ? &cuda::block_bwd_shared_bytes<S> : &cuda::block_fwd_shared_bytes<S>;
    return bytes(static_cast<CellKind>(cell), H, tf32);
  };
  if (element_bytes == 2) return of(static_cast<device::BFloat16*>(nullptr));
  if (element_bytes == 4) return of(static_cast<float*>(nullptr));
  return of(static_cast<double*>(nullptr));
}

int group_shared_bytes(int cell, bool backward, bool cluster, int element_bytes, bool tf32, int H,
                       int units, int blocks, int rows) {
  const CellTraits& traits = kCellTraits[cell];
  const auto exchange = cluster ? cuda::Exchange::kCluster : cuda::Exchange::kGrid;
  const auto operands = element_bytes == 2 ? cuda::Operands::k16Bit
                        : tf32             ? cuda::Operands::kTf32
                                           : cuda::Operands::kTf32x3;
  const cuda::GroupPlan plan = {units, blocks, rows, 1};
  return backward ? cuda::bwd_layout(traits, operands, exchange, plan).end
                  : cuda::fwd_layout(traits, operands, exchange, H, plan).end;
}

void bind_heuristics(py::module_& m) {
  using Device = cuda::DeviceProperties;
  py::class_<Device>(m, "DeviceProperties",
                     "What kernels are chosen by; see csrc/cuda/choice/heuristics.h")
      .def(py::init<int, int, size_t, int, int, int>(), py::kw_only(), py::arg("capability"),
           py::arg("multiprocessors"), py::arg("shared_bytes"), py::arg("clusters_of_8"),
           py::arg("clusters_of_16"), py::arg("compiled_for"))
      .def_readonly("capability", &Device::capability)
      .def_readonly("multiprocessors", &Device::multiprocessors)
      .def_readonly("shared_bytes", &Device::shared_bytes)
      .def_readonly("clusters_of_8", &Device::clusters_of_8)
      .def_readonly("clusters_of_16", &Device::clusters_of_16)
      .def_readonly("compiled_for", &Device::compiled_for);
  m.def("device_properties", &cuda::device_properties, "Of the device that is emulated");
  m.def("set_device", &cuda::set_device_properties,
        "Another device from now on. At first it is an H100", py::arg("device"));
  m.def("choose", &choose,
        "csrc/cuda/choice/heuristics.h, as a dict. cell: 0 LSTM, 1 GRU, 2 and 3 RNN with tanh and "
        "relu",
        py::kw_only(), py::arg("cell"), py::arg("backward"), py::arg("T"), py::arg("N"),
        py::arg("H"), py::arg("directions"), py::arg("element_bytes"), py::arg("is_bfloat16"),
        py::arg("tf32"), py::arg("projected"), py::arg("block_shared_bytes"), py::arg("device"),
        py::arg("wanted"));
  m.def("wanted_kernel", &cuda::wanted_kernel, "What the environment asks for");
  m.def("block_shared_bytes", &block_shared_bytes,
        "What the kernel of one block needs; 0: it does not take the problem", py::kw_only(),
        py::arg("cell"), py::arg("backward"), py::arg("H"), py::arg("element_bytes"),
        py::arg("tf32"));
  m.def("group_shared_bytes", &group_shared_bytes, "What a block of a group needs", py::kw_only(),
        py::arg("cell"), py::arg("backward"), py::arg("cluster"), py::arg("element_bytes"),
        py::arg("tf32"), py::arg("H"), py::arg("units"), py::arg("blocks"), py::arg("rows"));
}

}  // namespace
}  // namespace fastlstm

PYBIND11_MODULE(TORCH_EXTENSION_NAME, m) {
  using namespace fastlstm;
  m.doc() = "The CUDA kernels of fastlstm on an emulator, for tests.";
  bind_layers(m);
  cuda::bind_choice(m);
  bind_heuristics(m);
  m.def("guard_memory", &guard_memory, "Guard pages around tensors made from now on",
        pybind11::arg("on"));
  m.def("set_seed", &simt::set_seed, "Of the order in which threads run", pybind11::arg("seed"));
  m.def(
      "allow_tf32", [](bool on) { cuda::tf32_allowed = on; }, "As torch.backends.cudnn.allow_tf32",
      pybind11::arg("on"));
}
