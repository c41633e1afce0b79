"""Threads of every kind around a call: torch's own, Python's, and forked processes."""

import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from error_rule import assert_same
from helpers import Case, cases, ours, solve

import fastlstm


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


FORK = """
import os, sys, torch, fastlstm
torch.manual_seed(0)
torch.set_num_threads(2)
lstm = fastlstm.LSTM(5, 96, 2, bidirectional=True)
x = torch.randn(7, 13, 5)

def run():
    lstm.zero_grad()
    lstm(x)[0].square().sum().backward()
    return [p.grad.clone() for p in lstm.parameters()]

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


@pytest.mark.skipif(not hasattr(__import__("os"), "fork"), reason="no fork on this system")
@pytest.mark.parametrize("script", [FORK, DATA_LOADER], ids=["fork", "data_loader"])
def test_after_fork(script: str) -> None:
    """torch's workers set one thread after the fork, since OpenMP's threads do not survive it."""
    result = subprocess.run(
        [sys.executable, "-c", script], timeout=120, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr


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


def test_denormal_gradients_are_not_slow() -> None:
    """With the loss on the last step alone, the gradient dies away through the denormals."""
    torch.set_num_threads(1)
    case = Case(300, 16, 1, 64)
    values = case.problem(torch.float32)
    values["b_ih_0"][64:128] = -1.0
    leaves = {n: v.requires_grad_() for n, v in values.items()}
    results = ours(case, leaves)

    def backward_time(cotangent: torch.Tensor) -> float:
        times = []
        for _ in range(7):
            start = time.perf_counter()
            torch.autograd.grad(
                results["output"], list(leaves.values()), cotangent, retain_graph=True
            )
            times.append(time.perf_counter() - start)
        return min(times)

    everywhere = torch.randn_like(results["output"])
    last = torch.zeros_like(everywhere)
    last[-1] = everywhere[-1]
    assert backward_time(last) < 3 * backward_time(everywhere)
