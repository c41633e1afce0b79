// Layers and cells for Python: names, argument names, one line each. Arguments are checked in
// ../layer.
#include "bind_layers.h"

#include "../layer/cell.h"
#include "../layer/layer.h"
#include "outputs.h"

namespace py = pybind11;

namespace fastlstm {

CellKind cell_kind(const std::string& mode) {
  const CellKind found = kind_of(mode.c_str());
  if (found < kNumCells) return found;
  std::string known;
  for (int kind = 0; kind < kNumCells; ++kind) {
    known += kind == 0 ? "" : kind == kNumCells - 1 ? " or " : ", ";
    known += kCellTraits[kind].mode;
  }
  TORCH_CHECK_VALUE(false, "mode must be ", known, ", got ", mode);
}

namespace {

using OptionalTensor = std::optional<Tensor>;

// An absent tensor is None in Python.
OptionalTensor present(const Tensor& t) { return t.defined() ? OptionalTensor(t) : std::nullopt; }

// weights: w_ih, w_hh, b_ih, b_hh, w_hr of each direction, one after the other.
LayerInput layer_input(const std::string& mode, const Tensor& x, const OptionalTensor& embedding,
                       const OptionalTensor& h0, const OptionalTensor& c0,
                       const std::vector<OptionalTensor>& weights,
                       const OptionalTensor& batch_sizes, const OptionalTensor& lengths,
                       const OptionalTensor& reset) {
  TORCH_CHECK(weights.size() % 5 == 0,
              "weights must hold w_ih, w_hh, b_ih, b_hh, w_hr for each direction, got ",
              weights.size(), " tensors");
  LayerInput input{cell_kind(mode), x, embedding, h0, c0, {}, batch_sizes, lengths, reset};
  for (size_t i = 0; i < weights.size(); i += 5) {
    TORCH_CHECK(weights[i] && weights[i + 1], "w_ih and w_hh must not be None");
    input.weights.push_back(
        {*weights[i], *weights[i + 1], weights[i + 2], weights[i + 3], weights[i + 4]});
  }
  return input;
}

py::tuple py_layer_fwd(const std::string& mode, const Tensor& x, const OptionalTensor& embedding,
                       const OptionalTensor& h0, const OptionalTensor& c0,
                       const std::vector<OptionalTensor>& weights,
                       const OptionalTensor& batch_sizes, const OptionalTensor& lengths,
                       const OptionalTensor& reset, int keep) {
  LayerOutput out;
  {
    py::gil_scoped_release release;
    out = layer_fwd(layer_input(mode, x, embedding, h0, c0, weights, batch_sizes, lengths, reset),
                    static_cast<Keep>(keep));
  }
  return py::make_tuple(out.h, out.c, out.reserve, out.h_n, out.c_n);
}

py::tuple py_layer_bwd(const std::string& mode, const Tensor& x, const OptionalTensor& embedding,
                       const OptionalTensor& h0, const OptionalTensor& c0,
                       const std::vector<OptionalTensor>& weights,
                       const OptionalTensor& batch_sizes, const OptionalTensor& lengths,
                       const OptionalTensor& reset, const OptionalTensor& h, const Tensor& c,
                       const Tensor& reserve, const OptionalTensor& grad_y,
                       const OptionalTensor& grad_c, const OptionalTensor& grad_h_n,
                       const OptionalTensor& grad_c_n, bool needs_x, bool needs_embedding,
                       bool needs_state, bool needs_weights) {
  LayerGrads g;
  {
    py::gil_scoped_release release;
    g = layer_bwd(layer_input(mode, x, embedding, h0, c0, weights, batch_sizes, lengths, reset),
                  {h.value_or(Tensor()), c, reserve, Tensor(), Tensor()},
                  {grad_y, grad_c, grad_h_n, grad_c_n},
                  {needs_x, needs_embedding, needs_state, needs_weights});
  }
  std::vector<OptionalTensor> dweights;
  for (const DirectionWeights& dw : g.dweights) {
    for (const OptionalTensor& t :
         {OptionalTensor(dw.w_ih), OptionalTensor(dw.w_hh), dw.b_ih, dw.b_hh, dw.w_hr})
      dweights.push_back(t);
  }
  return py::make_tuple(present(g.dx), present(g.dembedding), present(g.dh0), present(g.dc0),
                        dweights);
}

py::tuple py_cell_fwd(const std::string& mode, const Tensor& x, const Tensor& h,
                      const OptionalTensor& c, const Tensor& w_ih, const Tensor& w_hh,
                      const OptionalTensor& b_ih, const OptionalTensor& b_hh, bool keep) {
  CellOutput out;
  {
    py::gil_scoped_release release;
    out = cell_fwd({cell_kind(mode), x, h, c, w_ih, w_hh, b_ih, b_hh}, keep);
  }
  return py::make_tuple(out.h, present(out.c), present(out.reserve));
}

py::tuple py_cell_bwd(const std::string& mode, const Tensor& x, const Tensor& h,
                      const OptionalTensor& c, const Tensor& w_ih, const Tensor& w_hh,
                      const OptionalTensor& b_ih, const OptionalTensor& b_hh,
                      const OptionalTensor& h_out, const OptionalTensor& c_out,
                      const Tensor& reserve, const OptionalTensor& grad_h,
                      const OptionalTensor& grad_c, bool needs_x, bool needs_h, bool needs_c,
                      bool needs_weights) {
  CellGrads g;
  {
    py::gil_scoped_release release;
    g = cell_bwd({cell_kind(mode), x, h, c, w_ih, w_hh, b_ih, b_hh},
                 {h_out.value_or(Tensor()), c_out.value_or(Tensor()), reserve}, grad_h, grad_c,
                 {needs_x, needs_h, needs_c, needs_weights});
  }
  return py::make_tuple(present(g.dx), present(g.dh), present(g.dc), present(g.dw_ih),
                        present(g.dw_hh), present(g.db_ih), present(g.db_hh));
}

}  // namespace

void bind_layers(py::module_& m) {
  // Local, as the tests import a second module that has it.
  py::class_<CellTraits>(m, "CellTraits", py::module_local(), "csrc/cells/traits.h")
      .def_readonly("mode", &CellTraits::mode)
      .def_readonly("gates", &CellTraits::gates)
      .def_readonly("reserve", &CellTraits::reserve)
      .def_readonly("dgates", &CellTraits::dgates)
      .def_readonly("separate", &CellTraits::separate)
      .def_readonly("has_c", &CellTraits::has_c)
      .def_readonly("has_carry", &CellTraits::has_carry)
      .def_readonly("fwd_reads_state", &CellTraits::fwd_reads_state)
      .def_readonly("bwd_reads_state", &CellTraits::bwd_reads_state)
      .def_readonly("bwd_reads_prev_state", &CellTraits::bwd_reads_prev_state);
  m.def(
      "cells",
      [] { return std::vector<CellTraits>(std::begin(kCellTraits), std::end(kCellTraits)); },
      "Every cell that is compiled in, in the order of the list (csrc/cells/cells.h)");
  m.def("layer_fwd", &py_layer_fwd, "One layer: h, c, reserve, h_n, c_n (csrc/layer/layer.h)",
        py::arg("mode"), py::arg("x"), py::arg("embedding"), py::arg("h0"), py::arg("c0"),
        py::arg("weights"), py::arg("batch_sizes"), py::arg("lengths"), py::arg("reset"),
        py::arg("keep"));
  m.def("layer_bwd", &py_layer_bwd, "Its backward: dx, dembedding, dh0, dc0, dweights",
        py::arg("mode"), py::arg("x"), py::arg("embedding"), py::arg("h0"), py::arg("c0"),
        py::arg("weights"), py::arg("batch_sizes"), py::arg("lengths"), py::arg("reset"),
        py::arg("h"), py::arg("c"), py::arg("reserve"), py::arg("grad_y"), py::arg("grad_c"),
        py::arg("grad_h_n"), py::arg("grad_c_n"), py::arg("needs_x"), py::arg("needs_embedding"),
        py::arg("needs_state"), py::arg("needs_weights"));
  m.def("cell_fwd", &py_cell_fwd, "One step of a cell: h, c, reserve (csrc/layer/cell.h)",
        py::arg("mode"), py::arg("x"), py::arg("h"), py::arg("c"), py::arg("w_ih"), py::arg("w_hh"),
        py::arg("b_ih"), py::arg("b_hh"), py::arg("keep"));
  m.def("cell_bwd", &py_cell_bwd, "Its backward: dx, dh, dc, dw_ih, dw_hh, db_ih, db_hh",
        py::arg("mode"), py::arg("x"), py::arg("h"), py::arg("c"), py::arg("w_ih"), py::arg("w_hh"),
        py::arg("b_ih"), py::arg("b_hh"), py::arg("h_out"), py::arg("c_out"), py::arg("reserve"),
        py::arg("grad_h"), py::arg("grad_c"), py::arg("needs_x"), py::arg("needs_h"),
        py::arg("needs_c"), py::arg("needs_weights"));
  m.def(
      "part_of",
      [](const Tensor& buffer, const std::vector<int64_t>& sizes,
         const std::vector<int64_t>& strides,
         int64_t offset) { return part_of(buffer, sizes, strides, offset); },
      "Memory of `buffer` in a tensor that is no view (csrc/bindings/outputs.h)", py::arg("buffer"),
      py::arg("sizes"), py::arg("strides"), py::arg("offset"));
  m.def("alias_of", &alias_of, "The same of all of it", py::arg("t"));
  m.def("version_of", &version_of, "An empty tensor with the version counter of `t`", py::arg("t"));
  m.def("transpose_in_place", &transpose_in_place, "t.transpose_(), which is no new version",
        py::arg("t"), py::arg("dim0"), py::arg("dim1"));
  m.def("are_plain", &are_plain, "Whether the kernels can read every one", py::arg("tensors"));
}

}  // namespace fastlstm
