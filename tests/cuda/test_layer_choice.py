"""Which kernels a layer takes (csrc/cuda/choice/), as `_C.cuda_choice` tells on CUDA."""

from dataclasses import replace

import pytest
import simt_extension
import torch
from choosing import DTYPES, GATES, H100, Choice, Problem, choose

MIB = 1 << 20
TYPES = {"bf16": torch.bfloat16, "f16": torch.float16, "f32": torch.float32, "f64": torch.float64}


@pytest.fixture(autouse=True)
def nothing_is_wanted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FASTLSTM_CUDA_KERNEL", raising=False)


def layer_choice(problem: Problem, **changes: object) -> Choice:
    """Of a layer with this problem, on the H100 that is emulated."""
    name = next(name for name, dtype in DTYPES.items() if dtype == problem.dtype)
    asked = {
        "mode": problem.cell,
        "backward": problem.backward,
        "T": problem.T,
        "N": problem.N,
        "H": problem.H,
        "dtype": torch.float32 if name == "tf32" else TYPES[name],
        "directions": problem.directions,
        "tf32": name == "tf32",
        "projected": problem.projected,
    }
    return Choice(**simt_extension.load().cuda_choice(**asked | changes))


@pytest.mark.parametrize("name", DTYPES)
@pytest.mark.parametrize("backward", [False, True], ids=["forward", "backward"])
@pytest.mark.parametrize("cell", GATES)
def test_choice_is_that_of_its_problem(name: str, backward: bool, cell: str) -> None:
    for H in (32, 300, 1024):
        problem = Problem(H, N=20, T=100, cell=cell, dtype=DTYPES[name], backward=backward)
        assert layer_choice(problem) == choose(problem, H100)
        assert layer_choice(problem, directions=2) == choose(replace(problem, directions=2), H100)
        assert layer_choice(problem, projected=True).method == "stepwise"


def test_forward_is_launched_in_chunks() -> None:
    """Of 128 MiB of input projections; backward has none."""
    H, N = 512, 64
    steps = 128 * MIB // (4 * 4 * H * N)
    for backward in (False, True):
        problem = Problem(H, N=N, T=100 * steps, backward=backward)
        launch = problem if backward else replace(problem, T=steps)
        assert layer_choice(problem, wanted="cluster") == choose(launch, H100, "cluster")
        assert choose(problem, H100, "cluster") != choose(
            replace(problem, T=steps), H100, "cluster"
        )


def test_what_is_left_out_is_as_the_environment_and_torch_say(monkeypatch) -> None:
    simt = simt_extension.load()
    problem = Problem(64, dtype=DTYPES["tf32"])
    monkeypatch.setenv("FASTLSTM_CUDA_KERNEL", "cluster")
    assert layer_choice(problem).method == "cluster"
    assert layer_choice(problem, wanted="grid").method == "grid"
    try:
        for allowed, method in ((True, "cluster"), (False, "stepwise")):
            simt.allow_tf32(allowed)
            assert layer_choice(problem, tf32=None).method == method
    finally:
        simt.allow_tf32(False)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"mode": "lstm"}, "mode must be LSTM, GRU, RNN_TANH or RNN_RELU, got lstm"),
        ({"N": -1}, "T, N and H must not be negative, got 1000, -1 and 64"),
        ({"directions": 3}, "directions must be 1 or 2, got 3"),
        ({"dtype": torch.int32}, "dtype must be torch.float64, float32, float16 or bfloat16, got "),
        ({"wanted": "fast"}, "FASTLSTM_CUDA_KERNEL must be auto, stepwise, block"),
    ],
    ids=str,
)
def test_what_is_wrong_is_said(change: dict, message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}"):
        layer_choice(Problem(64, N=1), **change)
