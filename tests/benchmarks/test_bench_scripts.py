"""The benchmarks of packed rows, single steps and tokens, on tiny problems."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from bench_stand_ins import plant, spoil_output
from torch import nn
from torch.nn import functional as F

import fastlstm
from benchmarks import bench_packed, bench_step, bench_tokens
from benchmarks.bench_packed import COMPARISONS, LENGTHS, PACKED, PADDED, Batch
from benchmarks.common import measure, rows
from benchmarks.common.equality import Problem
from benchmarks.common.measure import Measured
from benchmarks.common.providers import CELLS, PROVIDERS, STEPS, Provider
from benchmarks.common.shapes import Shape, flops
from benchmarks.common.timing import summarise

SHORT = "--seconds 0.01 --threads 1"
RAGGED = f"--shape 12,6,24,32 --min-length 2 {SHORT}"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "rows.csv"


def run(script, *argv: object) -> int:
    """The exit code of a command line."""
    return script.main(" ".join(map(str, argv)).split())


def spoil_gradient(module: nn.Module) -> None:
    weight = module.weight_hh if hasattr(module, "weight_hh") else module.weight_hh_l0
    weight.register_hook(lambda grad: 1.001 * grad)


# Packed rows.


def ragged_batch(cell: str = "lstm", mode: str = "train") -> Batch:
    return Batch(Problem(CELLS[cell], Shape(12, 6, 24, 32), mode, torch.float32), 2)


def ignore_lengths(module: nn.Module) -> None:
    def without(_module, inputs, options):
        return inputs, {name: value for name, value in options.items() if name != "lengths"}

    module.register_forward_pre_hook(without, with_kwargs=True)


def test_lengths_are_uniform_and_come_from_the_seed() -> None:
    problem = Problem(CELLS["rnn"], Shape(9, 2000, 1, 1), "infer", torch.float32)
    batch = Batch(problem, 3)
    assert torch.equal(batch.lengths, Batch(problem, 3).lengths)
    assert not torch.equal(batch.lengths, Batch(replace(problem, seed=1), 3).lengths)
    counts = torch.bincount(batch.lengths, minlength=10)
    assert counts[:3].sum() == 0
    assert counts[3:].min() > 200
    assert batch.rows == batch.lengths.sum()
    computed = [batch.rows_computed(side) for side in (PADDED, PACKED, LENGTHS)]
    assert computed == [9 * 2000, batch.rows, batch.rows]


def test_ratio_against_padding_is_that_of_times_per_row(monkeypatch) -> None:
    batch, asked = ragged_batch(), []

    def fake(*contenders, operations, **_):
        asked.append((*(contender.name for contender in contenders), operations))
        return Measured(summarise([(6.0, 3.0)]), 1.0, None)

    monkeypatch.setattr(measure, "measure", fake)
    found = [bench_packed.compare(batch, comparison, 1.0) for comparison in COMPARISONS]
    share = batch.rows / 72
    assert 0 < share < 1
    assert [m.stats.ratio for m in found] == [2.0, 2 * share, 2 * share]
    assert {m.stats.ms for m in found} == {3000.0}
    operations = flops(4, batch.problem.shape, "train", batch.rows)
    assert asked == [
        ("torch packed", "fastlstm packed", operations),
        ("fastlstm padded", "fastlstm packed", operations),
        ("fastlstm padded", "fastlstm lengths", operations),
    ]


@pytest.mark.parametrize("side", [PADDED, PACKED, LENGTHS], ids=str)
def test_timed_call_of_a_ragged_batch_is_the_checked_one(side, monkeypatch) -> None:
    batch, modules = ragged_batch(), []
    plant(monkeypatch, modules.append)
    contender = batch.contender(side)
    for _ in range(2):
        contender.prepare()
        contender.run()
    if side is PADDED:
        found = batch.problem.results(PROVIDERS["fastlstm"], torch.float32, with_state=False)
    else:
        found = batch.results(side, torch.float32)
    for name, parameter in modules[0].named_parameters():
        assert torch.equal(parameter.grad, found[f"grad {name}"]), name
    contender.prepare()
    assert all(parameter.grad is None for parameter in modules[0].parameters())


def test_ragged_inference_computes_no_gradients(monkeypatch) -> None:
    seen = []

    def spy(module: nn.Module) -> None:
        module.register_forward_hook(lambda *_: seen.append(torch.is_grad_enabled()))

    plant(monkeypatch, spy)
    contender = ragged_batch(mode="infer").contender(PACKED)
    with contender.context():
        contender.run()
    assert seen == [False]


def test_packed_rows_are_measured_where_equal(path: Path, capsys) -> None:
    assert run(bench_packed, RAGGED, "--csv", path) == 0
    out = capsys.readouterr().out
    assert "RED" not in out
    assert f"lengths 2..12: {ragged_batch().rows} of 72 rows" in out
    found = rows.read(path)
    assert [r["cell"] for r in found] == 6 * ["lstm"] + 6 * ["gru"]
    assert [(r["provider"], r["baseline"]) for r in found[:3]] == [
        ("fastlstm packed", "torch packed"),
        ("fastlstm packed", "fastlstm padded"),
        ("fastlstm lengths", "fastlstm padded"),
    ]
    whole, per_row = "{}, lengths 2..12", "{}, per row, lengths 2..12"
    modes = [text.format(mode) for mode in ("infer", "train") for text in (whole, per_row, per_row)]
    assert [r["mode"] for r in found] == 2 * modes


@pytest.mark.parametrize(
    "spoil, lines",
    [
        (spoil_gradient, ["packed: grad weight_hh_l0", "lengths: grad weight_hh_l0"]),
        (ignore_lengths, ["lengths: output", "lengths: h_n"]),
    ],
)
def test_wrong_packed_rows_are_not_measured(spoil, lines, path: Path, monkeypatch, capsys) -> None:
    plant(monkeypatch, spoil)
    assert run(bench_packed, RAGGED, "--cells gru --mode train --csv", path) == 1
    out = capsys.readouterr().out
    for line in lines:
        assert f"RED  fastlstm {line}: error" in out
    assert "per row:" not in out.partition("RED")[2]
    assert not path.exists()


def test_padded_side_is_checked_too(monkeypatch) -> None:
    def spoil_padded(module: nn.Module) -> None:
        def wrong(_module, inputs, options, found):
            is_padded = isinstance(inputs[0], torch.Tensor) and not options
            return (1.001 * found[0], found[1]) if is_padded else found

        module.register_forward_hook(wrong, with_kwargs=True)

    assert bench_packed.check(ragged_batch()) == []
    plant(monkeypatch, spoil_padded)
    failures = bench_packed.check(ragged_batch())
    assert failures
    assert all(line.startswith("fastlstm padded: ") for line in failures)


@pytest.mark.parametrize(
    "script, argv, option, missed",
    [
        (bench_packed, f"{RAGGED} --cells lstm", "--min-ratio", ["packed / torch packed"]),
        (
            bench_packed,
            f"{RAGGED} --cells lstm",
            "--min-per-row",
            ["packed / fastlstm padded, per row", "lengths / fastlstm padded, per row"],
        ),
        (bench_step, f"{SHORT} --cells rnn_cell", "--min-ratio", ["rnn_cell, infer"]),
    ],
)
def test_required_ratios_decide_the_exit_code(
    script, argv: str, option: str, missed: list[str], tiny_steps, capsys
) -> None:
    assert run(script, argv, "--mode infer", option, "1e-9") == 0
    assert "MISSED" not in capsys.readouterr().out
    assert run(script, argv, "--mode infer", option, "1e9") == 1
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(": ")[1] for line in lines if line.startswith("MISSED")] == missed


# Steps.


@pytest.fixture
def tiny_steps(monkeypatch) -> None:
    shapes = {"train": Shape(1, 8, 24, 32), "infer": Shape(1, 1, 8, 8)}
    monkeypatch.setattr(bench_step, "SHAPES", shapes)
    monkeypatch.setattr(bench_step, "INFER_CALLS", 5)


def test_steps_are_measured_where_equal(tiny_steps, path: Path, capsys) -> None:
    assert run(bench_step, SHORT, "--csv", path) == 0
    assert "RED" not in capsys.readouterr().out
    found = rows.read(path)
    cells = ["lstm_cell", "gru_cell", "rnn_cell"]
    expected = [(mode, cell) for mode in ("infer", "train") for cell in cells]
    assert [(r["mode"], r["cell"]) for r in found] == expected
    assert [found[-1][name] for name in "TNIH"] == ["1", "8", "24", "32"]


@pytest.mark.parametrize(
    "mode, spoil, tensor",
    [("train", spoil_gradient, "grad weight_hh"), ("infer", spoil_output, "h_1")],
)
@pytest.mark.parametrize("cell", STEPS)
def test_wrong_steps_are_not_measured(
    cell: str, mode: str, spoil, tensor: str, tiny_steps, path: Path, monkeypatch, capsys
) -> None:
    plant(monkeypatch, spoil)
    assert run(bench_step, SHORT, "--cells", cell, "--mode", mode, "--csv", path) == 1
    (line,) = (line for line in capsys.readouterr().out.splitlines() if "RED" in line)
    assert f"RED  {tensor}: error" in line
    assert not path.exists()


def test_timed_step_is_the_checked_one(tiny_steps) -> None:
    def step(mode: str) -> bench_step.Step:
        return bench_step.Step(STEPS["lstm_cell"], PROVIDERS["fastlstm"], mode, torch.float32, 0)

    timed = step("train")
    contender = timed.contender("ours")
    for _ in range(2):
        contender.prepare()
        contender.run()
    found = step("train").results()
    assert set(found) == {"h_1", "c_1", *(f"grad {name}" for name in timed.leaves())}
    for name, leaf in timed.leaves().items():
        assert torch.equal(leaf.grad, found[f"grad {name}"]), name

    seen = []
    small = step("infer")
    small.module.register_forward_hook(lambda *_: seen.append(torch.is_grad_enabled()))
    contender = small.contender("ours")
    with contender.context():
        contender.run()
    assert seen == [False] * 5
    assert contender.calls == 5


# Tokens.


class TokenLSTM(nn.LSTM):
    """torch.nn.LSTM that takes tokens as fastlstm.LSTM does."""

    def forward(self, input, hx=None, *, embedding=None):
        if embedding is not None:
            input = F.embedding(input, embedding)
        elif not input.is_floating_point():
            input = F.one_hot(input, self.input_size).to(self.weight_ih_l0.dtype)
        return super().forward(input, hx)


class DetachedTableLSTM(TokenLSTM):
    def forward(self, input, hx=None, *, embedding=None):
        embedding = None if embedding is None else 1.001 * embedding.detach() - 0.001 * embedding
        return super().forward(input, hx, embedding=embedding)


@pytest.fixture
def tokens_by(monkeypatch):
    """Lets a class measure few tokens."""
    for name, size in {"T": 6, "N": 4, "H": 16, "V": 7}.items():
        monkeypatch.setattr(bench_tokens, name, size)

    def use(lstm: type[nn.Module]) -> None:
        provider = Provider("fastlstm", lambda _, *sizes: lstm(*sizes))
        monkeypatch.setitem(PROVIDERS, "fastlstm", provider)

    return use


@pytest.mark.parametrize("lstm", [TokenLSTM, fastlstm.LSTM])
def test_tokens_are_measured_where_equal(tokens_by, lstm, path: Path, capsys) -> None:
    tokens_by(lstm)
    assert run(bench_tokens, SHORT, "--csv", path) == 0
    assert "RED" not in capsys.readouterr().out
    assert [r["baseline"] for r in rows.read(path)] == ["fastlstm one-hot", "fastlstm embedding"]


def test_tokens_with_a_wrong_table_gradient_are_red(tokens_by, path: Path, capsys) -> None:
    tokens_by(DetachedTableLSTM)
    assert run(bench_tokens, SHORT, "--csv", path) == 1
    assert "RED  token_and_table_input: grad table: error" in capsys.readouterr().out
    assert [r["baseline"] for r in rows.read(path)] == ["fastlstm one-hot"]


def test_missed_token_targets_decide_the_exit_code_on_request(tokens_by, monkeypatch) -> None:
    tokens_by(TokenLSTM)
    one_hot, _ = bench_tokens.COMPARISONS
    for target, code in ((1e9, 1), (1e-9, 0)):
        monkeypatch.setattr(bench_tokens, "COMPARISONS", (replace(one_hot, target=target),))
        assert run(bench_tokens, SHORT, "--enforce-targets") == code
        assert run(bench_tokens, SHORT) == 0
