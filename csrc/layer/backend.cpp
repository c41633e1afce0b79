#include "backend.h"

#include <c10/util/Exception.h>

namespace fastlstm {

const Backend& backend_of(const Tensor& input) {
  if (input.device().is_cpu()) return cpu::kBackend;
#ifdef FASTLSTM_CUDA
  if (input.device().is_cuda()) return cuda::kBackend;
  TORCH_CHECK(false, "fastlstm runs on the CPU and on CUDA devices, got a tensor on ",
              input.device());
#else
  TORCH_CHECK(!input.device().is_cuda(),
              "this build of fastlstm has no CUDA kernels, got a tensor on ", input.device(),
              "; build it again with a torch that has CUDA and with nvcc (FORCE_CUDA=1 says what is"
              " missing), or move the module and its input to the CPU");
  TORCH_CHECK(false, "this build of fastlstm runs on the CPU only, got a tensor on ",
              input.device(), "; move the module and its input to the CPU");
#endif
}

}  // namespace fastlstm
