"""The benchmark of first calls: its processes, its order, its verdicts."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from bench_stand_ins import Commands, plant, spoil_output

from benchmarks import bench_compile
from benchmarks.common import rows
from benchmarks.common.processes import Command


def test_first_call_is_measured_in_a_process_of_its_own(tmp_path: Path, capsys) -> None:
    path = tmp_path / "rows.csv"
    argv = "--backend eager --steps 2,3 --pairs 1 --threads 1"
    assert bench_compile.main([*argv.split(), "--csv", str(path)]) == 0
    out = capsys.readouterr().out
    assert "fastlstm: T=2: " in out
    assert "times as long" in out
    (row,) = rows.read(path)
    assert (row["provider"], row["baseline"]) == ("fastlstm eager", "fastlstm eager T=2")
    assert (row["T"], row["pairs"], row["gflops"]) == ("3", "1", "")


def test_first_call_has_a_cache_folder_of_its_own(monkeypatch) -> None:
    folders = []

    def look(commands: list[Command]) -> None:
        folders.append(commands[0].environ["TORCHINDUCTOR_CACHE_DIR"])
        assert os.listdir(folders[-1]) == []

    # Libraries may print before and after the answer.
    output = 'a warning\n{"seconds": 1.5, "failures": []}\nthe end\n'
    monkeypatch.setattr(bench_compile, "run_together", Commands({"log": (0, output)}, look))
    args = bench_compile.build_parser().parse_args([])
    assert [bench_compile.in_process("fastlstm", 2, args) for _ in range(2)] == [1.5, 1.5]
    assert len(set(folders)) == 2
    assert not any(map(os.path.exists, folders))


def test_first_calls_alternate_and_their_growth_decides(
    tmp_path: Path, monkeypatch, capsys
) -> None:
    order = []

    def fake(provider: str, steps: int, _args) -> float:
        order.append(steps)
        return {32: 2.0, 2048: 3.0}[steps]

    monkeypatch.setattr(bench_compile, "in_process", fake)
    path = tmp_path / "rows.csv"
    argv = ["--threads", "1", "--max-growth"]
    assert bench_compile.main([*argv, "1.6", "--csv", str(path)]) == 0
    assert order == [32, 2048, 2048, 32, 32, 2048]
    assert "2.00 s at T=32, 3.00 s at T=2048: 1.50 times as long" in capsys.readouterr().out
    (row,) = rows.read(path)
    assert (float(row["ms"]), float(row["baseline_ms"])) == (3000, 2000)
    assert float(row["ratio"]) == pytest.approx(2 / 3, rel=1e-5)
    assert bench_compile.main([*argv, "1.4"]) == 1
    assert "MISSED: fastlstm: 1.500 times is above 1.4" in capsys.readouterr().out


WRONG = '{"seconds": 1.0, "failures": ["output: error"]}'
TRACEBACK = "warning\nTraceback ...\nValueError: no such thing\nmore"


@pytest.mark.parametrize(
    "code, output, why",
    [
        (None, "", "more than 5 s"),
        (0, WRONG, "output: error"),
        (1, TRACEBACK, "ValueError: no such thing"),
        (1, "the last words", "the last words"),
        (-9, "", "exit code -9"),
    ],
)
def test_first_call_without_a_time_is_red_and_the_next_provider_measured(
    code: int | None, output: str, why: str, monkeypatch, capsys
) -> None:
    monkeypatch.setattr(bench_compile, "run_together", Commands({"log": (code, output)}))
    assert bench_compile.main(["--providers", "torch,fastlstm", "--timeout", "5"]) == 1
    out = capsys.readouterr().out
    assert f"RED  torch: T=32: {why}\nRED  fastlstm: T=32: {why}\n" in out
    assert "times as long" not in out


@pytest.mark.parametrize("spoil", [lambda _: None, spoil_output])
def test_first_call_is_held_to_torch(spoil, monkeypatch) -> None:
    plant(monkeypatch, spoil)
    torch._dynamo.reset()
    seconds, failures = bench_compile.first_call("fastlstm", 6, "eager", 0)
    torch._dynamo.reset()
    assert seconds > 0
    assert [line.partition(":")[0] for line in failures][:1] == (
        ["output"] if spoil is spoil_output else []
    )
