"""The functional API: a whole stack of layers as one call, weights passed in."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from fastlstm.autograd import lstm_layer
from fastlstm.reference import LSTMStates


def lstm(
    input: Tensor,
    hx: tuple[Tensor, Tensor] | None,
    weights: Sequence[Sequence[Tensor | None]],
    *,
    batch_first: bool = False,
    bidirectional: bool = False,
    dropout: float = 0.0,
    training: bool = False,
    embedding: Tensor | None = None,
    return_states: bool = False,
) -> tuple[Tensor, tuple[Tensor, Tensor]] | tuple[Tensor, tuple[Tensor, Tensor], LSTMStates]:
    """Run a stack of LSTM layers on the fused kernels.

    The cell is that of Hochreiter & Schmidhuber (1997) with the forget gate of Gers, Schmidhuber &
    Cummins (2000), gates in the order i, f, g, o, as in :class:`torch.nn.LSTM`. float32 and float64
    are computed in their own precision; float16 and bfloat16 input is computed, and the state kept,
    in float32. Results do not depend on the number of threads or on the other rows of the batch, to
    the last bit. D is 2 if ``bidirectional``, else 1.

    Args:
        input: ``[T, N, I]``, ``[N, T, I]`` if ``batch_first``, or ``[T, I]`` without a batch. An
            integer tensor of one dimension less holds token ids, which stand for one-hot vectors of
            size I, or for rows of ``embedding``; the input projection is then a look-up.
        hx: ``(h0, c0)``, each ``[layers * D, N, H]`` (``[layers * D, H]`` without a batch); None
            means zeros.
        weights: one ``(w_ih, w_hh)`` or ``(w_ih, w_hh, b_ih, b_hh)`` for each layer and direction,
            the two directions of a layer next to each other: w_ih ``[4H, I]`` (``[4H, D * H]`` from
            the second layer on), w_hh ``[4H, H]``, biases ``[4H]`` or None.
        batch_first: the batch is dimension 0 of ``input``, ``output`` and the returned states.
            Ignored without a batch.
        bidirectional: every layer also runs backwards in time; the outputs of both directions are
            concatenated.
        dropout: probability of zeroing an element of the output of each layer but the last, in
            training only; drawn from torch's generator. Default: 0.
        training: apply ``dropout``.
        embedding: ``[V, I]``, the table that integer ``input`` indexes. It is projected once by
            w_ih, V rows of work instead of T * N, unless V is larger than T * N.
        return_states: also return the states of every step.

    Returns:
        ``(output, (h_n, c_n))``: ``output`` is ``[T, N, D * H]`` in the layout of ``input``, h_n and
        c_n are shaped as ``hx``. With ``return_states``, a third element :class:`LSTMStates`, taken
        before dropout and differentiable like the output.

    Raises:
        RuntimeError: a tensor has the wrong device, dtype or shape.
        IndexError: a token id is negative, or not less than I (or V).
        TypeError: ``input`` is boolean or complex, or ``embedding`` is given with floating-point
            input.
    """
    input, embedding, is_tokens = _check_input(input, embedding)
    if embedding is not None and embedding.size(0) > input.numel():
        # A table of more rows than there are tokens costs more to project than its rows in use.
        input, embedding, is_tokens = _looked_up(input, embedding), None, False
    is_batched = input.dim() == (2 if is_tokens else 3)
    batch_first = batch_first and is_batched
    x = input if is_batched else input.unsqueeze(1)
    x = x.transpose(0, 1) if batch_first else x
    if hx is not None and not is_batched:
        hx = (hx[0].unsqueeze(1), hx[1].unsqueeze(1))
    weights = [tuple(w) if len(w) == 4 else (*w, None, None) for w in weights]

    result_dtype, compute_dtype = _dtypes(weights[0][0])
    if compute_dtype is not None:
        weights = [tuple(_cast(t, result_dtype, compute_dtype) for t in w) for w in weights]
        embedding = _cast(embedding, result_dtype, compute_dtype)
        x = x if is_tokens else _cast(x, result_dtype, compute_dtype)
        if hx is not None:
            hx = tuple(_cast(t, result_dtype, compute_dtype) for t in hx)

    directions = 2 if bidirectional else 1
    layers = len(weights) // directions
    if layers * directions != len(weights):
        raise ValueError(f"weights must hold two directions a layer, got {len(weights)} entries")
    for name, state in zip(("h0", "c0"), hx or (), strict=False):
        if state.size(0) != len(weights):
            raise RuntimeError(f"{name} must hold {len(weights)} states, got {state.size(0)}")
    layer_h, layer_c, h_n, c_n = [], [], [], []
    for layer in range(layers):
        own = slice(layer * directions, (layer + 1) * directions)
        h0, c0 = (None, None) if hx is None else (hx[0][own], hx[1][own])
        x, c, h_last, c_last = lstm_layer(
            x,
            h0,
            c0,
            weights[own],
            embedding=embedding if layer == 0 else None,
            return_c=return_states,
        )
        layer_h.append(x)
        layer_c.append(c)
        h_n.append(h_last)
        c_n.append(c_last)
        if layer < layers - 1 and dropout > 0:
            x = F.dropout(x, dropout, training)

    def as_input(t: Tensor) -> Tensor:
        t = t if compute_dtype is None else t.to(result_dtype)
        if not is_batched:
            return t.squeeze(1)
        return t.transpose(0, 1) if batch_first else t

    def stacked(states: list[Tensor]) -> Tensor:
        t = states[0] if layers == 1 else torch.cat(states)
        t = t if compute_dtype is None else t.to(result_dtype)
        return t if is_batched else t.squeeze(1)

    hidden = (stacked(h_n), stacked(c_n))
    if not return_states:
        return as_input(x), hidden
    states = LSTMStates(tuple(map(as_input, layer_h)), tuple(map(as_input, layer_c)))
    # The output is the last layer's h, not a second view of it.
    return states.h[-1], hidden, states


def _check_input(input: Tensor, embedding: Tensor | None) -> tuple[Tensor, Tensor | None, bool]:
    if input.dtype == torch.bool or input.is_complex():
        raise TypeError(
            f"input must be a floating-point tensor or integer token ids, got {input.dtype}"
        )
    is_tokens = not input.is_floating_point()
    if embedding is not None and not is_tokens:
        raise TypeError(f"embedding goes with integer input, got input of dtype {input.dtype}")
    if is_tokens and input.dtype != torch.int64:
        input = input.long()
    return input, embedding, is_tokens


def _looked_up(tokens: Tensor, embedding: Tensor) -> Tensor:
    rows = embedding.size(0)
    if not tokens.is_meta and tokens.numel() > 0:
        low, high = (int(t) for t in torch.aminmax(tokens))
        if low < 0 or high >= rows:
            raise IndexError(
                f"input must hold token ids in [0, {rows}), got {low if low < 0 else high}"
            )
    return F.embedding(tokens, embedding)


def _dtypes(weight: Tensor) -> tuple[torch.dtype, torch.dtype | None]:
    """Dtype of the results, and of the computation where it is another one."""
    device_type = weight.device.type
    if (
        device_type == "cpu"
        and torch.is_autocast_enabled(device_type)
        and weight.dtype != torch.float64
    ):
        return torch.get_autocast_dtype(device_type), torch.float32
    if weight.dtype in (torch.float16, torch.bfloat16):
        return weight.dtype, torch.float32
    return weight.dtype, None


def _cast(t: Tensor | None, result_dtype: torch.dtype, compute_dtype: torch.dtype) -> Tensor | None:
    # Through the narrow type first: under autocast, values are what a matmul in that type would see.
    return None if t is None else t.to(result_dtype).to(compute_dtype)
