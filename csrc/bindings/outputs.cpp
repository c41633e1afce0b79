#include "outputs.h"

#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/ops/empty.h>
#include <torch/csrc/autograd/python_variable.h>
#include <torch/csrc/autograd/variable.h>

#include "../layer/checks.h"

namespace fastlstm {

Tensor part_of(const Tensor& buffer, at::IntArrayRef sizes, at::IntArrayRef strides,
               int64_t offset) {
  // Below the keys under which views and versions are recorded.
  const at::AutoDispatchBelowADInplaceOrView guard;
  return buffer.as_strided(sizes, strides, buffer.storage_offset() + offset);
}

Tensor alias_of(const Tensor& t) { return part_of(t, t.sizes(), t.strides(), 0); }

Tensor version_of(const Tensor& t) {
  Tensor witness = at::empty({0}, t.options());
  torch::autograd::impl::set_version_counter(witness, torch::autograd::impl::version_counter(t));
  return witness;
}

void transpose_in_place(const Tensor& t, int64_t dim0, int64_t dim1) {
  if (t.is_inference()) {  // which has no version
    t.transpose_(dim0, dim1);
    return;
  }
  c10::VariableVersion counter = torch::autograd::impl::version_counter(t);
  const auto version = counter.current_version();
  t.transpose_(dim0, dim1);
  counter.set_version(version);
}

bool are_plain(const pybind11::tuple& tensors) {
  static PyObject* const parameter =
      pybind11::object(pybind11::module_::import("torch.nn").attr("Parameter")).release().ptr();
  for (const pybind11::handle& object : tensors) {
    if (object.is_none()) continue;
    const PyObject* type = reinterpret_cast<PyObject*>(Py_TYPE(object.ptr()));
    if (type != THPVariableClass && type != parameter) return false;
    const Tensor& t = THPVariable_Unpack(object.ptr());
    if (t.is_meta() || t.key_set().has_any(kWrappers)) return false;
  }
  return true;
}

}  // namespace fastlstm
