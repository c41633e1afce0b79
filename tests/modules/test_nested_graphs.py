"""Jagged nested tensors under torch.compile."""

from collections.abc import Callable

import pytest
import torch
import torch_graphs
from module_pairs import build
from test_nested import MARKS, hiddens, jagged, layouts, rows_of
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounter

import fastlstm

pytestmark = [
    torch_graphs.MARKS,
    MARKS,
    pytest.mark.filterwarnings("ignore:NestedTensor does not implement _stable_hash:UserWarning"),
]
fresh_compiler = torch_graphs.fresh_compiler


class Residual(nn.Module):
    def __init__(self, kind: str, **options) -> None:
        super().__init__()
        self.rnn = build(fastlstm, kind, 4, 4, **options)

    def forward(self, x: Tensor, reset: Tensor | None = None):
        output, hidden = self.rnn(x, reset=reset)
        return output + x, *hiddens(hidden)


def graph_results(run: Callable, parameters: list[Tensor], x: Tensor, *args) -> list[Tensor]:
    leaf = x.detach().clone().requires_grad_()
    output, *hidden = run(leaf, *args)
    loss = output.values().sin().sum() + sum(h.sum() for h in hidden)
    grad, *grads = torch.autograd.grad(loss, [leaf, *parameters])
    return [output.values(), *hidden, grad.values(), *grads]


@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=pytest.mark.slow)])
@layouts
@torch_graphs.two_kinds
def test_one_graph(kind: str, batch_first: bool, backend: str) -> None:
    model = Residual(kind, num_layers=2, batch_first=batch_first)
    compiled = torch.compile(model, backend=backend, fullgraph=True)
    parameters = list(model.parameters())
    for lengths in ((3, 2, 5), (4, 9, 3, 3, 2), (1, 0, 5)):
        x = jagged(rows_of(lengths))
        torch.testing.assert_close(
            graph_results(compiled, parameters, x), graph_results(model, parameters, x)
        )
        with torch.no_grad():
            torch.testing.assert_close(compiled(x)[0].values(), model(x)[0].values())


def test_one_graph_serves_all_lengths() -> None:
    backend = CompileCounter()
    compiled = torch.compile(Residual("GRU"), backend=backend, fullgraph=True)
    for lengths in ((3, 2, 5), (7, 3, 4), (2, 9, 40)):
        compiled(jagged(rows_of(lengths)))
    assert backend.frame_count == 1


def test_one_graph_of_layers_one_after_the_other() -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table, self.first = nn.Embedding(9, 4, max_norm=1.0), fastlstm.GRU(4, 6)
            self.second = fastlstm.LSTM(6, 3, batch_first=True, bidirectional=True)

        def forward(self, tokens: Tensor) -> Tensor:
            output, _ = self.first(tokens, embedding=self.table)
            return self.second(torch.relu(output))[0]

    model, tokens = Model(), jagged([torch.randint(9, (n,)) for n in (3, 0, 5)])
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    results = []
    for run in (compiled, model):
        values = run(tokens).values()
        results.append((values, *torch.autograd.grad(values.sin().sum(), [*model.parameters()])))
    torch.testing.assert_close(*results)


def test_one_graph_with_resets_and_holes() -> None:
    model = Residual("LSTM", bidirectional=False)
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    x, reset = jagged(rows_of((3, 2, 5))), jagged([torch.rand(n) < 0.5 for n in (3, 2, 5)])
    torch.testing.assert_close(compiled(x, reset)[0].values(), model(x, reset)[0].values())
    leaf, starts, lengths = torch.randn(3, 6, 4), torch.tensor([1, 0, 2]), torch.tensor([2, 3, 4])
    x = torch.nested.narrow(leaf, 1, starts, lengths, layout=torch.jagged)
    with torch.no_grad():  # torch compiles nothing that needs a gradient of such a tensor
        torch.testing.assert_close(compiled(x)[0].values(), model(x)[0].values())


def test_a_longest_row_that_nobody_knows_breaks_the_graph() -> None:
    x = torch.nested.nested_tensor_from_jagged(torch.randn(5, 4), torch.tensor([0, 2, 5]))
    model = Residual("GRU")
    with pytest.raises(torch._dynamo.exc.UserError, match="_get_max_seqlen"):
        torch.compile(model, backend="eager", fullgraph=True)(x)
    compiled = torch.compile(model, backend="eager")
    torch.testing.assert_close(compiled(x)[0].values(), model(x)[0].values())
