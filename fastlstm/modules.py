"""Modules with the constructor, parameters and results of ``torch.nn``'s."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from fastlstm.base import RecurrentBase
from fastlstm.dispatch.plain import check_pair, described
from fastlstm.reference import RNN_MODES, LSTMStates, RNNStates

__all__ = ["GRU", "LSTM", "RNN"]


class LSTM(RecurrentBase):
    """A multi-layer LSTM in place of :class:`torch.nn.LSTM`, on fused kernels.

    Same constructor, same parameters (``weight_ih_l0`` ...) with the same initial values from the
    same seed, a ``state_dict`` that loads both ways, same arguments and results of ``forward``.
    What it adds are the keywords ``forget_bias``, ``lengths``, ``reset``, ``embedding`` and
    ``return_states``, integer input, empty sequences, and results that are the same to the last bit
    on any number of threads. See :func:`fastlstm.functional.lstm` for the equations' source and the
    precision.

    Parameters are read by name at every call: they may be replaced, parametrized, tied or deleted
    and set again at any time. Not a subclass of ``torch.nn.LSTM``, which ``torch.compile`` refuses.

    Args:
        input_size: I, features of the input, or number of tokens.
        hidden_size: H, features of the cell state, and of the hidden state if proj_size is 0.
        num_layers: stacked layers. Default: 1.
        bias: use ``bias_ih`` and ``bias_hh``. Default: True.
        batch_first: input and output are ``[N, T, ...]`` instead of ``[T, N, ...]``; hx, h_n and c_n
            are not affected. Default: False.
        dropout: probability of zeroing an element of the output of each layer but the last, in
            training. It obeys ``torch.manual_seed``. Default: 0.
        bidirectional: each layer also runs from the last step to the first. Default: False.
        proj_size: P, features of the hidden state after a projection by ``weight_hr`` (Sak, Senior
            & Beaufays 2014); 0 means none, then P is H. Default: 0.
        device, dtype: of the parameters.
        forget_bias: initial bias of the forget gate: that slice of ``bias_ih`` is set to it and of
            ``bias_hh`` to zero, so that their sum is exactly this value. A value of 1 or more lets
            gradients survive longer from the start (Gers et al. 2000; Jozefowicz et al. 2015).
            Default: None, the initial values of ``torch.nn.LSTM``.

    Raises:
        ValueError: forget_bias is given without bias, and whatever ``torch.nn.LSTM`` raises.
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        proj_size: int = 0,
        device=None,
        dtype=None,
        *,
        forget_bias: float | None = None,
    ) -> None:
        # Set before the parameters are: reset_parameters() reads it.
        object.__setattr__(self, "forget_bias", forget_bias)
        super().__init__(
            "LSTM", input_size, hidden_size, num_layers, bias, batch_first, dropout, bidirectional,
            proj_size, device, dtype,
        )  # fmt: skip
        if forget_bias is not None and not bias:
            raise ValueError(
                f"forget_bias needs bias=True, got forget_bias={forget_bias} and bias=False"
            )

    def reset_parameters(self) -> None:
        """Draw the initial values of ``torch.nn.LSTM``, then apply ``forget_bias``."""
        super().reset_parameters()
        if self.forget_bias is None or not self.bias:
            return
        forget = slice(self.hidden_size, 2 * self.hidden_size)
        with torch.no_grad():
            for name, parameter in self.named_parameters():
                if name.startswith("bias_ih"):
                    parameter[forget] = self.forget_bias
                elif name.startswith("bias_hh"):
                    parameter[forget] = 0

    def forward(
        self,
        input: Tensor | PackedSequence,
        hx: tuple[Tensor, Tensor] | None = None,
        *,
        lengths: Tensor | Sequence[int] | None = None,
        reset: Tensor | None = None,
        embedding: Tensor | nn.Embedding | None = None,
        return_states: bool = False,
    ) -> (
        tuple[Tensor | PackedSequence, tuple[Tensor, Tensor]]
        | tuple[Tensor | PackedSequence, tuple[Tensor, Tensor], LSTMStates]
    ):
        """Run the layers. D is 2 if bidirectional, else 1; P is proj_size, or H if that is 0.

        Args:
            input: ``[T, N, I]``, ``[N, T, I]`` if batch_first, or ``[T, I]`` without a batch; or an
                integer tensor of one dimension less, which stands for one-hot vectors of size I; or
                a PackedSequence of rows of either kind; or a nested tensor of either kind with
                ``layout=torch.jagged``, ``[N, j, I]`` whatever batch_first is.
            hx: ``(h0, c0)``, ``[num_layers * D, N, P]`` and ``[num_layers * D, N, H]``, without N
                if there is no batch. Default: zeros.
            lengths: how many steps of each row count, integers in [0, T]: a tensor ``[N]`` on any
                device, or a sequence. Later steps are not computed: the output is zero there, and
                h_n and c_n are those after the last step that counts. In any order, unlike packed
                sequences. Default: None, all of them.
            reset: bool, ``[T, N]`` in the layout of the input, nested if that is: a new sequence
                begins at this step, no state crosses into it. Default: None.
            embedding: a table ``[V, I]``, or the ``nn.Embedding`` that holds it: the result is that
                of ``embedding(input)`` as input, but the table is projected before its rows are
                selected (:func:`fastlstm.functional.lstm` says when not). Default: None.
            return_states: also return :class:`LSTMStates`, h and c of every step and layer, laid out
                as the output is. Default: False.

        Returns:
            ``(output, (h_n, c_n))``, or ``(output, (h_n, c_n), states)``. ``output`` is
            ``[T, N, D * P]`` in the layout of the input, a PackedSequence if the input is one, or
            ``[N, j, D * P]`` with the ragged dimension of a nested one; h_n and c_n are shaped as
            hx.

        Raises:
            ValueError, RuntimeError: as ``torch.nn.LSTM`` does for the same call; a length is out
                of range; lengths or reset come with a PackedSequence; lengths come with a nested
                tensor, or with an embedding that has max_norm, scale_grad_by_freq or sparse and no
                padding_idx.
            IndexError: a token id is out of range; hx holds less than two states.
            TypeError: the dtype of lengths, reset or input makes no sense; embedding is given with
                floating-point input, or is neither a Tensor nor an ``nn.Embedding``; hx, a state or
                a weight is no Tensor.
        """
        return self._run(input, hx, lengths, reset, embedding, return_states)

    def get_expected_cell_size(
        self, input: Tensor, batch_sizes: Tensor | None
    ) -> tuple[int, int, int]:
        """As ``torch.nn.LSTM``'s: the shape c0 must have."""
        layers, batch, _ = self.get_expected_hidden_size(input, batch_sizes)
        return layers, batch, self.hidden_size

    def check_forward_args(
        self, input: Tensor, hidden: tuple[Tensor, Tensor], batch_sizes: Tensor | None
    ) -> None:
        """As ``torch.nn.LSTM``'s: raise if a shape or the dtype of ``input`` is wrong."""
        self.check_input(input, batch_sizes)
        for i, expected in enumerate((self.get_expected_hidden_size, self.get_expected_cell_size)):
            message = f"Expected hidden[{i}] size {{}}, got {{}}"
            self.check_hidden_size(hidden[i], expected(input, batch_sizes), message)

    def permute_hidden(
        self, hx: tuple[Tensor, Tensor], permutation: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """As ``torch.nn.LSTM``'s: reorder the batch of both states."""
        if permutation is None:
            return hx
        return hx[0].index_select(1, permutation), hx[1].index_select(1, permutation)

    def extra_repr(self) -> str:
        """As ``torch.nn.LSTM``'s, and forget_bias if it was given."""
        text = super().extra_repr()
        return text if self.forget_bias is None else f"{text}, forget_bias={self.forget_bias}"

    def __setstate__(self, state) -> None:
        super().__setstate__(state)
        self.__dict__.setdefault("forget_bias", None)

    def _check_dtype(self, input: Tensor, batch_sizes: Tensor | None) -> None:
        # torch.nn.LSTM, other than GRU and RNN, leaves packed input to its kernel, and so the class
        # of the error.
        if batch_sizes is None:
            super()._check_dtype(input, batch_sizes)

    def _check_hidden_dim(self, hx: tuple[Tensor, Tensor], is_batched: bool) -> None:
        try:
            h_dim, c_dim = hx[0].dim(), hx[1].dim()
        except IndexError:
            raise IndexError(f"hx must be a pair (h0, c0), got {described(hx)}") from None
        expected = 3 if is_batched else 2
        if h_dim != expected or c_dim != expected:
            kind = "batched 3-D" if is_batched else "unbatched 2-D"
            raise RuntimeError(
                f"For {kind} input, hx and cx should also be {expected}-D but got"
                f" ({h_dim}-D, {c_dim}-D) tensors"
            )

    def _check_packed_hidden(self, hx: tuple[Tensor, Tensor]) -> None:
        check_pair("lstm", "(h0, c0)", hx)
        for i, state in enumerate(hx):
            if state.dim() < 3:  # torch looks at dimension 2 first
                raise IndexError(f"hx[{i}] must have 3 dimensions, got {state.dim()}")

    def _unsqueezed(self, hx: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        return hx[0].unsqueeze(1), hx[1].unsqueeze(1)


class _OneState(RecurrentBase):
    """What GRU and RNN share: h is all there is from step to step."""

    def forward(
        self,
        input: Tensor | PackedSequence,
        hx: Tensor | None = None,
        *,
        lengths: Tensor | Sequence[int] | None = None,
        reset: Tensor | None = None,
        embedding: Tensor | nn.Embedding | None = None,
        return_states: bool = False,
    ) -> tuple[Tensor | PackedSequence, Tensor] | tuple[Tensor | PackedSequence, Tensor, RNNStates]:
        """Run the layers; arguments and errors as in :meth:`LSTM.forward`, with one state.

        Args:
            hx: h0, ``[num_layers * D, N, H]``, or ``[num_layers * D, H]`` without a batch. Default:
                zeros.

        Returns:
            ``(output, h_n)``, or ``(output, h_n, states)`` with :class:`RNNStates`. ``output`` is
            ``[T, N, D * H]`` in the layout of the input, a PackedSequence or nested tensor if the
            input is one; h_n is shaped as hx.
        """
        return self._run(input, hx, lengths, reset, embedding, return_states)


class GRU(_OneState):
    """A multi-layer GRU in place of :class:`torch.nn.GRU`, on fused kernels.

    Same constructor, same parameters (``weight_ih_l0`` ...) with the same initial values from the
    same seed, a ``state_dict`` that loads both ways, same arguments and results of ``forward``.
    What it adds are the keywords ``lengths``, ``reset``, ``embedding`` and ``return_states``,
    integer input, empty sequences, and results that are the same to the last bit on any number of
    threads. See :func:`fastlstm.functional.gru` for the equations' source.

    Parameters are read by name at every call: they may be replaced, parametrized, tied or deleted
    and set again at any time. Not a subclass of ``torch.nn.GRU``, which ``torch.compile`` refuses.

    Args:
        input_size: I, features of the input, or number of tokens.
        hidden_size: H, features of the hidden state.
        num_layers: stacked layers. Default: 1.
        bias: use ``bias_ih`` and ``bias_hh``. Default: True.
        batch_first: input and output are ``[N, T, ...]`` instead of ``[T, N, ...]``; hx and h_n are
            not affected. Default: False.
        dropout: probability of zeroing an element of the output of each layer but the last, in
            training. It obeys ``torch.manual_seed``. Default: 0.
        bidirectional: each layer also runs from the last step to the first. Default: False.
        device, dtype: of the parameters.

    Raises:
        ValueError, TypeError: as ``torch.nn.GRU`` does for the same call.
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        device=None,
        dtype=None,
        **unknown,
    ) -> None:
        _refuse_proj_size(unknown)
        super().__init__(
            "GRU", input_size, hidden_size, num_layers, bias, batch_first, dropout, bidirectional,
            device=device, dtype=dtype, **unknown,
        )  # fmt: skip


class RNN(_OneState):
    """A multi-layer Elman network in place of :class:`torch.nn.RNN`, on fused kernels.

    Same constructor, same parameters (``weight_ih_l0`` ...) with the same initial values from the
    same seed, a ``state_dict`` that loads both ways, same arguments and results of ``forward``.
    What it adds is what :class:`GRU` adds. See :func:`fastlstm.functional.rnn` for the equation.

    Args:
        input_size: I, features of the input, or number of tokens.
        hidden_size: H, features of the hidden state.
        num_layers: stacked layers. Default: 1.
        nonlinearity: ``"tanh"`` or ``"relu"``. Default: ``"tanh"``.
        bias, batch_first, dropout, bidirectional, device, dtype: as for :class:`GRU`.

    Raises:
        ValueError, TypeError: as ``torch.nn.RNN`` does for the same call.
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        nonlinearity: str = "tanh",
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        device=None,
        dtype=None,
        **unknown,
    ) -> None:
        _refuse_proj_size(unknown)
        if nonlinearity not in ("tanh", "relu"):
            raise ValueError(
                f"Unknown nonlinearity '{nonlinearity}'. Select from 'tanh' or 'relu'."
            )
        super().__init__(
            RNN_MODES[nonlinearity], input_size, hidden_size, num_layers, bias, batch_first,
            dropout, bidirectional, device=device, dtype=dtype, **unknown,
        )  # fmt: skip
        self.nonlinearity = nonlinearity

    def _as_function(self, input, hx=None, **options):
        return super()._as_function(input, hx, nonlinearity=self.nonlinearity, **options)

    def _wrong_dim(self, dim: int) -> str:
        return f"RNN: Expected input to be 2D or 3D, got {dim}D tensor instead"


def _refuse_proj_size(unknown: dict) -> None:
    if "proj_size" in unknown:
        raise ValueError("proj_size argument is only supported for LSTM, not RNN or GRU")
