"""The benchmarks of packed rows and of single steps, on tiny problems."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

import fastlstm
from benchmarks import bench_packed, bench_step
from benchmarks.bench_packed import COMPARISONS, LENGTHS, PACKED, PADDED, Batch
from benchmarks.common import csv_rows, machine, measure
from benchmarks.common.equality import Problem
from benchmarks.common.measure import Measured
from benchmarks.common.providers import CELLS, PROVIDERS, STEPS, Cell, Provider
from benchmarks.common.shapes import Shape, flops
from benchmarks.common.timing import summarise

RAGGED = "--shape 12,6,24,32 --min-length 2 --seconds 0.01 --threads 1"


@pytest.fixture(autouse=True)
def short_peak(monkeypatch) -> None:
    monkeypatch.setattr(machine, "PEAK_SECONDS", 0.002)


@pytest.fixture
def tiny_steps(monkeypatch) -> None:
    monkeypatch.setattr(
        bench_step, "SHAPES", {"train": Shape(1, 8, 24, 32), "infer": Shape(1, 1, 8, 8)}
    )
    monkeypatch.setattr(bench_step, "CALLS", {"train": 1, "infer": 5})


def ragged_batch(cell: str = "lstm", mode: str = "train", seed: int = 0) -> Batch:
    return Batch(Problem(CELLS[cell], Shape(12, 6, 24, 32), mode, torch.float32, seed=seed), 2)


def plant(monkeypatch, spoil) -> None:
    """Let `spoil` change every module of the provider fastlstm."""

    def make(cell: Cell, input_size: int, hidden_size: int) -> nn.Module:
        module = getattr(fastlstm, cell.module)(input_size, hidden_size, **cell.options)
        spoil(module)
        return module

    monkeypatch.setitem(PROVIDERS, "fastlstm", Provider("fastlstm", make))


def spoil_gradient(module: nn.Module) -> None:
    weight = module.weight_hh if hasattr(module, "weight_hh") else module.weight_hh_l0
    weight.register_hook(lambda grad: 1.001 * grad)


def spoil_output(module: nn.Module) -> None:
    def wrong(_module, _inputs, found):
        # Of a cell h alone, of an LSTM cell (h, c), of a layer (output, hidden).
        return 1.001 * found if isinstance(found, torch.Tensor) else (1.001 * found[0], found[1])

    module.register_forward_hook(wrong)


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
    assert [batch.rows_computed(side) for side in (PADDED, PACKED, LENGTHS)] == [
        9 * 2000,
        batch.rows,
        batch.rows,
    ]


def test_ratio_against_padding_is_that_of_times_per_row(monkeypatch) -> None:
    batch, asked = ragged_batch(), []

    def fake(*contenders, operations, **_):
        asked.append(([contender.name for contender in contenders], operations))
        return Measured(summarise([(6.0, 3.0)]), 1.0, None)

    monkeypatch.setattr(measure, "measure", fake)
    found = [bench_packed.compare(batch, comparison, 1.0) for comparison in COMPARISONS]
    share = batch.rows / 72
    assert 0 < share < 1
    assert [m.stats.ratio for m in found] == [2.0, 2 * share, 2 * share]
    assert {m.stats.ms for m in found} == {3000.0}
    operations = flops(4, batch.problem.shape, "train", batch.rows)
    assert asked == [
        (["torch packed", "fastlstm packed"], operations),
        (["fastlstm padded", "fastlstm packed"], operations),
        (["fastlstm padded", "fastlstm lengths"], operations),
    ]


@pytest.mark.parametrize("side", [PADDED, PACKED, LENGTHS], ids=str)
def test_timed_call_of_a_ragged_batch_is_the_checked_one(side) -> None:
    batch = ragged_batch()
    modules = []

    def make(cell, input_size, hidden_size):
        modules.append(fastlstm.LSTM(input_size, hidden_size))
        return modules[-1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(PROVIDERS, "fastlstm", Provider("fastlstm", make))
        contender = batch.contender(side)
        for _ in range(2):
            contender.prepare()
            contender.run()
    if side is PADDED:
        found = batch.problem.results(PROVIDERS["fastlstm"], torch.float32, with_state=False)
    else:
        found = batch.results(side, torch.float32)
    for name, parameter in modules[-1].named_parameters():
        assert torch.equal(parameter.grad, found[f"grad {name}"]), name
    contender.prepare()
    assert all(parameter.grad is None for parameter in modules[-1].parameters())


def test_ragged_inference_computes_no_gradients(monkeypatch) -> None:
    seen = []

    def spy(module: nn.Module) -> None:
        module.register_forward_hook(lambda *_: seen.append(torch.is_grad_enabled()))

    plant(monkeypatch, spy)
    contender = ragged_batch(mode="infer").contender(PACKED)
    with contender.context():
        contender.run()
    assert seen == [False]


def test_packed_rows_are_measured_where_equal(tmp_path: Path, capsys) -> None:
    path = tmp_path / "rows.csv"
    assert bench_packed.main([*RAGGED.split(), "--csv", str(path)]) == 0
    out = capsys.readouterr().out
    assert "RED" not in out
    assert f"lengths 2..12: {ragged_batch().rows} of 72 rows" in out
    rows = csv_rows.read_rows(path)
    assert [r["cell"] for r in rows] == 6 * ["lstm"] + 6 * ["gru"]
    assert [(r["provider"], r["baseline"]) for r in rows[:3]] == [
        ("fastlstm packed", "torch packed"),
        ("fastlstm packed", "fastlstm padded"),
        ("fastlstm lengths", "fastlstm padded"),
    ]
    assert [r["mode"] for r in rows[:4]] == [
        "infer, lengths 2..12",
        "infer, per row, lengths 2..12",
        "infer, per row, lengths 2..12",
        "train, lengths 2..12",
    ]


@pytest.mark.parametrize(
    "spoil, lines",
    [
        (spoil_gradient, ["packed: grad weight_hh_l0", "lengths: grad weight_hh_l0"]),
        (ignore_lengths, ["lengths: output", "lengths: h_n"]),
    ],
)
def test_wrong_packed_rows_are_not_measured(
    spoil, lines, tmp_path: Path, monkeypatch, capsys
) -> None:
    plant(monkeypatch, spoil)
    path = tmp_path / "rows.csv"
    argv = [*RAGGED.split(), "--cells", "gru", "--mode", "train", "--csv", str(path)]
    assert bench_packed.main(argv) == 1
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
    "option, missed",
    [
        ("--min-ratio", ["packed / torch packed"]),
        (
            "--min-per-row",
            ["packed / fastlstm padded, per row", "lengths / fastlstm padded, per row"],
        ),
    ],
)
def test_required_ratios_of_packed_rows(option: str, missed: list[str], capsys) -> None:
    argv = [*RAGGED.split(), "--cells", "lstm", "--mode", "infer", option]
    assert bench_packed.main([*argv, "1e-9"]) == 0
    assert "MISSED" not in capsys.readouterr().out
    assert bench_packed.main([*argv, "1e9"]) == 1
    lines = capsys.readouterr().out.splitlines()
    found = [line.split(": ")[1] for line in lines if line.startswith("MISSED")]
    assert found == missed


def test_steps_are_measured_where_equal(tiny_steps, tmp_path: Path, capsys) -> None:
    path = tmp_path / "rows.csv"
    argv = ["--seconds", "0.01", "--threads", "1", "--csv", str(path)]
    assert bench_step.main(argv) == 0
    assert "RED" not in capsys.readouterr().out
    rows = csv_rows.read_rows(path)
    cells = ["lstm_cell", "gru_cell", "rnn_cell"]
    assert [(r["mode"], r["cell"]) for r in rows] == [
        (mode, cell) for mode in ("infer", "train") for cell in cells
    ]
    assert [rows[-1][name] for name in "TNIH"] == ["1", "8", "24", "32"]


@pytest.mark.parametrize(
    "mode, spoil, tensor",
    [("train", spoil_gradient, "grad weight_hh"), ("infer", spoil_output, "h_1")],
)
@pytest.mark.parametrize("cell", STEPS)
def test_wrong_steps_are_not_measured(
    cell: str, mode: str, spoil, tensor: str, tiny_steps, tmp_path: Path, monkeypatch, capsys
) -> None:
    plant(monkeypatch, spoil)
    path = tmp_path / "rows.csv"
    argv = f"--cells {cell} --mode {mode} --seconds 0.01 --threads 1 --csv {path}"
    assert bench_step.main(argv.split()) == 1
    lines = [line for line in capsys.readouterr().out.splitlines() if "RED" in line]
    assert len(lines) == 1
    assert f"RED  {tensor}: error" in lines[0]
    assert not path.exists()


def test_timed_step_is_the_checked_one(tiny_steps) -> None:
    def step(mode: str) -> bench_step.Step:
        cell, shape = STEPS["lstm_cell"], bench_step.SHAPES[mode]
        return bench_step.Step(cell, PROVIDERS["fastlstm"], shape, mode, torch.float32, 0)

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


def test_required_ratio_of_steps(tiny_steps, capsys) -> None:
    argv = [
        "--cells",
        "rnn_cell",
        "--mode",
        "infer",
        "--seconds",
        "0.01",
        "--threads",
        "1",
        "--min-ratio",
    ]
    assert bench_step.main([*argv, "1e-9"]) == 0
    assert bench_step.main([*argv, "1e9"]) == 1
    assert "MISSED: rnn_cell, infer: " in capsys.readouterr().out


@pytest.mark.parametrize(
    "script, argv, message",
    [
        (
            bench_packed,
            "--shape 9,2,3,4 --min-length 10",
            "argument --min-length: expected at most",
        ),
        (bench_packed, "--shape 9,2,3", "argument --shape: a shape is four integers"),
        (bench_packed, "--cells tree", "argument --cells: unknown cell 'tree'"),
        (bench_packed, "--csv no/x.csv", "argument --csv: no such directory"),
        (bench_step, "--cells lstm", "argument --cells: unknown cell 'lstm'; known: lstm_cell"),
        (bench_step, "--min-ratio 0", "argument --min-ratio: expected a positive number"),
        (bench_step, "--csv no/x.csv", "argument --csv: no such directory"),
    ],
)
def test_wrong_command_line_is_one_line_and_code_2(
    script, argv: str, message: str, tmp_path: Path, monkeypatch, capsys
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as exit:
        script.main(argv.split())
    assert exit.value.code == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.partition(": error: ")[2].startswith(message)
    assert captured.err.count("\n") == 1


@pytest.mark.parametrize("script", [bench_packed, bench_step])
def test_missing_extension_is_one_line(script, monkeypatch, capsys) -> None:
    monkeypatch.setitem(sys.modules, "fastlstm", None)
    with pytest.raises(SystemExit) as exit:
        script.main([])
    assert exit.value.code == 2
    error = capsys.readouterr().err
    assert "fastlstm cannot provide" in error
    assert error.count("\n") == 1
