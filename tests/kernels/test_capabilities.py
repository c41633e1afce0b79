"""Every compiled path on one machine.

The path is chosen once a process, so the tests marked ``paths`` run again in a process for each
capability but the one in use here.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

import fastlstm

TESTS = Path(__file__).resolve().parents[1]
ENVIRONMENT = {"AVX512": "avx512", "AVX2": "avx2", "DEFAULT": "default"}


def environment(capability: str) -> dict[str, str]:
    # Whatever malloc hands out is filled with 0x7f: 3e38 to anyone who reads it unwritten.
    return os.environ | {
        "ATEN_CPU_CAPABILITY": ENVIRONMENT[capability],
        "MALLOC_PERTURB_": "128",
    }


def test_environment_chooses_the_path(capability: str) -> None:
    result = subprocess.run(
        [sys.executable, "-c", "import fastlstm; print(fastlstm.cpu_capability())"],
        env=environment(capability),
        capture_output=True,
        text=True,
    )
    assert result.stdout.strip() == capability, result.stderr


@pytest.mark.slow
@pytest.mark.parametrize("place", ["shared", pytest.param("alone", marks=pytest.mark.alone)])
def test_paths(capability: str, place: str) -> None:
    if capability == fastlstm.cpu_capability():
        pytest.skip("the path of this process: its tests run here")
    result = subprocess.run(
        [
            sys.executable,
            "-m",
            "pytest",
            "-q",
            "-m",
            "paths and alone" if place == "alone" else "paths and not alone",
            "--tb=short",
            "-p",
            "no:cacheprovider",
            *(p for p in TESTS.rglob("test_*.py") if "mark.paths" in p.read_text()),
        ],
        cwd=TESTS.parent,
        env=environment(capability),
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert result.returncode == 0, result.stdout[-6000:] + result.stderr[-2000:]
    assert " passed" in result.stdout
