"""torch.export and the tracers of torch: equal results, at other sizes too."""

import io

import pytest
import torch
import torch_graphs
from module_pairs import build
from torch import Tensor, nn
from torch.export import Dim, export
from torch.func import grad, vmap
from torch.fx.experimental.proxy_tensor import make_fx
from torch_graphs import H, I, N, T, operators, tokens, two_kinds

import fastlstm

strictness = pytest.mark.parametrize("strict", [True, False], ids=["strict", "not_strict"])

pytestmark = torch_graphs.MARKS
fresh_compiler = torch_graphs.fresh_compiler


class WithState(nn.Module):
    """Plain arguments, whose sizes torch.export can be told."""

    def __init__(self, kind: str, **options) -> None:
        super().__init__()
        self.rnn = build(fastlstm, kind, I, H, 2, **options)

    def forward(self, x: Tensor, h: Tensor | None = None, lengths: Tensor | None = None):
        hx = (h, -h) if h is not None and isinstance(self.rnn, fastlstm.LSTM) else h
        return self.rnn(x, hx, lengths=lengths)


def assert_exports(model: nn.Module, strict: bool, dynamic: dict, *examples: tuple) -> None:
    """Export with the first example, save and load; fail unless all examples run as before."""
    model.eval()
    program = export(model, examples[0], dynamic_shapes=dynamic, strict=strict)
    assert operators(program.graph_module) == ["fastlstm.layer.default"] * 2
    file = io.BytesIO()
    torch.export.save(program, file)
    file.seek(0)
    loaded = torch.export.load(file).module()
    for example in examples:
        torch.testing.assert_close(loaded(*example), model(*example))
    decomposed = program.run_decompositions().module()
    torch.testing.assert_close(decomposed(*examples[-1]), model(*examples[-1]))


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "strict"), [("LSTM", True), ("LSTM", False), ("GRU", False)])
def test_export(kind: str, strict: bool) -> None:
    steps, batch = Dim("steps"), Dim("batch")
    assert_exports(
        WithState(kind, bidirectional=True),
        strict,
        {"x": {0: steps, 1: batch}},
        *((torch.randn(*size, I),) for size in ((T, N), (9, 2), (1, 1), (2, 70))),
    )
    assert_exports(
        WithState(kind),
        strict,
        {"x": {0: steps, 1: batch}, "h": {1: batch}},
        *((torch.randn(t, n, I), torch.randn(2, n, H)) for t, n in ((T, N), (9, 2), (1, 1))),
    )


@strictness
def test_export_of_tokens_and_lengths(strict: bool) -> None:
    steps, batch = Dim("steps"), Dim("batch")
    assert_exports(
        WithState("GRU"),
        strict,
        {"x": {0: steps, 1: batch}, "h": None, "lengths": {0: batch}},
        (tokens(), None, torch.tensor([5, 0, 2])),
        (torch.randint(I, (9, 2)), None, torch.tensor([1, 9])),
    )


class WithTable(nn.Module):
    """Tokens that stand for rows of a table with seven of them."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn = build(fastlstm, "LSTM", I, H, 2)
        self.table = nn.Parameter(torch.randn(7, I))

    def forward(self, tokens: Tensor):
        return self.rnn(tokens, embedding=self.table)


@pytest.mark.slow
@strictness
def test_export_of_an_embedding(strict: bool) -> None:
    """Whether a call has more tokens than the table has rows is no part of the program."""
    steps, batch = Dim("steps"), Dim("batch")
    examples = [(torch.randint(7, size),) for size in ((2, 3), (9, 2), (4, 5), (1, 1))]
    for first in (0, 1):
        assert_exports(
            WithTable(), strict, {"tokens": {0: steps, 1: batch}}, *examples[first:], examples[0]
        )


@two_kinds
def test_exported_program_trains(kind: str) -> None:
    """What a graph captured for training runs is differentiated like any other module."""
    module = build(fastlstm, kind, I, H, 2)
    x = torch.randn(T, N, I)
    exported = export(module, (x,)).module()
    found = [
        torch.autograd.grad(m(x)[0].sin().sum(), list(m.parameters())) for m in (module, exported)
    ]
    torch.testing.assert_close(*found)


def test_trace_with_make_fx() -> None:
    lstm, x = fastlstm.LSTM(I, H).requires_grad_(False), torch.randn(T, N, I)

    def forward(x: Tensor) -> Tensor:
        return lstm(x)[0].sin().sum()

    for function in (forward, grad(forward), lambda x: vmap(grad(forward))(x.unsqueeze(2))):
        graph = make_fx(function)(x)
        other = torch.randn_like(x)
        torch.testing.assert_close(graph(other), function(other))


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::torch.jit.TracerWarning")
def test_torchscript_trace() -> None:
    """The older tracer: with any length and batch, in training and not."""
    lstm = fastlstm.LSTM(I, H, 2, bidirectional=True)
    traced = torch.jit.trace(lstm, (torch.randn(T, N, I),))
    x = torch.randn(9, 2, I)
    torch.testing.assert_close(traced(x), lstm(x))
    parameters = list(lstm.parameters())
    torch.testing.assert_close(
        *(torch.autograd.grad(f(x)[0].sin().sum(), parameters) for f in (traced, lstm))
    )
