"""torch.fx.symbolic_trace: the graphs are those of torch.nn's modules, and do what the model does."""

import copy
import io
import pickle

import pytest
import torch
from cell_kinds import has_c
from module_pairs import CLOSE, build, flat, kinds, randn
from torch import Tensor, fx, nn
from torch.fx import symbolic_trace
from torch.fx.passes.shape_prop import ShapeProp
from torch.nn.utils.rnn import pack_padded_sequence

import fastlstm
from fastlstm import functional

T, N, I, H = 5, 3, 4, 6


@fx.wrap
def packed(x: Tensor, lengths: Tensor):
    return pack_padded_sequence(x, lengths, enforce_sorted=False)


class Layers(nn.Module):
    """A stack within a model, called twice; what it returns is taken apart."""

    def __init__(self, package, kind: str) -> None:
        super().__init__()
        options = {"num_layers": 2, "bidirectional": True, "dtype": torch.float64}
        self.body = nn.ModuleDict({"rnn": build(package, kind, I, H, **options)})
        self.head = nn.Linear(2 * H, I, dtype=torch.float64)

    def forward(self, x: Tensor):
        output, hidden = self.body["rnn"](x)
        _, again = self.body["rnn"](self.head(output) + x, hidden)
        return output, again


class GivenState(nn.Module):
    """The parts of a state come and go by themselves."""

    def __init__(self, package, kind: str) -> None:
        super().__init__()
        self.rnn = build(package, kind, I, H, dtype=torch.float64)
        self.kind = kind

    def forward(self, x: Tensor, h: Tensor):
        if has_c(self.kind):
            output, (h, c) = self.rnn(x, (h, h * 2))
            return output, h + c
        output, h = self.rnn(x, h)
        return output, h


class ConstantInput(nn.Module):
    """Only the state is traced: the input is a buffer."""

    def __init__(self, package, kind: str) -> None:
        super().__init__()
        self.rnn = build(package, kind, I, H, dtype=torch.float64)
        self.cell = build(package, kind, I, H, cell=True, dtype=torch.float64)
        self.register_buffer("start", randn(T, N, I))
        self.kind = kind

    def forward(self, h: Tensor):
        states = (h, h) if has_c(self.kind) else h
        last = (h[0], h[0]) if has_c(self.kind) else h[0]
        return self.rnn(self.start, states), self.cell(self.start[0], last)


class Loop(nn.Module):
    """Cells, one above the other, step by step."""

    def __init__(self, package, kind: str) -> None:
        super().__init__()
        sizes = ((I, H), (H, H))
        self.cells = nn.ModuleList(
            build(package, kind, *size, cell=True, dtype=torch.float64) for size in sizes
        )
        self.has_c = has_c(kind)

    def forward(self, x: Tensor):
        states = [None, None]
        for t in range(T):
            h = x[t]
            for k, cell in enumerate(self.cells):
                states[k] = cell(h) if t == 0 else cell(h, states[k])
                h = states[k][0] if self.has_c else states[k]
        return states


class Packed(nn.Module):
    def __init__(self, package, kind: str) -> None:
        super().__init__()
        self.rnn = build(package, kind, I, H, dtype=torch.float64)

    def forward(self, x: Tensor, lengths: Tensor):
        output, hidden = self.rnn(packed(x, lengths))
        return output.data, hidden


MODELS = {
    "layers": (Layers, lambda: (randn(T, N, I),)),
    "given_state": (GivenState, lambda: (randn(T, N, I), randn(1, N, H))),
    "constant_input": (ConstantInput, lambda: (randn(1, N, H),)),
    "cells": (Loop, lambda: (randn(T, N, I),)),
    "packed": (Packed, lambda: (randn(T, N, I), torch.tensor([2, 5, 1]))),
}
models = pytest.mark.parametrize(("model", "arguments"), MODELS.values(), ids=MODELS)
layer_or_cell = pytest.mark.parametrize("cell", [False, True], ids=["layer", "cell"])


def two(model: type[nn.Module], kind: str) -> tuple[nn.Module, nn.Module]:
    """The same model of both packages."""
    mine, theirs = model(fastlstm, kind), model(nn, kind)
    mine.load_state_dict(theirs.state_dict())
    return mine, theirs


def nodes(graph: fx.GraphModule) -> list[tuple]:
    return [(n.op, n.name, n.target, n.args, n.kwargs) for n in graph.graph.nodes]


def ops(graph: fx.GraphModule) -> list[str]:
    return [node.op for node in graph.graph.nodes]


def assert_equal(graph: nn.Module, model: nn.Module, *args, **options) -> None:
    """Fail unless both return the same bits."""
    torch.testing.assert_close(
        flat(graph(*args, **options)), flat(model(*args, **options)), rtol=0, atol=0
    )


@models
@kinds
def test_the_graph_is_that_of_torch_nn(model: type, arguments, kind: str) -> None:
    mine, theirs = two(model, kind)
    graph, expected = symbolic_trace(mine), symbolic_trace(theirs)
    # Arguments are nodes of their own graph: alike if they have the same names.
    assert str(nodes(graph)) == str(nodes(expected))
    graph.graph.lint()
    args = arguments()
    assert_equal(graph, mine, *args)
    torch.testing.assert_close(flat(graph(*args)), flat(expected(*args)), **CLOSE)


@models
def test_a_graph_is_copied_pickled_traced_again_and_interpreted(model: type, arguments) -> None:
    mine, _ = two(model, "LSTM")
    graph, args = symbolic_trace(mine), arguments()
    file = io.BytesIO()
    torch.save(graph, file)
    file.seek(0)
    others = (
        copy.deepcopy(graph),
        pickle.loads(pickle.dumps(graph)),
        torch.load(file, weights_only=False),
        symbolic_trace(graph),
        fx.Transformer(graph).transform(),
    )
    for other in others:
        assert ops(other) == ops(graph)
        assert_equal(other, mine, *args)
    assert_equal(fx.Interpreter(graph).run, mine, *args)


def test_gradients_and_training_mode_go_through_the_graph() -> None:
    model = nn.Sequential(fastlstm.LSTM(I, H, num_layers=2, dropout=0.5, dtype=torch.float64))
    graph, x = symbolic_trace(model), randn(T, N, I).requires_grad_()
    wanted = (x, *model.parameters())

    def gradients(module: nn.Module) -> tuple[Tensor, ...]:
        torch.manual_seed(1)
        return torch.autograd.grad(module(x)[0].square().sum(), wanted)

    torch.testing.assert_close(gradients(graph), gradients(model), rtol=0, atol=0)
    graph.eval()
    torch.testing.assert_close(graph(x), graph(x), rtol=0, atol=0)


@kinds
def test_passes_find_modules_and_shapes(kind: str) -> None:
    graphs = [symbolic_trace(model) for model in two(Layers, kind)]
    for graph in graphs:
        ShapeProp(graph).propagate(randn(T, N, I))
    mine, theirs = ([n.meta["tensor_meta"] for n in graph.graph.nodes] for graph in graphs)
    assert str(mine) == str(theirs)
    fastlstm.to_torch(graphs[0])
    assert type(graphs[0].get_submodule("body.rnn")) is type(graphs[1].get_submodule("body.rnn"))
    x = randn(T, N, I)
    torch.testing.assert_close(flat(graphs[0](x)), flat(graphs[1](x)), **CLOSE)


class Additions(nn.Module):
    """Every keyword that torch.nn does not have."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(9, I, dtype=torch.float64)
        self.rnn = fastlstm.LSTM(I, H, num_layers=2, dtype=torch.float64)

    def forward(self, tokens: Tensor, lengths: Tensor, reset: Tensor):
        table = self.table.weight
        output, (h, _), states = self.rnn(
            tokens, lengths=lengths, reset=reset, embedding=table, return_states=True
        )
        few = self.rnn(table[tokens], (h, h), lengths=[1, lengths[1], 2])
        return output, states.c[0], few


def test_additions_are_recorded() -> None:
    model = Additions()
    tokens, reset = torch.randint(9, (T, N)), torch.rand(T, N) < 0.3
    graph = symbolic_trace(model)
    first, second = (node for node in graph.graph.nodes if node.op == "call_module")
    assert list(first.kwargs) == ["lengths", "reset", "embedding", "return_states"]
    assert list(second.kwargs) == ["lengths"]
    for lengths in ([5, 0, 2], [1, 4, 3]):
        assert_equal(graph, model, tokens, torch.tensor(lengths), reset)


class RootOnly(fx.Tracer):
    """Enters every module, those of torch.nn too."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return False


class AllLeaves(fx.Tracer):
    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return True


@pytest.mark.parametrize("tracer", [RootOnly, AllLeaves])
def test_tracers_with_rules_of_their_own(tracer: type[fx.Tracer]) -> None:
    model, x = nn.Sequential(fastlstm.GRU(I, H, dtype=torch.float64)), randn(T, N, I)
    graph = fx.GraphModule(model, tracer().trace(model))
    assert ops(graph) == ["placeholder", "call_module", "output"]
    assert_equal(graph, model, x)


@kinds
@layer_or_cell
def test_a_module_is_traced_by_itself(kind: str, cell: bool) -> None:
    module = build(fastlstm, kind, I, H, cell=cell, dtype=torch.float64)
    graph = symbolic_trace(module)
    assert "call_function" in ops(graph)
    assert graph.state_dict().keys() == module.state_dict().keys()
    h = randn(N, H) if cell else randn(1, N, H)
    x, hx = randn(N, I) if cell else randn(T, N, I), (h, h) if has_c(kind) else h
    for other in (graph, symbolic_trace(graph), pickle.loads(pickle.dumps(graph))):
        assert_equal(other, module, x, hx)
    if not cell:
        assert_equal(graph, module, x)
        assert_equal(graph, module, x, lengths=[1, 5, 2], return_states=True)


class Doubled(fastlstm.GRU):
    def forward(self, x: Tensor):
        return super().forward(x)[0] * 2


class DoubledCell(fastlstm.LSTMCell):
    def forward(self, x: Tensor):
        return super().forward(x)[0] * 2


@pytest.mark.parametrize("kind", [Doubled, DoubledCell])
def test_a_subclass_with_a_forward_of_its_own_is_called_once(kind: type[nn.Module]) -> None:
    model = nn.Sequential(kind(I, H, dtype=torch.float64))
    graph = symbolic_trace(model)
    assert "call_module" not in ops(graph)
    assert_equal(graph, model, randn(N, I))


@kinds
@layer_or_cell
@pytest.mark.parametrize("where", ["forward", "pre", "global"])
def test_what_a_hook_changes_is_changed_once(kind: str, cell: bool, where: str) -> None:
    module = build(fastlstm, kind, I, H, cell=cell, dtype=torch.float64)
    model, x = nn.Sequential(module), randn(N, I)

    def after(m: nn.Module, args: tuple, result):
        if m is not module:
            return None
        if isinstance(result, Tensor) or (
            isinstance(result, fx.Proxy) and cell and not has_c(kind)
        ):
            return result * 2
        return result[0] * 2, result[1]

    if where == "pre":
        handle = module.register_forward_pre_hook(lambda m, args: (args[0] * 2,))
    elif where == "forward":
        handle = module.register_forward_hook(after)
    else:
        handle = nn.modules.module.register_module_forward_hook(after)
    try:
        graph = symbolic_trace(model)
        assert_equal(graph, model, x)
    finally:
        handle.remove()


def test_old_weight_norm_is_part_of_the_graph() -> None:
    model = nn.Sequential(fastlstm.GRU(I, H, dtype=torch.float64))
    nn.utils.weight_norm(model[0], "weight_hh_l0")
    graph, x = symbolic_trace(model), randn(T, N, I)
    before = graph(x)[0]
    with torch.no_grad():
        model[0].weight_hh_l0_g.mul_(2)  # the graph has the same Parameter
    assert not torch.equal(graph(x)[0], before)
    assert_equal(graph, model, x)


class Functional(nn.Module):
    """No module of this package: weights of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.w_ih = nn.Parameter(randn(3 * H, I))
        self.w_hh = nn.Parameter(randn(3 * H, H))

    def forward(self, x: Tensor):
        output, h = functional.gru(x, None, [(self.w_ih, self.w_hh)])
        return output, functional.gru_cell(x[0], h[0], self.w_ih, self.w_hh)


def test_functions_are_recorded() -> None:
    model = Functional()
    graph = symbolic_trace(model)
    called = [n.target for n in graph.graph.nodes if n.op == "call_function"]
    assert [f for f in called if f.__module__ == functional.__name__] == [
        functional.gru,
        functional.gru_cell,
    ]
    assert_equal(graph, model, randn(T, N, I))
    assert_equal(pickle.loads(pickle.dumps(graph)), model, randn(T, N, I))
