"""Threads of every kind around a call: torch's own, Python's, and forked processes."""

import os
import platform
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
import torch
from error_rule import assert_same
from helpers import Case, cases, modes, ours, plain, solve, wide

import fastlstm

pytestmark = pytest.mark.alone


@cases(Case(9, 2, 3, 500), Case(5, 50, 7, 64), Case(5, 3, 4, 18, layers=2, bidirectional=True))
@pytest.mark.parametrize(("before", "after"), [(1, 2), (2, 1), (2, 5)])
def test_number_of_threads_changes_before_backward(case: Case, before: int, after: int) -> None:
    values, cotangents = case.problem(torch.float32), case.cotangents(torch.float32)
    torch.set_num_threads(1)
    expected = solve(ours, case, values, cotangents)

    torch.set_num_threads(before)
    leaves = {n: v.clone().requires_grad_() for n, v in values.items()}
    results = ours(case, leaves)
    torch.set_num_threads(after)
    grads = torch.autograd.grad(
        list(results.values()), list(leaves.values()), list(cotangents.values())
    )
    found = {n: r.detach() for n, r in results.items()}
    found |= {f"grad {n}": g for n, g in zip(leaves, grads, strict=True)}
    assert_same(found, expected)


def test_many_python_threads_at_once() -> None:
    case = Case(20, 5, 7, 65)
    jobs = [
        (case.problem(torch.float32, seed), case.cotangents(torch.float32, seed))
        for seed in range(24)
    ]
    torch.set_num_threads(2)
    expected = [solve(ours, case, *job) for job in jobs]

    def run(job):
        torch.set_num_threads(2)
        return solve(ours, case, *job)

    with ThreadPoolExecutor(max_workers=6) as pool:
        for found, wanted in zip(pool.map(run, jobs), expected, strict=True):
            assert_same(found, wanted)


def test_backward_in_another_thread() -> None:
    case = Case(9, 5, 3, 65)
    values, cotangents = case.problem(torch.float32), case.cotangents(torch.float32)
    expected = solve(ours, case, values, cotangents)
    leaves = {n: v.clone().requires_grad_() for n, v in values.items()}
    results = ours(case, leaves)

    def backward():
        return torch.autograd.grad(
            list(results.values()), list(leaves.values()), list(cotangents.values())
        )

    with ThreadPoolExecutor(max_workers=1) as pool:
        grads = pool.submit(backward).result()
    for name, grad in zip(leaves, grads, strict=True):
        assert torch.equal(grad, expected[f"grad {name}"]), name


def _longest_silence_during(call: Callable[[], object]) -> tuple[float, float]:
    """Run ``call``; return how long it took, and how long another thread stood still meanwhile."""
    beats, stop = [], threading.Event()

    def beat() -> None:
        while not stop.is_set():
            beats.append(time.perf_counter())
            time.sleep(0.001)

    thread = threading.Thread(target=beat)
    thread.start()
    time.sleep(0.05)
    start = time.perf_counter()
    call()
    end = time.perf_counter()
    time.sleep(0.01)
    stop.set()
    thread.join()
    times = [t for t in beats if start <= t <= end]
    times = [start, *times, end]
    return end - start, max(b - a for a, b in zip(times, times[1:], strict=False))


def test_python_runs_on_during_a_long_call() -> None:
    """The interpreter lock is released, forward and backward."""
    torch.set_num_threads(1)
    lstm = fastlstm.LSTM(1, 512)
    x = torch.randn(400, 16, 1)
    results = []
    for call in (lambda: results.append(lstm(x)[0]), lambda: results[0].sum().backward()):
        took, silence = _longest_silence_during(call)
        assert silence < max(0.3 * took, 0.05), f"{silence:.3f} s of {took:.3f} s"


GRADIENTS = """
import os, signal, sys, time, torch, fastlstm
torch.manual_seed(0)
torch.set_num_threads(2)

def run():
    lstm.zero_grad()
    lstm(x)[0].square().sum().backward()
    return [p.grad.clone() for p in lstm.parameters()]
"""

FORK = f"""{GRADIENTS}
lstm, x = fastlstm.LSTM(5, 96, 2, bidirectional=True), torch.randn(7, 13, 5)
expected = run()
children = []
for _ in range(3):
    pid = os.fork()
    if pid == 0:
        torch.set_num_threads(1)
        os._exit(0 if all(map(torch.equal, run(), expected)) else 3)
    children.append(pid)
codes = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in children]
assert all(map(torch.equal, run(), expected))
sys.exit(max(codes))
"""

# The child leaves its number of threads alone: the tensors of torch's own operations are small
# enough that none of them asks for a second thread, which it would wait for forever.
FORK_WITH_THREADS = f"""{GRADIENTS}
lstm, x = fastlstm.LSTM(5, 64, bidirectional=True), torch.randn(7, 16, 5)
expected = run()
pid = os.fork()
if pid == 0:
    same = False
    try:
        same = torch.get_num_threads() == 2 and all(map(torch.equal, run(), expected))
    finally:
        os._exit(0 if same else 3)
deadline = time.monotonic() + 30
while not (ended := os.waitpid(pid, os.WNOHANG))[0]:
    if time.monotonic() > deadline:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        sys.exit("the child hangs")
    time.sleep(0.01)
sys.exit(os.waitstatus_to_exitcode(ended[1]))
"""

DATA_LOADER = """
import torch, fastlstm

lstm = fastlstm.LSTM(5, 33)
x = torch.randn(7, 4, 5)
with torch.no_grad():
    expected = lstm(x)[0]

class Features(torch.utils.data.Dataset):
    def __len__(self):
        return 8

    def __getitem__(self, k):
        with torch.no_grad():
            return lstm(x)[0]

for batch in torch.utils.data.DataLoader(Features(), batch_size=2, num_workers=2):
    for y in batch:
        assert torch.equal(y, expected)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
@pytest.mark.parametrize(
    "script",
    [FORK, FORK_WITH_THREADS, DATA_LOADER],
    ids=["fork", "fork_with_threads", "data_loader"],
)
def test_after_fork(script: str) -> None:
    """OpenMP's threads do not survive it: torch's workers set one thread, a layer takes one."""
    assert_runs(script)


def assert_runs(script: str, **environment: str) -> None:
    result = subprocess.run(
        [sys.executable, "-c", script],
        timeout=120,
        capture_output=True,
        text=True,
        env=os.environ | environment,
    )
    assert result.returncode == 0, result.stderr


# Threads of the first share rows, those of the second hidden units, and wait for each other.
SMALL_TEAM = """
import torch, fastlstm
torch.manual_seed(0)
for N, H in ((50, 64), (2, 200)):
    lstm, x = fastlstm.LSTM(3, H, bidirectional=True), torch.randn(5, N, 3)
    results = []
    for threads in (1, 2, 5):
        torch.set_num_threads(threads)
        assert torch.get_num_threads() == threads
        lstm.zero_grad()
        output, _ = lstm(x)
        output.square().sum().backward()
        results.append([output.detach(), *(p.grad for p in lstm.parameters())])
    for other in results[1:]:
        assert all(map(torch.equal, results[0], other)), (N, H)
"""


@pytest.mark.parametrize("limit", ["1", "2"])
def test_a_team_may_be_smaller_than_asked_for(limit: str) -> None:
    assert_runs(SMALL_TEAM, OMP_THREAD_LIMIT=limit)


def _denormals_live() -> bool:
    """Whether torch keeps denormal numbers, on this thread and on those of its pool."""
    big = torch.full((1 << 20,), 1e-40)
    return bool((big * 0.5 != 0).all()) and bool(torch.tensor([1e-40]) * 0.5 != 0)


@pytest.mark.parametrize("threads", [1, 2])
def test_denormals_of_others_are_left_alone(threads: int) -> None:
    torch.set_num_threads(threads)
    case = Case(5, 13, 3, 65)
    assert _denormals_live()
    solve(ours, case, case.problem(torch.float32), case.cotangents(torch.float32))
    assert _denormals_live()


def test_flush_denormal_stays_set() -> None:
    if not torch.set_flush_denormal(True):
        pytest.skip("torch cannot flush denormals on this machine")
    torch.set_num_threads(1)
    case = Case(5, 13, 3, 65)
    solve(ours, case, case.problem(torch.float32), case.cotangents(torch.float32))
    assert torch.tensor([1e-40]) * 0.5 == 0


on_x86 = pytest.mark.skipif(
    platform.machine() not in ("x86_64", "AMD64"), reason="denormals are flushed on x86 alone"
)
# Enough work for two threads in every product.
BIG = Case(3, 60, 16, 130, bias=False, state=False)


@on_x86
@pytest.mark.paths
@pytest.mark.parametrize("threads", [1, 2])
@modes
def test_denormal_operands_count_as_zero(mode: str, threads: int) -> None:
    """On x86 arithmetic with them is up to 20 times slower."""
    case = replace(BIG, mode=mode)
    values = case.problem(torch.float32)
    values |= {"x": torch.full_like(values["x"], 1e-39), "w_hh_0": values["w_hh_0"].abs()}
    values |= {"w_ih_0": torch.full_like(values["w_ih_0"], 1e38)}
    assert plain(case, wide(values))["output"].abs().min() > 0.1
    torch.set_num_threads(threads)
    assert not solve(ours, case, values, None)["output"].any()


@on_x86
@pytest.mark.paths
@pytest.mark.parametrize("threads", [1, 2])
def test_denormal_results_are_zero(threads: int) -> None:
    """h behind an output gate that is shut, and the gradient of c0 behind a forget gate."""
    case = replace(BIG, T=1, bias=True, state=True)
    values = case.problem(torch.float32)
    values = {n: torch.zeros_like(v) if n[0] in "wb" else v for n, v in values.items()}
    values["b_ih_0"] = torch.tensor([0.0, -60.0, 0.02, -85.0]).repeat_interleave(case.H)
    cotangents = {n: torch.zeros_like(g) for n, g in case.cotangents(torch.float32).items()}
    cotangents["c_n"] += 1e-14
    names = ("output", "grad c0")
    true = solve(plain, case, wide(values), wide(cotangents))
    for name in names:
        assert true[name].all() and true[name].abs().max() < 1e-38, name
    torch.set_num_threads(threads)
    found = solve(ours, case, values, cotangents)
    for name in names:
        assert not found[name].any(), name
