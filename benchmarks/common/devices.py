"""Where contenders run, and what differs there: clock, peak, conditions, switches."""

from __future__ import annotations

import contextlib
import re
import statistics
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext

import torch

from benchmarks.common import machine
from benchmarks.common.shapes import Shape, flops
from benchmarks.common.timing import Contender, EventTimer, Timer, wall_timer

# Of one call: what the float64 run behind a check may take. With it a check lasts well under a
# second on a GPU with fast float64, and seconds on one without.
CHECKED_OPERATIONS = 2.5e11
MIN_CHECKED_STEPS = 8
PEAK_SAMPLES = 5
SHOWN_KERNELS = 3
LONGEST_NAME = 60


class Cpu:
    """The CPU, and what a device is asked.

    tensors: where tensors live, for torch. peak_field: the CSV column of the percentage of `peak`;
    peak_title: the same in a table.
    """

    name = tensors = "cpu"
    peak_field = "peak_percent"
    peak_title = "% peak"

    def timer(self) -> Timer:
        """Takes the samples of one pair of contenders."""
        return wall_timer()

    def host_timer(self) -> Timer | None:
        """Takes the time until a call returns; None where its work is done then."""
        return None

    def why_unusable(self) -> str | None:
        """One line that says why nothing can run here; None where something can."""
        return None

    def conditions(self) -> dict[str, str]:
        """The conditions of a run, one CSV column each."""
        return machine.environment(self.name)

    def precision(self, tf32: bool | None) -> AbstractContextManager:
        """Inside, float32 products may round their operands to TF32 where `tf32`. None: no."""
        return nullcontext()

    def peak(self, dtype: torch.dtype) -> float | None:
        """GFLOP/s that a call is held to; None where unknown."""
        # Anew for every row: the clock of a shared machine drifts.
        return machine.fma_peak(dtype, torch.get_num_threads())

    def synchronize(self) -> None:
        """Wait until all work is done. Raises RuntimeError where some of it has failed."""

    def clock_mhz(self) -> str:
        """The clock of the device at this moment; "" where unknown."""
        return ""

    def kernels(self, contender: Contender) -> str:
        """The kernels that take most of a call of `contender`; "" where unknown."""
        return ""

    def checked_shape(self, shape: Shape, gates: int) -> Shape:
        """`shape` with no more steps than can be checked in an affordable time."""
        return shape


class Cuda(Cpu):
    """The current CUDA device."""

    name = tensors = "cuda"
    peak_field = "matmul_percent"
    peak_title = "% matmul"
    matmul_size = 8192

    def __init__(self) -> None:
        self._peaks: dict[tuple[torch.dtype, bool], float] = {}

    def synchronize(self) -> None:
        torch.cuda.synchronize()

    def timer(self) -> Timer:
        return EventTimer(lambda: torch.cuda.Event(enable_timing=True))

    def host_timer(self) -> Timer:
        return wall_timer(synchronize=self.synchronize)

    def why_unusable(self) -> str | None:
        if torch.version.cuda is None:
            return f"torch {torch.__version__} is built without CUDA"
        if not torch.cuda.is_available():
            return f"torch {torch.__version__} for CUDA {torch.version.cuda} finds no GPU"
        return None

    def precision(self, tf32: bool | None) -> AbstractContextManager:
        return tf32_switches(bool(tf32))

    def peak(self, dtype: torch.dtype) -> float:
        key = dtype, torch.backends.cuda.matmul.allow_tf32
        if key not in self._peaks:
            self._peaks[key] = self._matmul_peak(dtype)
        return self._peaks[key]

    def _matmul_peak(self, dtype: torch.dtype) -> float:
        # float64 takes seconds at full size where a GPU has few units for it.
        size = self.matmul_size // (2 if dtype == torch.float64 else 1)
        # Random numbers: on zeros a GPU draws less power and clocks higher.
        a, b = (torch.randn(size, size, device=self.tensors).to(dtype) for _ in range(2))
        c = torch.empty_like(a)
        product = Contender("matmul", lambda: torch.mm(a, b, out=c))
        timer = self.timer()
        seconds = statistics.median(timer(product) for _ in range(PEAK_SAMPLES))
        return 2 * size**3 / seconds / 1e9

    def clock_mhz(self) -> str:
        try:
            return str(torch.cuda.clock_rate())
        # Without NVIDIA's Python bindings, or without the right to ask.
        except (ImportError, RuntimeError):
            return ""

    def kernels(self, contender: Contender) -> str:
        return heaviest(self.kernel_times(contender))

    def kernel_times(self, contender: Contender) -> Sequence[tuple[str, float]]:
        """Name and total time of every kernel of one call."""
        contender.prepare()
        activities = [torch.profiler.ProfilerActivity.CUDA]
        with torch.profiler.profile(activities=activities) as profile, contender.context():
            contender.run()
            self.synchronize()
        return [
            (event.key, event.self_device_time_total)
            for event in profile.key_averages()
            if event.device_type == torch.autograd.DeviceType.CUDA
        ]

    def checked_shape(self, shape: Shape, gates: int) -> Shape:
        step = flops(gates, shape._replace(T=1), "train")
        steps = max(MIN_CHECKED_STEPS, int(CHECKED_OPERATIONS / step))
        return shape._replace(T=min(shape.T, steps))


@contextlib.contextmanager
def tf32_switches(allowed: bool) -> Iterator[None]:
    """Both of torch's switches, that of cuDNN (and fastlstm) and that of matmul."""
    backends = (torch.backends.cudnn, torch.backends.cuda.matmul)
    before = [backend.allow_tf32 for backend in backends]
    for backend in backends:
        backend.allow_tf32 = allowed
    try:
        yield
    finally:
        for backend, was_allowed in zip(backends, before, strict=True):
            backend.allow_tf32 = was_allowed


def heaviest(times: Sequence[tuple[str, float]]) -> str:
    """The two or three kernels that take most of the time in `times` (name, time), with their
    shares: "gemm 62 %; cell 30 %". A third one only if it takes a tenth. "" where there is none."""
    total = sum(time for _, time in times)
    if total <= 0:
        return ""
    merged: dict[str, float] = {}
    for name, time in times:
        merged[trimmed(name)] = merged.get(trimmed(name), 0.0) + time
    ordered = sorted(merged.items(), key=lambda item: -item[1])[:SHOWN_KERNELS]
    shown = [item for rank, item in enumerate(ordered) if rank < 2 or item[1] >= total / 10]
    return "; ".join(f"{name} {100 * time / total:.0f} %" for name, time in shown)


def trimmed(name: str) -> str:
    """The `name` of a kernel without return type, namespaces, template arguments and parameters,
    short enough for a column."""
    name = name.replace("(anonymous namespace)::", "")
    # All of CUTLASS's kernels are called alike: what they are is their argument.
    name = re.sub(r"\bcutlass::Kernel2?<(\w+)", r"\1<", name)
    while (shorter := re.sub(r"<[^<>]*>", "", name)) != name:
        name = shorter
    name = name.partition("(")[0].removeprefix("void ").strip()
    return name.rpartition("::")[2][:LONGEST_NAME]


DEVICES: dict[str, Callable[[], Cpu]] = {"cpu": Cpu, "cuda": Cuda}
