"""LSTM, GRU and RNN as plain PyTorch loops: the ground truth of the tests and the second-derivative path.

The equations are those of ``torch.nn``, stated at :func:`lstm`, :func:`gru` and :func:`rnn`. Nothing
here needs the compiled extension. It is slow, runs on any device and in any floating-point dtype,
can be differentiated to any order, and works under every transform of ``torch.func``.

Arguments and results are those of :mod:`fastlstm.functional`, but for nested tensors, which there are
none of here, ``embedding``, which is a Tensor, and errors: only wrong tokens are looked for, and are
an IndexError. T, N, I, H, D, P mean what they mean there.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Weights = Sequence[Sequence[Tensor | None]]


class LSTMStates(NamedTuple):
    """Every hidden and cell state of a call: one tensor a layer, each laid out as ``output`` is."""

    h: tuple[Tensor, ...]
    c: tuple[Tensor, ...]


class RNNStates(NamedTuple):
    """Every hidden state of a call: one tensor a layer, each laid out as ``output`` is."""

    h: tuple[Tensor, ...]


class CallOptions(NamedTuple):
    """What lstm, gru and rnn, here and in :mod:`fastlstm.functional`, are told beside the tensors."""

    batch_first: bool
    bidirectional: bool
    dropout: float
    training: bool
    embedding: Tensor | nn.Embedding | None
    lengths: Tensor | Sequence[int] | None
    reset: Tensor | None
    batch_sizes: Tensor | None
    return_states: bool


def lstm(
    input: Tensor, hx: tuple[Tensor, Tensor] | None, weights: Weights, *,
    batch_first: bool = False, bidirectional: bool = False, dropout: float = 0.0,
    training: bool = False, embedding: Tensor | None = None,
    lengths: Tensor | Sequence[int] | None = None, reset: Tensor | None = None,
    batch_sizes: Tensor | None = None, return_states: bool = False,
) -> tuple[Tensor, tuple[Tensor, Tensor]] | tuple[Tensor, tuple[Tensor, Tensor], LSTMStates]:  # fmt: skip
    """Run a stack of LSTM layers: :func:`fastlstm.functional.lstm`.

    The cell is that of Hochreiter & Schmidhuber (1997), "Long Short-Term Memory", with the forget
    gate of Gers, Schmidhuber & Cummins (2000), "Learning to Forget", without peepholes; W_hr is the
    recurrent projection of Sak, Senior & Beaufays (2014), "Long Short-Term Memory Based Recurrent
    Neural Network Architectures for Large Scale Acoustic Modeling"::

        i, f, o = sigmoid(x_t W_ih^T + b_ih + h_{t-1} W_hh^T + b_hh)
        g       = tanh   (x_t W_ih^T + b_ih + h_{t-1} W_hh^T + b_hh)
        c_t     = f * c_{t-1} + i * g
        h_t     = o * tanh(c_t)  or, with W_hr,  (o * tanh(c_t)) W_hr^T
    """
    options = CallOptions(
        batch_first, bidirectional, dropout, training, embedding, lengths, reset, batch_sizes,
        return_states,
    )  # fmt: skip
    return _stack("LSTM", input, hx, weights, options)


def gru(
    input: Tensor, hx: Tensor | None, weights: Weights, *,
    batch_first: bool = False, bidirectional: bool = False, dropout: float = 0.0,
    training: bool = False, embedding: Tensor | None = None,
    lengths: Tensor | Sequence[int] | None = None, reset: Tensor | None = None,
    batch_sizes: Tensor | None = None, return_states: bool = False,
) -> tuple[Tensor, Tensor] | tuple[Tensor, Tensor, RNNStates]:  # fmt: skip
    """Run a stack of GRU layers: :func:`fastlstm.functional.gru`.

    The cell is that of Cho et al. (2014), "Learning Phrase Representations using RNN
    Encoder-Decoder for Statistical Machine Translation", with the reset gate applied after the
    matrix product, as in the first version of that paper and in ``torch.nn.GRU``::

        r   = sigmoid(x_t W_ir^T + b_ir + h_{t-1} W_hr^T + b_hr)
        z   = sigmoid(x_t W_iz^T + b_iz + h_{t-1} W_hz^T + b_hz)
        n   = tanh   (x_t W_in^T + b_in + r * (h_{t-1} W_hn^T + b_hn))
        h_t = (1 - z) * n + z * h_{t-1}
    """
    options = CallOptions(
        batch_first, bidirectional, dropout, training, embedding, lengths, reset, batch_sizes,
        return_states,
    )  # fmt: skip
    return _stack("GRU", input, hx, weights, options)


def rnn(
    input: Tensor, hx: Tensor | None, weights: Weights, *, nonlinearity: str = "tanh",
    batch_first: bool = False, bidirectional: bool = False, dropout: float = 0.0,
    training: bool = False, embedding: Tensor | None = None,
    lengths: Tensor | Sequence[int] | None = None, reset: Tensor | None = None,
    batch_sizes: Tensor | None = None, return_states: bool = False,
) -> tuple[Tensor, Tensor] | tuple[Tensor, Tensor, RNNStates]:  # fmt: skip
    """Run a stack of RNN layers: :func:`fastlstm.functional.rnn`.

    The network of Elman (1990), "Finding Structure in Time", with ``nonlinearity`` tanh or relu::

        h_t = tanh(x_t W_ih^T + b_ih + h_{t-1} W_hh^T + b_hh)
    """
    options = CallOptions(
        batch_first, bidirectional, dropout, training, embedding, lengths, reset, batch_sizes,
        return_states,
    )  # fmt: skip
    return _stack(rnn_mode(nonlinearity), input, hx, weights, options)


def lstm_cell(
    input: Tensor, hx: tuple[Tensor, Tensor], w_ih: Tensor, w_hh: Tensor,
    b_ih: Tensor | None = None, b_hh: Tensor | None = None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """One step of :func:`lstm`: ``[N, I]`` and ``(h, c)``, each ``[N, H]``, give the next ``(h, c)``."""
    return cell("LSTM", input, *hx, w_ih, w_hh, b_ih, b_hh)


def gru_cell(
    input: Tensor, hx: Tensor, w_ih: Tensor, w_hh: Tensor,
    b_ih: Tensor | None = None, b_hh: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """One step of :func:`gru`: ``[N, I]`` and h ``[N, H]`` give the next h."""
    return cell("GRU", input, hx, None, w_ih, w_hh, b_ih, b_hh)[0]


def rnn_cell(
    input: Tensor, hx: Tensor, w_ih: Tensor, w_hh: Tensor,
    b_ih: Tensor | None = None, b_hh: Tensor | None = None, nonlinearity: str = "tanh",
) -> Tensor:  # fmt: skip
    """One step of :func:`rnn`: ``[N, I]`` and h ``[N, H]`` give the next h."""
    return cell(rnn_mode(nonlinearity), input, hx, None, w_ih, w_hh, b_ih, b_hh)[0]


RNN_MODES = {"tanh": "RNN_TANH", "relu": "RNN_RELU"}


def rnn_mode(nonlinearity: str) -> str:
    if nonlinearity not in RNN_MODES:
        raise ValueError(f"nonlinearity must be 'tanh' or 'relu', got {nonlinearity!r}")
    return RNN_MODES[nonlinearity]


class _Cell(NamedTuple):
    """A cell, to the loop.

    Attributes:
        step: from ``igates`` = x W_ih^T + b_ih, ``hgates`` = h W_hh^T + b_hh, and h and c before a
            step to ``(h, c)`` after it.
        gates: G, blocks of H columns of ``igates`` and ``hgates``.
        has_c: whether there is a c; it is None everywhere if not.
    """

    step: Callable[[Tensor, Tensor, Tensor, Tensor | None], tuple[Tensor, Tensor | None]]
    gates: int
    has_c: bool


def _lstm_step(igates, hgates, h, c):
    i, f, g, o = (igates + hgates).chunk(4, dim=-1)
    c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
    return torch.sigmoid(o) * torch.tanh(c), c


def _gru_step(igates, hgates, h, c):
    i_r, i_z, i_n = igates.chunk(3, dim=-1)
    h_r, h_z, h_n = hgates.chunk(3, dim=-1)
    z = torch.sigmoid(i_z + h_z)
    n = torch.tanh(i_n + torch.sigmoid(i_r + h_r) * h_n)
    return (1 - z) * n + z * h, None


def _mgu_step(igates, hgates, h, c):
    i_f, i_n = igates.chunk(2, dim=-1)
    h_f, h_n = hgates.chunk(2, dim=-1)
    f = torch.sigmoid(i_f + h_f)
    return (1 - f) * h + f * torch.tanh(i_n + f * h_n), None


def _rnn_tanh_step(igates, hgates, h, c):
    return torch.tanh(igates + hgates), None


def _rnn_relu_step(igates, hgates, h, c):
    return torch.relu(igates + hgates), None


# By mode. MGU, of Zhou et al. (2016), is compiled for tests alone: csrc/cells/mgu.h.
_CELLS = {
    "LSTM": _Cell(_lstm_step, gates=4, has_c=True),
    "GRU": _Cell(_gru_step, gates=3, has_c=False),
    "RNN_TANH": _Cell(_rnn_tanh_step, gates=1, has_c=False),
    "RNN_RELU": _Cell(_rnn_relu_step, gates=1, has_c=False),
    "MGU": _Cell(_mgu_step, gates=2, has_c=False),
}


def cell(
    mode: str, x: Tensor, h: Tensor, c: Tensor | None, w_ih: Tensor, w_hh: Tensor,
    b_ih: Tensor | None, b_hh: Tensor | None,
) -> tuple[Tensor, Tensor | None]:  # fmt: skip
    """Take one step of any cell: what :func:`fastlstm.dispatch.autograd.cell` computes."""
    return _CELLS[mode].step(F.linear(x, w_ih, b_ih), F.linear(h, w_hh, b_hh), h, c)


def layer(
    mode: str,
    x: Tensor,
    h0: Tensor | None,
    c0: Tensor | None,
    weights: Weights,
    *,
    embedding: Tensor | None = None,
    batch_sizes: Tensor | None = None,
    lengths: Tensor | None = None,
    reset: Tensor | None = None,
) -> tuple[Tensor, Tensor | None, Tensor, Tensor | None]:
    """Run one layer in one or two directions: what :func:`fastlstm.dispatch.autograd.layer` computes.

    Args:
        mode: ``"LSTM"``, ``"GRU"``, ``"RNN_TANH"`` ...
        x: ``[T, N, I]``, or ``[rows, I]`` with ``batch_sizes``; or token ids of one dimension less.
        h0: ``[D, N, P]``, zero if None.
        c0: ``[D, N, H]``, zero if None; None of a cell without a c.
        weights: D times ``(w_ih, w_hh, b_ih, b_hh, w_hr)``, the last three possibly None.
        embedding, batch_sizes, lengths, reset: as in :func:`lstm`, with ``lengths`` ``[N]`` and
            ``reset`` ``[T, N]`` tensors.

    Returns:
        ``(y, c, h_n, c_n)``: y ``[T, N, D * P]`` or ``[rows, D * P]``, c likewise with H, h_n
        ``[D, N, P]``, c_n ``[D, N, H]``; c and c_n None of a cell without a c.
    """
    valid = None
    if batch_sizes is not None:
        x, valid = _padded(x, batch_sizes.to(x.device))
    elif lengths is not None:
        valid = torch.arange(len(x), device=x.device).unsqueeze(1) < lengths.to(x.device)
    # Nothing of what the padding holds may reach a sum, not even as 0 * NaN in a gradient.
    if not x.is_floating_point():
        tokens = x if valid is None else x.masked_fill(~valid, 0)
        x = _token_vectors(tokens, weights[0][0], embedding)
    elif valid is not None:
        x = x.masked_fill(~valid.unsqueeze(-1), 0)

    ys, cs, h_n, c_n = [], [], [], []
    for d, own in enumerate(weights):
        h = None if h0 is None else h0[d]
        c = None if c0 is None else c0[d]
        y_d, c_d, h, c = _direction(mode, x, h, c, own, valid, reset, reverse=d == 1)
        ys.append(y_d)
        cs.append(c_d)
        h_n.append(h)
        c_n.append(c)
    has_c = _CELLS[mode].has_c
    y = torch.cat(ys, dim=-1)
    c = torch.cat(cs, dim=-1) if has_c else None
    if batch_sizes is not None:
        rows = valid.flatten().nonzero().squeeze(1)
        y = y.flatten(0, 1).index_select(0, rows)
        c = None if c is None else c.flatten(0, 1).index_select(0, rows)
    return y, c, torch.stack(h_n), torch.stack(c_n) if has_c else None


def _direction(mode, x, h, c, weights, valid, reset, *, reverse):
    """Run one direction; ``valid`` ``[T, N]`` says which steps change the state.

    Returns ``(y, c, h, c)``, the first two of every step, the others after the last one taken.
    """
    w_ih, w_hh, b_ih, b_hh, w_hr = weights
    step, gates, has_c = _CELLS[mode]
    T, N = x.shape[:2]
    if h is None:
        h = w_hh.new_zeros(N, w_hh.size(1))
    if c is None and has_c:
        c = w_hh.new_zeros(N, w_hh.size(0) // gates)
    zero_before = reset
    if reset is not None and reverse:
        within = reset if valid is None else reset & valid
        zero_before = torch.cat([within[1:], torch.zeros_like(within[:1])])
    if valid is not None:
        # Rows that wait compute something, which is thrown away: from zeros, so that it is finite.
        zero_before = ~valid if zero_before is None else zero_before | ~valid

    # unbind, whose gradient is one stack: that of igates[t] would be a tensor of T steps, T times.
    igates = F.linear(x, w_ih, b_ih).unbind()
    # The initial state is stacked too, so that T = 0 needs no case of its own.
    hs, cs = [h], [c]
    for t in reversed(range(T)) if reverse else range(T):
        h_prev, c_prev = h, c
        if zero_before is not None:
            zero = zero_before[t].unsqueeze(1)
            h_prev = h.masked_fill(zero, 0)
            c_prev = None if c is None else c.masked_fill(zero, 0)
        h_t, c_t = step(igates[t], F.linear(h_prev, w_hh, b_hh), h_prev, c_prev)
        h_t = h_t if w_hr is None else F.linear(h_t, w_hr)
        if valid is None:
            h, c = h_t, c_t
        else:
            go = valid[t].unsqueeze(1)
            h = torch.where(go, h_t, h)
            h_t = h_t.masked_fill(~go, 0)
            if c is not None:
                c = torch.where(go, c_t, c)
                c_t = c_t.masked_fill(~go, 0)
        hs.append(h_t)
        cs.append(c_t)

    def every_step(states: list[Tensor]) -> Tensor:
        stacked = torch.stack(states)[1:]
        return stacked.flip(0) if reverse else stacked

    return every_step(hs), every_step(cs) if has_c else None, h, c


def _stack(mode, input, hx, weights, options: CallOptions):
    """All layers, and what lstm, gru and rnn return."""
    has_c = _CELLS[mode].has_c
    packed = options.batch_sizes is not None
    is_batched = packed or input.dim() == (3 if input.is_floating_point() else 2)
    batch_first = options.batch_first and is_batched and not packed

    def time_first(t: Tensor) -> Tensor:
        t = t if is_batched else t.unsqueeze(1)
        return t.transpose(0, 1) if batch_first else t

    def as_input(t: Tensor) -> Tensor:
        t = t.transpose(0, 1) if batch_first else t
        return t if is_batched else t.squeeze(1)

    x, reset, lengths = time_first(input), options.reset, options.lengths
    reset = None if reset is None else time_first(reset)
    lengths = None if lengths is None else torch.as_tensor(lengths).reshape(-1)
    hx = (None, None) if hx is None else tuple(hx) if has_c else (hx, None)
    if not is_batched:
        hx = tuple(None if t is None else t.unsqueeze(1) for t in hx)
    D = 2 if options.bidirectional else 1
    layer_h, layer_c, h_n, c_n = [], [], [], []
    for first in range(0, len(weights), D):
        own = slice(first, first + D)
        h0, c0 = (None if t is None else t[own] for t in hx)
        x, c, h_last, c_last = layer(
            mode, x, h0, c0, [_five(w) for w in weights[own]],
            embedding=options.embedding if first == 0 else None,
            batch_sizes=options.batch_sizes, lengths=lengths, reset=reset,
        )  # fmt: skip
        layer_h.append(as_input(x))
        layer_c.append(None if c is None else as_input(c))
        h_n.append(h_last)
        c_n.append(c_last)
        if first + D < len(weights):
            x = F.dropout(x, options.dropout, options.training)

    def stacked(last: list[Tensor]) -> Tensor:
        return torch.cat(last) if is_batched else torch.cat(last).squeeze(1)

    hidden = (stacked(h_n), stacked(c_n)) if has_c else stacked(h_n)
    if not options.return_states:
        return layer_h[-1], hidden
    states = LSTMStates(tuple(layer_h), tuple(layer_c)) if has_c else RNNStates(tuple(layer_h))
    return layer_h[-1], hidden, states


def _five(weights: Sequence[Tensor | None]) -> tuple[Tensor | None, ...]:
    """The weights of one direction with every absent one as None."""
    w_ih, w_hh, *rest = weights
    w_hr = rest.pop() if len(rest) % 2 else None
    b_ih, b_hh = rest or (None, None)
    return w_ih, w_hh, b_ih, b_hh, w_hr


def _padded(data: Tensor, batch_sizes: Tensor) -> tuple[Tensor, Tensor]:
    """Return packed rows as ``[T, N, ...]``, and which ``[T, N]`` of them are real."""
    rows = torch.arange(int(batch_sizes[0]), device=data.device)
    valid = rows < batch_sizes.unsqueeze(1)
    starts = (batch_sizes.cumsum(0) - batch_sizes).unsqueeze(1)
    return data[torch.where(valid, starts + rows, 0)], valid


def _token_vectors(tokens: Tensor, w_ih: Tensor, embedding: Tensor | None) -> Tensor:
    """Return one-hot vectors, or the rows of ``embedding``, of ``tokens``."""
    size = w_ih.size(1) if embedding is None else embedding.size(0)
    tokens = tokens.long()
    # Under torch.func values may not be readable; the look-up itself then raises what it raises.
    if not torch._C._functorch.is_functorch_wrapped_tensor(tokens):
        bad = tokens[(tokens < 0) | (tokens >= size)]
        if len(bad):
            raise IndexError(f"input: token ids must be in [0, {size - 1}], got {bad[0].item()}")
    if embedding is None:
        # Not F.one_hot, which reads the values.
        embedding = torch.eye(size, dtype=w_ih.dtype, device=w_ih.device)
    return F.embedding(tokens, embedding)
