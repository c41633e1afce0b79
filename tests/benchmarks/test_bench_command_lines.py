"""Wrong command lines, and machines on which a benchmark cannot run: one line, and exit code 2."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

from benchmarks import (
    bench_cells,
    bench_compile,
    bench_exchange,
    bench_methods,
    bench_packed,
    bench_step,
    bench_tokens,
    plot,
)
from benchmarks.gpu import check

CELLS, CHECK, COMPILE, EXCHANGE = (
    "bench_cells.py",
    "benchmarks.gpu.check",
    "bench_compile.py",
    "bench_exchange.py",
)
METHODS, PACKED, STEP, TOKENS = (
    "bench_methods.py",
    "bench_packed.py",
    "bench_step.py",
    "bench_tokens.py",
)
PROGRAMS = {
    CELLS: bench_cells,
    CHECK: check,
    COMPILE: bench_compile,
    EXCHANGE: bench_exchange,
    METHODS: bench_methods,
    PACKED: bench_packed,
    STEP: bench_step,
    TOKENS: bench_tokens,
    "plot.py": plot,
}
NATIVE = "--providers torch,torch-native"


def error_of(program: str, argv: str, capsys) -> str:
    """The one line that the program ends with."""
    with pytest.raises(SystemExit) as exit:
        PROGRAMS[program].main(argv.split())
    assert exit.value.code == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    start = f"{program}: error: "
    assert captured.err.startswith(start)
    return captured.err.removeprefix(start)


@pytest.mark.parametrize(
    "program, argv, message",
    [
        (CELLS, "--shape 3,2,4", "argument --shape: a shape is four integers T,N,I,H, got '3,2,4'"),
        (CELLS, "--shape 3,2,4,x", "argument --shape: a shape is four integers T,N,I,H, got '3,2,4,x'"),
        (CELLS, "--shape 3,0,4,5", "argument --shape: the sizes of a shape are at least 1, got '3,0,4,5'"),
        (CELLS, "--shape 3,2,4,5 --grid full", "argument --grid: not allowed with argument --shape"),
        (CELLS, "--providers torch,tensorflow", "argument --providers: unknown provider 'tensorflow'"),
        (CELLS, "--providers torch,torch", "argument --providers: a provider is named twice"),
        (CELLS, "--providers torch", "argument --providers: needs a baseline and at least one more"),
        (CELLS, "--cells lstm,tree", "argument --cells: unknown cell 'tree'; known: lstm, gru, rnn, "),
        (CELLS, "--dtype float32,int8", "argument --dtype: unknown dtype 'int8'; known: float32, float64"),
        (CELLS, "--dtype float32,float32", "argument --dtype: a dtype is named twice"),
        (CELLS, "--seconds 0", "argument --seconds: expected a positive number, got '0'"),
        (CELLS, "--seconds nan", "argument --seconds: expected a positive number, got 'nan'"),
        (CELLS, "--threads 0", "argument --threads: expected a positive integer, got '0'"),
        (CELLS, "--min-ratio -1", "argument --min-ratio: expected a positive number"),
        (CELLS, "--grid huge", "argument --grid: invalid choice: 'huge'"),
        (CELLS, "--tf32 on", "argument --tf32: needs --device cuda"),
        (CELLS, "--budget 0", "argument --budget: expected a positive number, got '0'"),
        (CELLS, f"{NATIVE} --csv no/x.csv", "argument --csv: no such directory"),
        (CELLS, f"{NATIVE} --csv {__file__}", f"argument --csv: {__file__} has other columns"),
        (CELLS, f"{NATIVE} --plot no/x.png", "argument --plot: no such directory"),
        (CHECK, "--phases build,paint", "argument --phases: unknown phase 'paint'; known: build, test, "),
        (CHECK, "--budget -1", "argument --budget: expected a positive number, got '-1'"),
        (COMPILE, "--steps 64,8", "argument --steps: expected two integers, the smaller"),
        (COMPILE, "--steps 8", "argument --steps: expected two integers"),
        (COMPILE, "--backend none", "argument --backend: unknown 'none'; known: "),
        (COMPILE, "--providers reference", "argument --providers: unknown provider"),
        (COMPILE, "--csv no/x.csv", "argument --csv: no such directory"),
        (EXCHANGE, "--schemes telepathy", "argument --schemes: unknown scheme 'telepathy'; known: counter, "),
        (EXCHANGE, "--csv /nowhere/rows.csv", "argument --csv: no such directory: /nowhere"),
        (EXCHANGE, f"--csv {__file__}", f"argument --csv: {__file__} has other columns than "),
        (METHODS, "--methods stepwise", "argument --methods: unknown method 'stepwise'; known: block, "),
        (METHODS, "--csv /nowhere/rows.csv", "argument --csv: no such directory: /nowhere"),
        (METHODS, f"--csv {__file__}", f"argument --csv: {__file__} has other columns than "),
        (PACKED, "--shape 9,2,3,4 --min-length 10", "argument --min-length: expected at most"),
        (PACKED, "--shape 9,2,3", "argument --shape: a shape is four integers"),
        (PACKED, "--cells tree", "argument --cells: unknown cell 'tree'"),
        (PACKED, "--csv no/x.csv", "argument --csv: no such directory"),
        (STEP, "--cells lstm", "argument --cells: unknown cell 'lstm'; known: lstm_cell"),
        (STEP, "--min-ratio 0", "argument --min-ratio: expected a positive number"),
        (STEP, "--csv no/x.csv", "argument --csv: no such directory"),
        ("plot.py", "none.csv ratios.png", ""),
    ],
)  # fmt: skip
def test_wrong_command_line(
    program: str, argv: str, message: str, tmp_path: Path, monkeypatch, capsys
) -> None:
    if program == "plot.py":
        pytest.importorskip("matplotlib")
    monkeypatch.chdir(tmp_path)
    assert error_of(program, argv, capsys).startswith(message)


@pytest.mark.parametrize("program", [CELLS, COMPILE, PACKED, STEP, TOKENS])
def test_missing_extension(program: str, monkeypatch, capsys) -> None:
    monkeypatch.setitem(sys.modules, "fastlstm", None)
    assert "fastlstm cannot provide lstm" in error_of(program, "", capsys)


@pytest.mark.parametrize(
    "version, why", [(None, "is built without CUDA"), ("13.0", "CUDA 13.0 finds no GPU")]
)
@pytest.mark.parametrize(
    "program, argv, message",
    [
        (CELLS, "--device cuda --grid gpu", "argument --device: torch "),
        (CHECK, "", "needs a GPU: torch "),
        (EXCHANGE, "", "needs a GPU and nvcc: torch "),
        (METHODS, "", "needs a GPU: torch "),
    ],
)
def test_no_gpu(
    program: str, argv: str, message: str, version: str | None, why: str, monkeypatch, capsys
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.version, "cuda", version)
    error = error_of(program, argv, capsys)
    assert error.startswith(message) and why in error
