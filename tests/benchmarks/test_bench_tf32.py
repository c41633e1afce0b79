"""What products in TF32 are held to where torch.nn takes float32 all the same."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks import bench_cells
from benchmarks.common import equality, tf32
from benchmarks.common.equality import Problem
from benchmarks.common.providers import CELLS, PROVIDERS
from benchmarks.common.shapes import Shape
from benchmarks.common.tf32 import TORCH_TF32

SHAPE = Shape(20, 8, 33, 17)
cells = pytest.mark.parametrize("cell", ["lstm", "gru", "rnn"])


def test_rounding_is_to_the_nearest_of_ten_bits() -> None:
    x = torch.tensor([1.0, 1 + 2**-10, 1 + 2**-11, 1 + 2**-12, -1 - 2**-11, 3.14159274])
    expected = [1.0, 1 + 2**-10, 1 + 2**-10, 1.0, -1 - 2**-10, 3.140625]
    assert tf32.rounded(x).tolist() == expected
    assert torch.equal(tf32.rounded(x[None].t()), tf32.rounded(x)[:, None])


class Checked(TorchDispatchMode):
    """Counts the products that get this far, by name, and those with operands that are not TF32."""

    def __init__(self) -> None:
        super().__init__()
        self.products: Counter[str] = Counter()
        self.not_rounded: Counter[str] = Counter()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function.overloadpacket.__name__
        if name in ("linear", "matmul") or "mm" in name:
            self.products[name] += 1
            operands = args[-2:]
            exact = all(torch.equal(tf32.rounded(operand), operand) for operand in operands)
            self.not_rounded[name] += not exact
        return function(*args, **(kwargs or {}))


@cells
def test_no_product_escapes_the_rounding(cell: str) -> None:
    problem = Problem(CELLS[cell], SHAPE, "train", torch.float32)
    # Further out: it sees what the rounding has passed on.
    with Checked() as checked:
        problem.results(TORCH_TF32, torch.float32, with_state=True)
    assert {"addmm", "mm"} <= set(checked.products)
    assert sum(checked.products.values()) >= 3 * SHAPE.T
    assert not checked.not_rounded.total()
    with Checked() as checked:
        problem.results(PROVIDERS["torch-native"], torch.float32, with_state=True)
    assert checked.not_rounded.total()


@cells
def test_errors_are_those_of_ten_bits(cell: str) -> None:
    problem = Problem(CELLS[cell], SHAPE, "train", torch.float32)
    rounded = problem.results(TORCH_TF32, torch.float32, with_state=True)
    plain = problem.results(PROVIDERS["torch-native"], torch.float32, with_state=True)
    truth = problem.truth(with_state=True)
    for name, value in rounded.items():
        if name.startswith("grad bias"):
            continue  # a sum without a product of its own
        error = equality.largest(value.double() - truth[name])
        assert error > 20 * equality.largest(plain[name].double() - truth[name]), name
        assert error < 0.02 * equality.largest(truth[name]), name
    assert torch.backends.cudnn.enabled


def test_float32_of_torch_is_no_yardstick_for_tf32(monkeypatch) -> None:
    problem = Problem(CELLS["lstm"], SHAPE, "infer", torch.float32)
    assert "output" in str(equality.check(problem, TORCH_TF32).failures)
    monkeypatch.setattr(equality, "may_be_tf32", lambda _: True)
    # Anew: what a problem is held to is kept.
    problem = Problem(CELLS["lstm"], SHAPE, "infer", torch.float32)
    verdict = equality.check(problem, TORCH_TF32)
    assert verdict.failures == []
    assert any(line.startswith("output: error") for line in verdict.remarks)
    assert equality.check(problem, PROVIDERS["torch-native"]) == ([], [])


def test_twice_the_error_of_tf32_is_the_bound() -> None:
    truth = {"y": torch.tensor([1.0, 2.0], dtype=torch.float64)}
    exact = {"y": torch.tensor([1.0, 2.0])}
    rounded = {"y": torch.tensor([1.001, 2.0])}
    yardstick = equality.larger_errors(truth, exact, rounded)
    assert yardstick["y"] is rounded["y"]
    for error, wrong in ((0.0019, 0), (0.0022, 1)):
        ours = {"y": torch.tensor([1.0, 2.0 + error])}
        assert len(equality.compare(truth, yardstick, ours, torch.float32)) == wrong


@pytest.mark.parametrize(
    "dtype, device, allowed, expected",
    [
        (torch.float32, "cuda", True, True),
        (torch.float32, "cuda", False, False),
        (torch.float32, "cpu", True, False),
        (torch.bfloat16, "cuda", True, False),
    ],
)
def test_tf32_is_where_it_may_be(
    dtype: torch.dtype, device: str, allowed: bool, expected: bool, monkeypatch
) -> None:
    problem = Problem(CELLS["lstm"], SHAPE, "infer", dtype)
    problem.device = device
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", allowed)
    assert equality.may_be_tf32(problem) is expected


def test_remark_is_a_line_below_its_row(monkeypatch, capsys) -> None:
    monkeypatch.setattr(equality, "may_be_tf32", lambda _: True)
    monkeypatch.setitem(PROVIDERS, "fastlstm", TORCH_TF32)
    argv = "--shape 20,8,33,17 --cells lstm --mode infer --seconds 0.01 --threads 1"
    assert bench_cells.main(argv.split()) == 0
    out = capsys.readouterr().out
    assert "RED" not in out
    assert "torch.nn does not round to TF32: output: error" in out
