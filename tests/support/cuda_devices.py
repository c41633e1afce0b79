"""Two ways to run the CUDA kernels: on a GPU, and on the emulator of tests/simt.

On the emulator tensors are on the CPU, the kernels and their host code are those of csrc/cuda, and
every tensor of a call is poisoned with NaN and has guard pages around it.
"""

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import ModuleType

import pytest
import simt_extension
import torch
from helpers import Case, Solver, Values, ours, theirs
from torch import Tensor

from fastlstm import cells
from fastlstm.dispatch import kernels, ops, precision

# What stays on the CPU: the host plans the steps with it.
_HOST = ("lengths", "batch_sizes")


@dataclass(frozen=True)
class Device:
    """Where the kernels of CUDA run.

    name: "cuda" or "simt". torch_device: of the tensors. allow_tf32: sets the switch of float32
    products.
    """

    name: str
    torch_device: str
    allow_tf32: Callable[[bool], None]

    def put(self, t: Tensor) -> Tensor:
        return t.to(self.torch_device)

    def _there(self, solver: Solver) -> Solver:
        if self.torch_device == "cpu":
            return solver

        def solve(case: Case, values: Values) -> Values:
            moved = {n: v if n in _HOST else self.put(v) for n, v in values.items()}
            return {n: v.cpu() for n, v in solver(case, moved).items()}

        return solve

    @property
    def ours(self) -> Solver:
        return self._there(ours)

    @property
    def theirs(self) -> Solver:
        """torch.nn on the same device."""
        return self._there(theirs)


def _set_cudnn_tf32(on: bool) -> None:
    torch.backends.cudnn.allow_tf32 = on


@contextlib.contextmanager
def _emulator() -> Iterator[ModuleType]:
    simt = simt_extension.load()
    with pytest.MonkeyPatch.context() as patch:
        for module in (kernels, ops, cells):
            patch.setattr(module, "_C", simt)
        patch.setattr(precision, "NATIVE_HALF", {"cpu"})
        simt.guard_memory(True)
        try:
            yield simt
        finally:
            simt.guard_memory(False)


@contextlib.contextmanager
def device(name: str) -> Iterator[Device]:
    """The device called ``name``, with TF32 off."""
    if name == "cuda":
        before = torch.backends.cudnn.allow_tf32
        _set_cudnn_tf32(False)
        try:
            yield Device(name, "cuda", _set_cudnn_tf32)
        finally:
            _set_cudnn_tf32(before)
        return
    with _emulator() as simt:
        simt.set_seed(0)
        simt.allow_tf32(False)
        yield Device(name, "cpu", simt.allow_tf32)


def why_no_gpu() -> str | None:
    """One line that says why the kernels cannot run on a GPU here; None where they can."""
    if not torch.cuda.is_available():
        return "needs a GPU and a build for it: `make gpu-check` on such a machine runs it"
    if not kernels._C.cuda_arch_list():
        return "fastlstm is built without CUDA: FORCE_CUDA=1 builds it"
    return None


on_gpu = [pytest.mark.cuda, pytest.mark.skipif(why_no_gpu() is not None, reason=str(why_no_gpu()))]
# With the kernels that are asked for: FASTLSTM_CUDA_KERNEL.
EVERY_DEVICE = [
    pytest.param(("simt", "stepwise"), id="simt-stepwise"),
    pytest.param(("simt", "auto"), id="simt-auto"),
    pytest.param(("cuda", "stepwise"), id="cuda-stepwise", marks=on_gpu),
    pytest.param(("cuda", "auto"), id="cuda-auto", marks=on_gpu),
]

DTYPES = {"f32": torch.float32, "f64": torch.float64, "bf16": torch.bfloat16, "f16": torch.float16}
SLOW = ("f64", "f16")  # one of 32 bits and more, one of 16 are enough for `make test-fast`
PARAMETERS = {
    name: pytest.param(dtype, id=name, marks=[pytest.mark.slow] * (name in SLOW))
    for name, dtype in DTYPES.items()
}
dtypes = pytest.mark.parametrize("dtype", PARAMETERS.values())
# Where the truth is float64: the kernels of a step in float64 are those of test_parity.
below_f64 = pytest.mark.parametrize("dtype", [p for n, p in PARAMETERS.items() if n != "f64"])
