"""gpu/smoke.py: which tiny layers it calls, by which kernels, and what it says of them."""

from __future__ import annotations

import pytest
import simt_extension
import torch
from bench_stand_ins import plant
from cuda_devices import device

import fastlstm
from benchmarks.common.providers import CELLS, STEPS
from benchmarks.gpu import smoke
from benchmarks.gpu.kernels import METHODS, PERSISTENT, method_of

persistent = pytest.mark.parametrize("method", PERSISTENT)


def test_every_cell_in_every_dtype_step_by_step() -> None:
    calls = list(smoke.calls("stepwise"))
    kinds = {(call.cell.name, call.dtype, call.ragged) for call in calls}
    assert len(kinds) == len(smoke.DTYPES) * (2 * len(CELLS) + len(STEPS))


@persistent
def test_every_kernel_of_a_method(method: str) -> None:
    """Of every cell and dtype, with every number of units or class of H, and all possible."""
    shapes: dict[tuple, set[int]] = {}
    for call in smoke.calls(method):
        assert method_of(call.word) == method
        for backward in (False, True):
            sizes = {name: getattr(call.shape, name) for name in "TNH"}
            sizes["directions"] = 2 if call.ragged else 1
            asked = {"mode": call.cell.mode, "backward": backward, "wanted": call.word}
            asked |= {"dtype": call.dtype, "tf32": call.tf32}
            found = simt_extension.load().cuda_choice(**asked, **sizes)
            assert found["method"] == method, call
        kind = (call.cell.name, call.dtype, call.tf32, call.ragged)
        shapes.setdefault(kind, set()).add(found["units"] if method != "block" else call.shape.H)
    precisions = 4 if method == "grid" else 3
    assert len(shapes) == len(CELLS) * precisions * 2
    if method != "block":
        assert set(map(frozenset, shapes.values())) == {frozenset({16, 32, 48})}
    else:
        largest = {kind[:2] for kind, sizes in shapes.items() if sizes == {33, 120, 170}}
        half = (torch.bfloat16, torch.float16)
        assert largest == {(cell, dtype) for cell in ("lstm", "gru") for dtype in half}


def test_each_call_is_said_before_it_begins(monkeypatch, capsys) -> None:
    def fail(_) -> None:
        raise RuntimeError("an illegal memory access")

    plant(monkeypatch, fail)
    with pytest.raises(RuntimeError, match="illegal"):
        smoke.main(["--device", "cpu", "--methods", "grid"])
    assert capsys.readouterr().out == "grid:16x3x16x1: lstm torch.float32 TF32 3,9,5,33\n"


def test_number_that_is_not_finite_is_wrong(monkeypatch, capsys) -> None:
    monkeypatch.setattr(smoke, "SHAPES", smoke.SHAPES[:1])
    assert smoke.main(["--device", "cpu"]) == 0
    out = capsys.readouterr().out
    count = sum(len(list(smoke.calls(method))) for method in METHODS)
    assert f"{count} calls, 0 wrong" in out

    def spoil(module) -> None:
        if isinstance(module, torch.nn.GRUCell):
            module.weight_hh.register_hook(lambda grad: grad * torch.nan)

    plant(monkeypatch, spoil, of="torch")
    monkeypatch.setattr(smoke, "DTYPES", (torch.float32,))
    assert smoke.main(["--device", "cpu", "--methods", "stepwise"]) == 1
    assert "gru_cell torch.float32 3,5,3,7: not finite" in capsys.readouterr().out


@persistent
def test_kernels_are_those_that_are_asked_for(method: str, monkeypatch) -> None:
    """On the emulator, where a build that says so is found out if it computes step by step."""
    call = next(c for c in smoke.calls(method) if c.ragged and c.dtype == torch.bfloat16)
    cuda_choice = simt_extension.load().cuda_choice
    monkeypatch.setattr(fastlstm._C, "cuda_choice", cuda_choice, raising=False)
    with device("simt"):
        assert all(t.isfinite().all() for t in call.run("cpu"))
    assert smoke.is_taken(call)
    never = {"method": "stepwise", "step_us": 1.0}
    monkeypatch.setattr(fastlstm._C, "cuda_choice", lambda **_: never)
    assert not smoke.is_taken(call)
