"""The functional API: a whole stack of layers, or one step of a cell, with the weights passed in.

T, N, I, H: time, batch, input size, hidden size. D: directions, 2 if ``bidirectional``, else 1.
P: width of h, which is H but for an LSTM with projections.
"""

from collections.abc import Sequence

import torch.fx
from torch import Tensor, nn

from fastlstm.dispatch import autograd
from fastlstm.dispatch.nested import run_stack
from fastlstm.dispatch.plain import check_is_number, check_is_tensor, check_pair
from fastlstm.dispatch.precision import precision_of
from fastlstm.reference import CallOptions, LSTMStates, RNNStates, Weights, rnn_mode

__all__ = ["gru", "gru_cell", "lstm", "lstm_cell", "rnn", "rnn_cell"]

for _name in __all__:
    torch.fx.wrap(_name)  # symbolic_trace records the call and does not look into it


def lstm(
    input: Tensor,
    hx: tuple[Tensor, Tensor] | None,
    weights: Weights,
    *,
    batch_first: bool = False,
    bidirectional: bool = False,
    dropout: float = 0.0,
    training: bool = False,
    embedding: Tensor | nn.Embedding | None = None,
    lengths: Tensor | Sequence[int] | None = None,
    reset: Tensor | None = None,
    batch_sizes: Tensor | None = None,
    return_states: bool = False,
) -> tuple[Tensor, tuple[Tensor, Tensor]] | tuple[Tensor, tuple[Tensor, Tensor], LSTMStates]:
    """Run a stack of LSTM layers on the fused kernels; equations: :func:`fastlstm.reference.lstm`.

    The cell is that of Hochreiter & Schmidhuber (1997) with the forget gate of Gers, Schmidhuber &
    Cummins (2000), gates in the order i, f, g, o, as in :class:`torch.nn.LSTM`; w_hr is the
    projection of Sak, Senior & Beaufays (2014). float32 and float64 are computed in their own
    precision; of float16, bfloat16 and the dtype of autocast, sums and the state that goes from
    step to step are float32. On the CPU, results do not depend on the number of threads or on the
    other rows of the batch, to the last bit. On CUDA, float32 products may be rounded to TF32 as
    those of torch.nn are, by ``torch.backends.cudnn.allow_tf32``.

    Args:
        input: ``[T, N, I]``, ``[N, T, I]`` if ``batch_first``, ``[T, I]`` without a batch, or
            ``[rows, I]`` with ``batch_sizes``. An integer tensor of one dimension less holds token
            ids, which stand for one-hot vectors of size I, or for rows of ``embedding``; the input
            projection is then a look-up. Or a nested tensor of either kind, ``[N, j, I]`` whatever
            ``batch_first`` is, with ``layout=torch.jagged``, whose rows have the lengths they have:
            ``reset``, ``output`` and the states of every step are as jagged, the rest is as with
            ``lengths``.
        hx: ``(h0, c0)``, ``[layers * D, N, P]`` and ``[layers * D, N, H]`` (no N without a batch);
            None means zeros.
        weights: one entry for each layer and direction, the two directions of a layer next to each
            other: ``(w_ih, w_hh)`` or ``(w_ih, w_hh, b_ih, b_hh)``, and w_hr at the end if there is
            a projection. w_ih ``[4H, I]`` (``[4H, D * P]`` from the second layer on), w_hh
            ``[4H, P]``, biases ``[4H]`` or None, w_hr ``[P, H]``.
        batch_first: the batch is dimension 0 of ``input``, ``reset``, ``output`` and the returned
            states. Ignored without a batch and with ``batch_sizes``.
        bidirectional: every layer also runs backwards in time; the outputs of both directions are
            concatenated.
        dropout: probability of zeroing an element of the output of each layer but the last, in
            training only; drawn from torch's generator. Default: 0.
        training: apply ``dropout``.
        embedding: ``[V, I]``, the table that integer ``input`` indexes, or the
            :class:`torch.nn.Embedding` that holds it, whose ``padding_idx`` gets no gradient. It is
            projected once by w_ih, V rows of work instead of T * N, unless V is larger than T * N.
            A module with ``max_norm``, ``scale_grad_by_freq``, ``sparse``, hooks or a ``forward``
            of its own is called with ``input`` instead, and what it returns is projected.
        lengths: how many steps of each row count: integers in [0, T], a tensor ``[N]`` on any
            device or a sequence (one number without a batch). Steps past the length of a row are
            not computed, whatever the input holds there: the output is zero, h_n and c_n are those
            after the last step that counts, and the reverse direction starts at that step. A row of
            length 0 keeps its initial state.
        reset: bool ``[T, N]``, ``[N, T]`` if ``batch_first``, ``[T]`` without a batch: a new
            sequence begins at this step of this row. No state crosses from the step before to it,
            or back in the reverse direction; at t = 0, h0 and c0 of the forward direction are
            discarded.
        batch_sizes: int64 ``[T]`` on the CPU, not increasing: ``input`` is the data of a
            :class:`~torch.nn.utils.rnn.PackedSequence`, and so is ``output``; hx, h_n and c_n are
            in the order of the packed rows. Not together with ``lengths`` or ``reset``.
        return_states: also return the states of every step.

    Returns:
        ``(output, (h_n, c_n))``: ``output`` is ``[T, N, D * P]`` in the layout of ``input``, h_n and
        c_n are shaped as ``hx``. With ``return_states``, a third element :class:`LSTMStates`, taken
        before dropout and differentiable like the output.

    Raises:
        RuntimeError: a tensor has the wrong device, dtype or shape.
        IndexError: a token id is negative, or not less than I (or V).
        TypeError: ``input`` is boolean or complex, ``embedding`` is given with floating-point
            input or is neither a Tensor nor an ``nn.Embedding``, ``lengths`` are not integers,
            ``reset`` is not boolean, ``hx`` is one tensor, or a state or w_ih or w_hh is none.
        ValueError: ``weights`` has the wrong number of entries or an entry the wrong number of
            tensors, a length is out of range, ``batch_sizes`` comes with ``lengths`` or ``reset``,
            one of ``lengths`` and ``batch_sizes`` with nested ``input``, or ``lengths`` with an
            ``embedding`` that has ``max_norm``, ``scale_grad_by_freq`` or ``sparse`` and no
            ``padding_idx`` to look up where no token counts.
    """
    options = CallOptions(
        batch_first, bidirectional, dropout, training, embedding, lengths, reset, batch_sizes,
        return_states,
    )  # fmt: skip
    return _run("LSTM", input, hx, weights, options)


def gru(
    input: Tensor,
    hx: Tensor | None,
    weights: Weights,
    *,
    batch_first: bool = False,
    bidirectional: bool = False,
    dropout: float = 0.0,
    training: bool = False,
    embedding: Tensor | nn.Embedding | None = None,
    lengths: Tensor | Sequence[int] | None = None,
    reset: Tensor | None = None,
    batch_sizes: Tensor | None = None,
    return_states: bool = False,
) -> tuple[Tensor, Tensor] | tuple[Tensor, Tensor, RNNStates]:
    """Run a stack of GRU layers on the fused kernels; equations: :func:`fastlstm.reference.gru`.

    The cell is that of Cho et al. (2014), gates in the order r, z, n, with the reset gate applied
    after the matrix product, as in :class:`torch.nn.GRU`. Arguments, precision and errors are those
    of :func:`lstm`, but for:

    Args:
        hx: h0 ``[layers * D, N, H]`` (``[layers * D, H]`` without a batch); None means zeros.
        weights: ``(w_ih, w_hh)`` or ``(w_ih, w_hh, b_ih, b_hh)`` for each layer and direction:
            w_ih ``[3H, I]`` (``[3H, D * H]`` from the second layer on), w_hh ``[3H, H]``, biases
            ``[3H]`` or None.

    Returns:
        ``(output, h_n)``: ``output`` is ``[T, N, D * H]`` in the layout of ``input``, h_n is shaped
        as ``hx``. With ``return_states``, a third element :class:`RNNStates`.
    """
    options = CallOptions(
        batch_first, bidirectional, dropout, training, embedding, lengths, reset, batch_sizes,
        return_states,
    )  # fmt: skip
    return _run("GRU", input, hx, weights, options)


def rnn(
    input: Tensor,
    hx: Tensor | None,
    weights: Weights,
    *,
    nonlinearity: str = "tanh",
    batch_first: bool = False,
    bidirectional: bool = False,
    dropout: float = 0.0,
    training: bool = False,
    embedding: Tensor | nn.Embedding | None = None,
    lengths: Tensor | Sequence[int] | None = None,
    reset: Tensor | None = None,
    batch_sizes: Tensor | None = None,
    return_states: bool = False,
) -> tuple[Tensor, Tensor] | tuple[Tensor, Tensor, RNNStates]:
    """Run a stack of layers of the plain recurrent network of Elman (1990) on the fused kernels.

    Arguments, precision and errors are those of :func:`lstm`, but for:

    Args:
        hx: h0 ``[layers * D, N, H]`` (``[layers * D, H]`` without a batch); None means zeros.
        weights: ``(w_ih, w_hh)`` or ``(w_ih, w_hh, b_ih, b_hh)`` for each layer and direction:
            w_ih ``[H, I]`` (``[H, D * H]`` from the second layer on), w_hh ``[H, H]``, biases
            ``[H]`` or None.
        nonlinearity: ``"tanh"`` or ``"relu"``, else ValueError. Default: ``"tanh"``.

    Returns:
        ``(output, h_n)``: ``output`` is ``[T, N, D * H]`` in the layout of ``input``, h_n is shaped
        as ``hx``. With ``return_states``, a third element :class:`RNNStates`.
    """
    options = CallOptions(
        batch_first, bidirectional, dropout, training, embedding, lengths, reset, batch_sizes,
        return_states,
    )  # fmt: skip
    return _run(rnn_mode(nonlinearity), input, hx, weights, options)


def lstm_cell(
    input: Tensor,
    hx: tuple[Tensor, Tensor],
    w_ih: Tensor,
    w_hh: Tensor,
    b_ih: Tensor | None = None,
    b_hh: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Take one step of the LSTM of :func:`lstm`, in its precision.

    Args:
        input: ``[N, I]`` floating point, or ``[I]`` without a batch.
        hx: ``(h, c)``, each ``[N, H]``, or ``[H]`` without a batch.
        w_ih, w_hh: ``[4H, I]`` and ``[4H, H]``.
        b_ih, b_hh: ``[4H]`` or None.

    Returns:
        ``(h, c)`` after the step, shaped as ``hx``.

    Raises:
        RuntimeError: a tensor has the wrong device, dtype or shape.
        TypeError: ``input`` is boolean or complex, or an argument is not a tensor.
    """
    check_pair("lstm_cell", "(h, c)", hx)
    return _cell("LSTM", input, *hx, w_ih, w_hh, b_ih, b_hh)


def gru_cell(
    input: Tensor,
    hx: Tensor,
    w_ih: Tensor,
    w_hh: Tensor,
    b_ih: Tensor | None = None,
    b_hh: Tensor | None = None,
) -> Tensor:
    """Take one step of the GRU of :func:`gru`, in its precision; errors as of :func:`lstm_cell`.

    Args:
        input: ``[N, I]`` floating point, or ``[I]`` without a batch.
        hx: h ``[N, H]``, or ``[H]`` without a batch.
        w_ih, w_hh: ``[3H, I]`` and ``[3H, H]``.
        b_ih, b_hh: ``[3H]`` or None.

    Returns:
        h after the step, shaped as ``hx``.
    """
    return _cell("GRU", input, hx, None, w_ih, w_hh, b_ih, b_hh)[0]


def rnn_cell(
    input: Tensor,
    hx: Tensor,
    w_ih: Tensor,
    w_hh: Tensor,
    b_ih: Tensor | None = None,
    b_hh: Tensor | None = None,
    nonlinearity: str = "tanh",
) -> Tensor:
    """Take one step of the network of :func:`rnn`; arguments as of :func:`gru_cell`, but for:

    Args:
        w_ih, w_hh: ``[H, I]`` and ``[H, H]``.
        b_ih, b_hh: ``[H]`` or None.
        nonlinearity: ``"tanh"`` or ``"relu"``, else ValueError. Default: ``"tanh"``.

    Returns:
        h after the step, shaped as ``hx``.
    """
    return _cell(rnn_mode(nonlinearity), input, hx, None, w_ih, w_hh, b_ih, b_hh)[0]


def _run(mode: str, input: Tensor, hx, weights: Weights, options: CallOptions) -> tuple:
    result = run_stack(mode, input, hx, weights, options)
    return tuple(result) if options.return_states else result[:2]


def _cell(
    mode: str, input: Tensor, h: Tensor, c: Tensor | None, w_ih, w_hh, b_ih, b_hh
) -> tuple[Tensor, Tensor | None]:
    check_is_tensor("hx", h)
    check_is_tensor("w_ih", w_ih)
    check_is_tensor("w_hh", w_hh)
    check_is_number(input, "a floating-point tensor")
    precision, given_c = precision_of(w_ih), c
    if precision.compute is None:
        if c is not None and c.dtype != precision.result:
            c = precision.enter_cell_state("c", c)
    else:
        enter = precision.enter
        input, h, c = enter("input", input), enter("h", h), precision.enter_cell_state("c", c)
        w_ih, w_hh = enter("w_ih", w_ih), enter("w_hh", w_hh)
        b_ih, b_hh = enter("b_ih", b_ih), enter("b_hh", b_hh)
    if input.dim() != 1:
        h, c = autograd.cell(mode, input, h, c, w_ih, w_hh, b_ih, b_hh)
    else:
        c = None if c is None else c.unsqueeze(0)
        rows = (input.unsqueeze(0), h.unsqueeze(0), c)
        h, c = autograd.cell(mode, *rows, w_ih, w_hh, b_ih, b_hh)
        h, c = h.squeeze(0), None if c is None else c.squeeze(0)
    return precision.leave(h), None if c is None else precision.leave_cell_state(c, given_c)
