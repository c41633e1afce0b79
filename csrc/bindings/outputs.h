// What autograd is told of the tensors that a layer takes and gives: which arguments the kernels
// can read, and that an output lies in memory which backward will read again.
#pragma once

#include <ATen/core/Tensor.h>
#include <pybind11/pybind11.h>

namespace fastlstm {

using at::Tensor;

// A tensor of `sizes` and `strides` in the memory of `buffer`, `offset` elements from its start,
// which autograd does not take for a view: it has a version of its own, and everything may be done
// to it that changes its shape or its history in place.
Tensor part_of(const Tensor& buffer, at::IntArrayRef sizes, at::IntArrayRef strides,
               int64_t offset);

// The same of all of `t`.
Tensor alias_of(const Tensor& t);

// An empty tensor with the version counter of `t`, which so can be read without keeping `t`.
Tensor version_of(const Tensor& t);

// t.transpose_(dim0, dim1), with autograd, but without a new version: no number changes.
void transpose_in_place(const Tensor& t, int64_t dim0, int64_t dim1);

// Whether every one is None, or a torch.Tensor or Parameter and no class derived from them, on a
// device, and no wrapper around another tensor: then the kernels may be called without torch's
// dispatcher.
bool are_plain(const pybind11::tuple& tensors);

}  // namespace fastlstm
