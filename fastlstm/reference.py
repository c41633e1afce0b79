"""LSTM, GRU and RNN as plain PyTorch loops: the ground truth of the tests and the second-derivative path.

The equations are those of ``torch.nn``, stated at :func:`lstm`, :func:`gru` and :func:`rnn`. Nothing
here needs the compiled extension. It is slow, runs on any device and in any floating-point dtype,
can be differentiated to any order, and works under every transform of ``torch.func``.

T, N, I, H: time, batch, input size, hidden size. D: directions. P: width of h, which is
``proj_size`` for an LSTM with projections, else H. G: gates, 4 (LSTM), 3 (GRU) or 1 (RNN).
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


class RNNStates(NamedTuple):
    """Every hidden state of a call: one tensor a layer, each laid out as ``output`` is."""

    h: tuple[Tensor, ...]


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
    lengths: Tensor | Sequence[int] | None = None,
    reset: Tensor | None = None,
    batch_sizes: Tensor | None = None,
    return_states: bool = False,
) -> tuple[Tensor, tuple[Tensor, Tensor]] | tuple[Tensor, tuple[Tensor, Tensor], LSTMStates]:
    """Run a stack of LSTM layers; same arguments and results as :func:`fastlstm.functional.lstm`.

    The cell is that of Hochreiter & Schmidhuber (1997), "Long Short-Term Memory", with the forget
    gate of Gers, Schmidhuber & Cummins (2000), "Learning to Forget", without peepholes; W_hr is the
    recurrent projection of Sak, Senior & Beaufays (2014), "Long Short-Term Memory Based Recurrent
    Neural Network Architectures for Large Scale Acoustic Modeling"::

        i, f, o = sigmoid(x_t W_ih^T + b_ih + h_{t-1} W_hh^T + b_hh)
        g       = tanh   (x_t W_ih^T + b_ih + h_{t-1} W_hh^T + b_hh)
        c_t     = f * c_{t-1} + i * g
        h_t     = o * tanh(c_t)  or, with W_hr,  (o * tanh(c_t)) W_hr^T

    Args:
        input: ``[T, N, I]``, ``[N, T, I]`` if ``batch_first``, ``[T, I]`` without a batch, or
            ``[rows, I]`` with ``batch_sizes``. An integer tensor of one dimension less holds token
            ids, which stand for one-hot vectors of size I, or for rows of ``embedding``.
        hx: ``(h0, c0)``, ``[layers * D, N, P]`` and ``[layers * D, N, H]`` (no N without a batch);
            None means zeros.
        weights: for each layer and direction, the two directions of a layer next to each other,
            ``(w_ih, w_hh)`` or ``(w_ih, w_hh, b_ih, b_hh)``, and at the end w_hr if there is one:
            ``[4H, I]`` (``[4H, D * P]`` from the second layer on), ``[4H, P]``, ``[4H]`` twice,
            ``[P, H]``; gates in the order i, f, g, o. Biases may be None.
        batch_first: the batch is dimension 0 of ``input``, ``output``, ``reset`` and the returned
            states. Ignored without a batch and with ``batch_sizes``.
        bidirectional: every layer also runs backwards in time (D = 2); the outputs of both
            directions are concatenated.
        dropout: probability of zeroing an element of the output of each layer but the last, in
            training only.
        training: apply ``dropout``.
        embedding: ``[V, I]``, the table that integer ``input`` indexes; a Tensor only.
        lengths: N integers from 0 to T. Steps past the length of a row change nothing: the output
            is zero there, h_n and c_n are those after its last step, and the reverse direction
            starts at that step. What the input holds there does not matter.
        reset: boolean, ``[T, N]`` (laid out as ``input`` is): a new sequence begins at this step.
            The state that would cross from the step before to this one, or from this one to the
            step before in the reverse direction, is zero instead. At t = 0 that is h0 and c0 of the
            forward direction. Past the length of a row it has no effect.
        batch_sizes: ``[T]``, not increasing: ``input`` is the data of a
            :class:`~torch.nn.utils.rnn.PackedSequence`, ``output`` then too. Instead of ``lengths``
            and ``reset``.
        return_states: also return the states of every step.

    Returns:
        ``(output, (h_n, c_n))``, where ``output`` is ``[T, N, D * P]`` in the layout of ``input``,
        and ``h_n`` and ``c_n`` are shaped as ``hx``. With ``return_states``, a third element
        :class:`LSTMStates`, taken before dropout.

    Raises:
        IndexError: a token id is negative or not less than I (or V).
    """
    output, h_n, c_n, states = _stack(
        "LSTM", input, hx, weights, batch_first, bidirectional, dropout, training, embedding,
        lengths, reset, batch_sizes,
    )  # fmt: skip
    return (output, (h_n, c_n), LSTMStates(*states)) if return_states else (output, (h_n, c_n))


def gru(
    input: Tensor,
    hx: Tensor | None,
    weights: Sequence[Sequence[Tensor | None]],
    *,
    batch_first: bool = False,
    bidirectional: bool = False,
    dropout: float = 0.0,
    training: bool = False,
    embedding: Tensor | None = None,
    lengths: Tensor | Sequence[int] | None = None,
    reset: Tensor | None = None,
    batch_sizes: Tensor | None = None,
    return_states: bool = False,
) -> tuple[Tensor, Tensor] | tuple[Tensor, Tensor, RNNStates]:
    """Run a stack of GRU layers; same arguments and results as :func:`fastlstm.functional.gru`.

    The cell is that of Cho et al. (2014), "Learning Phrase Representations using RNN
    Encoder-Decoder for Statistical Machine Translation", with the reset gate applied after the
    matrix product, as in the first version of that paper and in ``torch.nn.GRU``::

        r   = sigmoid(x_t W_ir^T + b_ir + h_{t-1} W_hr^T + b_hr)
        z   = sigmoid(x_t W_iz^T + b_iz + h_{t-1} W_hz^T + b_hz)
        n   = tanh   (x_t W_in^T + b_in + r * (h_{t-1} W_hn^T + b_hn))
        h_t = (1 - z) * n + z * h_{t-1}

    Args and errors are those of :func:`lstm`, with two differences: ``hx`` is h0 alone, and
    ``weights`` hold w_ih ``[3H, I]``, w_hh ``[3H, H]`` and the biases ``[3H]``, gates in the order
    r, z, n.

    Returns:
        ``(output, h_n)``; with ``return_states``, a third element :class:`RNNStates`.
    """
    output, h_n, _, (h, _) = _stack(
        "GRU", input, None if hx is None else (hx, None), weights, batch_first, bidirectional,
        dropout, training, embedding, lengths, reset, batch_sizes,
    )  # fmt: skip
    return (output, h_n, RNNStates(h)) if return_states else (output, h_n)


def rnn(
    input: Tensor,
    hx: Tensor | None,
    weights: Sequence[Sequence[Tensor | None]],
    *,
    nonlinearity: str = "tanh",
    batch_first: bool = False,
    bidirectional: bool = False,
    dropout: float = 0.0,
    training: bool = False,
    embedding: Tensor | None = None,
    lengths: Tensor | Sequence[int] | None = None,
    reset: Tensor | None = None,
    batch_sizes: Tensor | None = None,
    return_states: bool = False,
) -> tuple[Tensor, Tensor] | tuple[Tensor, Tensor, RNNStates]:
    """Run a stack of RNN layers; same arguments and results as :func:`fastlstm.functional.rnn`.

    The network of Elman (1990), "Finding Structure in Time", with ``nonlinearity`` tanh or relu::

        h_t = tanh(x_t W_ih^T + b_ih + h_{t-1} W_hh^T + b_hh)

    Args and errors are those of :func:`lstm`, with two differences: ``hx`` is h0 alone, and
    ``weights`` hold w_ih ``[H, I]``, w_hh ``[H, H]`` and the biases ``[H]``.

    Returns:
        ``(output, h_n)``; with ``return_states``, a third element :class:`RNNStates`.
    """
    output, h_n, _, (h, _) = _stack(
        _rnn_mode(nonlinearity), input, None if hx is None else (hx, None), weights, batch_first,
        bidirectional, dropout, training, embedding, lengths, reset, batch_sizes,
    )  # fmt: skip
    return (output, h_n, RNNStates(h)) if return_states else (output, h_n)


def lstm_cell(
    input: Tensor,
    hx: tuple[Tensor, Tensor],
    w_ih: Tensor,
    w_hh: Tensor,
    b_ih: Tensor | None = None,
    b_hh: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """One step of :func:`lstm`: ``[N, I]`` and ``(h, c)``, each ``[N, H]``, give the next ``(h, c)``."""
    h, c = _step("LSTM", F.linear(input, w_ih, b_ih), *hx, w_hh, b_hh)
    return h, c


def gru_cell(
    input: Tensor,
    hx: Tensor,
    w_ih: Tensor,
    w_hh: Tensor,
    b_ih: Tensor | None = None,
    b_hh: Tensor | None = None,
) -> Tensor:
    """One step of :func:`gru`: ``[N, I]`` and h ``[N, H]`` give the next h."""
    return _step("GRU", F.linear(input, w_ih, b_ih), hx, None, w_hh, b_hh)[0]


def rnn_cell(
    input: Tensor,
    hx: Tensor,
    w_ih: Tensor,
    w_hh: Tensor,
    b_ih: Tensor | None = None,
    b_hh: Tensor | None = None,
    nonlinearity: str = "tanh",
) -> Tensor:
    """One step of :func:`rnn`: ``[N, I]`` and h ``[N, H]`` give the next h."""
    mode = _rnn_mode(nonlinearity)
    return _step(mode, F.linear(input, w_ih, b_ih), hx, None, w_hh, b_hh)[0]


def layer(
    mode: str,
    x: Tensor,
    h0: Tensor | None,
    c0: Tensor | None,
    weights: Sequence[Sequence[Tensor | None]],
    *,
    embedding: Tensor | None = None,
    batch_sizes: Tensor | None = None,
    lengths: Tensor | None = None,
    reset: Tensor | None = None,
) -> tuple[Tensor, Tensor | None, Tensor, Tensor | None]:
    """Run one layer in one or two directions: what :func:`fastlstm.dispatch.autograd.layer` computes.

    Args:
        mode: ``"LSTM"``, ``"GRU"``, ``"RNN_TANH"`` or ``"RNN_RELU"``.
        x: ``[T, N, I]``, or ``[rows, I]`` with ``batch_sizes``; or token ids of one dimension less.
        h0: ``[D, N, P]``, zero if None.
        c0: ``[D, N, H]``, zero if None; None unless LSTM.
        weights: D times ``(w_ih, w_hh, b_ih, b_hh, w_hr)``, the last three possibly None.
        embedding, batch_sizes, lengths, reset: as in :func:`lstm`, with ``lengths`` ``[N]`` and
            ``reset`` ``[T, N]`` tensors.

    Returns:
        ``(y, c, h_n, c_n)``: y ``[T, N, D * P]`` or ``[rows, D * P]``, c likewise with H, h_n
        ``[D, N, P]``, c_n ``[D, N, H]``; c and c_n None unless LSTM.
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
    y = torch.cat(ys, dim=-1)
    c = torch.cat(cs, dim=-1) if mode == "LSTM" else None
    if batch_sizes is not None:
        rows = valid.flatten().nonzero().squeeze(1)
        y = y.flatten(0, 1).index_select(0, rows)
        c = None if c is None else c.flatten(0, 1).index_select(0, rows)
    return y, c, torch.stack(h_n), torch.stack(c_n) if mode == "LSTM" else None


def _direction(mode, x, h, c, weights, valid, reset, *, reverse):
    """Run one direction; ``valid`` ``[T, N]`` says which steps change the state.

    Returns ``(y, c, h, c)``, the first two of every step, the others after the last one taken.
    """
    w_ih, w_hh, b_ih, b_hh, w_hr = weights
    T, N = x.shape[:2]
    if h is None:
        h = w_hh.new_zeros(N, w_hh.size(1))
    if c is None and mode == "LSTM":
        c = w_hh.new_zeros(N, w_hh.size(0) // 4)
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
        h_t, c_t = _step(mode, igates[t], h_prev, c_prev, w_hh, b_hh, w_hr)
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

    return every_step(hs), every_step(cs) if mode == "LSTM" else None, h, c


def _step(mode, igates, h, c, w_hh, b_hh, w_hr=None):
    """From ``igates`` = x W_ih^T + b_ih and the state before the step to ``(h, c)`` after it."""
    hgates = F.linear(h, w_hh, b_hh)
    if mode == "LSTM":
        i, f, g, o = (igates + hgates).chunk(4, dim=-1)
        c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
        h = torch.sigmoid(o) * torch.tanh(c)
        return h if w_hr is None else F.linear(h, w_hr), c
    if mode == "GRU":
        i_r, i_z, i_n = igates.chunk(3, dim=-1)
        h_r, h_z, h_n = hgates.chunk(3, dim=-1)
        z = torch.sigmoid(i_z + h_z)
        n = torch.tanh(i_n + torch.sigmoid(i_r + h_r) * h_n)
        return (1 - z) * n + z * h, None
    activation = {"RNN_TANH": torch.tanh, "RNN_RELU": torch.relu}[mode]
    return activation(igates + hgates), None


def _stack(
    mode, input, hx, weights, batch_first, bidirectional, dropout, training, embedding, lengths,
    reset, batch_sizes,
):  # fmt: skip
    """All layers: ``(output, h_n, c_n, (h, c))``, the last two of every layer and step."""
    packed = batch_sizes is not None
    is_batched = packed or input.dim() == (3 if input.is_floating_point() else 2)
    batch_first = batch_first and is_batched and not packed

    def time_first(t: Tensor) -> Tensor:
        t = t if is_batched else t.unsqueeze(1)
        return t.transpose(0, 1) if batch_first else t

    def as_input(t: Tensor) -> Tensor:
        t = t.transpose(0, 1) if batch_first else t
        return t if is_batched else t.squeeze(1)

    x = time_first(input)
    reset = None if reset is None else time_first(reset)
    lengths = None if lengths is None else torch.as_tensor(lengths).reshape(-1)
    if hx is not None and not is_batched:
        hx = tuple(None if t is None else t.unsqueeze(1) for t in hx)
    D = 2 if bidirectional else 1
    layer_h, layer_c, h_n, c_n = [], [], [], []
    for first in range(0, len(weights), D):
        own = slice(first, first + D)
        h0, c0 = (None if t is None else t[own] for t in hx or (None, None))
        x, c, h_last, c_last = layer(
            mode, x, h0, c0, [_five(w) for w in weights[own]],
            embedding=embedding if first == 0 else None,
            batch_sizes=batch_sizes, lengths=lengths, reset=reset,
        )  # fmt: skip
        layer_h.append(as_input(x))
        layer_c.append(None if c is None else as_input(c))
        h_n.append(h_last)
        c_n.append(c_last)
        if first + D < len(weights):
            x = F.dropout(x, dropout, training)

    h_n, c_n = torch.cat(h_n), torch.cat(c_n) if mode == "LSTM" else None
    if not is_batched:
        h_n, c_n = h_n.squeeze(1), None if c_n is None else c_n.squeeze(1)
    return layer_h[-1], h_n, c_n, (tuple(layer_h), tuple(layer_c))


def _five(weights: Sequence[Tensor | None]) -> tuple[Tensor | None, ...]:
    """The weights of one direction with every absent one as None."""
    w_ih, w_hh, *rest = weights
    w_hr = rest.pop() if len(rest) % 2 else None
    b_ih, b_hh = rest or (None, None)
    return w_ih, w_hh, b_ih, b_hh, w_hr


def _rnn_mode(nonlinearity: str) -> str:
    if nonlinearity not in ("tanh", "relu"):
        raise ValueError(f"nonlinearity must be 'tanh' or 'relu', got {nonlinearity!r}")
    return f"RNN_{nonlinearity.upper()}"


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
