// From torch's dtypes to the scalar types of the kernels, and pointers of tensors in them.
#pragma once

#include <ATen/core/Tensor.h>
#include <c10/util/Exception.h>

#include <optional>

#include "../step/step.h"

namespace fastlstm {
namespace cuda {

// Calls f(S*) with a null pointer of the scalar type that `type` has in kernels.
template <class F>
void with_scalar_type(at::ScalarType type, F&& f) {
  switch (type) {
    case at::kDouble:
      return f(static_cast<double*>(nullptr));
    case at::kFloat:
      return f(static_cast<float*>(nullptr));
    case at::kHalf:
      return f(static_cast<device::Half*>(nullptr));
    case at::kBFloat16:
      return f(static_cast<device::BFloat16*>(nullptr));
    default:
      TORCH_CHECK(false, "w_ih must have dtype Double, Float, Half or BFloat16, got ", type);
  }
}

template <class S>
constexpr at::ScalarType scalar_type();
template <>
constexpr at::ScalarType scalar_type<float>() {
  return at::kFloat;
}
template <>
constexpr at::ScalarType scalar_type<double>() {
  return at::kDouble;
}

// cuBLAS takes no matrix whose rows overlap, as those of an expanded tensor do.
inline at::Tensor with_apart_rows(const at::Tensor& t) {
  return t.size(0) <= 1 || t.stride(0) >= t.size(1) ? t : t.contiguous();
}

// Element `offset` of the memory of t on; null where there is no t.
template <class S>
const S* data(const at::Tensor& t, int64_t offset = 0) {
  if (!t.defined()) return nullptr;
  return reinterpret_cast<const S*>(static_cast<const char*>(t.const_data_ptr()) +
                                    offset * static_cast<int64_t>(t.element_size()));
}
template <class S>
S* mutable_data(const at::Tensor& t, int64_t offset = 0) {
  return reinterpret_cast<S*>(static_cast<char*>(t.data_ptr()) +
                              offset * static_cast<int64_t>(t.element_size()));
}

}  // namespace cuda
}  // namespace fastlstm
