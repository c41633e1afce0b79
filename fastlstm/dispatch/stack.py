"""The loop over layers that lstm, gru and rnn share, and the checks of their arguments.

Sizes, dtypes and devices that only one layer sees are checked in C++, and so are values (token ids,
lengths), which may not be looked at while a graph is being captured.
"""

from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastlstm.dispatch import autograd, per_sample
from fastlstm.dispatch.embedding import filler_of, looked_up, opened, without_gradient_of_padding
from fastlstm.dispatch.extension import _C
from fastlstm.dispatch.per_sample import ExpandedWeight
from fastlstm.dispatch.plain import (
    check_is_number,
    check_is_tensor,
    check_pair,
    is_plain,
    wrong_tokens,
)
from fastlstm.dispatch.precision import Precision, precision_of
from fastlstm.dispatch.traits import CELL_TRAITS
from fastlstm.reference import CallOptions, LSTMStates, RNNStates, Weights

_PROXY = torch._C._TorchDispatchModeKey.PROXY
_dispatch_mode, _is_compiling = torch._C._get_dispatch_mode, torch.compiler.is_compiling
_WEIGHT_NAMES = ("w_ih", "w_hh", "b_ih", "b_hh", "w_hr")
_REQUIRED_WEIGHTS = _WEIGHT_NAMES[:2]


class StackResult(NamedTuple):
    """What a stack of layers returns, in the layout and the dtype of its arguments.

    Attributes:
        output: ``[T, N, D * P]``, the last layer's h.
        hidden: h_n, or of a cell with a c ``(h_n, c_n)``.
        states: those of every step, if asked for.
    """

    output: Tensor
    hidden: Tensor | tuple[Tensor, Tensor]
    states: LSTMStates | RNNStates | None


class _Layout(NamedTuple):
    """Where time and batch are in the arguments; the layers see ``[T, N, ...]`` or packed rows."""

    is_batched: bool
    batch_first: bool

    def enter(self, t: Tensor) -> Tensor:
        if not self.is_batched:
            return t.unsqueeze(1)
        return t.transpose(0, 1) if self.batch_first else t

    def leave(self, t: Tensor) -> Tensor:
        if not self.is_batched:
            return t.squeeze(1)
        return t.transpose(0, 1) if self.batch_first else t

    def leave_for_good(self, t: Tensor) -> Tensor:
        """The same of a tensor that nobody else has: as in torch.nn, the result is no view.

        Views cannot be detached or squeezed in place.
        """
        if self.is_batched and self.batch_first and is_plain(t):
            _C.transpose_in_place(t, 0, 1)
            return t
        return _apart(self.leave(t))


def run_stack(
    mode: str,
    input: Tensor,
    hx: Tensor | Sequence[Tensor] | None,
    weights: Weights,
    options: CallOptions,
) -> StackResult:
    """Run the layers of ``mode`` one after the other; arguments as in :mod:`fastlstm.functional`."""
    weights = [_five_weights(mode, entry) for entry in weights]
    has_c = CELL_TRAITS[mode].has_c
    embedding, lengths, reset = options.embedding, options.lengths, options.reset
    batch_sizes, return_states = options.batch_sizes, options.return_states
    directions = 2 if options.bidirectional else 1
    layers = len(weights) // directions
    if not weights or layers * directions != len(weights):
        raise ValueError(
            f"weights must hold {directions} entries a layer, got {len(weights)} entries"
        )
    owners = None
    if _check_weights(weights, input):
        owners = weights
        weights = [tuple(map(per_sample.unwrapped, entry)) for entry in owners]
    w_ih = weights[0][0]
    precision = precision_of(w_ih)
    table, module = (None, None) if embedding is None else opened(embedding)
    is_tokens = _check_input(input, embedding, table, w_ih, precision)
    layout = _layout_of(input, is_tokens, options.batch_first, batch_sizes, w_ih.dtype)
    x = layout.enter(input.long() if is_tokens else input)
    if lengths is not None or reset is not None:
        if batch_sizes is not None:
            raise ValueError("lengths and reset go with padded input, not with packed sequences")
        lengths = _as_lengths(lengths, x.size(1), layout)
        reset = _as_reset(reset, x, layout)
    if is_tokens and lengths is not None:
        x = _without_padding(x, lengths, filler_of(module))
    if type(table) is ExpandedWeight:
        padding_idx = None if module is None else module.padding_idx
        x, table, is_tokens = per_sample.looked_up(x, table, padding_idx), None, False
    elif embedding is not None:
        if table is None or _table_is_larger(x, table):
            x = looked_up(x, table, module, w_ih.size(1), layout)
            _check_embedding(x, input, w_ih, precision)
            table, is_tokens = None, False
        else:
            table = without_gradient_of_padding(table, module)

    h0, c0 = _as_states(has_c, hx, len(weights), layout, x.device)
    given_c0 = c0
    if precision.compute is not None:
        weights = [
            tuple(map(precision.enter_weight, _WEIGHT_NAMES, five_weights))
            for five_weights in weights
        ]
        table = precision.enter("embedding", table)
        x = x if is_tokens else precision.enter("input", x)
        h0, c0 = precision.enter("h0", h0), precision.enter_cell_state("c0", c0)
    elif c0 is not None and c0.dtype != precision.result:
        c0 = precision.enter_cell_state("c0", c0)

    h, c, h_n, c_n = [], [], [], []
    for layer in range(layers):
        first = layer * directions
        run = autograd.layer
        if owners is not None:
            run = partial(per_sample.layer, owners[first : first + directions])
        x, layer_c, last_h, last_c = run(
            mode,
            x,
            _part(h0, first, directions),
            _part(c0, first, directions),
            weights[first : first + directions],
            embedding=table if layer == 0 else None,
            batch_sizes=batch_sizes,
            lengths=lengths,
            reset=reset,
            return_c=return_states,
        )
        h.append(x)
        c.append(layer_c)
        h_n.append(last_h)
        c_n.append(last_c)
        if options.training and options.dropout > 0 and layer < layers - 1:
            x = F.dropout(x, options.dropout)

    def stacked(last: list[Tensor]) -> Tensor:
        t = precision.leave(last[0] if layers == 1 else torch.cat(last))
        return t if layout.is_batched else t.squeeze(1)

    hidden = stacked(h_n)
    if has_c:
        last_c = c_n[0] if layers == 1 else torch.cat(c_n)
        last_c = precision.leave_cell_state(last_c, given_c0)
        hidden = (hidden, last_c if layout.is_batched else last_c.squeeze(1))
    if not return_states:
        return StackResult(layout.leave_for_good(precision.leave(x)), hidden, None)
    every_h = tuple(_apart(layout.leave(precision.leave(t))) for t in h)
    if has_c:
        states = LSTMStates(every_h, tuple(_apart(layout.leave(precision.leave(t))) for t in c))
    else:
        states = RNNStates(every_h)
    # The output is the last layer's h, not a second view of it.
    return StackResult(every_h[-1], hidden, states)


def _apart(t: Tensor) -> Tensor:
    """``t`` in memory of its own, where it may leave a graph that is being captured for autograd.

    It is a view of what is kept for backward, and AOTAutograd does not tell that view from a tensor
    of its own: ``output.mul_(2)`` would change what backward reads, and nobody would know.
    """
    return torch.ops.fastlstm.copy.default(t) if t.requires_grad and _is_captured() else t


def _is_captured() -> bool:
    if _is_compiling():
        is_captured = not torch.compiler.is_exporting()
    else:
        is_captured = _dispatch_mode(_PROXY) is not None
    return is_captured and not torch._C._are_functorch_transforms_active()


def _five_weights(mode: str, entry: Sequence[Tensor | None]) -> tuple[Tensor | None, ...]:
    """Bring an entry of ``weights`` to ``(w_ih, w_hh, b_ih, b_hh, w_hr)``."""
    if len(entry) == 4:
        return (*entry, None)
    if len(entry) == 2:
        return (*entry, None, None, None)
    if mode == "LSTM" and len(entry) == 5:
        return tuple(entry)
    if mode == "LSTM" and len(entry) == 3:
        return (*entry[:2], None, None, entry[2])
    expected = "2 to 5" if mode == "LSTM" else "2 or 4"
    raise ValueError(f"each entry of weights must hold {expected} tensors, got {len(entry)}")


def _check_weights(weights: Weights, input: Tensor) -> bool:
    """Return whether some of them are expanded, see per_sample.py."""
    is_expanded = False
    # With a meta tensor among its arguments an operator computes shapes, and no kernel looks.
    input_is_meta = input.is_meta
    for entry in weights:
        for name, t in zip(_WEIGHT_NAMES, entry, strict=True):
            if type(t) is ExpandedWeight:
                is_expanded = True
            elif isinstance(t, Tensor):
                if t.is_meta and not input_is_meta:
                    raise RuntimeError(f"{name} must be on device {input.device}, got {t.device}")
            elif t is not None or name in _REQUIRED_WEIGHTS:
                check_is_tensor(name, t)
    return is_expanded


def _check_input(
    input: Tensor,
    embedding: Tensor | nn.Embedding | None,
    table: Tensor | None,
    w_ih: Tensor,
    precision: Precision,
) -> bool:
    """Return whether ``input`` holds token ids."""
    check_is_number(input, "a floating-point tensor or integer token ids")
    is_tokens = not input.is_floating_point()
    if embedding is None:
        return is_tokens
    if not is_tokens:
        raise TypeError(f"embedding goes with integer input, got input of dtype {input.dtype}")
    if table is None:  # its rows are checked when they are there
        return is_tokens
    table = per_sample.unwrapped(table)
    _check_embedding(table, input, w_ih, precision)
    if table.dim() != 2 or table.size(1) != w_ih.size(1):
        raise RuntimeError(
            f"embedding must have shape [V, {w_ih.size(1)}], got {list(table.shape)}"
        )
    return is_tokens


def _check_embedding(rows: Tensor, input: Tensor, w_ih: Tensor, precision: Precision) -> None:
    if rows.device != input.device:
        raise RuntimeError(f"embedding must be on device {input.device}, got {rows.device}")
    if rows.dtype != w_ih.dtype and not precision.is_autocast:
        raise RuntimeError(f"embedding must have dtype {w_ih.dtype}, got {rows.dtype}")


def _layout_of(
    input: Tensor,
    is_tokens: bool,
    batch_first: bool,
    batch_sizes: Tensor | None,
    dtype: torch.dtype,
) -> _Layout:
    dim = input.dim() + is_tokens  # as if tokens were the one-hot vectors they stand for
    if batch_sizes is not None:
        if dim != 2:
            if is_tokens:
                raise RuntimeError(wrong_tokens(input, dtype))
            raise RuntimeError(f"input must have 2 dimensions with batch_sizes, got {input.dim()}")
        return _Layout(is_batched=True, batch_first=False)
    if dim not in (2, 3):
        if is_tokens:
            raise RuntimeError(wrong_tokens(input, dtype))
        raise RuntimeError(f"input must have 2 or 3 dimensions, got {input.dim()}")
    return _Layout(is_batched=dim == 3, batch_first=batch_first and dim == 3)


def _as_lengths(
    lengths: Tensor | Sequence[int] | None, batch: int, layout: _Layout
) -> Tensor | None:
    """Return ``lengths`` as int64 on the CPU, where the kernels plan their steps."""
    if lengths is None:
        return None
    t = torch.as_tensor(lengths)
    if t.numel() == 0:
        t = t.long()  # an empty list says nothing of its dtype
    if t.is_floating_point() or t.is_complex() or t.dtype == torch.bool:
        raise TypeError(f"lengths must hold integers, got {t.dtype}")
    if t.dim() == 0 and not layout.is_batched:
        t = t.unsqueeze(0)
    if t.dim() != 1 or t.size(0) != batch:
        raise RuntimeError(f"lengths must have shape [{batch}], got {list(t.shape)}")
    return t.to("cpu", torch.int64)


def _as_reset(reset: Tensor | None, x: Tensor, layout: _Layout) -> Tensor | None:
    """Return ``reset`` as ``[T, N]``."""
    if reset is None:
        return None
    steps, batch = x.size(0), x.size(1)
    if not layout.is_batched:
        expected = (steps,)
    else:
        expected = (batch, steps) if layout.batch_first else (steps, batch)
    if reset.dtype != torch.bool:
        raise TypeError(f"reset must have dtype torch.bool, got {reset.dtype}")
    if reset.device != x.device:
        raise RuntimeError(f"reset must be on device {x.device}, got {reset.device}")
    if reset.shape != expected:
        raise RuntimeError(f"reset must have shape {list(expected)}, got {list(reset.shape)}")
    return layout.enter(reset)


def _table_is_larger(tokens: Tensor, table: Tensor) -> bool:
    """Whether the table costs more to project than its rows in use."""
    # An exported program may run with other sizes, which a comparison of sizes would pin.
    return torch.compiler.is_exporting() or table.size(0) > tokens.numel()


def _without_padding(tokens: Tensor, lengths: Tensor, filler: int) -> Tensor:
    """Whatever pads a row, -100 say, need not be a token: put one there."""
    steps = torch.arange(tokens.size(0), device=tokens.device).unsqueeze(1)
    return tokens.masked_fill(steps >= lengths.to(tokens.device), filler)


def _as_states(
    has_c: bool,
    hx: Tensor | Sequence[Tensor] | None,
    count: int,
    layout: _Layout,
    device: torch.device,
) -> tuple[Tensor | None, Tensor | None]:
    """Return h0 and c0 as the layers take them."""
    if hx is None:
        return None, None
    if not has_c:
        return _as_state("h0", hx, count, layout, device), None
    check_pair("lstm", "(h0, c0)", hx)
    return (
        _as_state("h0", hx[0], count, layout, device),
        _as_state("c0", hx[1], count, layout, device),
    )


def _as_state(
    name: str, state: Tensor, count: int, layout: _Layout, device: torch.device
) -> Tensor:
    check_is_tensor(name, state)
    if state.device != device:
        raise RuntimeError(f"{name} must be on device {device}, got {state.device}")
    if state.dim() != 2 + layout.is_batched or state.size(0) != count:
        shape = f"[{count}, N, ...]" if layout.is_batched else f"[{count}, ...]"
        raise RuntimeError(f"{name} must have shape {shape}, got {list(state.shape)}")
    return state if layout.is_batched else state.unsqueeze(1)


def _part(state: Tensor | None, first: int, directions: int) -> Tensor | None:
    """Return the states of one layer."""
    if state is None or state.size(0) == directions:
        return state
    return state[first : first + directions]
