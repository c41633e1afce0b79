"""The phase of gpu/check.py that profiles, and the call it profiles, without Nsight Compute."""

from __future__ import annotations

from pathlib import Path

import pytest
import simt_extension
import torch
from bench_stand_ins import Commands, CudaOnCpu, answer, make_place, plant
from cuda_devices import device

import fastlstm
from benchmarks.common import rows
from benchmarks.gpu import ncu, phases, profile_call
from benchmarks.gpu.ncu import with_arguments
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
    found: dict[str, object] = {**dict.fromkeys(rows.FIELDS, ""), "date": date, "ratio": ratio}
    found |= {"cell": "lstm", "mode": "train", "dtype": "bfloat16", "tf32": "none"}
    return found | {"T": 9, "N": 8, "I": 7, "H": 6} | more


@pytest.fixture
def place(tmp_path: Path, monkeypatch) -> Workplace:
    """A workplace with rows, on a machine with ncu."""
    monkeypatch.setattr(ncu, "find_ncu", lambda _: "/bin/ncu")
    place = make_place(tmp_path)
    slowest = row("new", 0.7, cell="gru", mode="infer", T=5)
    rows.append(place.csv, [row("old", 0.1), row("new", 1.5), slowest, row("new", 0.9)])
    return place


def profiled(monkeypatch, place: Workplace, report: str = REPORT) -> Commands:
    """Commands that leave a report."""

    def profile(together) -> None:
        if together[0].log.stem == "profile":
            (place.logs / "profile.ncu-rep").touch()

    return answer(monkeypatch, {"profile-csv": (0, report)}, before=profile)


def test_slowest_row_of_the_last_run_is_profiled(place: Workplace, monkeypatch) -> None:
    commands = profiled(monkeypatch, place)
    result = phases.run_phase("profile", place, 50)
    assert result.state == "green"
    assert result.text.startswith("gru infer bfloat16 5,8,7,6, 0.70x torch.nn: 2 kernels (")
    command = commands.asked["profile"].arguments
    assert command[0] == "/bin/ncu"
    sections = [command[i + 1] for i, word in enumerate(command) if word == "--section"]
    assert sections == list(ncu.SECTIONS)
    # Each kernel of ours once, and the clocks as they are.
    for option, value in (
        ("--kernel-id", "::regex:fastlstm:1"),
        ("--kernel-name-base", "demangled"),
        ("--clock-control", "none"),
        ("--profile-from-start", "off"),
    ):
        assert command[command.index(option) + 1] == value
    call = command[command.index(str(ncu.CALL)) + 1 :]
    args = profile_call.build_parser().parse_args(call)
    assert (args.cell, args.mode, args.dtype) == ("gru", "infer", "bfloat16")
    assert args.shape == (5, 8, 7, 6)
    # For whoever wants to read more.
    assert "--import" in commands.asked["profile-details"].arguments


def test_summary_of_a_kernel_is_a_line() -> None:
    first, second = ncu.summaries(REPORT.splitlines())
    assert first == (
        "group_kernel<GroupFwdJob<LstmCell, BFloat16, 32, ClusterGather>, 0>: time 1,234.56 us, "
        "SM 12.30 %, DRAM 1.50 %, registers 255 register/thread, stalls Long Scoreboard 1,002.5 "
        "inst, Barrier 2.1 inst, Wait 0.80 inst"
    )
    assert second == "collect_h_kernel<float>: time 3.10 us"
    assert ncu.summaries(["no such table"]) == []


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
    result = phases.run_phase("profile", place, 50)
    assert (result.state, why in result.text) == ("skipped", True)


def test_what_is_missing_is_skipped(place: Workplace, monkeypatch) -> None:
    place.csv.unlink()
    result = phases.run_phase("profile", place, 50)
    assert result.state == "skipped" and "needs the phase bench" in result.text
    monkeypatch.setattr(ncu, "find_ncu", lambda _: None)
    result = phases.run_phase("profile", place, 50)
    assert result.state == "skipped" and "ncu is not installed" in result.text


def test_profile_that_fails_or_is_empty_is_red(place: Workplace, monkeypatch) -> None:
    # A report of an earlier run is not taken for it.
    (place.logs / "profile.ncu-rep").touch()
    empty = "==WARNING== No kernels were profiled.\n"
    answer(monkeypatch, {"profile": (0, empty), "profile-csv": (0, REPORT)})
    result = phases.run_phase("profile", place, 50)
    assert result.state == "red" and "No kernels were profiled" in result.detail
    profiled(monkeypatch, place, "nothing")
    assert "no kernel was profiled" in phases.run_phase("profile", place, 50).text
    answer(monkeypatch, {"profile": (None, "profiling")})
    assert "stopped after 2 s" in phases.run_phase("profile", place, 50).text


# The call.


class Profiler:
    def __init__(self) -> None:
        self.asked: list[str] = []

    def start(self) -> None:
        self.asked.append("start")

    def stop(self) -> None:
        self.asked.append("stop")


@pytest.mark.parametrize("mode", ["infer", "train"])
def test_one_call_is_between_start_and_stop(mode: str, monkeypatch, capsys) -> None:
    profiler = Profiler()
    plant(
        monkeypatch,
        lambda m: m.register_forward_pre_hook(lambda _, x: profiler.asked.append(x[0].shape)),
    )
    monkeypatch.setattr(profile_call, "is_stepwise", lambda *_: False)
    argv = f"--cell gru --mode {mode} --dtype bfloat16 --shape 2,3,4,5 --tf32 none"
    assert profile_call.main(argv.split(), CudaOnCpu(), profiler) == 0
    # The one before it sets up what is set up once.
    assert profiler.asked == [(2, 3, 4), "start", (2, 3, 4), "stop"]


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
