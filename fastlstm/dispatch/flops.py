"""What ``torch.utils.flop_counter.FlopCounterMode`` counts for the operators of ops.py.

As torch counts its own: a product of a row with a matrix is two operations for each element of the
matrix, and nothing else counts. Rows that are padding, and looking tokens up, cost no product.
"""

import importlib.abc
import importlib.util
import sys
from collections.abc import Sequence

import torch
from torch import Tensor

_COUNTER = "torch.utils.flop_counter"


def register() -> None:
    """Let the counter know the formulas, now or once it is imported.

    To import it for that took 0.01 s, but 0.8 s where triton is installed, which it imports.
    """
    counter = sys.modules.get(_COUNTER)
    if counter is None:
        sys.meta_path.insert(0, _RegisterOnImport())
        return
    for formula in (layer, layer_backward, cell, cell_backward):
        operator = getattr(torch.ops.fastlstm, formula.__name__)
        counter.register_flop_formula(operator, get_raw=True)(formula)


def layer(
    mode, x, embedding, h0, c0, weights, has_weight, batch_sizes, lengths, reset, keep, *, out_val
) -> int:
    """Operations of the operator ``layer``."""
    directions = len(has_weight) // 5
    rows, _ = _rows_and_sequences(x, batch_sizes, lengths, out_val[0], directions)
    w_ih, w_hh, w_hr = _sizes(weights, has_weight)
    return 2 * directions * (_input_rows(x, embedding, rows) * w_ih + rows * (w_hh + w_hr))


def layer_backward(
    mode, x, embedding, h0, c0, weights, has_weight, batch_sizes, lengths, reset, h, c, reserve,
    grad_y, grad_c, grad_h_n, grad_c_n, needs_x, needs_embedding, needs_state, needs_weights,
    witnesses, *, out_val,
) -> int:  # fmt: skip
    """Operations of the operator ``layer_backward``."""
    directions = len(has_weight) // 5
    rows, sequences = _rows_and_sequences(
        x, batch_sizes, lengths, c if h is None else h, directions
    )
    input_rows = _input_rows(x, embedding, rows)
    w_ih, w_hh, w_hr = _sizes(weights, has_weight)
    # Nothing goes back through W_hh from the first step of a row, unless h0 needs a gradient.
    count = (rows if needs_state else rows - sequences) * w_hh + rows * w_hr
    if needs_x or needs_embedding:
        count += input_rows * w_ih
    if needs_weights:
        count += input_rows * w_ih + rows * (w_hh + w_hr)
    return 2 * directions * count


def cell(mode, x, h, c, w_ih, w_hh, b_ih, b_hh, keep, *, out_val) -> int:
    """Operations of the operator ``cell``."""
    return 2 * x.size(0) * (w_ih.numel() + w_hh.numel())


def cell_backward(
    mode, x, h, c, w_ih, w_hh, b_ih, b_hh, h_out, c_out, reserve, grad_h, grad_c,
    needs_x, needs_h, needs_c, needs_weights, witnesses, *, out_val,
) -> int:  # fmt: skip
    """Operations of the operator ``cell_backward``."""
    times = (needs_x + needs_weights) * w_ih.numel() + (needs_h + needs_weights) * w_hh.numel()
    return 2 * x.size(0) * times


def _rows_and_sequences(
    x: Tensor, batch_sizes: Tensor | None, lengths: Tensor | None, h: Tensor, directions: int
) -> tuple[int, int]:
    """The steps of all rows together, and the number of rows that have one. ``h``: as it is kept."""
    if batch_sizes is not None:
        return x.size(0), (h.size(0) - 1 - x.size(0)) // directions
    if lengths is not None and type(lengths) is Tensor and not lengths.is_meta:
        return int(lengths.sum()), int(lengths.count_nonzero())
    rows = x.size(0) * x.size(1)
    return rows, torch.sym_min(x.size(1), rows)


def _input_rows(x: Tensor, embedding: Tensor | None, rows: int) -> int:
    """How many rows are multiplied by W_ih."""
    if x.is_floating_point():
        return rows
    return 0 if embedding is None else embedding.size(0)


def _sizes(weights: Sequence[Tensor], has_weight: Sequence[int]) -> tuple[int, int, int]:
    """The elements of w_ih, w_hh and, which may be 0, of w_hr."""
    w_hr = weights[sum(has_weight[:4])].numel() if has_weight[4] else 0
    return weights[0].numel(), weights[1].numel(), w_hr


class _RegisterOnImport(importlib.abc.MetaPathFinder):
    """Registers the formulas when somebody imports the counter, before it can be used."""

    def find_spec(self, name, path, target=None):
        if name != _COUNTER:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        run = spec.loader.exec_module

        def run_and_register(module) -> None:
            run(module)
            register()

        spec.loader.exec_module = run_and_register
        return spec
