// Argument checks of the host functions: kind of tensor, device, dtype, shape, in that order. Every
// message names the argument, what was expected and what came.
#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/ops/zeros.h>
#include <c10/util/Exception.h>

#include <optional>

namespace fastlstm {

// Tensors whose numbers are not in memory of their own, or not those that the tensor stands for.
constexpr c10::DispatchKeySet kWrappers{
    c10::DispatchKey::Python,           c10::DispatchKey::Functionalize,
    c10::DispatchKey::FuncTorchBatched, c10::DispatchKey::FuncTorchGradWrapper,
    c10::DispatchKey::Batched,          c10::DispatchKey::NestedTensor};
constexpr c10::DispatchKeySet kLazy{c10::DispatchKey::Negative, c10::DispatchKey::ZeroTensor};

// Whether the memory of `t` holds the numbers that it stands for.
inline bool is_plain(const at::Tensor& t) {
  return t.layout() == at::kStrided && !t.key_set().has_any(kWrappers | kLazy);
}

// `t` with the numbers that it stands for in its memory: a view that negates when it is read is
// computed, a tensor of zeros without memory gets some, a sparse one is made dense. Other kinds of
// tensor are refused.
inline at::Tensor readable(const char* name, const at::Tensor& t) {
  const c10::DispatchKeySet keys = t.key_set();
  const bool is_sparse = t.layout() == at::kSparse || t.layout() == at::kSparseCsr ||
                         t.layout() == at::kSparseCsc || t.layout() == at::kSparseBsr ||
                         t.layout() == at::kSparseBsc;
  TORCH_CHECK((t.layout() == at::kStrided || is_sparse) && !keys.has_any(kWrappers), name,
              " must be a tensor with numbers in memory of its own, got one of layout ", t.layout(),
              " with dispatch keys ", c10::toString(keys));
  if (is_sparse) return t.to_dense();
  if (!keys.has_any(kLazy)) return t;
  return t._is_zerotensor() ? at::zeros(t.sizes(), t.options()) : t.resolve_neg();
}
inline std::optional<at::Tensor> readable(const char* name, const std::optional<at::Tensor>& t) {
  return t ? std::optional<at::Tensor>(readable(name, *t)) : std::nullopt;
}

inline void check_like(const char* name, const at::Tensor& t, at::ScalarType dtype,
                       const at::Tensor& like, at::IntArrayRef shape) {
  TORCH_CHECK(t.device() == like.device(), name, " must be on device ", like.device(), ", got ",
              t.device());
  TORCH_CHECK(t.scalar_type() == dtype, name, " must have dtype ", dtype, ", got ",
              t.scalar_type());
  TORCH_CHECK(t.sizes() == shape, name, " must have shape ", shape, ", got ", t.sizes());
}

inline void check_like(const char* name, const at::Tensor& t, const at::Tensor& like,
                       at::IntArrayRef shape) {
  check_like(name, t, like.scalar_type(), like, shape);
}

inline void check_like(const char* name, const std::optional<at::Tensor>& t, const at::Tensor& like,
                       at::IntArrayRef shape) {
  if (t) check_like(name, *t, like, shape);
}

// Range of the tokens that select rows of a table of num_rows rows.
inline void check_tokens(const at::Tensor& tokens, int64_t num_rows) {
  TORCH_CHECK(tokens.scalar_type() == at::kLong, "tokens must have dtype Long, got ",
              tokens.scalar_type());
  const int64_t* p = tokens.const_data_ptr<int64_t>();
  int64_t low = 0, high = -1;
  for (int64_t i = 0; i < tokens.numel(); ++i) {
    if (p[i] < low) low = p[i];
    if (p[i] > high) high = p[i];
  }
  TORCH_CHECK_INDEX(low >= 0 && high < num_rows, "input must hold token ids in [0, ", num_rows,
                    "), got ", low < 0 ? low : high);
}

}  // namespace fastlstm
