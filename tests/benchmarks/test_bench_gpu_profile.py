"""The phase of gpu_check.py that profiles, and the call it profiles, without Nsight Compute."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import simt_extension
import torch
from bench_stand_ins import CudaOnCpu, answer, make_place
from cuda_devices import device

import fastlstm
from benchmarks.common import csv_rows
from benchmarks.gpu import ncu as gpu_profile
from benchmarks.gpu import phases as gpu_phases
from benchmarks.gpu import profile_call
from benchmarks.gpu.kernel_names import with_arguments
from benchmarks.gpu.workplace import Workplace

FWD = (
    "void fastlstm::cuda::group_kernel<fastlstm::cuda::GroupFwdJob<fastlstm::LstmCell, "
    "fastlstm::device::BFloat16, 32, fastlstm::cuda::ClusterGather>, (fastlstm::cuda::Exchange)0>"
    "(T1::Params)"
)
BWD = "void fastlstm::cuda::collect_h_kernel<float>(fastlstm::cuda::SequenceBwd<T1>)"
HEADER = "ID,Process ID,Kernel Name,Section Name,Metric Name,Metric Unit,Metric Value,Rule Name"
METRICS = [
    (0, FWD, "GPU Speed Of Light Throughput", "Duration", "us", "1,234.56"),
    (0, FWD, "GPU Speed Of Light Throughput", "Compute (SM) Throughput", "%", "12.30"),
    (0, FWD, "GPU Speed Of Light Throughput", "DRAM Throughput", "%", "1.50"),
    (0, FWD, "Warp State Statistics", "Stall Wait", "inst", "0.80"),
    (0, FWD, "Warp State Statistics", "Stall Long Scoreboard", "inst", "1,002.5"),
    (0, FWD, "Warp State Statistics", "Stall Barrier", "inst", "2.1"),
    (0, FWD, "Warp State Statistics", "Stall Sleeping", "inst", "0"),
    (0, FWD, "Warp State Statistics", "Stall Membar", "inst", "0.1"),
    (0, FWD, "Launch Statistics", "Registers Per Thread", "register/thread", "255"),
    (0, FWD, "Launch Statistics", "Duration", "us", "not the first"),
    (1, BWD, "GPU Speed Of Light Throughput", "Duration", "us", "3.10"),
]
REPORT = "\n".join(
    [
        "==PROF== something first",
        ",".join(f'"{name}"' for name in HEADER.split(",")),
        *(
            f'"{i}","7","{kernel}","{section}","{metric}","{unit}","{value}",""'
            for i, kernel, section, metric, unit, value in METRICS
        ),
        f'"1","7","{BWD}","Launch Statistics","","","","LaunchRule"',
    ]
)


def row(date: str, ratio: float, **more: object) -> dict[str, object]:
    found: dict[str, object] = {**dict.fromkeys(csv_rows.FIELDS, ""), "date": date, "ratio": ratio}
    found |= {"cell": "lstm", "mode": "train", "dtype": "bfloat16", "tf32": "none"}
    return found | {"T": 9, "N": 8, "I": 7, "H": 6} | more


@pytest.fixture
def place(tmp_path: Path, monkeypatch) -> Workplace:
    """A workplace with rows, on a machine with ncu."""
    monkeypatch.setattr(gpu_profile, "find_ncu", lambda _: "/bin/ncu")
    place = make_place(tmp_path)
    rows = [row("old", 0.1), row("new", 1.5), row("new", 0.7, cell="gru", mode="infer", T=5)]
    csv_rows.append_rows(place.csv, [*rows, row("new", 0.9)])
    return place


def profiled(monkeypatch, place: Workplace, report: str = REPORT):
    """Commands that leave a report."""
    commands = answer(monkeypatch, {"profile-csv": (0, report)})

    def run(together, seconds: float) -> list:
        if together[0].log.stem == "profile":
            (place.logs / "profile.ncu-rep").touch()
        return commands(together, seconds)

    monkeypatch.setattr("benchmarks.gpu.workplace.run_together", run)
    return commands


def test_slowest_row_of_the_last_run_is_profiled(place: Workplace, monkeypatch) -> None:
    commands = profiled(monkeypatch, place)
    result = gpu_phases.run_phase("profile", place, 50)
    assert result.state == "green"
    assert result.text.startswith("gru infer bfloat16 5,8,7,6, 0.70x torch.nn: 2 kernels (")
    command = commands.asked["profile"].arguments
    assert command[0] == "/bin/ncu"
    sections = [command[i + 1] for i, word in enumerate(command) if word == "--section"]
    assert sections == list(gpu_profile.SECTIONS)
    # Each kernel of ours once, and the clocks as they are.
    for option, value in (
        ("--kernel-id", "::regex:fastlstm:1"),
        ("--kernel-name-base", "demangled"),
        ("--clock-control", "none"),
        ("--profile-from-start", "off"),
    ):
        assert command[command.index(option) + 1] == value
    call = command[command.index(str(gpu_profile.CALL)) + 1 :]
    args = profile_call.build_parser().parse_args(call)
    assert (args.cell, args.mode, args.dtype, args.shape) == (
        "gru",
        "infer",
        "bfloat16",
        (5, 8, 7, 6),
    )
    # For whoever wants to read more.
    assert "--import" in commands.asked["profile-details"].arguments


def test_summary_of_a_kernel_is_a_line() -> None:
    first, second = gpu_profile.summaries(REPORT.splitlines())
    assert first == (
        "group_kernel<GroupFwdJob<LstmCell, BFloat16, 32, ClusterGather>, 0>: time 1,234.56 us, "
        "SM 12.30 %, DRAM 1.50 %, registers 255 register/thread, stalls Long Scoreboard 1,002.5 "
        "inst, Barrier 2.1 inst, Wait 0.80 inst"
    )
    assert second == "collect_h_kernel<float>: time 3.10 us"
    assert gpu_profile.summaries(["no such table"]) == []


@pytest.mark.parametrize(
    "name, expected",
    [
        (FWD, "group_kernel<GroupFwdJob<LstmCell, BFloat16, 32, ClusterGather>, 0>"),
        (BWD, "collect_h_kernel<float>"),
        ("plain_kernel(int)", "plain_kernel"),
    ],
)
def test_kernel_names_keep_their_arguments(name: str, expected: str) -> None:
    assert with_arguments(name) == expected


@pytest.mark.parametrize(
    "output, why",
    [
        ("==ERROR== ERR_NVGPUCTRPERM - The user does not have permission", "ERR_NVGPUCTRPERM"),
        ("==ERROR== Failed to initialize the profiler: LibraryNotLoaded", "LibraryNotLoaded"),
        ("==ERROR== Profiling is not supported on this device", "does not support"),
    ],
)
@pytest.mark.parametrize("code", [0, 1])
def test_counters_that_may_not_be_read_are_skipped(
    place: Workplace, monkeypatch, output: str, why: str, code: int
) -> None:
    answer(monkeypatch, {"profile": (code, f"==PROF== Connected\n{output}\n")})
    result = gpu_phases.run_phase("profile", place, 50)
    assert (result.state, why in result.text) == ("skipped", True)


def test_what_is_missing_is_skipped(place: Workplace, monkeypatch) -> None:
    place.csv.unlink()
    result = gpu_phases.run_phase("profile", place, 50)
    assert result.state == "skipped" and "needs the phase bench" in result.text
    monkeypatch.setattr(gpu_profile, "find_ncu", lambda _: None)
    result = gpu_phases.run_phase("profile", place, 50)
    assert result.state == "skipped" and "ncu is not installed" in result.text


def test_profile_that_fails_or_is_empty_is_red(place: Workplace, monkeypatch) -> None:
    # A report of an earlier run is not taken for it.
    (place.logs / "profile.ncu-rep").touch()
    empty = "==WARNING== No kernels were profiled.\n"
    answer(monkeypatch, {"profile": (0, empty), "profile-csv": (0, REPORT)})
    result = gpu_phases.run_phase("profile", place, 50)
    assert result.state == "red" and "No kernels were profiled" in result.detail
    profiled(monkeypatch, place, "nothing")
    assert "no kernel was profiled" in gpu_phases.run_phase("profile", place, 50).text
    answer(monkeypatch, {"profile": (None, "profiling")})
    assert "stopped after 2 s" in gpu_phases.run_phase("profile", place, 50).text


def test_ncu_is_found_beside_the_compiler(tmp_path: Path) -> None:
    tool = tmp_path / "bin" / "ncu"
    tool.parent.mkdir()
    tool.write_text("#!/bin/sh\n")
    tool.chmod(0o755)
    assert gpu_profile.find_ncu({"CUDA_HOME": str(tmp_path)}) == str(tool)


# The call.


class Profiler(SimpleNamespace):
    def __init__(self) -> None:
        super().__init__(asked=[])

    def start(self) -> None:
        self.asked.append("start")

    def stop(self) -> None:
        self.asked.append("stop")


@pytest.mark.parametrize("mode", ["infer", "train"])
def test_one_call_is_between_start_and_stop(mode: str, monkeypatch, capsys) -> None:
    profiler = Profiler()
    contender = profile_call.layers.contender

    def watched(problem, provider):
        found = contender(problem, provider)
        assert problem.shape == (2, 3, 4, 5)

        def run() -> None:
            profiler.asked.append("run")
            found.run()

        return SimpleNamespace(run=run, prepare=found.prepare)

    monkeypatch.setattr(profile_call.layers, "contender", watched)
    monkeypatch.setattr(profile_call, "is_stepwise", lambda *_: False)
    argv = f"--cell gru --mode {mode} --dtype bfloat16 --shape 2,3,4,5 --tf32 none"
    assert profile_call.main(argv.split(), CudaOnCpu(), profiler) == 0
    # The one before it sets up what is set up once.
    assert profiler.asked == ["run", "start", "run", "stop"]


@pytest.mark.parametrize("word, steps, how", [("stepwise", 3, "step by step"), ("grid", 5, "many")])
def test_few_steps_are_profiled_where_each_has_its_launches(
    word: str, steps: int, how: str, monkeypatch, capsys
) -> None:
    """On the emulator."""
    ask = simt_extension.load().cuda_choice
    monkeypatch.setattr(fastlstm._C, "cuda_choice", ask, raising=False)
    monkeypatch.setenv("FASTLSTM_CUDA_KERNEL", word)
    argv = "--cell lstm --mode infer --dtype float32 --shape 5,3,4,20 --tf32 off"
    with device("simt"), torch.no_grad():
        assert profile_call.main(argv.split(), CudaOnCpu(), Profiler()) == 0
    out = capsys.readouterr().out
    assert f"T,N,I,H = {steps},3,4,20" in out and how in out
