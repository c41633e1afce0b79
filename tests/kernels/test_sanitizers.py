"""What `make sanitize` would find: faults planted in a copy of the sources, and each one reported."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest
import sanitizers
from torch.utils import cpp_extension

ROOT = sanitizers.ROOT

pytestmark = pytest.mark.skipif(
    os.environ.get("FASTLSTM_SANITIZER_BUILDS") != "1",
    reason="needs the builds of `make sanitize`, which runs it",
)

# A layer of a few rows, whose hidden units two threads share, and one whose rows they share.
LAYERS = """
import torch, fastlstm
torch.set_num_threads(2)
for N, H in ((2, 97), (16, 49)):
    layer = fastlstm.LSTM(5, H)
    layer(torch.randn(4, N, 5))[0].sum().backward()
"""
BIDIRECTIONAL = """
import torch, fastlstm
fastlstm.LSTM(5, 7, bidirectional=True)(torch.randn(4, 3, 5))
"""
SCHEDULE = """
import fastlstm
fastlstm._C.schedule(batch_size=1000, hidden_size=100000, gates=4, num_directions=1, ragged=False,
                     num_threads=2, lanes=16)
"""


class Fault(NamedTuple):
    kind: str  # of build
    file: str
    old: str  # a regular expression
    new: str
    script: str
    report: tuple[str, ...]
    compiled: str = ""  # the source that includes `file`, where it is a header


FAULTS = {
    "read": Fault(
        "address",
        "csrc/layer/row_plan.cpp",
        r"after >= length\[n\]\)",
        "after > length[n])",
        BIDIRECTIONAL,
        ("AddressSanitizer: heap-buffer-overflow", "READ of size 8", "row_plan.cpp"),
    ),
    "overflow": Fault(
        "address",
        "csrc/cpu/schedule.cpp",
        r"N \* H \* H \* problem\.gates;",
        "static_cast<int>(H) * static_cast<int>(H) * N;",
        SCHEDULE,
        ("schedule.cpp", "runtime error: signed integer overflow: 100000 * 100000"),
    ),
    "race_of_rows": Fault(
        "thread",
        "csrc/cpu/schedule.cpp",
        r"N : part\(N, g \+ 1, groups\);",
        "N : N;",
        LAYERS,
        ("ThreadSanitizer: data race", "recurrence_fwd"),
    ),
    "race_without_barrier": Fault(
        "thread",
        "csrc/cpu/schedule.cpp",
        r"static_cast<int>\(members\);",
        "1;",
        LAYERS,
        ("ThreadSanitizer: data race", "recurrence_fwd"),
    ),
    "race_through_barrier": Fault(
        "thread",
        "csrc/cpu/kernels/barrier.inl",
        r"__ATOMIC_(ACQUIRE|RELEASE|ACQ_REL)",
        "__ATOMIC_RELAXED",
        LAYERS,
        ("ThreadSanitizer: data race", "recurrence_fwd"),
        "csrc/cpu/kernels/scalar.cpp",
    ),
}


def run(kind: str, script: str, package: Path | None = None) -> subprocess.CompletedProcess:
    words = sanitizers.command(kind, sys.executable, "-c", script)
    env = sanitizers.environment(kind, package)
    # Not in ROOT, where Python would find the package of the sources first.
    return subprocess.run(
        words, env=env, cwd=sanitizers.BUILD, capture_output=True, text=True, timeout=300
    )


def planted(fault: Fault, folder: Path) -> Path:
    """A package with a fault in one file, and all other objects as they were built."""
    shutil.copytree(ROOT / "csrc", folder / "csrc")
    text, count = re.subn(fault.old, fault.new, (folder / fault.file).read_text())
    assert count, f"{fault.file} has changed: choose another line to break"
    (folder / fault.file).write_text(text)

    objects = sanitizers.objects(fault.kind)
    listing = ["ninja", "-C", str(objects), "-t", "compdb", "compile"]
    commands = json.loads(subprocess.check_output(listing))
    source = fault.compiled or fault.file
    (entry,) = (c for c in commands if c["file"] == str(ROOT / source))
    broken = folder / "broken.o"
    words = entry["command"].replace(entry["output"], str(broken))
    subprocess.run(words.replace(entry["file"], str(folder / source)), shell=True, check=True)

    shutil.copytree(sanitizers.package_folder(fault.kind), folder / "lib")
    (extension,) = (folder / "lib" / "fastlstm").glob("_C*.so")
    rest = [c["output"] for c in commands if c["file"] != entry["file"]]
    flags = ["-fsanitize=thread"]
    if fault.kind == "address":
        flags = ["-fsanitize=address,undefined", "-fopenmp"]
    flags += [f"-L{path}" for path in cpp_extension.library_paths()]
    flags += ["-lc10", "-ltorch", "-ltorch_cpu", "-ltorch_python"]
    compiler = os.environ.get("CXX", "c++")
    link = [compiler, "-shared", str(broken), *rest, "-o", str(extension), *flags]
    subprocess.run(link, check=True)
    return folder / "lib"


@pytest.mark.parametrize("kind", ["address", "thread"])
def test_the_instrumented_package_is_the_one_that_runs_and_has_no_fault(kind: str) -> None:
    show = f"{LAYERS}{BIDIRECTIONAL}{SCHEDULE}print(fastlstm._C.__file__)"
    result = run(kind, show)
    assert result.returncode == 0, result.stderr
    assert Path(result.stdout.strip()).is_relative_to(sanitizers.package_folder(kind))


@pytest.mark.parametrize("fault", FAULTS.values(), ids=FAULTS)
def test_planted_fault_is_reported(
    fault: Fault, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if fault.compiled:  # the kernels that compile fastest
        monkeypatch.setenv("ATEN_CPU_CAPABILITY", "default")
    result = run(fault.kind, fault.script, planted(fault, tmp_path))
    assert result.returncode != 0
    for words in fault.report:
        assert words in result.stderr, result.stderr


MASKED = """
#include <cstdlib>
#include <new>
#pragma GCC target("avx2,fma")
#define FASTLSTM_LANES_AVX2
#include "cpu/kernels/simd.h"
int main(int, char** words) {
  using fastlstm::F32x8;
  float* p = static_cast<float*>(std::malloc(6 * sizeof(float)));
  if (words[1][0] == 'r') return F32x8::load(p, std::atoi(words[2])).v[0] == 1;
  F32x8::broadcast(2).store(p, std::atoi(words[2]));
  return 0;
}
"""


def test_masked_accesses_are_checked(tmp_path: Path) -> None:
    """Of which compilers tell the sanitizer nothing: 7 lanes of 6 allocated numbers."""
    source, program = tmp_path / "masked.cpp", tmp_path / "masked"
    source.write_text(MASKED)
    compiler = os.environ.get("CXX", "c++")
    words = [compiler, "-std=c++17", "-O1", "-g", "-fsanitize=address", f"-I{ROOT / 'csrc'}"]
    subprocess.run([*words, str(source), "-o", str(program)], check=True)
    for access, name in (("r", "READ"), ("w", "WRITE")):
        results = [
            subprocess.run(
                [program, access, lanes],
                env={"ASAN_OPTIONS": "detect_leaks=0"},
                capture_output=True,
                text=True,
            )
            for lanes in ("6", "7")
        ]
        assert results[0].returncode == 0, results[0].stderr
        assert results[1].returncode != 0
        assert "24-byte region" in results[1].stderr
        assert f"{name} of size 28" in results[1].stderr
