"""One step of an LSTM, GRU or RNN: modules in place of ``torch.nn``'s cells.

A step is small enough for Python to cost more than the arithmetic. So ``forward`` tries the kernel
at once, which checks what it is given, and only where that fails, or where more than numbers is
asked for, are the arguments checked here, for the errors of torch.nn.
"""

import torch
from torch import Tensor, nn
from torch.fx import Proxy

from fastlstm import functional
from fastlstm.dispatch import autograd
from fastlstm.dispatch.extension import _C
from fastlstm.dispatch.plain import (
    REFUSED,
    check_is_number,
    check_is_tensor,
    check_pair,
    described,
    is_plain,
    other_device,
)
from fastlstm.dispatch.tracing import is_fx_symbolic_tracing, record
from fastlstm.dispatch.traits import CELL_TRAITS
from fastlstm.reference import RNN_MODES

__all__ = ["GRUCell", "LSTMCell", "RNNCell"]

_KERNEL_TYPES = (torch.float32, torch.float64)
_is_grad_enabled = torch.is_grad_enabled
_is_autocast_enabled = torch._C._is_any_autocast_enabled


def _is_everyday(input: Tensor) -> bool:
    """Whether ``input`` can go to the kernel as it is, without a cast or another dimension."""
    return (
        is_plain(input)
        and input.dim() == 2
        and input.dtype in _KERNEL_TYPES
        and not _is_autocast_enabled()
    )


def _are_real(*tensors: Tensor | None) -> bool:
    """Whether a kernel will look at the arguments: with a meta tensor among them, none does."""
    return all(t is None or not t.is_meta for t in tensors)


class _Cell(nn.RNNCellBase):
    """What the three cells share. Parameters are read by name at every call."""

    _name: str  # as torch.nn's errors have it
    _function: str  # that of functional.py
    _mode: str  # that of the kernels

    def __init__(
        self, input_size: int, hidden_size: int, bias: bool = True, device=None, dtype=None
    ) -> None:
        gates = CELL_TRAITS[self._mode].gates
        super().__init__(
            input_size, hidden_size, bias, num_chunks=gates, device=device, dtype=dtype
        )

    def _weights(self) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
        p = self._parameters
        try:
            # Past __getattr__, which costs as much as the step of a small cell.
            return p["weight_ih"], p["weight_hh"], p["bias_ih"], p["bias_hh"]
        except KeyError:  # one of them is parametrized, or a plain attribute
            return self.weight_ih, self.weight_hh, self.bias_ih, self.bias_hh

    def _zeros(self, input: Tensor) -> Tensor | None:
        if type(input) is not Tensor and isinstance(input, Proxy):
            return None  # the call will be recorded as it came
        return input.new_zeros(*input.shape[:-1], self.hidden_size)

    def _one_state(self, mode: str | None, input: Tensor, hx: Tensor | None) -> Tensor:
        """Do what ``forward`` does, of a cell without a c. A ``mode`` of None is refused."""
        given, hx = hx, self._zeros(input) if hx is None else hx
        if mode is not None and _is_everyday(input):
            try:
                weights = self._weights()
                if not _is_grad_enabled():
                    return _C.cell_fwd(mode, input, hx, None, *weights, False)[0]
                if _are_real(hx, *weights):
                    return autograd.cell(mode, input, hx, None, *weights)[0]
            except REFUSED:
                pass
        return self._not_everyday(input, given, hx)

    def _not_everyday(self, input: Tensor, given: object, hx: object):
        """Do what ``forward`` does; ``hx`` is what was ``given``, or zeros."""
        if is_fx_symbolic_tracing():
            recorded = record(self, self._as_function, (input, given), {})
            if recorded is not None:
                return recorded
        self._check(input, hx)
        return self._as_function(input, hx)

    def _as_function(self, input: Tensor | Proxy, hx=None, **options):
        """Do what ``forward`` does with the function, which symbolic tracing records."""
        if hx is None:
            zeros = input.new_zeros(input.shape[:-1] + (self.hidden_size,))
            hx = (zeros, zeros) if CELL_TRAITS[self._mode].has_c else zeros
        return getattr(functional, self._function)(input, hx, *self._weights(), **options)

    def _check(self, input: Tensor, hx: object) -> None:
        """Raise what torch.nn raises for the same call."""
        has_c = CELL_TRAITS[self._mode].has_c
        # By torch's names.
        states = {f"hx[{i}]": state for i, state in enumerate(hx)} if has_c else {"hidden": hx}
        check_is_number(input, "a floating-point tensor")
        if input.dim() not in (1, 2):
            raise ValueError(
                f"{self._name}: Expected input to be 1D or 2D, got {input.dim()}D instead"
            )
        for label, state in states.items():
            if state.dim() not in (1, 2):
                raise ValueError(
                    f"{self._name}: Expected {label} to be 1D or 2D, got {state.dim()}D instead"
                )
        is_batched = input.dim() == 2
        if has_c:
            if not is_batched and len(states) < 2:
                raise IndexError(f"hx must be a pair (h, c), got {described(hx)}")
            check_pair(self._function, "(h, c)", hx)
        names = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
        named = zip(names, self._weights(), strict=True)
        weights = {n: w for n, w in named if w is not None or n.startswith("weight")}
        for name, weight in weights.items():
            check_is_tensor(name, weight)
        w_ih, w_hh = weights["weight_ih"], weights["weight_hh"]
        x = input if is_batched else input.unsqueeze(0)
        if x.size(1) != w_ih.size(1):
            raise RuntimeError(
                f"input has inconsistent input_size: got {x.size(1)} expected {w_ih.size(1)}"
            )
        for i, state in enumerate(states.values()):
            h = state if is_batched else state.unsqueeze(0)
            if h.dim() != 2:
                raise RuntimeError(
                    f"Expected 2D hidden{i} (batch x hidden_size), but got {h.dim()}D tensor"
                )
            if h.size(0) != x.size(0):
                raise RuntimeError(
                    f"Input batch size {x.size(0)} doesn't match hidden{i} batch size {h.size(0)}"
                )
            if h.size(1) != w_hh.size(1):
                raise RuntimeError(
                    f"hidden{i} has inconsistent hidden_size: got {h.size(1)},"
                    f" expected {w_hh.size(1)}"
                )
            if h.device != x.device:
                raise RuntimeError(other_device("hidden", x, h))
        for weight in weights.values():
            if weight.device != x.device:
                raise RuntimeError(other_device("parameter", x, weight))


class LSTMCell(_Cell):
    """One step of an LSTM in place of :class:`torch.nn.LSTMCell`.

    Same constructor, parameters, initial values from the same seed, ``state_dict`` and errors. See
    :func:`fastlstm.functional.lstm` for the equations' source and the precision.

    Args:
        input_size: I, features of the input.
        hidden_size: H, features of both states.
        bias: use ``bias_ih`` and ``bias_hh``. Default: True.
        device, dtype: of the parameters.
    """

    _name, _function, _mode = "LSTMCell", "lstm_cell", "LSTM"

    def forward(
        self, input: Tensor, hx: tuple[Tensor, Tensor] | None = None
    ) -> tuple[Tensor, Tensor]:
        """Take one step.

        Args:
            input: ``[N, I]``, or ``[I]`` without a batch.
            hx: ``(h, c)``, each ``[N, H]``, or ``[H]`` without a batch. Default: zeros.

        Returns:
            ``(h, c)`` after the step, shaped as ``hx``.

        Raises:
            ValueError, RuntimeError, TypeError: as ``torch.nn.LSTMCell`` does for the same call;
                TypeError also for boolean or complex input.
            IndexError: hx holds one state or none, and there is no batch.
        """
        given = hx
        if hx is None:
            zeros = self._zeros(input)
            hx = (zeros, zeros)
        if type(hx) is tuple and _is_everyday(input):
            try:
                h, c = hx
                weights = self._weights()
                if not _is_grad_enabled():
                    h, c, _ = _C.cell_fwd("LSTM", input, h, c, *weights, False)
                    return h, c
                if _are_real(h, c, *weights):
                    return autograd.cell("LSTM", input, h, c, *weights)
            except REFUSED:
                pass
        return self._not_everyday(input, given, hx)


class GRUCell(_Cell):
    """One step of a GRU in place of :class:`torch.nn.GRUCell`.

    Same constructor, parameters, initial values from the same seed, ``state_dict`` and errors. See
    :func:`fastlstm.functional.gru` for the equations' source.

    Args:
        input_size: I, features of the input.
        hidden_size: H, features of the state.
        bias: use ``bias_ih`` and ``bias_hh``. Default: True.
        device, dtype: of the parameters.
    """

    _name, _function, _mode = "GRUCell", "gru_cell", "GRU"

    def forward(self, input: Tensor, hx: Tensor | None = None) -> Tensor:
        """Take one step.

        Args:
            input: ``[N, I]``, or ``[I]`` without a batch.
            hx: h, ``[N, H]``, or ``[H]`` without a batch. Default: zeros.

        Returns:
            h after the step, shaped as ``hx``.

        Raises:
            ValueError, RuntimeError, TypeError: as ``torch.nn.GRUCell`` does for the same call;
                TypeError also for boolean or complex input.
        """
        return self._one_state("GRU", input, hx)


class RNNCell(_Cell):
    """One step of an Elman network in place of :class:`torch.nn.RNNCell`.

    Same constructor, parameters, initial values from the same seed, ``state_dict`` and errors. See
    :func:`fastlstm.functional.rnn` for the equation.

    Args:
        input_size: I, features of the input.
        hidden_size: H, features of the state.
        bias: use ``bias_ih`` and ``bias_hh``. Default: True.
        nonlinearity: ``"tanh"`` or ``"relu"``; anything else fails when called, as it does in
            torch.nn. Default: ``"tanh"``.
        device, dtype: of the parameters.
    """

    _name, _function = "RNNCell", "rnn_cell"
    _mode = "RNN_TANH"  # or RNN_RELU, which differs in nothing that is asked here
    __constants__ = [*nn.RNNCellBase.__constants__, "nonlinearity"]

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        bias: bool = True,
        nonlinearity: str = "tanh",
        device=None,
        dtype=None,
    ) -> None:
        super().__init__(input_size, hidden_size, bias, device, dtype)
        self.nonlinearity = nonlinearity

    def forward(self, input: Tensor, hx: Tensor | None = None) -> Tensor:
        """Take one step.

        Args:
            input: ``[N, I]``, or ``[I]`` without a batch.
            hx: h, ``[N, H]``, or ``[H]`` without a batch. Default: zeros.

        Returns:
            h after the step, shaped as ``hx``.

        Raises:
            ValueError, RuntimeError, TypeError: as ``torch.nn.RNNCell`` does for the same call;
                TypeError also for boolean or complex input.
        """
        return self._one_state(RNN_MODES.get(self.nonlinearity), input, hx)

    def _as_function(self, input: Tensor | Proxy, hx=None, **options):
        return super()._as_function(input, hx, nonlinearity=self.nonlinearity, **options)

    def _check(self, input: Tensor, hx: object) -> None:
        super()._check(input, hx)
        if self.nonlinearity not in RNN_MODES:
            raise RuntimeError(f"Unknown nonlinearity: {self.nonlinearity}")
