"""What LSTM, GRU and RNN have in common with torch.nn's and with each other."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.fx import Proxy
from torch.nn.utils.rnn import PackedSequence

from fastlstm import functional
from fastlstm.dispatch.nested import is_nested, refuse_strided, run_padded
from fastlstm.dispatch.nested import is_tokens as _is_tokens
from fastlstm.dispatch.plain import (
    REFUSED,
    check_is_number,
    check_is_tensor,
    is_plain,
    other_device,
    wrong_tokens,
)
from fastlstm.dispatch.stack import run_stack
from fastlstm.dispatch.tracing import is_fx_symbolic_tracing, record
from fastlstm.reference import CallOptions


class RecurrentBase(nn.RNNBase):
    """A :class:`torch.nn.RNNBase` that reads its parameters by name at every call.

    torch.nn keeps a list of the weights beside the parameters, which goes stale when one of them is
    replaced (weight_norm, parametrize, weight drop, functional_call). Here there is no such list.
    Programs that assign to it find what they expect: an entry of ``_flat_weights`` is used in place
    of the weight of that name, until another weight gets the name or the module is moved or cast.
    """

    # By name, the weight that an entry of _flat_weights was assigned in place of, and the entry.
    _assigned: dict[str, tuple[Tensor | None, Tensor | None]] | None = None

    def flatten_parameters(self) -> None:
        """Do nothing: the kernels read every parameter where it is."""

    def check_input(self, input: Tensor, batch_sizes: Tensor | None) -> None:
        """Raise what torch.nn raises for the same ``input``; integer input is one-hot vectors."""
        is_tokens = _is_tokens(input)
        expected = (3 if batch_sizes is None else 2) - is_tokens
        if not is_tokens or input.dim() != expected:
            self._check_dtype(input, batch_sizes)
        if input.dim() != expected:
            if is_tokens:
                raise RuntimeError(wrong_tokens(input, self._dtype()))
            raise RuntimeError(f"input must have {expected} dimensions, got {input.dim()}")
        if not is_tokens and input.size(-1) != self.input_size:
            raise RuntimeError(
                "input.size(-1) must be equal to input_size."
                f" Expected {self.input_size}, got {input.size(-1)}"
            )

    def _check_dtype(self, input: Tensor, batch_sizes: Tensor | None) -> None:
        dtype = self._dtype()
        if _is_tokens(input):
            raise ValueError(wrong_tokens(input, dtype))
        if input.dtype != dtype and not torch._C._is_any_autocast_enabled():
            raise ValueError(
                f"RNN input dtype ({input.dtype}) does not match weight dtype ({dtype})."
                f" Convert input: input.to({dtype}), or convert model: model.to({input.dtype})"
            )

    def _dtype(self) -> torch.dtype:
        # Not all of them: to read a parametrized one may change it (spectral_norm).
        if self._assigned:
            return self._weights_in_use()[0].dtype
        return self._weight(self._flat_weights_names[0]).dtype

    def _weight(self, name: str) -> Tensor | None:
        # Where a parameter is still one, past __getattr__, which searches three places first.
        parameters = self._parameters
        return parameters[name] if name in parameters else getattr(self, name)

    def _weights_by_layer(self) -> list[list[Tensor | None]]:
        if not self._assigned:
            return [[self._weight(name) for name in names] for names in self._all_weights]
        flat = iter(self._weights_in_use())
        return [[next(flat) for _ in names] for names in self._all_weights]

    def _run(
        self,
        input: Tensor | PackedSequence,
        hx: Tensor | tuple[Tensor, Tensor] | None,
        lengths: Tensor | Sequence[int] | None,
        reset: Tensor | None,
        embedding: Tensor | nn.Embedding | None,
        return_states: bool,
    ):
        """Do what ``forward`` does; bad arguments fail as they do in torch.nn."""
        if is_fx_symbolic_tracing():
            options = {
                "lengths": lengths,
                "reset": reset,
                "embedding": embedding,
                "return_states": return_states,
            }
            recorded = record(self, self._as_function, (input, hx), options)
            if recorded is not None:
                return recorded
        packed, batch_sizes = None, None
        if isinstance(input, PackedSequence):
            packed, input, batch_sizes = input, input.data, input.batch_sizes
            hx = None if hx is None else self.permute_hidden(hx, packed.sorted_indices)
        elif type(input) is not Tensor and is_nested(input):

            def run(x: Tensor, embedding, lengths: Tensor, reset: Tensor | None) -> tuple:
                return self._run(x, hx, lengths, reset, embedding, return_states)

            return run_padded(run, input, embedding, lengths, reset, self.batch_first)
        weights = self._weights_by_layer()
        options = CallOptions(
            self.batch_first, self.bidirectional, self.dropout, self.training, embedding, lengths,
            reset, batch_sizes, return_states,
        )  # fmt: skip
        result, refusal = None, None
        if is_plain(input):
            try:
                if not weights[0][0].is_cuda:
                    result = run_stack(self.mode, input, hx, weights, options)
            except REFUSED as error:
                refusal = error
        if result is None:
            # Not earlier, since the kernels look at what they are given anyway.
            self._check(input, hx, batch_sizes, weights)
            if refusal is not None:
                raise refusal
            result = run_stack(self.mode, input, hx, weights, options)
        output, hidden, states = result
        if packed is not None:
            # The rest of the named tuple, in whose order the rows still are.
            order = packed[1:]
            output = PackedSequence(output, *order)
            hidden = self.permute_hidden(hidden, packed.unsorted_indices)
            if states is not None:
                layers = (tuple(PackedSequence(t, *order) for t in layer) for layer in states)
                states = type(states)(*layers)
        return (output, hidden, states) if return_states else (output, hidden)

    def _as_function(self, input: Proxy, hx=None, **options) -> Proxy:
        """Do what ``forward`` does, but for packed input, with an operation that is recorded."""
        return getattr(functional, self.mode.partition("_")[0].lower())(
            input,
            hx,
            self._weights_by_layer(),
            batch_first=self.batch_first,
            bidirectional=self.bidirectional,
            dropout=self.dropout,
            training=self.training,
            **options,
        )

    def _check(
        self,
        input: Tensor,
        hx: Tensor | tuple[Tensor, Tensor] | None,
        batch_sizes: Tensor | None,
        weights: list[list[Tensor | None]],
    ) -> None:
        """Raise what torch.nn raises for the same call, in the same order."""
        refuse_strided("input", input)
        flat = [weight for entry in weights for weight in entry]
        for name, weight in zip(self._flat_weights_names, flat, strict=True):
            if weight is not None:  # a bias may be; of the others run_stack knows
                check_is_tensor(name, weight)
        check_is_number(input, "a floating-point tensor or integer token ids")
        for state in hx if isinstance(hx, (tuple, list)) else (hx,):
            if isinstance(state, Tensor) and state.is_nested:
                raise RuntimeError(f"hx must not be a nested tensor, got layout {state.layout}")
        is_batched = True
        if batch_sizes is None:
            dim, low = input.dim(), 2 - _is_tokens(input)
            if dim not in (low, low + 1):
                if low == 1:
                    self._check_dtype(input, batch_sizes)
                raise ValueError(self._wrong_dim(dim))
            is_batched = dim == low + 1
            if hx is not None:
                self._check_hidden_dim(hx, is_batched)
        elif hx is not None:
            self._check_packed_hidden(hx)
        states = hx
        if not is_batched:
            input = input.unsqueeze(0 if self.batch_first else 1)
            states = None if hx is None else self._unsqueezed(hx)
        # The size of a packed batch is data, which a graph being captured does not know.
        if states is None or (batch_sizes is not None and torch.compiler.is_compiling()):
            self.check_input(input, batch_sizes)
        else:
            self.check_forward_args(input, states, batch_sizes)
            for state in (states,) if isinstance(states, Tensor) else (states[0], states[1]):
                if state.device != input.device:
                    raise RuntimeError(other_device("hidden", input, state))
        if flat[0].device != input.device:
            raise RuntimeError(other_device("parameter", input, flat[0]))

    def _wrong_dim(self, dim: int) -> str:
        return f"{self.mode}: Expected input to be 2D or 3D, got {dim}D instead"

    def _check_hidden_dim(self, hx: Tensor, is_batched: bool) -> None:
        expected = 3 if is_batched else 2
        if hx.dim() != expected:
            kind = "batched 3-D" if is_batched else "unbatched 2-D"
            raise RuntimeError(
                f"For {kind} input, hx should also be {expected}-D but got {hx.dim()}-D tensor"
            )

    def _check_packed_hidden(self, hx: Tensor) -> None:
        pass

    def _unsqueezed(self, hx: Tensor) -> Tensor:
        return hx.unsqueeze(1)

    def _named_weights(self) -> list[Tensor | None]:
        return [getattr(self, name, None) for name in self._flat_weights_names]

    def _weights_in_use(self) -> list[Tensor | None]:
        weights, assigned = self._named_weights(), self._assigned or {}
        for i, name in enumerate(self._flat_weights_names):
            if name in assigned and assigned[name][0] is weights[i]:
                weights[i] = assigned[name][1]
        return weights

    @property
    def _flat_weights(self) -> list[Tensor | None]:
        return _FlatWeights(self, self._weights_in_use())

    @_flat_weights.setter
    def _flat_weights(self, value: Sequence[Tensor | None]) -> None:
        names = self._flat_weights_names
        if len(value) != len(names):
            raise ValueError(f"_flat_weights must have {len(names)} entries, got {len(value)}")
        self._assigned = {
            name: (named, entry)
            for name, named, entry in zip(names, self._named_weights(), value, strict=True)
            if entry is not named
        }

    def _init_flat_weights(self) -> None:
        self._assigned = None

    def _update_flat_weights(self) -> None:
        pass

    def __setattr__(self, name, value) -> None:
        nn.Module.__setattr__(self, name, value)
        assigned = self.__dict__.get("_assigned")
        if assigned and name in assigned:
            # Another dict: replicas of DataParallel share this one.
            self._assigned = {n: v for n, v in assigned.items() if n != name}

    def _replicate_for_data_parallel(self):
        return nn.Module._replicate_for_data_parallel(self)

    def __getstate__(self):
        # What torch.nn pickles, so that either class can be made from the other's state.
        state = self.__dict__.copy()
        state.pop("_flat_weight_refs", None)
        state.pop("_assigned", None)
        state["_flat_weights"] = self._named_weights()
        return state

    def __setstate__(self, state) -> None:
        super().__setstate__({name: v for name, v in state.items() if name != "_flat_weights"})


class _FlatWeights(list):
    """The weights in use, in a list like torch.nn's: what is assigned to an entry is used instead."""

    def __init__(self, module: RecurrentBase, weights: list[Tensor | None]) -> None:
        super().__init__(weights)
        self._module = module

    def __setitem__(self, index, value) -> None:
        super().__setitem__(index, value)
        self._module._flat_weights = self

    def _refuse(self, *_, **__):
        raise TypeError(
            "_flat_weights has one entry for each name of _flat_weights_names, in that order:"
            " assign to an entry, or a list as long to _flat_weights"
        )

    append = extend = insert = pop = remove = clear = sort = reverse = _refuse
    __delitem__ = __iadd__ = __imul__ = _refuse

    def __reduce__(self):
        return list, (list(self),)
