"""Runs persistent kernels without torch (persistent_driver.cpp), from sources with planted faults."""

import ctypes
import os
import shutil
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import numpy as np
import simt_extension
import simt_selftest
from numpy.typing import NDArray

FAMILIES = ("block", "cluster", "grid")
KINDS = ("forward", "f32", "backward")
STEPS, ROWS, UNITS = 5, 10, 40  # the last row has no steps
SIZE = 8720  # numbers that a run gives at most


class Plan(ctypes.Structure):
    """GroupPlan of csrc/cuda/persistent/group/layout.h."""

    _fields_ = [(name, ctypes.c_int) for name in ("units", "blocks", "rows", "groups")]

    def __str__(self) -> str:
        return f"{self.units}x{self.blocks}x{self.rows}x{self.groups}"


class _Run(ctypes.Structure):
    _fields_ = [
        ("seed", ctypes.c_uint64),
        ("family", ctypes.c_int),
        ("rows", ctypes.c_int),
        ("groups", ctypes.c_int),
        ("reverse", ctypes.c_int),
        ("split", ctypes.c_int),
        ("with_nan", ctypes.c_int),
        ("garbage", ctypes.c_int),
        ("absent", ctypes.c_int),
    ]


@dataclass(frozen=True)
class Launch:
    """What to run; persistent_driver.cpp says what each means."""

    family: str
    kind: str = "forward"
    rows: int = 8
    groups: int = 2
    reverse: bool = False
    split: int = 0
    with_nan: bool = False
    garbage: bool = False
    absent: int = 0

    def __str__(self) -> str:
        words = [self.family, self.kind]
        words += [
            f"{f.name}{int(getattr(self, f.name))}"
            for f in fields(self)[2:]
            if getattr(self, f.name) != f.default
        ]
        return "-".join(words)


@dataclass(frozen=True)
class Change:
    """Of a file of csrc/cuda: the first `old` behind `place` becomes `new`.

    In `new`, FAULT stands for whether this fault is on.
    """

    file: str
    place: str
    old: str
    new: str

    def make(self, csrc: Path, number: int = 0) -> None:
        source = csrc / "cuda" / self.file
        before, place, after = source.read_text().partition(self.place)
        assert place, f"{self.file} has no {self.place!r}"
        between, old, after = after.partition(self.old)
        assert old, f"{self.file} has no {self.old!r} behind {self.place!r}"
        new = self.new.replace("FAULT", f"(planted == {number})")
        source.write_text(before + place + between + new + after)


def without(file: str, place: str, statement: str) -> Change:
    return Change(file, place, statement, f"if (!FAULT) {statement}")


def instead(file: str, place: str, right: str, wrong: str) -> Change:
    # So that the next fault, if it is of the same expression, is in the right one.
    return Change(file, place, right, f"(!FAULT ? {right} : {wrong})")


# Waits in vain shall end soon. And a NaN in 16 bits may have all of them set: no conversion of today
# makes such a one, but the exchange on a grid is not to depend on that. (Those of float32 stay as
# they are.)
_CHANGES = (
    Change("device/device.cuh", "constexpr int kMostLooks", "1 << 28", "1 << 12"),
    Change(
        "device/half.cuh",
        "explicit BFloat16(float value)",
        "bfloat16_from_float(value)",
        "nan_is_all_ones && value != value ? 0xffff : bfloat16_from_float(value)",
    ),
)


class Driver:
    """The kernels of csrc, in which ``faults`` can be turned on."""

    def __init__(self, folder: Path, faults: dict[str, Change]) -> None:
        simt_extension.load()
        csrc = Path(shutil.copytree(simt_extension.CSRC, folder / "csrc"))
        for change in _CHANGES:
            change.make(csrc)
        self._numbers = {name: number for number, name in enumerate(faults, 1)} | {"": 0}
        for name, fault in faults.items():
            fault.make(csrc, self._numbers[name])
        command = [os.environ.get("CXX", "g++"), "-std=c++17", "-O1", "-shared", "-fPIC"]
        command += ["-DFASTLSTM_SIMT", f"-I{csrc}", f"-I{simt_selftest.SIMT}"]
        command += [str(Path(__file__).with_suffix(".cpp"))]
        objects = [simt_extension.BUILD / f"{path.stem}.o" for path in simt_selftest.EMULATOR]
        objects += [
            simt_extension.BUILD / f"persistent_group_{way}_f16_cu.o" for way in ("fwd", "bwd")
        ]
        self._library = simt_selftest.build(command, objects)

    def run(self, launch: Launch, *, seed: int = 0, fault: str = "") -> NDArray:
        """The results, one after the other. Raises RuntimeError with the words of the emulator."""
        named = asdict(launch)
        kind, family = KINDS.index(named.pop("kind")), FAMILIES.index(named.pop("family"))
        run = _Run(seed=seed, family=family, **named)
        out = np.zeros(SIZE, np.float32)
        self._call(
            "run_driver",
            ctypes.byref(run),
            kind,
            self._numbers[fault],
            out.ctypes.data_as(ctypes.c_void_p),
        )
        return out

    def run_plan(self, plan: Plan, *, backward: bool, cluster: bool, units: int) -> None:
        """Ask for the kernels of float16 for a layer of so many units, which has no memory."""
        self._call("run_plan", backward, cluster, units, ctypes.byref(plan))

    def set_max_resident_blocks(self, blocks: int) -> None:
        self._library.set_max_resident_blocks(blocks)

    def _call(self, name: str, *arguments: object) -> None:
        error = ctypes.create_string_buffer(4096)
        if getattr(self._library, name)(*arguments, error, ctypes.c_size_t(len(error))):
            raise RuntimeError(error.value.decode())
