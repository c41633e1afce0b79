"""One problem: every method by several plans, proved equal, and timed by turns.

All plans are timed a few times, then the best ones of each method for longer, beside torch.nn and
the kernels of a step, in the same rounds.
"""

from __future__ import annotations

import random
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass

import torch

from benchmarks.common import equality, layers
from benchmarks.common.devices import Cpu
from benchmarks.common.equality import Problem
from benchmarks.common.machine import AUTO
from benchmarks.common.providers import CELLS, PROVIDERS, Cell, Provider, make_fastlstm
from benchmarks.common.shapes import Shape
from benchmarks.common.timing import (
    Contender,
    Timer,
    garbage_collector_off,
    measure_rounds,
    percentiles,
)
from benchmarks.gpu import kernels
from benchmarks.gpu.kernels import STEPWISE, Choice, choice, method_of
from benchmarks.gpu.methods import plans

FIELDS = (
    *("date", "commit", "device", "torch", "cuda", "cudnn", "driver", "capability", "sm_mhz"),
    *("cell", "mode", "T", "N", "I", "H", "dtype", "tf32", "checked_T"),
    # What was asked for, and the plans that the library takes for it.
    *("forward", "backward", "forward_plan", "backward_plan"),
    # Microseconds of a call by T; ratios above 1 are faster than step by step, and than torch.nn.
    *("rounds", "us", "us_p10", "us_p90", "ratio_stepwise", "ratio_torch"),
    # What the library expects of a step of the recurrence alone.
    *("forward_model_us", "backward_model_us"),
)
FIRST_ROUNDS = 2
MIN_ROUNDS = 5
# Plans of a method that are timed for longer.
KEPT = 2
TORCH = "torch"


@dataclass(frozen=True)
class Job:
    """A problem and what is tried on it.

    dtype: as torch names it. forward: what runs forward where backward is compared. methods: out of
    kernels.PERSISTENT, and "auto". seconds: of the rounds of the best.
    """

    cell: str
    mode: str
    dtype: str
    tf32: bool | None
    shape: Shape
    forward: str
    methods: tuple[str, ...]
    multiprocessors: int
    seconds: float = 0.3
    seed: int = 0

    @classmethod
    def read(cls, values: Mapping) -> Job:
        """A job of what `as_json` made of one, and JSON of that."""
        shape, methods = Shape(*values["shape"]), tuple(values["methods"])
        return cls(**{**values, "shape": shape, "methods": methods})

    def as_json(self) -> dict:
        return asdict(self)

    def problem(self, device: Cpu, shape: Shape) -> Problem:
        dtype = getattr(torch, self.dtype)
        return Problem(CELLS[self.cell], shape, self.mode, dtype, device.tensors, self.seed)

    def choice(self, word: str, *, backward: bool) -> Choice:
        return choice(self.cell, self.shape, self.dtype, self.tf32, word, backward=backward)


@dataclass(frozen=True)
class Candidate:
    """Words for forward and for backward; none for that in a call without gradients."""

    forward: str
    backward: str = ""

    @property
    def name(self) -> str:
        return f"{self.forward} + {self.backward}" if self.backward else self.forward

    @property
    def varied(self) -> str:
        """The word that tells it from the others of a job."""
        return self.backward or self.forward

    def provider(self) -> Provider:
        """fastlstm that asks for these kernels whenever it is called and differentiated."""

        def make(cell: Cell, input_size: int, hidden_size: int) -> torch.nn.Module:
            module = make_fastlstm(cell, input_size, hidden_size)
            module.register_forward_pre_hook(lambda *_: kernels.want(self.forward))
            if self.backward:
                module.register_forward_hook(before_backward)
            return module

        def before_backward(_module: object, _inputs: object, found: Sequence) -> None:
            if found[0].requires_grad:
                # Whose gradient is there before the layer's own backward begins.
                found[0].register_hook(lambda _: kernels.want(self.backward))

        return Provider(self.name, make, kernels.kept)


# What was timed, None for torch.nn, and the seconds of its calls.
Times = dict[Candidate | None, list[float]]


def candidates(job: Job) -> list[Candidate]:
    """What is tried: step by step first, to which the others are compared.

    In training the forward of `job` with several backwards, and all by one word for what that is.
    """
    tried = [word for method in job.methods if method != AUTO for word in words(job, method)]
    always = [STEPWISE, AUTO] if AUTO in job.methods else [STEPWISE]
    if job.mode == "infer":
        return [Candidate(word) for word in (*always, *tried)]
    fixed = [Candidate(word, word) for word in always]
    return list(dict.fromkeys([*fixed, *(Candidate(job.forward, w) for w in (STEPWISE, *tried))]))


def words(job: Job, method: str) -> list[str]:
    """The plans of `method` that are possible, that which the library would take first."""
    backward = job.mode == "train"
    own = job.choice(method, backward=backward)
    tried = plans.words(method, job.shape.N, job.shape.H, job.multiprocessors)
    return [
        word
        for word in dict.fromkeys([own.plan, *tried])
        if word != STEPWISE and job.choice(word, backward=backward).is_that_of(word)
    ]


class LostError(Exception):
    """The device answers no more, after the candidate of that name."""


def first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"


class Measurement:
    """A job under way: `events` says what is at work, what is wrong, and at last all rows."""

    def __init__(self, job: Job, device: Cpu) -> None:
        self.job = job
        self.device = device
        self._equal: list[Candidate] = []

    def events(self) -> Iterator[dict]:
        """{"at": name} before a candidate's first call, {"red": name, "lines"} for what is wrong,
        {"remark": name, "lines"}; and {"rows", ...} at the end.

        Raises LostError where no other call can follow.
        """
        job, device = self.job, self.device
        with device.precision(job.tf32):
            checked = device.checked_shape(job.shape, CELLS[job.cell].gates)
            yield from self._check(job.problem(device, checked))
            timed = job.problem(device, job.shape)
            contenders = {
                None: layers.contender(timed, PROVIDERS[TORCH]),
                **{c: layers.contender(timed, c.provider()) for c in self._equal},
            }
            with garbage_collector_off():
                timer = device.timer()
                yield from self._warm(contenders, timer)
                times = self._times(contenders, timer)
            found = [self._row(candidate, times) for candidate in times]
            yield {"rows": found, "checked_T": checked.T, "sm_mhz": device.clock_mhz()}

    def _check(self, problem: Problem) -> Iterator[dict]:
        yield {"at": TORCH}
        _ = problem.yardsticks
        for candidate in candidates(self.job):
            name = candidate.name
            yield {"at": name}
            try:
                found = equality.calls(problem, candidate.provider())
            except (RuntimeError, ValueError) as error:
                yield self._failed(name, error)
                continue
            failures, remarks = equality.judge(problem, found)
            if failures:
                yield {"red": name, "lines": failures}
                continue
            self._equal.append(candidate)
            if remarks:
                yield {"remark": name, "lines": remarks}

    def _failed(self, name: str, error: Exception) -> dict:
        try:
            self.device.synchronize()
        except RuntimeError:
            raise LostError(first_line(error)) from error
        return {"red": name, "lines": [first_line(error)]}

    def _warm(self, contenders: dict[Candidate | None, Contender], timer: Timer) -> Iterator[dict]:
        """Call each once on all steps; those that fail are taken out."""
        for candidate, contender in list(contenders.items()):
            name = candidate.name if candidate else TORCH
            yield {"at": name}
            try:
                timer(contender)
            except RuntimeError as error:
                yield self._failed(name, error)
                del contenders[candidate]

    def _times(self, contenders: Mapping[Candidate | None, Contender], timer: Timer) -> Times:
        """Seconds of the calls of each, in the same rounds as far as they go."""
        rng = random.Random(self.job.seed)
        times: Times = {candidate: [] for candidate in contenders}

        def rounds(of: Sequence[Candidate | None], seconds: float, least: int) -> None:
            timed = [contenders[candidate] for candidate in of]
            taken = measure_rounds(timed, seconds, min_rounds=least, rng=rng, timer=timer)
            for candidate, values in zip(of, zip(*taken, strict=True), strict=True):
                times[candidate] += values

        rounds(list(times), 0.0, FIRST_ROUNDS)
        rounds(best(times), self.job.seconds, MIN_ROUNDS)
        return times

    def _row(self, candidate: Candidate | None, times: Times) -> dict[str, object]:
        """Columns of FIELDS, as far as they are of one candidate."""
        own = times[candidate]
        us, us_p10, us_p90 = percentiles([1e6 * s / self.job.shape.T for s in own], 50, 10, 90)
        stepwise = next((c for c in times if c and {c.forward, c.varied} == {STEPWISE}), None)
        row: dict[str, object] = {
            "forward": candidate.forward if candidate else TORCH,
            "backward": candidate.backward if candidate else "",
            "rounds": len(own),
            "us": number(us),
            "us_p10": number(us_p10),
            "us_p90": number(us_p90),
            "ratio_stepwise": ratio(times[stepwise], own) if stepwise else "",
            "ratio_torch": ratio(times[None], own) if None in times else "",
        }
        for part, backward in (("forward", False), ("backward", True)):
            if word := getattr(candidate, part, ""):
                found = self.job.choice(word, backward=backward)
                row[f"{part}_plan"] = found.plan
                row[f"{part}_model_us"] = number(found.step_us)
        return row


def number(value: float) -> str:
    return f"{value:.5g}"


def ratio(baseline: Sequence[float], own: Sequence[float]) -> str:
    """The median of the ratios of rounds that have both."""
    return number(statistics.median(a / b for a, b in zip(baseline, own, strict=False)))


def best(times: Times) -> list[Candidate | None]:
    """torch.nn, what runs by default, and the fastest of each method."""
    by_method: dict[str, list[Candidate]] = {}
    kept: list[Candidate | None] = []
    for candidate in times:
        if candidate is None or candidate.varied in (STEPWISE, AUTO):
            kept.append(candidate)
        else:
            by_method.setdefault(method_of(candidate.varied), []).append(candidate)
    for of_method in by_method.values():
        kept += sorted(of_method, key=lambda c: statistics.median(times[c]))[:KEPT]
    return kept
