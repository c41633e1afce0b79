"""Where contenders run, and what differs there: clock, peak, conditions, switches."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Protocol

import torch

from benchmarks.common import machine
from benchmarks.common.shapes import Shape, flops
from benchmarks.common.timing import Contender, Event, EventTimer, Timer, WallTimer
from benchmarks.gpu.kernel_names import heaviest

# Of one call: what the float64 run behind a check may take. With it a check lasts well under a
# second on a GPU with fast float64, and seconds on one without.
CHECKED_OPERATIONS = 2.5e11
MIN_CHECKED_STEPS = 8
PEAK_SAMPLES = 5


class Device(Protocol):
    """A kind of device that contenders run on.

    tensors: where tensors live, for torch. peak_field: the CSV column of the percentage of `peak`;
    peak_title: the same in a table.
    """

    name: str
    tensors: str
    peak_field: str
    peak_title: str

    def timer(self) -> Timer:
        """Takes the samples of one pair of contenders."""

    def host_timer(self) -> Timer | None:
        """Takes the time until a call returns; None where its work is done then."""

    def why_unusable(self) -> str | None:
        """One line that says why nothing can run here; None where something can."""

    def conditions(self) -> dict[str, str]:
        """The conditions of a run, one CSV column each."""

    def precision(self, tf32: bool | None) -> AbstractContextManager:
        """Inside, float32 products may round their operands to TF32 where `tf32`. None: no."""

    def peak(self, dtype: torch.dtype) -> float | None:
        """GFLOP/s that a call is held to; None where unknown."""

    def synchronize(self) -> None:
        """Wait until all work is done. Raises RuntimeError where some of it has failed."""

    def clock_mhz(self) -> str:
        """The clock of the device at this moment; "" where unknown."""

    def kernels(self, contender: Contender) -> str:
        """The kernels that take most of a call of `contender`; "" where unknown."""

    def checked_shape(self, shape: Shape, gates: int) -> Shape:
        """`shape` with no more steps than can be checked in an affordable time."""


class Cpu:
    name = tensors = "cpu"
    peak_field = "peak_percent"
    peak_title = "% peak"

    def timer(self) -> Timer:
        return WallTimer()

    def host_timer(self) -> None:
        return None

    def why_unusable(self) -> None:
        return None

    def conditions(self) -> dict[str, str]:
        return machine.environment("cpu")

    def precision(self, tf32: bool | None) -> AbstractContextManager:
        return nullcontext()

    def peak(self, dtype: torch.dtype) -> float | None:
        # Anew for every row: the clock of a shared machine drifts.
        return machine.fma_peak(dtype, torch.get_num_threads())

    def synchronize(self) -> None:
        pass

    def clock_mhz(self) -> str:
        return ""

    def kernels(self, contender: Contender) -> str:
        return ""

    def checked_shape(self, shape: Shape, gates: int) -> Shape:
        return shape


def timing_event() -> Event:
    return torch.cuda.Event(enable_timing=True)


class Cuda:
    """The current CUDA device. The arguments are for tests on a machine without one."""

    name = "cuda"
    peak_field = "matmul_percent"
    peak_title = "% matmul"

    def __init__(
        self,
        tensors: str = "cuda",
        make_event: Callable[[], Event] = timing_event,
        synchronize: Callable[[], object] = torch.cuda.synchronize,
        matmul_size: int = 8192,
    ) -> None:
        self.tensors = tensors
        self._make_event = make_event
        self._synchronize = synchronize
        self._matmul_size = matmul_size
        self._peaks: dict[tuple[torch.dtype, bool], float] = {}

    def timer(self) -> Timer:
        return EventTimer(self._make_event)

    def host_timer(self) -> Timer:
        return WallTimer(synchronize=self._synchronize)

    def why_unusable(self) -> str | None:
        if torch.version.cuda is None:
            return f"torch {torch.__version__} is built without CUDA"
        if not torch.cuda.is_available():
            return f"torch {torch.__version__} for CUDA {torch.version.cuda} finds no GPU"
        return None

    def conditions(self) -> dict[str, str]:
        return machine.environment("cuda")

    def precision(self, tf32: bool | None) -> AbstractContextManager:
        return tf32_switches(bool(tf32))

    def peak(self, dtype: torch.dtype) -> float:
        key = dtype, torch.backends.cuda.matmul.allow_tf32
        if key not in self._peaks:
            self._peaks[key] = self._matmul_peak(dtype)
        return self._peaks[key]

    def _matmul_peak(self, dtype: torch.dtype) -> float:
        # float64 takes seconds at full size where a GPU has few units for it.
        size = self._matmul_size // (2 if dtype == torch.float64 else 1)
        # Random numbers: on zeros a GPU draws less power and clocks higher.
        a, b = (torch.randn(size, size, device=self.tensors).to(dtype) for _ in range(2))
        c = torch.empty_like(a)
        product = Contender("matmul", lambda: torch.mm(a, b, out=c))
        timer = self.timer()
        seconds = sorted(timer.seconds(product) for _ in range(PEAK_SAMPLES))
        return 2 * size**3 / seconds[PEAK_SAMPLES // 2] / 1e9

    def synchronize(self) -> None:
        self._synchronize()

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
            self._synchronize()
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


DEVICES: dict[str, Callable[[], Device]] = {"cpu": Cpu, "cuda": Cuda}
