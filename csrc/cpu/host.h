// What the host code of a layer and of a single step share: pointers of tensors, and how many
// threads run a kernel.
#pragma once

#include <ATen/core/Tensor.h>

#include <algorithm>
#include <optional>

#include "dispatch.h"

namespace fastlstm {
namespace cpu {

// Multiply-adds that are worth a thread. An estimate: only that small layers gain was measured
// (docs/kernels.md), not where the limit is best.
constexpr int64_t kMinWorkPerThread = 50000;

inline int threads_for_work(int64_t work, int most) {
  return static_cast<int>(std::clamp<int64_t>(work / kMinWorkPerThread, 1, most));
}

template <class P>
void run_kernel(int threads, void (*kernel)(const P&, int, int), const P& p) {
  run_team(threads, [&](int thread, int team) { kernel(p, thread, team); });
}

template <class S>
const S* data(const at::Tensor& t) {
  return t.defined() ? t.const_data_ptr<S>() : nullptr;
}
template <class S>
const S* data(const std::optional<at::Tensor>& t) {
  return t ? t->const_data_ptr<S>() : nullptr;
}

}  // namespace cpu
}  // namespace fastlstm
