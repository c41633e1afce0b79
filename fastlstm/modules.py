"""Modules with the constructor, parameters and results of ``torch.nn``'s."""

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from fastlstm import functional
from fastlstm.functional import LSTMStates

__all__ = ["LSTM", "LSTMStates"]


class LSTM(nn.RNNBase):
    """A multi-layer LSTM in place of :class:`torch.nn.LSTM`, on fused kernels.

    Same constructor, same parameters (``weight_ih_l0`` ...) with the same initial values from the
    same seed, a ``state_dict`` that loads both ways, same arguments and results of ``forward``.
    What it adds are the keywords ``forget_bias``, ``embedding`` and ``return_states``, integer
    input, empty sequences, and results that are the same to the last bit on any number of threads.
    See :func:`fastlstm.functional.lstm` for the equations' source and the precision.

    Parameters are read by name at every call: they may be replaced, parametrized, tied or deleted
    and set again at any time. Not a subclass of ``torch.nn.LSTM``, which ``torch.compile`` refuses.

    Args:
        input_size: I, features of the input, or number of tokens.
        hidden_size: H, features of the hidden and the cell state.
        num_layers: stacked layers. Default: 1.
        bias: use ``bias_ih`` and ``bias_hh``. Default: True.
        batch_first: input and output are ``[N, T, ...]`` instead of ``[T, N, ...]``; hx, h_n and c_n
            are not affected. Default: False.
        dropout: probability of zeroing an element of the output of each layer but the last, in
            training. It obeys ``torch.manual_seed``. Default: 0.
        bidirectional: each layer also runs from the last step to the first. Default: False.
        proj_size: must be 0; projections are not implemented yet. Default: 0.
        device, dtype: of the parameters.
        forget_bias: initial bias of the forget gate: that slice of ``bias_ih`` is set to it and of
            ``bias_hh`` to zero, so that their sum is exactly this value. A value of 1 or more lets
            gradients survive longer from the start (Gers et al. 2000; Jozefowicz et al. 2015).
            Default: None, the initial values of ``torch.nn.LSTM``.

    Raises:
        NotImplementedError: proj_size is not 0.
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
        if proj_size > 0:
            raise NotImplementedError(f"proj_size must be 0 for now, got {proj_size}")
        if forget_bias is not None and not bias:
            raise ValueError(
                f"forget_bias needs bias=True, got forget_bias={forget_bias} and bias=False"
            )

    def reset_parameters(self) -> None:
        """Draw the initial values of ``torch.nn.LSTM``, then apply ``forget_bias``."""
        super().reset_parameters()
        if getattr(self, "forget_bias", None) is None or not self.bias:
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
        input: Tensor,
        hx: tuple[Tensor, Tensor] | None = None,
        *,
        embedding: Tensor | None = None,
        return_states: bool = False,
    ) -> tuple[Tensor, tuple[Tensor, Tensor]] | tuple[Tensor, tuple[Tensor, Tensor], LSTMStates]:
        """Run the layers. D is 2 if bidirectional, else 1.

        Args:
            input: ``[T, N, I]``, ``[N, T, I]`` if batch_first, or ``[T, I]`` without a batch; or an
                integer tensor of one dimension less, which stands for one-hot vectors of size I.
            hx: ``(h0, c0)``, each ``[num_layers * D, N, H]``, or ``[num_layers * D, H]`` without a
                batch. Default: zeros.
            embedding: ``[V, I]``, a table: integer input selects its rows, as ``F.embedding`` would,
                but they are projected before they are selected. Default: None.
            return_states: also return :class:`LSTMStates`, h and c of every step and layer, laid out
                as the output is. Default: False.

        Returns:
            ``(output, (h_n, c_n))``, or ``(output, (h_n, c_n), states)``. ``output`` is
            ``[T, N, D * H]`` in the layout of the input, h_n and c_n are shaped as hx.

        Raises:
            ValueError, RuntimeError: as ``torch.nn.LSTM`` does for the same call.
            IndexError: a token id is out of range.
            NotImplementedError: input is a PackedSequence.
        """
        if isinstance(input, PackedSequence):
            raise NotImplementedError("input must be a tensor for now, got a PackedSequence")
        weights = [[getattr(self, name) for name in names] for names in self._all_weights]
        is_batched = self._check(input, hx, weights[0][0], embedding)
        return functional.lstm(
            input,
            hx,
            weights,
            batch_first=self.batch_first and is_batched,
            bidirectional=self.bidirectional,
            dropout=self.dropout,
            training=self.training,
            embedding=embedding,
            return_states=return_states,
        )

    def _check(
        self,
        input: Tensor,
        hx: tuple[Tensor, Tensor] | None,
        weight: Tensor,
        embedding: Tensor | None,
    ) -> bool:
        """Raise what ``torch.nn.LSTM`` raises for the same call; return whether there is a batch."""
        feature_dims = 1 if input.is_floating_point() or input.is_complex() else 0
        dim = input.dim() - feature_dims
        if dim not in (1, 2):
            low, high = 1 + feature_dims, 2 + feature_dims
            raise ValueError(
                f"LSTM: Expected input to be {low}D or {high}D, got {input.dim()}D instead"
            )
        is_batched = dim == 2
        if hx is not None:
            if isinstance(hx, (tuple, list)) and len(hx) != 2:
                raise RuntimeError(f"lstm expects two hidden states, got {len(hx)}")
            want = 3 if is_batched else 2
            if hx[0].dim() != want or hx[1].dim() != want:
                kind = "batched 3-D" if is_batched else "unbatched 2-D"
                raise RuntimeError(
                    f"For {kind} input, hx and cx should also be {want}-D but got"
                    f" ({hx[0].dim()}-D, {hx[1].dim()}-D) tensors"
                )
        if feature_dims:
            if input.dtype != weight.dtype and not torch._C._is_any_autocast_enabled():
                raise ValueError(
                    f"RNN input dtype ({input.dtype}) does not match weight dtype ({weight.dtype})."
                    f" Convert input: input.to({weight.dtype}), or convert model: model.to({input.dtype})"
                )
            if input.size(-1) != self.input_size:
                raise RuntimeError(
                    "input.size(-1) must be equal to input_size."
                    f" Expected {self.input_size}, got {input.size(-1)}"
                )
        if embedding is not None and (embedding.dim() != 2 or embedding.size(1) != self.input_size):
            raise RuntimeError(
                f"embedding must have shape [V, {self.input_size}], got {list(embedding.shape)}"
            )
        if input.device != weight.device:
            raise RuntimeError(
                "Input and parameter tensors are not at the same device, found input tensor at"
                f" {input.device} and parameter tensor at {weight.device}"
            )
        if hx is not None:
            batch = input.size(0 if self.batch_first else 1) if is_batched else 1
            states = self.num_layers * (2 if self.bidirectional else 1)
            expected = (
                (states, batch, self.hidden_size) if is_batched else (states, self.hidden_size)
            )
            for i, state in enumerate(hx):
                if state.shape != expected:
                    shown = (states, batch, self.hidden_size)
                    got = list(state.shape if is_batched else state.unsqueeze(1).shape)
                    raise RuntimeError(f"Expected hidden[{i}] size {shown}, got {got}")
                if state.device != input.device:
                    raise RuntimeError(
                        "Input and hidden tensors are not at the same device, found input tensor at"
                        f" {input.device} and hidden tensor at {state.device}"
                    )
        return is_batched

    def flatten_parameters(self) -> None:
        """Do nothing: the kernels read every parameter where it is."""

    def extra_repr(self) -> str:
        """As ``torch.nn.LSTM``'s, and forget_bias if it was given."""
        text = super().extra_repr()
        return text if self.forget_bias is None else f"{text}, forget_bias={self.forget_bias}"

    # RNNBase caches the list of weights beside the parameters, which goes stale when one is replaced
    # (weight_norm, parametrize, weight drop, functional_call). Here the list is made when asked for.
    @property
    def _flat_weights(self) -> list[Tensor | None]:
        return [getattr(self, name, None) for name in self._flat_weights_names]

    @_flat_weights.setter
    def _flat_weights(self, value) -> None:
        pass

    def _init_flat_weights(self) -> None:
        pass

    def __setattr__(self, name, value) -> None:
        nn.Module.__setattr__(self, name, value)

    def _replicate_for_data_parallel(self):
        return nn.Module._replicate_for_data_parallel(self)

    def __getstate__(self):
        # What torch.nn.LSTM pickles, so that either class can be made from the other's state.
        state = self.__dict__.copy()
        state.pop("_flat_weight_refs", None)
        state["_flat_weights"] = self._flat_weights
        return state

    def __setstate__(self, state) -> None:
        state = {name: value for name, value in state.items() if name != "_flat_weights"}
        super().__setstate__(state)
        self.__dict__.setdefault("forget_bias", None)
