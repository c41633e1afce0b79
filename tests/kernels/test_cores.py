"""How many threads a call takes: never more than there are cores for it, fewer where others run."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from fastlstm import _C

pytestmark = pytest.mark.alone
linux = pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="Linux sets the affinity")


@linux
def test_no_more_threads_than_cores_of_the_affinity() -> None:
    available = os.sched_getaffinity(0)
    try:
        torch.set_num_threads(64)
        time.sleep(0.15)  # the affinity is asked for ten times a second
        assert _C.num_threads() <= len(available)
        os.sched_setaffinity(0, {min(available)})
        time.sleep(0.15)
        assert _C.num_threads() == 1
    finally:
        os.sched_setaffinity(0, available)
        time.sleep(0.15)
    assert _C.num_threads() == len(available) or _C.quota_cores() > 0


def test_torch_decides_where_there_are_cores() -> None:
    torch.set_num_threads(1)
    assert _C.num_threads() == 1


def write(root: Path, files: dict[str, str]) -> str:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return str(root)


@pytest.mark.parametrize(
    ("files", "cores"),
    [
        ({}, 0),
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "max 100000\n"}, 0),
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "350000 100000\n"}, 3),
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "50000 100000\n"}, 1),
        ({"proc/self/cgroup": "0::/a/b\n", "sys/fs/cgroup/a/cpu.max": "200000 100000\n"}, 2),
        (
            {
                "proc/self/cgroup": "0::/a/b\n",
                "sys/fs/cgroup/a/cpu.max": "200000 100000\n",
                "sys/fs/cgroup/a/b/cpu.max": "400000 100000\n",
            },
            2,
        ),
        # Version 1; in a container the path is often that of the host.
        (
            {
                "proc/self/cgroup": "5:cpuset:/x\n4:cpu,cpuacct:/docker/x\n",
                "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "200000\n",
                "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n",
            },
            2,
        ),
        (
            {
                "proc/self/cgroup": "4:cpu,cpuacct:/\n",
                "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1\n",
                "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n",
            },
            0,
        ),
        ({"proc/self/cgroup": "nonsense\n0::/a\n", "sys/fs/cgroup/a/cpu.max": "words\n"}, 0),
    ],
)
def test_cores_of_a_quota(tmp_path: Path, files: dict[str, str], cores: int) -> None:
    assert _C.quota_cores(write(tmp_path, files)) == cores


@pytest.fixture
def busy_cores() -> Iterator[None]:
    """Another process on every core."""
    code = "import os, sys\nos.sched_setaffinity(0, {int(sys.argv[1])})\nwhile True: pass"
    processes = [
        subprocess.Popen([sys.executable, "-c", code, str(core)])
        for core in os.sched_getaffinity(0)
    ]
    time.sleep(0.5)
    yield
    for process in processes:
        process.kill()
        process.wait()


CALLS = """
import statistics, time, torch, fastlstm
torch.set_num_threads(4)
ours, theirs = fastlstm.GRU(256, 256), torch.nn.GRU(256, 256)
x, times = torch.randn(100, 1, 256), ([], [])
with torch.no_grad():
    for k in range(60):
        for module, found in zip((ours, theirs), times):
            start = time.perf_counter()
            module(x)
            found.append(time.perf_counter() - start)
print(*(sum(found[10:]) for found in times))
"""


@linux
@pytest.mark.slow
@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="one core has no second thread")
def test_a_busy_machine_costs_no_more_than_it_costs_torch(busy_cores: None) -> None:
    """Threads that wait for each other at every step would take 3.4 times torch's time."""
    ours, theirs = map(
        float,
        subprocess.run(
            [sys.executable, "-c", CALLS], check=True, capture_output=True
        ).stdout.split(),
    )
    assert ours < 1.5 * theirs
