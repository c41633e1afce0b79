"""``embedding=`` given the ``nn.Embedding`` itself, under torch.compile and torch.export."""

import pytest
import torch
import torch_graphs
from test_embedding_module import KINDS_OF_MODULES, OPTIONS, SMALL, model, tables
from torch import nn

import fastlstm

pytestmark = torch_graphs.MARKS
fresh_compiler = torch_graphs.fresh_compiler


@pytest.mark.parametrize("options", [*OPTIONS, "sparse", "weight_norm", "forward_hook"])
@tables
def test_one_graph(options: str, V: int) -> None:
    m = model(V=V, **OPTIONS.get(options, {}))
    if options == "sparse":
        m.table.sparse = True
    elif options not in OPTIONS:
        m.table = KINDS_OF_MODULES[options](V)
    compiled = torch.compile(m, backend="aot_eager", fullgraph=True)
    tokens, parameters = torch.randint(SMALL, (4, 3)), list(m.parameters())
    results = []
    for run in (compiled, m):
        output = run(tokens)
        grads = torch.autograd.grad(output.sin().sum(), parameters)
        results.append((output, *(g.to_dense() for g in grads)))
    torch.testing.assert_close(*results)
    if options == "padding_idx":
        assert (results[0][1][1] == 0).all()


def test_a_module_as_the_argument_of_what_is_compiled() -> None:
    rnn, table = fastlstm.GRU(4, 6), nn.Embedding(SMALL, 4, padding_idx=1)
    compiled = torch.compile(rnn, backend="aot_eager", fullgraph=True)
    tokens = torch.randint(SMALL, (4, 3))
    torch.testing.assert_close(compiled(tokens, embedding=table), rnn(tokens, embedding=table))


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_export(options: dict) -> None:
    m, tokens = model(**options).eval(), torch.randint(SMALL, (4, 3))
    program = torch.export.export(m, (tokens,))
    torch.testing.assert_close(program.module()(tokens), m(tokens))
