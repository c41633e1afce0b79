"""FlopCounterMode counts the matrix products of the operators: those of torch.nn, where it counts."""

import subprocess
import sys
from collections.abc import Callable

import pytest
import torch
from cell_kinds import GATES, has_c
from module_pairs import build, directions, flat, kinds, pair, randn
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.utils.rnn import pack_padded_sequence
from torch.utils.flop_counter import FlopCounterMode

import fastlstm
from fastlstm import functional

T, N, I, H, P = 5, 3, 4, 6, 2
ROWS, W_IH, W_HH = T * N, 4 * H * I, 4 * H * H  # of an LSTM
PARTS = ("forward", "backward")
Counts = dict[str, int]


def total(function: Callable[[], object]) -> int:
    with FlopCounterMode(display=False) as counter:
        function()
    return counter.get_total_flops()


def counts(module: nn.Module, *args, **options) -> Counts:
    """The operations of a call, and of the backward pass of all that comes out."""
    results = []
    forward = total(lambda: results.extend(flat(module(*args, **options))))
    loss = sum(t.sum() for t in results)
    return {"forward": forward, "backward": total(loss.backward)}


def x_of(*shape: int, needs_grad: bool = True) -> Tensor:
    return randn(*shape).requires_grad_(needs_grad)


INPUTS = {
    "nothing": lambda kind, layers: (x_of(T, N, I, needs_grad=False),),
    "x": lambda kind, layers: (x_of(T, N, I),),
    "state": lambda kind, layers: (
        x_of(T, N, I),
        (x_of(layers, N, H), x_of(layers, N, H)) if has_c(kind) else x_of(layers, N, H),
    ),
    "no_batch": lambda kind, layers: (x_of(T, I),),
}


@kinds
@directions
@pytest.mark.parametrize("num_layers", [1, 2])
@pytest.mark.parametrize("arguments", INPUTS.values(), ids=INPUTS)
def test_layers_count_as_torch_nn(
    kind: str, bidirectional: bool, num_layers: int, arguments: Callable
) -> None:
    mine, theirs = pair(kind, I, H, num_layers=num_layers, bidirectional=bidirectional)
    args = arguments(kind, num_layers * (1 + bidirectional))
    expected = counts(theirs, *args)
    assert counts(mine, *args) == expected
    assert min(expected.values()) > 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_count_does_not_depend_on_the_dtype(dtype: torch.dtype) -> None:
    expected = counts(fastlstm.LSTM(I, H).double(), randn(T, N, I))
    assert counts(fastlstm.LSTM(I, H).to(dtype), torch.randn(T, N, I).to(dtype)) == expected


@directions
def test_projections_count_as_torch_nn(bidirectional: bool) -> None:
    mine, theirs = pair("LSTM", I, H, proj_size=P, bidirectional=bidirectional)
    expected = counts(theirs, x_of(T, N, I))
    assert counts(mine, x_of(T, N, I)) == expected
    w_hh, w_hr = 4 * H * P, P * H
    assert expected["forward"] == 2 * ROWS * (W_IH + w_hh + w_hr) * (1 + bidirectional)


@kinds
@pytest.mark.parametrize("needs_grad", [False, True])
def test_cells_count_as_torch_nn(kind: str, needs_grad: bool) -> None:
    mine, theirs = pair(kind, I, H, cell=True)
    x, h = x_of(N, I, needs_grad=needs_grad), x_of(N, H, needs_grad=needs_grad)
    for args in ((x,), (x, (h, h) if has_c(kind) else h), (x[0],)):
        assert counts(mine, *args) == counts(theirs, *args)
    assert counts(mine, x)["forward"] == 2 * N * GATES[kind] * H * (I + H)


@kinds
def test_packed_rows_count_as_torch_nn(kind: str) -> None:
    mine, theirs = pair(kind, I, H, num_layers=2)

    def packed():
        return pack_padded_sequence(x_of(T, N, I), torch.tensor([5, 2, 1]))

    assert counts(mine, packed()) == counts(theirs, packed())


def by_hand(rows: int, sequences: int, input_rows: int | None = None) -> Counts:
    """What an LSTM of one layer counts of which only the weights need gradients."""
    input_rows = rows if input_rows is None else input_rows
    return {
        "forward": 2 * (input_rows * W_IH + rows * W_HH),
        "backward": 2 * (input_rows * W_IH + (2 * rows - sequences) * W_HH),
    }


def test_padding_is_not_counted() -> None:
    lstm, x = fastlstm.LSTM(I, H), torch.randn(T, N, I)
    assert counts(lstm, x) == by_hand(ROWS, N)
    assert counts(lstm, x, lengths=[5, 0, 2]) == by_hand(7, 2)
    assert counts(lstm, x, lengths=[0, 0, 0]) == by_hand(0, 0)
    assert counts(lstm, x, lengths=[5, 5, 5]) == by_hand(ROWS, N)
    assert counts(lstm, x, reset=torch.rand(T, N) < 0.5) == by_hand(ROWS, N)
    assert counts(lstm, x[:0]) == by_hand(0, 0)
    both = fastlstm.LSTM(I, H, bidirectional=True)
    expected = {part: 2 * count for part, count in by_hand(7, 2).items()}
    assert counts(both, x, lengths=[5, 0, 2]) == expected


def test_tokens_are_looked_up() -> None:
    lstm, tokens = fastlstm.LSTM(I, H), torch.randint(I, (T, N))
    assert counts(lstm, tokens) == by_hand(ROWS, N, input_rows=0)
    assert counts(lstm, tokens, lengths=[5, 0, 2]) == by_hand(7, 2, input_rows=0)
    for V in (9, 20):  # fewer, and more rows than tokens
        table = torch.randn(V, I)
        expected = by_hand(ROWS, N, input_rows=min(V, ROWS))
        assert counts(lstm, tokens, embedding=table) == expected
        expected["backward"] += 2 * min(V, ROWS) * W_IH
        assert counts(lstm, tokens, embedding=table.requires_grad_()) == expected


@pytest.mark.parametrize("cell", [False, True], ids=["layer", "cell"])
def test_gradients_that_nobody_needs_are_not_counted(cell: bool) -> None:
    lstm = build(fastlstm, "LSTM", I, H, cell=cell, dtype=torch.float64).requires_grad_(False)
    rows = N if cell else ROWS
    x = x_of(N, I) if cell else x_of(T, N, I)
    assert counts(lstm, x)["backward"] == 2 * (rows * W_IH + (0 if cell else ROWS - N) * W_HH)
    with torch.no_grad():
        assert total(lambda: lstm(x)) == 2 * rows * (W_IH + W_HH)


def test_tensors_without_data_have_counts() -> None:
    lstm, x, lengths = fastlstm.LSTM(I, H), torch.randn(T, N, I), torch.tensor([5, 0, 2])
    assert counts(lstm.to("meta"), x.to("meta")) == by_hand(ROWS, N)
    with FakeTensorMode():
        lstm, x = fastlstm.LSTM(I, H), torch.randn(T, N, I)
        assert counts(lstm, x) == by_hand(ROWS, N)
        lengths = torch.tensor([5, 0, 2])
        assert counts(lstm, x, lengths=lengths) == by_hand(ROWS, N)  # which says nothing of them


class Model(nn.Module):
    def __init__(self, package) -> None:
        super().__init__()
        self.encoder = nn.Sequential(package.LSTM(I, H))
        self.cell = package.GRUCell(H, H)

    def forward(self, x: Tensor) -> Tensor:
        output, _ = self.encoder(x)
        h = self.cell(output[0])
        return self.cell(output[1], h)


def test_every_module_has_its_row_in_the_table() -> None:
    tables = []
    for package in (fastlstm, nn):
        model = Model(package).double()
        with FlopCounterMode(display=False, depth=3) as counter:
            model(randn(T, N, I)).sum().backward()
        found = counter.get_flop_counts()
        tables.append({name: sum(operators.values()) for name, operators in found.items()})
    assert tables[0] == tables[1]
    assert tables[0]["Model.encoder.0"] == sum(by_hand(ROWS, N).values())


@pytest.mark.parametrize("cell", [False, True], ids=["layer", "cell"])
def test_exported_and_transformed_calls_are_counted(cell: bool) -> None:
    gru = build(fastlstm, "GRU", I, H, cell=cell, dtype=torch.float64)
    x, h, weights = x_of(N, I) if cell else x_of(T, N, I), x_of(N, H), list(gru.parameters())
    expected = counts(gru, x)
    assert counts(torch.export.export(gru, (x,)).module(), x) == expected

    def loss(x: Tensor, h: Tensor, weights: list[Tensor]) -> Tensor:
        if cell:
            return functional.gru_cell(x, h, *weights).sum()
        return functional.gru(x, h[None], [weights])[0].sum()

    gradients = torch.func.grad(loss, argnums=(0, 2))
    assert total(lambda: gradients(x, h.detach(), weights)) == sum(expected.values())
    per_row = torch.func.vmap(torch.func.grad(loss), in_dims=(x.dim() - 2, 0, None))
    gru.requires_grad_(False)
    expected = counts(gru, x)
    # One call for all rows, whose backward runs forward again.
    assert (
        total(lambda: per_row(x[..., None, :], h[:, None].detach(), weights))
        == 2 * expected["forward"] + expected["backward"]
    )


def test_gradients_taken_under_the_counter_can_be_differentiated() -> None:
    gru, x = fastlstm.GRU(I, H, dtype=torch.float64), x_of(T, N, I)
    loss = gru(x)[0].square().sum()
    with FlopCounterMode(display=False):
        (grad,) = torch.autograd.grad(loss, x, create_graph=True)
    (expected,) = torch.autograd.grad(gru(x)[0].square().sum(), x, create_graph=True)
    found, expected = (torch.autograd.grad(g.square().sum(), x)[0] for g in (grad, expected))
    torch.testing.assert_close(found, expected)


def printed(code: str) -> str:
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return run.stdout.strip()


@pytest.mark.slow
def test_the_counter_may_be_imported_first() -> None:
    count = printed(f"""
import torch
from torch.utils.flop_counter import FlopCounterMode
import fastlstm
with FlopCounterMode(display=False) as counter:
    fastlstm.LSTM({I}, {H})(torch.randn({T}, {N}, {I}))
print(counter.get_total_flops())
""")
    assert int(count) == by_hand(ROWS, N)["forward"]


@pytest.mark.slow
def test_fastlstm_does_not_import_the_counter_and_waits_for_it() -> None:
    found = printed("""
import sys, torch, fastlstm
from fastlstm.dispatch import flops
print(flops._COUNTER in sys.modules)
import torch.utils.flop_counter as counter
print(torch.ops.fastlstm.layer in counter.flop_registry)
""")
    assert found.split() == ["False", "True"]
