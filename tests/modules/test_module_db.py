"""PyTorch's own database of module inputs, run on the modules of fastlstm.

``torch.testing._internal.common_modules`` lists how every module of torch.nn is constructed and
called, which results it must give and which bad calls must fail how. torch's ``TestModule`` checks
its modules against it; here each of those checks is made of the recurrent modules of this package.
"""

import copy
import importlib.util
import io
import re
import sys
import types
import unittest
from collections.abc import Iterator

import pytest
import torch
from module_pairs import CLOSE, flat
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils._pytree import tree_flatten, tree_map, tree_unflatten

import fastlstm

if importlib.util.find_spec("expecttest") is None:
    # common_modules imports it, through common_utils, for tests that are not run here.
    stub = types.ModuleType("expecttest")
    stub.TestCase = unittest.TestCase
    stub.ACCEPT = False
    sys.modules["expecttest"] = stub

from torch.testing._internal.common_modules import (  # noqa: E402
    ModuleErrorEnum,
    ModuleInfo,
    module_db,
)

OURS = {
    getattr(nn, name): getattr(fastlstm, name)
    for name in ("LSTM", "GRU", "RNN", "LSTMCell", "GRUCell", "RNNCell")
}
INFOS = [info for info in module_db if info.module_cls in OURS]
infos = pytest.mark.parametrize("info", INFOS, ids=lambda info: info.module_cls.__name__)
train_or_eval = pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])


def samples(
    info: ModuleInfo, dtype: torch.dtype, *, training: bool, requires_grad: bool = False
) -> Iterator[tuple]:
    """Yield (sample, module, constructor arguments) for every entry of the database."""
    found = info.module_inputs_func(
        info, device="cpu", dtype=dtype, requires_grad=requires_grad, training=training
    )
    for sample in found:
        args, kwargs = sample.constructor_input.args, sample.constructor_input.kwargs
        module = OURS[info.module_cls](*args, **kwargs).to(dtype).train(training)
        yield sample, module, (args, kwargs)


def call(module: nn.Module, sample) -> object:
    return module(*sample.forward_input.args, **sample.forward_input.kwargs)


def tensors(tree: object) -> list[Tensor]:
    return [t for t in tree_flatten(tree)[0] if isinstance(t, Tensor) and t.is_floating_point()]


def test_every_recurrent_module_is_in_the_database() -> None:
    assert {info.module_cls for info in INFOS} == set(OURS)


@infos
@train_or_eval
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["f32", "f64"])
def test_forward(info: ModuleInfo, training: bool, dtype: torch.dtype) -> None:
    count = 0
    for sample, module, _ in samples(info, dtype, training=training):
        output = call(module, sample)
        if sample.reference_fn is not None:
            count += 1
            forward_input = sample.forward_input
            expected = sample.reference_fn(module, *forward_input.args, **forward_input.kwargs)
            torch.testing.assert_close(output, expected)
    assert count > 0


@infos
@train_or_eval
def test_parity(info: ModuleInfo, training: bool) -> None:
    """Not among torch's checks: the class it is about, with the same weights, as the reference."""
    options = {"training": training, "requires_grad": True}
    for sample, mine, (args, kwargs) in samples(info, torch.float64, **options):
        theirs = info.module_cls(*args, **kwargs).double().train(training)
        theirs.load_state_dict(mine.state_dict())
        results = []
        for module in (mine, theirs):
            outputs = flat(call(module, sample))
            wanted = [*module.parameters(), *tensors(sample.forward_input.args)]
            loss = sum(t.sin().sum() for t in outputs)
            grads = torch.autograd.grad(loss, wanted, materialize_grads=True)
            results.append([*outputs, *grads])
        torch.testing.assert_close(*results, **CLOSE)


@infos
def test_factory_kwargs(info: ModuleInfo) -> None:
    for _, module, (args, kwargs) in samples(info, torch.float32, training=True):
        made = OURS[info.module_cls](*args, **kwargs, device="cpu", dtype=torch.float64)
        assert all(p.dtype == torch.float64 for p in made.parameters())
        assert [p.shape for p in made.parameters()] == [p.shape for p in module.parameters()]


@infos
def test_repr(info: ModuleInfo) -> None:
    for _, module, (args, kwargs) in samples(info, torch.float32, training=True):
        assert repr(module) == str(module) == repr(info.module_cls(*args, **kwargs))


@infos
@train_or_eval
def test_save_load(info: ModuleInfo, training: bool) -> None:
    for sample, module, _ in samples(info, torch.float64, training=training):
        file = io.BytesIO()
        torch.save(module, file)
        file.seek(0)
        expected = flat(call(module, sample))
        for other in (torch.load(file, weights_only=False), copy.deepcopy(module)):
            assert all(map(torch.equal, flat(call(other, sample)), expected))


@infos
@train_or_eval
def test_non_contiguous_tensors(info: ModuleInfo, training: bool) -> None:
    def spread(t: object) -> object:
        if not isinstance(t, Tensor) or not t.is_floating_point():
            return t
        wide = torch.repeat_interleave(t.detach(), 2, dim=-1)
        return wide[..., ::2].requires_grad_(t.requires_grad)

    options = {"training": training, "requires_grad": True}
    for sample, module, _ in samples(info, torch.float64, **options):
        inputs = sample.forward_input.args
        results = []
        for own, change in ((inputs, lambda t: t), (tree_map(spread, inputs), spread)):
            outputs = flat(module(*own))
            g = torch.Generator().manual_seed(0)
            cotangents = [change(torch.randn(t.shape, generator=g, dtype=t.dtype)) for t in outputs]
            wanted = [*tensors(own), *module.parameters()]
            grads = torch.autograd.grad(outputs, wanted, cotangents, materialize_grads=True)
            results.append([*outputs, *grads])
        torch.testing.assert_close(*results, **CLOSE)


def check_gradients(info: ModuleInfo, check, *, training: bool, every: int) -> None:
    """Run ``check`` on every ``every``-th entry, as a function of its inputs and parameters.

    Odd numbers: entries with and without a state, and packed ones, take turns.
    """
    options = {"training": training, "requires_grad": True}
    for i, (sample, module, _) in enumerate(samples(info, torch.float64, **options)):
        if i % every:
            continue
        leaves, structure = tree_flatten(sample.forward_input.args)
        varied = [
            k for k, t in enumerate(leaves) if isinstance(t, Tensor) and t.is_floating_point()
        ]
        names = [name for name, _ in module.named_parameters()]

        def function(*values, leaves=leaves, structure=structure, varied=varied, names=names,
                     module=module):  # fmt: skip
            given = list(leaves)
            for k, value in zip(varied, values, strict=False):
                given[k] = value
            parameters = dict(zip(names, values[len(varied) :], strict=True))
            return tuple(
                flat(functional_call(module, parameters, tree_unflatten(given, structure)))
            )

        assert check(function, (*(leaves[k] for k in varied), *module.parameters()))


@infos
@train_or_eval
def test_grad(info: ModuleInfo, training: bool) -> None:
    check_gradients(info, torch.autograd.gradcheck, training=training, every=5)


@infos
def test_gradgrad(info: ModuleInfo) -> None:
    check_gradients(info, torch.autograd.gradgradcheck, training=False, every=17)


@infos
def test_device_ctx_init(info: ModuleInfo) -> None:
    for _, module, (args, kwargs) in samples(info, torch.float32, training=True):
        with torch.device("meta"):
            other = OURS[info.module_cls](*args, **kwargs)
        for p, q in zip(other.parameters(), module.parameters(), strict=True):
            assert p.is_meta and p.shape == q.shape and p.stride() == q.stride()


@infos
@train_or_eval
def test_if_train_and_eval_modes_differ(info: ModuleInfo, training: bool) -> None:
    """A module that does not differ must not read its ``training`` attribute; others must."""
    for sample, module, _ in samples(info, torch.float64, training=training):
        del module.training
        if info.train_and_eval_differ:
            with pytest.raises(AttributeError, match="training"):
                call(module, sample)
        else:
            call(module, sample)


@infos
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["f32", "f64"])
def test_errors(info: ModuleInfo, dtype: torch.dtype) -> None:
    found = info.module_error_inputs_func(
        info, device="cpu", dtype=dtype, requires_grad=False, training=True
    )
    for error in found:
        given = error.module_error_input
        cls, made = OURS[info.module_cls], given.constructor_input
        if error.error_on == ModuleErrorEnum.CONSTRUCTION_ERROR:
            with pytest.raises(error.error_type) as caught:
                cls(*made.args, **made.kwargs)
        else:
            module = cls(*made.args, **made.kwargs)
            with pytest.raises(error.error_type) as caught:
                call(module, given)
        assert re.search(error.error_regex, str(caught.value)), caught.value
