"""The LSTM as a plain PyTorch loop: the ground truth of the tests and the second-derivative path.

The cell is that of Hochreiter & Schmidhuber (1997), "Long Short-Term Memory", with the forget gate
of Gers, Schmidhuber & Cummins (2000), "Learning to Forget", and no peepholes: the cell of
``torch.nn.LSTM``. Nothing here needs the compiled extension. It is slow, runs on any device and in
any floating-point dtype, and can be differentiated to any order.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor


class LSTMStates(NamedTuple):
    """Every hidden and cell state of a call: one tensor a layer, each laid out as ``output`` is."""

    h: tuple[Tensor, ...]
    c: tuple[Tensor, ...]


def lstm_layer(
    x: Tensor,
    h0: Tensor,
    c0: Tensor,
    w_ih: Tensor,
    w_hh: Tensor,
    b_ih: Tensor | None = None,
    b_hh: Tensor | None = None,
    *,
    reverse: bool = False,
) -> tuple[Tensor, Tensor]:
    """Run one layer in one direction.

    With gates stacked in the order i, f, g, o along the ``4H`` dimension of the weights::

        i, f, o = sigmoid(x_t W_ih^T + b_ih + h_{t-1} W_hh^T + b_hh)
        g       = tanh   (x_t W_ih^T + b_ih + h_{t-1} W_hh^T + b_hh)
        c_t     = f * c_{t-1} + i * g
        h_t     = o * tanh(c_t)

    Args:
        x: ``[T, N, I]``, floating point. T and N may be 0.
        h0: ``[N, H]``, hidden state before the first step taken.
        c0: ``[N, H]``, cell state before the first step taken.
        w_ih: ``[4H, I]``.
        w_hh: ``[4H, H]``.
        b_ih: ``[4H]`` or None.
        b_hh: ``[4H]`` or None.
        reverse: start at ``t = T - 1`` and end at ``t = 0``.

    Returns:
        ``(y, c)``, both ``[T, N, H]``: the hidden and the cell state after the step at every ``t``.
    """
    igates = F.linear(x, w_ih, b_ih)
    hs, cs = [h0], [c0]
    for igates_t in reversed(igates.unbind()) if reverse else igates.unbind():
        i, f, g, o = (igates_t + F.linear(hs[-1], w_hh, b_hh)).chunk(4, dim=-1)
        c = torch.sigmoid(f) * cs[-1] + torch.sigmoid(i) * torch.tanh(g)
        h = torch.sigmoid(o) * torch.tanh(c)
        hs.append(h)
        cs.append(c)
    # The initial state is stacked too, so that T = 0 needs no case of its own.
    y, c = torch.stack(hs)[1:], torch.stack(cs)[1:]
    return (y.flip(0), c.flip(0)) if reverse else (y, c)


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
    """Run a stack of LSTM layers; same arguments and results as :func:`fastlstm.functional.lstm`.

    D is 2 if ``bidirectional``, else 1.

    Args:
        input: ``[T, N, I]``, ``[N, T, I]`` if ``batch_first``, or ``[T, I]`` without a batch. An
            integer tensor of one dimension less holds token ids, which stand for one-hot vectors
            of size I, or for rows of ``embedding``.
        hx: ``(h0, c0)``, each ``[layers * D, N, H]`` (``[layers * D, H]`` without a batch); None
            means zeros.
        weights: one ``(w_ih, w_hh)`` or ``(w_ih, w_hh, b_ih, b_hh)`` for each layer and direction,
            the two directions of a layer next to each other.
        batch_first: the batch is dimension 0 of ``input``, ``output`` and the returned states.
            Ignored without a batch.
        bidirectional: every layer also runs backwards in time; the outputs of both directions are
            concatenated.
        dropout: probability of zeroing an element of the output of each layer but the last, in
            training only.
        training: apply ``dropout``.
        embedding: ``[V, I]``, the table that integer ``input`` indexes.
        return_states: also return the states of every step.

    Returns:
        ``(output, (h_n, c_n))``, where ``output`` is ``[T, N, D * H]`` in the layout of ``input``,
        and ``h_n`` and ``c_n`` are shaped as ``hx``. With ``return_states``, a third element
        :class:`LSTMStates`, taken before dropout.

    Raises:
        IndexError: a token id is negative or not less than I (or V).
    """
    w_ih, w_hh = weights[0][:2]
    if not input.is_floating_point():
        input = _token_vectors(input, w_ih, embedding)
    is_batched = input.dim() == 3
    batch_first = batch_first and is_batched
    x = input if is_batched else input.unsqueeze(1)
    x = x.transpose(0, 1) if batch_first else x

    num_directions = 2 if bidirectional else 1
    num_layers = len(weights) // num_directions
    if hx is None:
        zeros = x.new_zeros(len(weights), x.size(1), w_hh.size(1))
        hx = (zeros, zeros)
    elif not is_batched:
        hx = (hx[0].unsqueeze(1), hx[1].unsqueeze(1))

    h_n, c_n, layer_h, layer_c = [], [], [], []
    for layer in range(num_layers):
        ys, cs = [], []
        for direction in range(num_directions):
            k = layer * num_directions + direction
            reverse = direction == 1
            h0, c0 = hx[0][k], hx[1][k]
            y, c = lstm_layer(x, h0, c0, *weights[k], reverse=reverse)
            last = 0 if reverse else -1
            h_n.append(y[last] if len(y) else h0)
            c_n.append(c[last] if len(c) else c0)
            ys.append(y)
            cs.append(c)
        x = torch.cat(ys, dim=-1)
        layer_h.append(x)
        layer_c.append(torch.cat(cs, dim=-1))
        if layer < num_layers - 1:
            x = F.dropout(x, dropout, training)

    def laid_out_as_input(y: Tensor) -> Tensor:
        if not is_batched:
            return y.squeeze(1)
        return y.transpose(0, 1) if batch_first else y

    h_n, c_n = torch.stack(h_n), torch.stack(c_n)
    if not is_batched:
        h_n, c_n = h_n.squeeze(1), c_n.squeeze(1)
    output = laid_out_as_input(x)
    if not return_states:
        return output, (h_n, c_n)
    states = LSTMStates(
        tuple(map(laid_out_as_input, layer_h)), tuple(map(laid_out_as_input, layer_c))
    )
    return output, (h_n, c_n), states


def _token_vectors(tokens: Tensor, w_ih: Tensor, embedding: Tensor | None) -> Tensor:
    """Return one-hot vectors, or the rows of ``embedding``, of ``tokens``."""
    size = w_ih.size(1) if embedding is None else embedding.size(0)
    tokens = tokens.long()
    bad = tokens[(tokens < 0) | (tokens >= size)]
    if len(bad):
        raise IndexError(f"input: token ids must be in [0, {size - 1}], got {bad[0].item()}")
    if embedding is None:
        return F.one_hot(tokens, size).to(w_ih.dtype)
    return F.embedding(tokens, embedding)
