"""The two calls of the kernels, a layer and a cell, as functions of a flat tuple of tensors.

Everything that has to do with autograd, compilation and transforms is written once, in autograd.py
and transforms.py, for any :class:`Call`: what goes in, what comes out, what is kept for backward,
and which dimension of a tensor holds the rows of the batch.
"""

from collections.abc import Callable, Sequence
from functools import lru_cache

import torch
from torch import Tensor

from fastlstm import reference
from fastlstm.dispatch.extension import _C
from fastlstm.dispatch.precision import HALF_TYPES, kernel_types
from fastlstm.dispatch.traits import CELL_TRAITS

# How much forward keeps, as in csrc/layer/layer.h.
KEEP_NOTHING, KEEP_CELL_STATES, KEEP_ALL = 0, 1, 2

Tensors = Sequence[Tensor | None]


class Call:
    """One of the calls, with what is not a tensor among its arguments.

    Attributes:
        mode: a key of ``CELL_TRAITS``.
        has_c: the cell has a cell state beside h.
        needs_c: forward has to keep the cell states, gradient or not.
        kept_outputs: which outputs lie in memory that is kept for backward.
        num_outputs: of :meth:`run`; None stands for those that the cell does not have.
        num_kept: tensors that backward needs beside the inputs.
        output_row_dims: for each output, the dimension with the rows of the batch.
    """

    mode: str
    has_c: bool
    needs_c = False
    kept_outputs: tuple[int, ...]
    num_outputs: int
    num_kept: int
    output_row_dims: tuple[int, ...]

    def run(
        self, tensors: Tensors, keep: int, kernel: Callable | None = None
    ) -> tuple[Tensors, Tensors]:
        """Run forward: the outputs, and what is kept for backward (with ``KEEP_ALL``).

        Args:
            kernel: the operator of ops.py, where the kernel itself must not be called.
        """
        raise NotImplementedError

    def pull_back(
        self,
        tensors: Tensors,
        kept: Tensors,
        grads: Tensors,
        needs: Sequence[bool],
        kernel: Callable | None = None,
    ) -> Tensors:
        """Run backward: from a gradient for each output, or None, to one for each input in need."""
        raise NotImplementedError

    def unread(self, needs: tuple[bool, ...]) -> "Unread":
        """Of which inputs, and of what that is kept, :meth:`pull_back` reads no number."""
        raise NotImplementedError

    def reference(self, tensors: Tensors) -> Tensors:
        """Compute the outputs with operations that autograd and torch.func know."""
        raise NotImplementedError

    def input_row_dims(self, tensors: Tensors) -> list[int | None] | None:
        """For each input, the dimension with the rows of the batch; None for the weights.

        None instead of the list if rows cannot be appended to the batch.
        """
        raise NotImplementedError


class Layer(Call):
    """One layer: x, embedding, h0, c0, batch_sizes, lengths, reset, 5 weights a direction.

    The outputs are y, c, h_n, c_n, as :func:`fastlstm.dispatch.autograd.layer` returns them.
    """

    num_outputs = 4
    num_kept = 3
    num_states = 7  # inputs before the weights

    def __init__(self, mode: str, return_c: bool) -> None:
        self.mode, self.has_c = mode, CELL_TRAITS[mode].has_c
        self.needs_c = return_c and self.has_c
        self.kept_outputs = (0, 1) if self.needs_c else (0,)

    @property
    def output_row_dims(self) -> tuple[int, ...]:
        return 1, 1, 1, 1

    def run(self, tensors, keep, kernel=None):
        x, embedding, h0, c0, batch_sizes, lengths, reset, *weights = tensors
        h, c, reserve, h_n, c_n = (kernel or _C.layer_fwd)(
            self.mode, x, embedding, h0, c0, weights, batch_sizes, lengths, reset, keep
        )
        rows = x.shape[: 2 if batch_sizes is None else 1]
        view = every_step if kernel else _every_step_at_once
        y = view(h, rows, len(weights) // 5)
        every_c = view(c, rows, len(weights) // 5) if self.needs_c else None
        return (y, every_c, h_n, c_n if self.has_c else None), (h, c, reserve)

    def pull_back(self, tensors, kept, grads, needs, kernel=None):
        x, embedding, h0, c0, batch_sizes, lengths, reset, *weights = tensors
        needs_x, needs_embedding, needs_h0, needs_c0, _, _, _, *needs_weights = needs
        dx, dembedding, dh0, dc0, dweights = (kernel or _C.layer_bwd)(
            self.mode, x, embedding, h0, c0, weights, batch_sizes, lengths, reset, *kept, *grads,
            needs_x, needs_embedding, needs_h0 or needs_c0, any(needs_weights),
        )  # fmt: skip
        found = (dx, dembedding, dh0, dc0, None, None, None, *(dweights or [None] * len(weights)))
        return [grad if needed else None for grad, needed in zip(found, needs, strict=True)]

    def unread(self, needs):
        return _unread_of_layer(self.mode, needs)

    def reference(self, tensors):
        h_type, _ = kernel_types(tensors[self.num_states])
        x, embedding, h0, c0, batch_sizes, lengths, reset, *weights = map(_widened, tensors)
        y, c, h_n, c_n = reference.layer(
            self.mode,
            x,
            h0,
            c0,
            [weights[i : i + 5] for i in range(0, len(weights), 5)],
            embedding=embedding,
            batch_sizes=batch_sizes,
            lengths=lengths,
            reset=reset,
        )
        c_n = None if c_n is None else c_n.to(h_type)
        return y.to(h_type), c if self.needs_c else None, h_n.to(h_type), c_n

    def input_row_dims(self, tensors):
        if tensors[4] is not None:
            return None
        return [1, None, 1, 1, None, 0, 1] + [None] * (len(tensors) - self.num_states)


class Cell(Call):
    """One step: x, h, c, w_ih, w_hh, b_ih, b_hh. The outputs are h and c after it."""

    num_outputs = 2
    num_kept = 3
    output_row_dims = (0, 0)

    def __init__(self, mode: str) -> None:
        traits = CELL_TRAITS[mode]
        self.mode, self.has_c = mode, traits.has_c
        # What backward reads of the results of its own step.
        self.kept_outputs = (int(self.has_c),) if traits.bwd_reads_state else ()

    def run(self, tensors, keep, kernel=None):
        h, c, reserve = (kernel or _C.cell_fwd)(self.mode, *tensors, keep == KEEP_ALL)
        c = c if self.has_c else None
        if kernel is None and keep == KEEP_ALL:
            kept = [
                _C.alias_of(t) if i in self.kept_outputs else None for i, t in enumerate((h, c))
            ]
            return (h, c), (*kept, reserve)
        return (h, c), (h, c, reserve)

    def pull_back(self, tensors, kept, grads, needs, kernel=None):
        needs_x, needs_h, needs_c, *needs_weights = needs
        found = (kernel or _C.cell_bwd)(
            self.mode, *tensors, *kept, *grads, needs_x, needs_h, needs_c, any(needs_weights)
        )
        return [grad if needed else None for grad, needed in zip(found, needs, strict=True)]

    def unread(self, needs):
        return _unread_of_cell(self.mode, needs)

    def reference(self, tensors):
        h_type, _ = kernel_types(tensors[3])
        h, c = reference.cell(self.mode, *map(_widened, tensors))
        return h.to(h_type), None if c is None else c.to(h_type)

    def input_row_dims(self, tensors):
        return [0, 0, 0] + [None] * 4


# Places among the inputs, and among what is kept.
Unread = tuple[tuple[int, ...], tuple[int, ...]]


# Cached, as is what they are asked: a call of a small cell takes a few microseconds.
@lru_cache(maxsize=1024)
def _unread_of_layer(mode: str, needs: tuple[bool, ...]) -> Unread:
    needs_x, needs_embedding, *_ = needs
    needs_weights = any(needs[Layer.num_states :])
    directions = (len(needs) - Layer.num_states) // 5
    reads = (needs_weights or needs_embedding, needs_weights, False, False, True, True, True)
    reads += (needs_x or needs_embedding, True, False, False, True) * directions
    # A cell with a c reads that and not h.
    return _places_without(reads), (0,) if CELL_TRAITS[mode].has_c and not needs_weights else ()


@lru_cache(maxsize=1024)
def _unread_of_cell(mode: str, needs: tuple[bool, ...]) -> Unread:
    needs_x, needs_h, _, *rest = needs
    needs_weights = any(rest)
    traits = CELL_TRAITS[mode]
    reads_c = traits.has_c and traits.bwd_reads_prev_state
    reads_h = needs_weights or (traits.bwd_reads_prev_state and not traits.has_c)
    return _places_without((needs_weights, reads_h, reads_c, needs_x, needs_h, False, False)), ()


def _places_without(flags: Sequence[bool]) -> tuple[int, ...]:
    return tuple(i for i, flag in enumerate(flags) if not flag)


# Made once, for the same reason.
LAYERS = {(mode, c): Layer(mode, c) for mode in CELL_TRAITS for c in (False, True)}
CELLS = {mode: Cell(mode) for mode in CELL_TRAITS}


def _widened(t: Tensor | None) -> Tensor | None:
    """What the kernels compute with: of 16-bit tensors, sums and states are float32."""
    return t.float() if t is not None and t.dtype in HALF_TYPES else t


def every_step(buffer: Tensor, rows: torch.Size, directions: int) -> Tensor:
    """View a buffer of states, or its gradient, without the initial states: ``[*rows, width]``."""
    batch, count = _batch_and_count(buffer, rows, directions)
    return buffer.narrow(0, batch, count).view(*rows, buffer.size(1))


def _every_step_at_once(buffer: Tensor, rows: torch.Size, directions: int) -> Tensor:
    # No view, as callers may do to an output what torch.nn's lets them: detach_(), squeeze_(). And a
    # call of the smallest layers takes about as long as a view.
    width = buffer.size(1)
    strides = (width, 1) if len(rows) == 1 else (rows[1] * width, width, 1)
    batch, _ = _batch_and_count(buffer, rows, directions)
    return _C.part_of(buffer, (*rows, width), strides, batch * width)


def _batch_and_count(buffer: Tensor, rows: torch.Size, directions: int) -> tuple[int, int]:
    """N, the number of initial states before those of the steps, and the number of these."""
    if len(rows) == 2:
        return rows[1], rows[0] * rows[1]
    # There are directions * N initial states and one row more.
    return (buffer.size(0) - 1 - rows[0]) // directions, rows[0]


def pick(values: Sequence, flags: Sequence[bool]) -> list:
    return [value for value, flag in zip(values, flags, strict=True) if flag]


def spread(values: Sequence, flags: Sequence[bool]) -> list:
    """Undo :func:`pick`: None where there is no flag."""
    rest = iter(values)
    return [next(rest) if flag else None for flag in flags]


def replaced(values: Sequence, flags: Sequence[bool], by: Sequence) -> list:
    """Return ``values`` with those flagged taken from ``by``."""
    rest = iter(by)
    return [next(rest) if flag else value for value, flag in zip(values, flags, strict=True)]
