// The layers and cells of CUDA on the emulator, with the names of fastlstm._C: what it is given are
// tensors on the CPU, and every tensor made while `guard_memory` is on has guard pages around it.
#include <c10/core/CPUAllocator.h>

#include "../../csrc/backend.h"
#include "../../csrc/bind_layers.h"
#include "../../csrc/cuda/heuristics.h"
#include "simt.h"

namespace fastlstm {

namespace cuda {
extern bool tf32_allowed;
}

const Backend& backend_of(const Tensor&) { return cuda::kBackend; }

namespace {

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

}  // namespace
}  // namespace fastlstm

PYBIND11_MODULE(TORCH_EXTENSION_NAME, m) {
  using namespace fastlstm;
  m.doc() = "The CUDA kernels of fastlstm on an emulator, for tests.";
  bind_layers(m);
  m.def(
      "uses_block",
      [](bool projected, size_t block_shared_bytes, size_t shared_bytes, const char* wanted) {
        return cuda::choose_method({projected, block_shared_bytes}, {shared_bytes}, wanted) ==
               cuda::Method::kBlock;
      },
      "Whether heuristics choose the kernel of a single block");
  m.def("guard_memory", &guard_memory, "Guard pages around tensors made from now on",
        pybind11::arg("on"));
  m.def("set_seed", &simt::set_seed, "Of the order in which threads run", pybind11::arg("seed"));
  m.def(
      "allow_tf32", [](bool on) { cuda::tf32_allowed = on; }, "As torch.backends.cudnn.allow_tf32",
      pybind11::arg("on"));
}
