// The instruction set in use, and the threads that run it.
#pragma once

#include <string>
#include <vector>

#include "kernels/kernels.h"

namespace fastlstm {
namespace cpu {

// "AVX512", "AVX2" or "DEFAULT": what this processor and this build have, narrowed by
// ATEN_CPU_CAPABILITY as in torch.
std::string capability();
std::vector<std::string> capabilities();  // every one that could run here, best first

// Kernels of the capability in use, or of the one named (throws if it cannot run here).
template <class S>
const Kernels<S>& kernels();
template <class S>
const Kernels<S>& kernels(const std::string& capability);

// Kernels whose products have bfloat16 operands, null if the processor has no instruction for them.
const Kernels<float>* bf16_kernels();

// Threads a layer may use: torch's setting, or one inside a parallel region or a forked child.
int num_threads();

// Calls work(thread, team) on a team of at most `threads` threads with denormals flushed to zero;
// returns when all are done. BPTT through gates below 1 reaches denormals after a hundred steps,
// where x86 is up to 20 times slower.
void run_team(int threads, void (*work)(void* context, int thread, int team), void* context);

template <class F>
void run_team(int threads, F&& f) {
  run_team(
      threads,
      [](void* context, int thread, int team) { (*static_cast<F*>(context))(thread, team); }, &f);
}

}  // namespace cpu
}  // namespace fastlstm
