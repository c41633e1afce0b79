"""Which kernels CUDA takes for a problem on a device (csrc/cuda/choice/), asked without a GPU."""

import math
from dataclasses import dataclass
from typing import NamedTuple

import pytest
import simt_extension
from helpers import GATES

KIB = 1024
WORDS = ("auto", "stepwise", "block", "cluster", "grid")
CELLS = {name: index for index, name in enumerate(GATES)}


@dataclass(frozen=True)
class Device:
    capability: int
    multiprocessors: int
    shared_bytes: int
    clusters_of_8: int = 0
    clusters_of_16: int = 0
    compiled_for: int = 120  # the newest architecture; the device runs no newer code than its own

    def clusters(self, blocks: int) -> int:
        return self.clusters_of_8 if blocks <= 8 else self.clusters_of_16


H100 = Device(90, 132, 227 * KIB, 16, 7)
A100 = Device(80, 108, 163 * KIB)
RTX_4090 = Device(89, 128, 99 * KIB)
T4 = Device(75, 40, 64 * KIB)
DEVICES = {"h100": H100, "a100": A100, "rtx_4090": RTX_4090, "t4": T4}
devices = pytest.mark.parametrize("device", DEVICES.values(), ids=DEVICES)
words = pytest.mark.parametrize("wanted", WORDS)


class Dtype(NamedTuple):
    element_bytes: int
    is_bfloat16: bool = False
    tf32: bool = False


DTYPES = {
    "bf16": Dtype(2, is_bfloat16=True),
    "f16": Dtype(2),
    "tf32": Dtype(4, tf32=True),
    "f32": Dtype(4),
    "f64": Dtype(8),
}


@dataclass(frozen=True)
class Problem:
    H: int
    N: int = 16
    T: int = 1000
    cell: str = "LSTM"
    dtype: Dtype = DTYPES["bf16"]
    backward: bool = False
    directions: int = 1
    projected: bool = False

    @property
    def block_shared_bytes(self) -> int:
        return simt_extension.load().block_shared_bytes(
            cell=CELLS[self.cell],
            backward=self.backward,
            H=self.H,
            element_bytes=self.dtype.element_bytes,
            tf32=self.dtype.tf32,
        )

    def jobs(self, rows: int) -> int:
        return self.directions * math.ceil(self.N / rows)


class Choice(NamedTuple):
    method: str
    units: int
    blocks: int
    rows: int
    groups: int
    shared_bytes: int
    step_us: float


def choose(problem: Problem, device: Device, wanted: str = "auto") -> Choice:
    simt = simt_extension.load()
    found = simt.choose(
        cell=CELLS[problem.cell],
        backward=problem.backward,
        T=problem.T,
        N=problem.N,
        H=problem.H,
        directions=problem.directions,
        **problem.dtype._asdict(),
        projected=problem.projected,
        block_shared_bytes=problem.block_shared_bytes,
        device=native(device),
        wanted=wanted,
    )
    return Choice(**found)


def native(device: Device) -> object:
    compiled_for = min(device.compiled_for, device.capability)
    properties = vars(device) | {"compiled_for": compiled_for}
    return simt_extension.load().DeviceProperties(**properties)
