"""What callers may do in place to outputs and arguments between forward and backward."""

from collections.abc import Callable

import pytest
import torch
from error_rule import assert_error_within
from torch import Tensor, nn

import fastlstm

LAYERS = [(fastlstm.LSTM, nn.LSTM), (fastlstm.GRU, nn.GRU), (fastlstm.RNN, nn.RNN)]
CELLS = [
    (fastlstm.LSTMCell, nn.LSTMCell),
    (fastlstm.GRUCell, nn.GRUCell),
    (fastlstm.RNNCell, nn.RNNCell),
]
each_layer = pytest.mark.parametrize(("ours", "theirs"), LAYERS, ids=["LSTM", "GRU", "RNN"])
each_cell = pytest.mark.parametrize(("ours", "theirs"), CELLS, ids=["LSTM", "GRU", "RNN"])

CHANGES_OF_SHAPE: dict[str, Callable[[Tensor], Tensor]] = {
    "squeeze_": lambda y: y.squeeze_(1),
    "unsqueeze_": lambda y: y.unsqueeze_(0),
    "transpose_": lambda y: y.transpose_(0, 2),
    "swapaxes_": lambda y: y.swapaxes_(0, 1),
    "as_strided_": lambda y: y.as_strided_((y.size(0), y.size(2)), (y.stride(0), 1)),
}
CHANGES_OF_VALUE: dict[str, Callable[[Tensor], Tensor]] = {
    "mul_": lambda y: y.mul_(2),
    "add_": lambda y: y.add_(1),
    "relu_": lambda y: y.relu_(),
    "zero_": lambda y: y.zero_(),
    "slice": lambda y: (y, y[1:].mul_(3))[0],
}


def modules(ours, theirs, *sizes, **options):
    ours = ours(*sizes, **options)
    theirs = theirs(*sizes, **options)
    theirs.load_state_dict(ours.state_dict())
    return ours, theirs


def first(result):
    return result[0] if isinstance(result, tuple) else result


def gradients(run: Callable, module: nn.Module, x: Tensor, change: Callable, is_copied: bool):
    x = x.clone().requires_grad_()
    y = first(run(x))
    y = change(y.clone() if is_copied else y)
    loss = y.square().sum() + y.sum()
    return torch.autograd.grad(loss, [x, *module.parameters()], materialize_grads=True)


def assert_gradients_right(ours, theirs, x, change, run=None) -> None:
    """By the error rule; who is not judged changes a copy of the output."""
    found = gradients(ours if run is None else run, ours, x, change, False)
    expected = gradients(theirs, theirs, x, change, True)
    theirs = theirs.double()
    true = gradients(theirs, theirs, x.double(), change, True)
    for i, values in enumerate(zip(found, expected, true, strict=True)):
        assert_error_within(f"gradient {i}", *values)


@each_layer
@pytest.mark.parametrize("batch_first", [False, True], ids=["time_first", "batch_first"])
@pytest.mark.parametrize("change", CHANGES_OF_SHAPE.values(), ids=CHANGES_OF_SHAPE)
def test_the_shape_of_an_output_may_change_in_place(ours, theirs, batch_first, change) -> None:
    ours, theirs = modules(ours, theirs, 4, 5, batch_first=batch_first)
    x = torch.randn(1, 6, 4) if batch_first else torch.randn(6, 1, 4)
    if batch_first and change is CHANGES_OF_SHAPE["squeeze_"]:
        change = lambda y: y.squeeze_(0)  # noqa: E731
    assert_gradients_right(ours, theirs, x, change)


@each_layer
@pytest.mark.parametrize("batch_first", [False, True], ids=["time_first", "batch_first"])
@pytest.mark.parametrize("needs_grad", [False, True], ids=["no_grad", "grad"])
def test_an_output_may_be_detached_in_place(ours, theirs, batch_first, needs_grad) -> None:
    m = ours(4, 5, batch_first=batch_first)
    with torch.set_grad_enabled(needs_grad):
        y, _ = m(torch.randn(3, 2, 4))
        kept = y.clone().detach()
        assert y.requires_grad == needs_grad and not y._is_view()
        y.detach_()
    assert not y.requires_grad and torch.equal(y, kept)


@each_layer
@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("change", CHANGES_OF_VALUE.values(), ids=CHANGES_OF_VALUE)
def test_the_values_of_an_output_may_change_in_place(ours, theirs, layers, change) -> None:
    """Backward reads the output: it computes it again."""
    ours, theirs = modules(ours, theirs, 4, 17, num_layers=layers)
    assert_gradients_right(ours, theirs, torch.randn(6, 3, 4), change)


@each_cell
@pytest.mark.parametrize("change", CHANGES_OF_VALUE.values(), ids=CHANGES_OF_VALUE)
def test_the_values_of_a_state_may_change_in_place(ours, theirs, change) -> None:
    ours, theirs = modules(ours, theirs, 4, 17)
    assert_gradients_right(ours, theirs, torch.randn(3, 4), change)


def test_the_cell_state_may_change_in_place() -> None:
    ours, theirs = modules(fastlstm.LSTMCell, nn.LSTMCell, 4, 17)
    for module in (ours, theirs):
        module.forward = lambda x, forward=module.forward: forward(x)[1]
    assert_gradients_right(ours, theirs, torch.randn(3, 4), CHANGES_OF_VALUE["mul_"])


@each_layer
def test_every_state_may_change_in_place(ours, theirs) -> None:
    m, x = ours(4, 5), torch.randn(6, 3, 4)
    grads = []
    for change in (lambda t: t.mul_(2), lambda t: t * 2):
        _, _, states = m(x, return_states=True)
        loss = sum(change(layer).square().sum() for field in states for layer in field)
        grads.append(torch.autograd.grad(loss, list(m.parameters())))
    for found, expected in zip(*grads, strict=True):
        assert torch.equal(found, expected)


@pytest.mark.slow
@each_layer
@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
@pytest.mark.parametrize("change", ["mul_", "add_", "relu_"])
def test_a_compiled_output_may_change_in_place(ours, theirs, backend, change) -> None:
    """AOTAutograd does not see that the output is a view of what is kept for backward."""
    ours, theirs = modules(ours, theirs, 4, 17)
    compiled = torch.compile(ours, backend=backend, fullgraph=True)
    assert_gradients_right(ours, theirs, torch.randn(6, 3, 4), CHANGES_OF_VALUE[change], compiled)


@each_cell
def test_a_compiled_state_must_not_change_in_place(ours, theirs) -> None:
    ours, theirs = modules(ours, theirs, 4, 17)
    compiled = torch.compile(ours, backend="aot_eager", fullgraph=True)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        assert_gradients_right(ours, theirs, torch.randn(3, 4), CHANGES_OF_VALUE["mul_"], compiled)


@pytest.mark.slow
@each_layer
def test_compiled_autograd_refuses_an_output_that_was_changed(ours, theirs) -> None:
    m, x = ours(4, 5), torch.randn(6, 3, 4)
    compiler = torch.compile(backend="eager")
    for is_changed in (False, True, False):  # the graph of the first time runs again
        y, _ = m(x)
        loss = (y.mul_(2) if is_changed else y).square().sum()
        with torch._dynamo.compiled_autograd._enable(compiler):
            if is_changed:
                with pytest.raises(RuntimeError, match="modified by an inplace operation"):
                    loss.backward()
            else:
                loss.backward()


@each_layer
def test_w_ih_may_change_where_the_input_needs_no_gradient(ours, theirs) -> None:
    ours, theirs = modules(ours, theirs, 4, 17)
    x = torch.randn(6, 3, 4)
    expected = torch.autograd.grad(ours(x)[0].sum(), list(ours.parameters()))
    loss = ours(x)[0].sum()
    with torch.no_grad():
        for name, p in ours.named_parameters():
            if "weight_hh" not in name:
                p.add_(1)
    found = torch.autograd.grad(loss, list(ours.parameters()))
    assert all(map(torch.equal, found, expected))


@each_cell
def test_every_weight_of_a_cell_may_change_where_no_gradient_passes_it(ours, theirs) -> None:
    m, x = ours(4, 17), torch.randn(3, 4)
    expected = torch.autograd.grad(first(m(x)).sum(), list(m.parameters()))
    loss = first(m(x)).sum()
    with torch.no_grad():
        for p in m.parameters():
            p.add_(1)
    found = torch.autograd.grad(loss, list(m.parameters()))
    assert all(map(torch.equal, found, expected))


@each_layer
def test_what_backward_reads_must_not_change(ours, theirs) -> None:
    m = ours(4, 17)
    for name, x_needs_grad in (("weight_hh_l0", False), ("weight_ih_l0", True)):
        loss = m(torch.randn(6, 3, 4, requires_grad=x_needs_grad))[0].sum()
        with torch.no_grad():
            getattr(m, name).add_(1)
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            loss.backward()


@each_layer
def test_higher_derivatives_need_every_argument_as_it_was(ours, theirs) -> None:
    m = ours(4, 5)
    loss = m(torch.randn(3, 2, 4))[0].square().sum()
    with torch.no_grad():
        m.bias_ih_l0.add_(1)
    with pytest.raises(
        RuntimeError, match=r"modified by an inplace operation: a tensor of shape \["
    ):
        torch.autograd.grad(loss, m.weight_hh_l0, create_graph=True)


@each_cell
def test_a_cell_built_in_inference_mode_runs_with_gradients(ours, theirs) -> None:
    """As torch.nn's do where the input needs no gradient: nothing of the weights is saved."""
    with torch.inference_mode():
        m = ours(4, 17)
    x = torch.randn(3, 4)
    y = first(m(x))
    y.sum().backward()
    plain = ours(4, 17)
    plain.load_state_dict(m.state_dict())
    first(plain(x)).sum().backward()
    for found, expected in zip(m.parameters(), plain.parameters(), strict=True):
        assert torch.equal(found.grad, expected.grad)


def saved_bytes(run: Callable[[], Tensor]) -> int:
    found = {}

    def pack(t: Tensor) -> Tensor:
        found[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes()
        return t

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        run()
    return sum(found.values())


def test_an_lstm_of_frozen_weights_keeps_neither_input_nor_output() -> None:
    m = fastlstm.LSTM(64, 8).requires_grad_(False)
    x = torch.randn(20, 4, 64, requires_grad=True)
    weights = sum(p.numel() for n, p in m.named_parameters() if "weight" in n)
    # Five numbers a unit: gates and c, with the rows of the initial state and of zeros.
    expected = 4 * (20 * 4 * 8 * 4 + (20 * 4 + 4 + 1) * 8 + weights)
    assert saved_bytes(lambda: m(x)) == expected
