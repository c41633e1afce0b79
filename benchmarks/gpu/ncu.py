"""The phase of check.py that profiles: where a step of the slowest row goes."""

from __future__ import annotations

import csv
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from benchmarks.common import rows
from benchmarks.gpu.workplace import ROOT, Result, Workplace, find_tool, red

CALL = ROOT / "benchmarks" / "gpu" / "profile_call.py"
SECTIONS = ("SpeedOfLight", "WarpStateStats", "MemoryWorkloadAnalysis", "LaunchStats")
# What Nsight Compute says where it may not count, and where it does not know the machine.
REFUSALS = {
    "ERR_NVGPUCTRPERM": "Nsight Compute may not read the counters of this GPU (ERR_NVGPUCTRPERM)",
    "LibraryNotLoaded": "Nsight Compute cannot be used on this machine (LibraryNotLoaded)",
    "Profiling is not supported": "Nsight Compute does not support this device",
}
# Of what it counts, the shortest account of a kernel: its words in the report, and ours.
METRICS = {
    "Duration": "time",
    "Compute (SM) Throughput": "SM",
    "Memory Throughput": "memory",
    "L2 Cache Throughput": "L2",
    "DRAM Throughput": "DRAM",
    "Warp Cycles Per Issued Instruction": "warp cycles an instruction",
    "Registers Per Thread": "registers",
    "Dynamic Shared Memory Per Block": "shared memory",
    "Grid Size": "blocks",
}
STALLS_SHOWN = 3
MOST_KERNELS = 12


def find_ncu(environ: Mapping[str, str]) -> str | None:
    """The path of ncu, which has an installer of its own as well."""
    return find_tool("ncu", environ, *sorted(Path("/opt/nvidia/nsight-compute").glob("*")))


def slowest(path: Path) -> dict[str, str] | None:
    """Of the last run in the file the row that is slowest beside torch.nn; None where is none."""
    found = rows.read(path) if path.exists() else []
    last = [row for row in found if row["date"] == found[-1]["date"]]
    return min(last, key=lambda row: float(row["ratio"]), default=None)


def call_of(row: Mapping[str, str]) -> list[object]:
    """The command line of the call that was timed in `row`."""
    shape = ",".join(row[name] for name in "TNIH")
    command: list[object] = [sys.executable, CALL, "--cell", row["cell"], "--mode", row["mode"]]
    return [*command, "--dtype", row["dtype"], "--shape", shape, "--tf32", row["tf32"]]


def run_profile(place: Workplace, seconds: float) -> Result:
    """Profile the kernels of one call of the slowest row."""
    ncu = find_ncu(place.environ)
    if ncu is None:
        return Result("skipped", "ncu is not installed (it is part of Nsight Compute)")
    row = slowest(place.csv)
    if row is None:
        return Result("skipped", f"there are no rows in {place.csv}: it needs the phase bench")
    report = place.logs / "profile.ncu-rep"
    report.unlink(missing_ok=True)
    # Each of the kernels once: those of a step are launched thousands of times. Clocks are left as
    # they are.
    command = [ncu, "--force-overwrite", "--export", report, "--clock-control", "none"]
    command += ["--profile-from-start", "off", "--kernel-name-base", "demangled"]
    command += ["--kernel-id", "::regex:fastlstm:1", "--launch-count", MOST_KERNELS]
    for section in SECTIONS:
        command += ["--section", section]
    done = place.run([*command, *call_of(row)], "profile", seconds)
    refusal = next((why for word, why in REFUSALS.items() if word in "\n".join(done.lines())), None)
    if refusal is not None:
        return Result("skipped", refusal)
    if done.code != 0 or not report.exists():
        return red(done, "the profile")
    pages = {
        "profile-details": [ncu, "--import", report, "--page", "details", "--print-details", "all"],
        "profile-csv": [ncu, "--import", report, "--csv", "--print-details", "all"],
    }
    printed = place.run_all(pages, max(seconds - done.seconds, 1.0))
    failed = [red(one, name) for name, one in printed.items() if one.code != 0]
    if failed:
        return failed[0]
    lines = summaries(printed["profile-csv"].lines())
    if not lines:
        return Result("red", f"no kernel was profiled ({done.log})", done.tail())
    what = f"{row['cell']} {row['mode']} {row['dtype']} {','.join(row[n] for n in 'TNIH')}"
    text = f"{what}, {float(row['ratio']):.2f}x torch.nn: {len(lines)} kernels ({report})"
    return Result("green", text, "\n".join(lines))


def summaries(lines: Sequence[str]) -> list[str]:
    """A line for each kernel in the CSV page of a report."""
    start = next((i for i, line in enumerate(lines) if line.startswith('"ID"')), len(lines))
    kernels: dict[str, dict[str, str]] = {}
    names: dict[str, str] = {}
    for row in csv.DictReader(lines[start:]):
        metric = row.get("Metric Name")
        if metric:
            value = f"{row['Metric Value']} {row['Metric Unit']}".strip()
            # The first that is called so: some are in several sections.
            kernels.setdefault(row["ID"], {}).setdefault(metric, value)
            names[row["ID"]] = row["Kernel Name"]
    return [f"{with_arguments(names[id])}: {account(found)}" for id, found in kernels.items()]


def account(found: Mapping[str, str]) -> str:
    """The metrics of a kernel that say most, and why its warps wait."""
    told = [f"{ours} {found[theirs]}" for theirs, ours in METRICS.items() if theirs in found]
    stalls = [name for name in found if name.startswith("Stall ") and as_number(found[name]) > 0]
    worst = sorted(stalls, key=lambda name: -as_number(found[name]))[:STALLS_SHOWN]
    waits = ", ".join(f"{name.removeprefix('Stall ')} {found[name]}" for name in worst)
    return ", ".join([*told, f"stalls {waits}"] if worst else told)


def as_number(value: str) -> float:
    """The number that `value` begins with, 0 where there is none."""
    try:
        return float(value.split()[0].replace(",", ""))
    except (IndexError, ValueError):
        return 0.0


def with_arguments(name: str) -> str:
    """The `name` of a kernel with its template arguments, without return type, namespaces and
    parameters."""
    name = name.replace("(anonymous namespace)::", "")
    name = re.sub(r"\b\w+::", "", name)
    # Values of an enum: (Exchange)0.
    name = re.sub(r"\(\w+\)(?=\d)", "", name)
    return name.partition("(")[0].removeprefix("void ").strip()
