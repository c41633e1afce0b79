"""Exchanging recurrent modules: those of a model, or the classes in ``torch.nn`` themselves."""

import threading
from typing import Any, TypeVar

import torch
from torch import nn
from torch.nn.utils import parametrize

from fastlstm.cells import GRUCell, LSTMCell, RNNCell
from fastlstm.modules import GRU, LSTM, RNN

__all__ = ["TorchPatch", "convert", "patch_torch", "to_torch"]

Model = TypeVar("Model", bound=nn.Module)

_OURS: dict[type[nn.Module], type[nn.Module]] = {
    nn.LSTM: LSTM,
    nn.GRU: GRU,
    nn.RNN: RNN,
    nn.LSTMCell: LSTMCell,
    nn.GRUCell: GRUCell,
    nn.RNNCell: RNNCell,
}
_THEIRS = {ours: theirs for theirs, ours in _OURS.items()}
_NAMESPACES = (torch.nn, torch.nn.modules, torch.nn.modules.rnn)


def convert(model: Model) -> Model:
    """Make every recurrent module of ``torch.nn`` in ``model`` one of fastlstm, in place.

    A module stays the object it is and only changes its class, so everything that refers to it or
    to its parts goes on working: optimizers (the Parameters are the same objects), hooks and their
    handles, modules in several places, tied weights, weight_norm, parametrizations, the training
    flag, ``requires_grad`` and the device.

    Only the classes themselves are exchanged: ``LSTM``, ``GRU``, ``RNN``, ``LSTMCell``,
    ``GRUCell``, ``RNNCell``, parametrized or not. An instance of a subclass is left alone, since
    it may have overridden what fastlstm does otherwise; so are modules that ``fully_shard``,
    TorchScript or quantisation have made into classes of their own: convert first.

    Args:
        model: any module, which may itself be a recurrent one. To keep it as it is, give
            ``copy.deepcopy(model)``.

    Returns:
        ``model``.

    Raises:
        TypeError: ``model`` is not a ``torch.nn.Module``.
    """
    return _exchange(model, _OURS)


def to_torch(model: Model) -> Model:
    """Make every module of fastlstm in ``model`` the one of ``torch.nn``, in place.

    For what knows the classes of ``torch.nn`` only: ONNX, TorchScript, quantisation, Opacus.
    The opposite of :func:`convert`, and as careful. ``torch.nn`` has no integer or nested input,
    ``lengths``, ``reset``, ``embedding`` or ``return_states``: a model that uses them converts, and
    then fails when it is called.

    Args:
        model: any module, which may itself be a recurrent one. To keep it as it is, give
            ``copy.deepcopy(model)``.

    Returns:
        ``model``.

    Raises:
        TypeError: ``model`` is not a ``torch.nn.Module``.
    """
    return _exchange(model, _THEIRS)


def _exchange(model: Model, classes: dict[type[nn.Module], type[nn.Module]]) -> Model:
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")
    # A list: what is exchanged must not disturb the walk.
    for module in list(model.modules()):
        own = type(module)
        if own in classes:
            _set_class(module, classes[own])
        elif parametrize.is_parametrized(module) and own.__bases__[0] in classes:
            # Such a module has a class of its own, made by torch, whose properties compute the
            # parameters. Copies of the module share it, so it is made anew on the other base.
            namespace = {k: v for k, v in vars(own).items() if k not in _MADE_BY_TYPE}
            _set_class(module, type(own.__name__, (classes[own.__bases__[0]],), namespace))
    return model


_MADE_BY_TYPE = {"__dict__", "__weakref__"}


def _set_class(module: nn.Module, cls: type[nn.Module]) -> None:
    """Give ``module`` the class ``cls`` as a pickle would: each class can load the other's state."""
    state: dict[str, Any] = dict(module.__dict__)
    if isinstance(module, nn.RNNBase):
        # Beside the parameters torch.nn keeps a list of them, which the state must hold afresh.
        state["_flat_weights"] = [getattr(module, n, None) for n in module._flat_weights_names]
        state.pop("_flat_weight_refs", None)
        state.pop("_assigned", None)
    module.__class__ = cls
    module.__dict__.clear()
    module.__setstate__(state)


class TorchPatch:
    """What :func:`patch_torch` returns: in force until :meth:`undo`, or the end of its ``with``."""

    # Patches in force, and what the first of them found: they may overlap and end in any order.
    _lock = threading.Lock()
    _in_force: set["TorchPatch"] = set()
    _found: dict[tuple[Any, str], type[nn.Module]] = {}

    def __init__(self) -> None:
        with self._lock:
            if not self._in_force:
                for namespace in _NAMESPACES:
                    for theirs, ours in _OURS.items():
                        name = theirs.__name__
                        self._found[namespace, name] = getattr(namespace, name)
                        setattr(namespace, name, ours)
            self._in_force.add(self)

    def undo(self) -> None:
        """End this patch; with the last one, ``torch.nn`` is as it was. Again: does nothing."""
        with self._lock:
            self._in_force.discard(self)
            if not self._in_force:
                for (namespace, name), theirs in self._found.items():
                    setattr(namespace, name, theirs)
                self._found.clear()

    def __enter__(self) -> "TorchPatch":
        return self

    def __exit__(self, *error: object) -> None:
        self.undo()


def patch_torch() -> TorchPatch:
    """Put fastlstm's classes in the place of ``torch.nn``'s, for code that cannot be edited.

    From this call on, ``torch.nn.LSTM``, ``GRU``, ``RNN``, ``LSTMCell``, ``GRUCell`` and
    ``RNNCell`` are fastlstm's, here and in ``torch.nn.modules.rnn``: models built, subclasses
    defined and whole modules unpickled get them. ::

        with fastlstm.patch_torch():
            model = somebody_elses.Model()

        patch = fastlstm.patch_torch()  # or without a block
        patch.undo()

    It holds for the process, not for a thread: other threads see it as well. Patches may be
    nested and may overlap; ``torch.nn`` is restored when the last one ends, and models keep the
    classes they were built with.

    What it cannot reach are names bound before: after ``from torch.nn import LSTM`` a file has
    torch's class for good, so import such files while the patch is in force, or use
    :func:`convert` on what they build. While it is in force, modules that torch's own classes made
    cannot be pickled, and ``torch.compile`` takes fastlstm's modules for torch's and breaks the
    graph: compile and save outside the block.

    Returns:
        A :class:`TorchPatch` to undo it with, which is a context manager.
    """
    return TorchPatch()
