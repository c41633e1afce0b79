"""The benchmark of first calls: its processes, its order, its verdicts."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

import pytest
import torch

import fastlstm
from benchmarks import bench_compile
from benchmarks.common import compile_once, csv_rows
from benchmarks.common.providers import PROVIDERS, Provider


def test_first_call_is_measured_in_a_process_of_its_own(tmp_path: Path, capsys) -> None:
    path = tmp_path / "rows.csv"
    argv = "--backend eager --steps 2,3 --pairs 1 --threads 1"
    assert bench_compile.main([*argv.split(), "--csv", str(path)]) == 0
    out = capsys.readouterr().out
    assert "fastlstm: T=2: " in out
    assert "times as long" in out
    (row,) = csv_rows.read_rows(path)
    assert (row["provider"], row["baseline"]) == ("fastlstm eager", "fastlstm eager T=2")
    assert (row["T"], row["pairs"], row["gflops"]) == ("3", "1", "")


def test_first_call_has_a_cache_folder_of_its_own(monkeypatch) -> None:
    folders = []

    def fake(_command, environ, _seconds) -> str:
        folders.append(environ["TORCHINDUCTOR_CACHE_DIR"])
        assert os.listdir(folders[-1]) == []
        return 'a warning\n{"seconds": 1.5, "failures": []}\n'

    monkeypatch.setattr(bench_compile, "run_process", fake)
    args = bench_compile.build_parser().parse_args([])
    assert [bench_compile.first_call("fastlstm", 2, args) for _ in range(2)] == [1.5, 1.5]
    assert len(set(folders)) == 2
    assert not any(map(os.path.exists, folders))


def test_first_calls_alternate_and_their_growth_decides(
    tmp_path: Path, monkeypatch, capsys
) -> None:
    order = []

    def fake(provider: str, steps: int, _args) -> float:
        order.append(steps)
        return {32: 2.0, 2048: 3.0}[steps]

    monkeypatch.setattr(bench_compile, "first_call", fake)
    path = tmp_path / "rows.csv"
    argv = ["--threads", "1", "--max-growth"]
    assert bench_compile.main([*argv, "1.6", "--csv", str(path)]) == 0
    assert order == [32, 2048, 2048, 32, 32, 2048]
    assert "2.00 s at T=32, 3.00 s at T=2048: 1.50 times as long" in capsys.readouterr().out
    (row,) = csv_rows.read_rows(path)
    assert (float(row["ms"]), float(row["baseline_ms"])) == (3000, 2000)
    assert float(row["ratio"]) == pytest.approx(2 / 3, rel=1e-5)
    assert bench_compile.main([*argv, "1.4"]) == 1
    assert "MISSED: fastlstm: 1.500 times is above 1.4" in capsys.readouterr().out


def test_first_call_without_a_time_is_red_and_the_next_provider_measured(
    monkeypatch, capsys
) -> None:
    def fake(command, _environ, seconds) -> str:
        if "torch" in command:
            raise bench_compile.FirstCallError(f"more than {seconds:g} s")
        failures = ["output: error"] if "2048" in command else []
        return f'{{"seconds": 1.0, "failures": {failures}}}'.replace("'", '"')

    monkeypatch.setattr(bench_compile, "run_process", fake)
    assert bench_compile.main(["--providers", "torch,fastlstm", "--timeout", "5"]) == 1
    out = capsys.readouterr().out
    assert "RED  torch: T=32: more than 5 s" in out
    assert "RED  fastlstm: T=2048: output: error" in out
    assert "times as long" not in out


class WrongLSTM(fastlstm.LSTM):
    def forward(self, input, hx=None):
        output, hidden = super().forward(input, hx)
        return 1.001 * output, hidden


@pytest.mark.parametrize("lstm_class", [fastlstm.LSTM, WrongLSTM])
def test_first_call_is_held_to_torch(lstm_class, monkeypatch) -> None:
    def make(cell, input_size: int, hidden_size: int):
        return lstm_class(input_size, hidden_size, **cell.options)

    monkeypatch.setitem(PROVIDERS, "fastlstm", Provider("fastlstm", make))
    torch._dynamo.reset()
    seconds, failures = compile_once.first_call("fastlstm", 6, "eager", 0)
    torch._dynamo.reset()
    assert seconds > 0
    if lstm_class is fastlstm.LSTM:
        assert failures == []
    else:
        assert any(line.startswith("output: error") for line in failures)


def test_process_that_takes_too_long_ends_with_its_children(tmp_path: Path) -> None:
    note = tmp_path / "pid"
    code = (
        "import pathlib, subprocess\n"
        "child = subprocess.Popen(['sleep', '60'])\n"
        f"pathlib.Path({str(note)!r}).write_text(str(child.pid))\n"
        "child.wait()\n"
    )
    start = time.monotonic()
    with pytest.raises(bench_compile.FirstCallError, match="more than 3 s"):
        bench_compile.run_process([sys.executable, "-c", code], dict(os.environ), 3)
    assert time.monotonic() - start < 30
    stat = Path(f"/proc/{note.read_text()}/stat")

    def is_gone() -> bool:
        try:
            # Where nobody collects orphans it stays in the table, as a zombie.
            return stat.read_text().rpartition(")")[2].split()[0] in "ZX"
        except (FileNotFoundError, ProcessLookupError):
            return True

    # Killed, it has to be given a processor once more to end.
    while not is_gone() and time.monotonic() - start < 30:
        time.sleep(0.05)
    assert is_gone()


def test_process_that_fails_says_why() -> None:
    code = "import sys; print('warning', file=sys.stderr); raise ValueError('no such thing')"
    with pytest.raises(bench_compile.FirstCallError, match="^ValueError: no such thing$"):
        bench_compile.run_process([sys.executable, "-c", code], dict(os.environ), 30)


@pytest.mark.parametrize(
    "argv, message",
    [
        ("--steps 64,8", "argument --steps: expected two integers, the smaller"),
        ("--steps 8", "argument --steps: expected two integers"),
        ("--backend none", "argument --backend: unknown 'none'; known: "),
        ("--providers reference", "argument --providers: unknown provider"),
        ("--csv no/x.csv", "argument --csv: no such directory"),
    ],
)
def test_wrong_command_line_is_one_line_and_code_2(
    argv: str, message: str, tmp_path: Path, monkeypatch, capsys
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as exit:
        bench_compile.main(argv.split())
    assert exit.value.code == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith(f"bench_compile.py: error: {message}")
    assert captured.err.count("\n") == 1


def test_missing_extension_is_one_line(monkeypatch, capsys) -> None:
    monkeypatch.setitem(sys.modules, "fastlstm", None)
    with pytest.raises(SystemExit) as exit:
        bench_compile.main([])
    assert exit.value.code == 2
    assert "fastlstm cannot provide lstm" in capsys.readouterr().err
