"""torch.compile: one graph, equal results, one operator a layer whatever T is."""

import copy
from collections.abc import Callable
from contextlib import nullcontext

import pytest
import torch
import torch_graphs
from cell_kinds import has_c
from module_pairs import build
from torch import Tensor, nn
from torch._dynamo.backends.common import aot_autograd
from torch._dynamo.testing import CompileCounterWithBackend
from torch._functorch.aot_autograd import make_boxed_func
from torch.func import functional_call, grad, vmap
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence
from torch_graphs import H, I, N, T, operators, tokens, two_kinds

import fastlstm

KINDS = ("LSTM", "GRU", "RNN_TANH")

pytestmark = torch_graphs.MARKS
fresh_compiler = torch_graphs.fresh_compiler


def state(kind: str, layers: int = 2, width: int = H):
    h = torch.randn(layers, N, width)
    return (h, torch.randn(layers, N, H)) if has_c(kind) else h


# Options of the constructor, then from the kind to the arguments and keywords of the call.
CALLS: dict[str, tuple[dict, Callable, Callable]] = {
    "plain": ({"num_layers": 2}, lambda k: (), lambda k: {}),
    "state": ({"num_layers": 2}, lambda k: (state(k),), lambda k: {}),
    "bidirectional": ({"bidirectional": True}, lambda k: (state(k),), lambda k: {}),
    "dropout": ({"num_layers": 3, "dropout": 0.5}, lambda k: (), lambda k: {}),
    "no_bias": ({"bias": False}, lambda k: (), lambda k: {}),
    "states": ({"num_layers": 2}, lambda k: (), lambda k: {"return_states": True}),
    "lengths": ({"num_layers": 2}, lambda k: (), lambda k: {"lengths": torch.tensor([2, 0, 5])}),
    "list_of_lengths": ({"bidirectional": True}, lambda k: (), lambda k: {"lengths": [2, 0, 5]}),
    "reset": ({"bidirectional": True}, lambda k: (), lambda k: {"reset": torch.rand(T, N) < 0.3}),
}


def results_and_grads(run: Callable, parameters, x: Tensor, *args, **kwargs) -> list[Tensor]:
    leaf = x.clone().requires_grad_(x.is_floating_point())
    torch.manual_seed(0)
    found = run(leaf, *args, **kwargs)
    results = [t for t in torch.utils._pytree.tree_leaves(found) if isinstance(t, Tensor)]
    results = list({id(t): t for t in results}.values())
    wanted = [t for t in (leaf, *parameters) if t.requires_grad]
    grads = torch.autograd.grad(
        sum(t.float().sin().sum() for t in results), wanted, materialize_grads=True
    )
    return [*(t.detach() for t in results), *grads]


def assert_compiles(module: nn.Module, x: Tensor, *args, backend="aot_eager", **kwargs) -> None:
    """Fail unless the whole call is one graph with the results and gradients of the call itself."""
    compiled = torch.compile(module, backend=backend, fullgraph=True)
    parameters = list(module.parameters())
    torch.testing.assert_close(
        results_and_grads(compiled, parameters, x, *args, **kwargs),
        results_and_grads(module, parameters, x, *args, **kwargs),
    )
    with torch.no_grad():
        found = []
        for run in (compiled, module):
            torch.manual_seed(1)
            found.append(torch.utils._pytree.tree_leaves(run(x, *args, **kwargs)))
        torch.testing.assert_close(*found)


FEW = ("plain", "state", "lengths")  # where the kind of cell makes a difference


@pytest.mark.parametrize(
    ("kind", "name"),
    [(k, n) for k in KINDS for n in CALLS if k == "LSTM" or n in FEW[: 3 if k == "GRU" else 1]],
)
def test_one_graph(kind: str, name: str) -> None:
    options, args, kwargs = CALLS[name]
    module = build(fastlstm, kind, I, H, **options)
    assert_compiles(module, torch.randn(T, N, I), *args(kind), **kwargs(kind))


@pytest.mark.slow
@two_kinds
@pytest.mark.parametrize("embedding", [None, 4, 40], ids=["one_hot", "small_table", "large_table"])
def test_tokens(kind: str, embedding: int | None) -> None:
    module = build(fastlstm, kind, I, H, 2)
    table = None if embedding is None else torch.randn(embedding, I)
    assert_compiles(module, tokens(), embedding=table)


@pytest.mark.parametrize("layout", ["batch_first", "unbatched", "projection", "bfloat16"])
def test_layouts(layout: str) -> None:
    x = torch.randn(T, N, I)
    if layout == "batch_first":
        assert_compiles(fastlstm.GRU(I, H, 2, batch_first=True), x.transpose(0, 1))
    elif layout == "unbatched":
        assert_compiles(fastlstm.LSTM(I, H, 2), x[:, 0])
    elif layout == "projection":
        assert_compiles(fastlstm.LSTM(I, H, 2, proj_size=3, bidirectional=True), x)
    else:
        assert_compiles(fastlstm.LSTM(I, H).bfloat16(), x.bfloat16())


@pytest.mark.slow
def test_inductor() -> None:
    """The default backend: strides and sizes are those that the operators announce."""
    lstm = fastlstm.LSTM(I, H, 2, bidirectional=True)
    assert_compiles(lstm, torch.randn(T, N, I), state("LSTM", 4), backend="inductor")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "name"),
    # The generator of inductor draws other masks than torch's.
    [(k, n) for k in KINDS for n in CALLS if (k == "LSTM" or n in FEW) and n != "dropout"],
)
def test_inductor_of_everything(kind: str, name: str) -> None:
    options, args, kwargs = CALLS[name]
    module = build(fastlstm, kind, I, H, **options)
    x = torch.randn(T, N, I)
    assert_compiles(module, x, *args(kind), backend="inductor", **kwargs(kind))


@pytest.mark.slow
def test_inductor_with_dropout() -> None:
    """The masks, whoever draws them, obey the seed, and backward uses those of forward."""
    lstm, x = fastlstm.LSTM(I, H, 3, dropout=0.5), torch.randn(T, N, I)
    compiled = torch.compile(lstm, fullgraph=True)
    first, again = (results_and_grads(compiled, lstm.parameters(), x) for _ in range(2))
    torch.testing.assert_close(first, again, rtol=0, atol=0)
    assert not torch.equal(compiled(x)[0], compiled(x)[0])


@two_kinds
@pytest.mark.parametrize("bias", [True, False], ids=["bias", "nobias"])
def test_cell(kind: str, bias: bool) -> None:
    cell = build(fastlstm, kind, I, H, bias=bias, cell=True)

    def decode(x: Tensor, hx) -> Tensor:
        for step in x.unbind():
            hx = cell(step, hx)
        return hx

    compiled = torch.compile(decode, backend="aot_eager", fullgraph=True)
    h = state(kind, 1)
    hx = tuple(t[0] for t in h) if has_c(kind) else h[0]
    x = torch.randn(3, N, I)
    torch.testing.assert_close(
        *(results_and_grads(run, cell.parameters(), x, hx) for run in (compiled, decode))
    )


@pytest.mark.slow
@pytest.mark.parametrize("given", [True, False], ids=["state", "no_state"])
def test_packed(given: bool) -> None:
    """Also where the size of the batch is nowhere but in the data."""
    lstm = fastlstm.LSTM(I, H, 2, bidirectional=True)
    hx = (torch.randn(4, N, H), torch.randn(4, N, H)) if given else None

    def call(packed: PackedSequence):
        output, hidden = lstm(packed, hx)
        return output.data, hidden

    compiled = torch.compile(call, backend="aot_eager", fullgraph=True)
    for lengths in ([3, 1, 5], [3, 2, 4]):
        padded = torch.randn(max(lengths), N, I)
        data, *order = pack_padded_sequence(padded, lengths, enforce_sorted=False)

        def of_data(run: Callable, order=order) -> Callable:
            return lambda x: run(PackedSequence(x, *order))

        torch.testing.assert_close(
            *(results_and_grads(of_data(f), lstm.parameters(), data) for f in (compiled, call))
        )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "marked"), [("LSTM", True), ("LSTM", False), ("GRU", True), ("RNN_TANH", False)]
)
def test_any_length_and_batch_in_one_graph(kind: str, marked: bool) -> None:
    module = build(fastlstm, kind, I, H, 2, bidirectional=True)
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(
        module, backend=counter, fullgraph=True, dynamic=None if marked else True
    )
    for call, (steps, batch) in enumerate([(7, 3), (9, 4), (2, 5), (30, 2), (400, 8)]):
        x = torch.randn(steps, batch, I)
        if marked:
            torch._dynamo.mark_dynamic(x, 0)
            torch._dynamo.mark_dynamic(x, 1)
        parameters = list(module.parameters())
        torch.testing.assert_close(
            *(torch.autograd.grad(f(x)[0].sin().sum(), parameters) for f in (compiled, module))
        )
        if call == 0:
            after_first = counter.frame_count
    assert counter.frame_count == after_first


def test_graph_does_not_grow_with_length() -> None:
    lstm = fastlstm.LSTM(I, H, 2)
    counts = []
    for steps in (32, 2048):
        torch.compiler.reset()
        graphs = []

        def compiler(graph, _, graphs=graphs):
            graphs.append(graph)
            return make_boxed_func(graph.forward)

        backend = aot_autograd(fw_compiler=compiler, bw_compiler=compiler)
        compiled = torch.compile(lstm, backend=backend, fullgraph=True, dynamic=False)
        compiled(torch.randn(steps, 2, I))[0].sum().backward()
        counts.append([len(graph.graph.nodes) for graph in graphs])
        assert [operators(graph) for graph in graphs] == [
            # What leaves the graph is apart from what is kept for backward.
            ["fastlstm.layer.default"] * 2 + ["fastlstm.copy.default"],
            ["fastlstm.layer_backward.default"] * 2,
        ]
    assert counts[0] == counts[1] and len(counts[0]) == 2


@pytest.mark.parametrize("enabled", [True, False], ids=["train", "inference"])
def test_inference_keeps_nothing(enabled: bool) -> None:
    graphs = []

    def compiler(graph, _):
        graphs.append(graph)
        return graph.forward

    lstm = fastlstm.LSTM(I, H)
    compiled = torch.compile(lstm, backend=compiler, fullgraph=True)
    with torch.set_grad_enabled(enabled):
        compiled(torch.randn(T, N, I))
    (node,) = (n for n in graphs[0].graph.nodes if "fastlstm.layer" in str(n.target))
    assert node.args[-1] == (2 if enabled else 0)


@pytest.mark.slow
@two_kinds
@pytest.mark.parametrize("inside", [True, False], ids=["inside", "outside"])
def test_autocast(kind: str, inside: bool) -> None:
    module = build(fastlstm, kind, I, H, 2)

    def run(x: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16) if inside else nullcontext():
            return module(x)[0]

    compiled = torch.compile(run, backend="aot_eager", fullgraph=True)
    x = torch.randn(T, N, I)
    with nullcontext() if inside else torch.autocast("cpu", torch.bfloat16):
        assert compiled(x).dtype == torch.bfloat16
        torch.testing.assert_close(
            *(results_and_grads(f, module.parameters(), x) for f in (compiled, run))
        )


@two_kinds
def test_second_derivative_of_a_graph(kind: str) -> None:
    """The backend that runs the operators themselves can differentiate twice."""
    module = build(fastlstm, kind, I, H, bidirectional=True).double()
    compiled = torch.compile(module, backend="eager", fullgraph=True)
    x = torch.randn(T, N, I, dtype=torch.float64, requires_grad=True)
    found = []
    for run in (compiled, module):
        (first,) = torch.autograd.grad(run(x)[0].sin().sum(), x, create_graph=True)
        found.append(torch.autograd.grad(first.square().sum(), [x, *module.parameters()]))
    torch.testing.assert_close(*found)


@pytest.mark.slow
def test_transforms_in_a_graph() -> None:
    """torch.func inside of torch.compile is right, though not on the kernels."""
    module = fastlstm.GRU(I, H)
    parameters = dict(module.named_parameters())

    def loss(parameters: dict[str, Tensor], x: Tensor) -> Tensor:
        return functional_call(module, parameters, (x,))[0].sin().sum()

    for transformed, x in (
        (grad(loss), torch.randn(2, N, I)),
        (vmap(loss, (None, 0)), torch.randn(2, 2, N, I)),
    ):
        compiled = torch.compile(transformed, backend="aot_eager", fullgraph=True)
        torch.testing.assert_close(compiled(parameters, x), transformed(parameters, x))


@pytest.mark.slow
def test_transform_in_a_graph_under_autocast() -> None:
    """What stands in for the kernels rounds where they do, whatever autocast would do to it."""
    module, x = fastlstm.GRU(I, H), torch.randn(2, T, N, I).bfloat16()
    narrow = copy.deepcopy(module).bfloat16()

    def run(module: nn.Module, x: Tensor) -> Tensor:
        function = vmap(lambda x: module(x)[0])
        return torch.compile(function, backend="aot_eager", fullgraph=True)(x)

    expected = run(narrow, x)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(run(module, x.float()), expected)


@two_kinds
def test_compiled_backward(kind: str) -> None:
    module, x = build(fastlstm, kind, I, H, 2, bidirectional=True), torch.randn(T, N, I)
    loss = module(x)[0].sin().sum()
    parameters = list(module.parameters())
    expected = torch.autograd.grad(loss, parameters, retain_graph=True)
    compiler = torch.compile(backend="aot_eager", fullgraph=True)
    with torch._dynamo.compiled_autograd._enable(compiler):
        found = torch.autograd.grad(loss, parameters)
    torch.testing.assert_close(found, expected)
