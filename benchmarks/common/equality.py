"""The gate in front of every timing: a contender that computes something else is not timed.

The tolerance is a rule, not a number: the largest error against a float64 run of the same weights
is at most twice the largest error of torch.nn in the same dtype, plus one rounding of the largest
value. It holds for every output and, in train mode, for every gradient. Where products may be TF32,
torch.nn's error is at least what it is with every operand rounded to TF32 (tf32.py).
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor, nn

from benchmarks.common.providers import PROVIDERS, Cell, Provider
from benchmarks.common.shapes import Shape, dtype_name
from benchmarks.common.tf32 import TORCH_TF32

TRUTH_PARTS = 16
# The tensors of a call by name.
Results = dict[str, Tensor]


def named_results(outputs: Mapping[str, Tensor], leaves: Mapping[str, Tensor]) -> Results:
    """`outputs`, and the gradients that are there of `leaves`, as "grad NAME"."""
    found = {name: output.detach() for name, output in outputs.items()}
    gradients = {f"grad {name}": leaf.grad for name, leaf in leaves.items()}
    return found | {name: grad for name, grad in gradients.items() if grad is not None}


def named_states(cell: Cell, states: Tensor | tuple[Tensor, ...], suffix: str) -> Results:
    """The states that a module of `cell` takes or returns: h0 and c0, h_n and c_n, as it may be."""
    states = states if isinstance(states, tuple) else (states,)
    return {f"{name}{suffix}": state for name, state in zip(cell.states, states, strict=True)}


def as_hx(states: Sequence[Tensor]) -> Tensor | tuple[Tensor, ...]:
    """One or two states as a module takes them."""
    return tuple(states) if len(states) > 1 else states[0]


@dataclass
class Problem:
    """One cell, shape, dtype and mode, with weights and inputs drawn from one seed.

    Everything is drawn in float32 and rounded to `dtype` where that is narrower, then widened
    exactly, so that the float64 run that serves as the truth has the very same weights and inputs.
    """

    cell: Cell
    shape: Shape
    mode: str
    dtype: torch.dtype
    device: str = "cpu"
    seed: int = 0

    def __post_init__(self) -> None:
        T, N, I, H = self.shape
        # Drawn on the device: the host takes longer to draw the large shapes than a GPU to run them.
        device = torch.device(self.device)
        others = [] if device.type == "cpu" else [torch.cuda.current_device()]
        with torch.random.fork_rng(devices=others), device:
            torch.manual_seed(self.seed)
            layer = PROVIDERS["torch"].make(self.cell, I, H)
            weights = layer.to(torch.float32).state_dict()
            self.state_dict = {name: self.rounded(weight) for name, weight in weights.items()}
            self.x = self.rounded(torch.randn(T, N, I))
            self.grad_output = self.rounded(torch.randn(T, N, H))
            self.states = [self.rounded(torch.randn(1, N, H)) for _ in self.cell.states]
            self.grad_states = [self.rounded(torch.randn(1, N, H)) for _ in self.cell.states]

    def rounded(self, value: Tensor) -> Tensor:
        return value.to(self.dtype).to(torch.float32)

    def model(self, provider: Provider, dtype: torch.dtype | None = None) -> nn.Module:
        """`provider`'s module with this problem's weights, training or evaluating as `mode` says."""
        with torch.device(self.device):
            module = provider.make(self.cell, self.shape.I, self.shape.H)
        module.load_state_dict(self.state_dict)
        return module.to(self.device, dtype or self.dtype).train(self.mode == "train")

    def tensor(
        self, value: Tensor, dtype: torch.dtype | None = None, *, leaf: bool = False
    ) -> Tensor:
        """A fresh copy of `value` in `dtype`; where `leaf`, one that takes gradients in train mode."""
        copy = value.to(self.device, dtype or self.dtype, copy=True)
        return copy.requires_grad_(leaf and self.mode == "train")

    def results(self, provider: Provider, dtype: torch.dtype, *, with_state: bool) -> Results:
        """Every output of one call by `provider` and, in train mode, every gradient, by name.

        Without state it is the call that is timed: hx is None and only `output` has a cotangent.
        With state, h0 (and c0) are given and take gradients, and h_n (and c_n) have cotangents too.
        """
        module = self.model(provider, dtype)
        leaves = {"input": self.tensor(self.x, dtype, leaf=True), **dict(module.named_parameters())}
        hx = None
        if with_state:
            hx = as_hx([self.tensor(state, dtype, leaf=True) for state in self.states])
            leaves |= named_states(self.cell, hx, "0")
        with provider.context(), torch.set_grad_enabled(self.mode == "train"):
            output, final = module(leaves["input"], hx)
            outputs = {"output": output, **named_states(self.cell, final, "_n")}
            if self.mode == "train":
                grads = [self.grad_output, *self.grad_states] if with_state else [self.grad_output]
                cotangents = [self.tensor(grad, dtype) for grad in grads]
                torch.autograd.backward([*outputs.values()][: len(cotangents)], cotangents)
        return named_results(outputs, leaves)

    def truth(self, *, with_state: bool) -> Results:
        """torch.nn's float64 results; where `dtype` is float64 itself, better ones.

        On CUDA they are those of torch's own loop: cuDNN is a contender there.

        torch.nn sums the gradient of a weight over all T*N rows in one go. Its error then is several
        times that of fastlstm (0.4e-12 against 0.06e-12 where RNN was compared with long doubles at
        64,32,64,64), so that it cannot be the judge. Rows of the batch do not depend on each
        other: here a few of them run at a time, and their sums are added.
        """
        judge = PROVIDERS["torch" if self.device == "cpu" else "torch-native"]
        if self.dtype != torch.float64:
            return self.results(judge, torch.float64, with_state=with_state)
        parts = [
            self.part(rows).results(judge, torch.float64, with_state=with_state)
            for rows in torch.arange(self.shape.N).chunk(TRUTH_PARTS)
        ]
        merged = {}
        for name in parts[0]:
            values = [part[name] for part in parts]
            is_sum = name.startswith(("grad weight", "grad bias"))
            merged[name] = torch.stack(values).sum(0) if is_sum else torch.cat(values, dim=1)
        return merged

    def part(self, rows: Tensor) -> Problem:
        """The same problem on these rows of the batch, by index."""
        part = copy.copy(self)
        part.shape = self.shape._replace(N=len(rows))
        part.x, part.grad_output = self.x[:, rows], self.grad_output[:, rows]
        part.states = [state[:, rows] for state in self.states]
        part.grad_states = [grad[:, rows] for grad in self.grad_states]
        return part

    @cached_property
    def yardsticks(self) -> dict[bool, Yardstick]:
        """For calls without and with state."""

        def yardstick(with_state: bool) -> Yardstick:
            def results(dtype: torch.dtype, provider: Provider = PROVIDERS["torch"]) -> Results:
                return self.results(provider, dtype, with_state=with_state)

            return Yardstick(
                self.truth(with_state=with_state),
                results(yardstick_dtype(self.dtype)),
                results(torch.float64) if self.dtype == torch.float64 else None,
                results(torch.float32, TORCH_TF32) if may_be_tf32(self) else None,
            )

        return {with_state: yardstick(with_state) for with_state in (False, True)}


class Yardstick(NamedTuple):
    """What a contender is held to, each as `compare` takes it."""

    truth: Results
    torch_nn: Results
    torch_float64: Results | None
    torch_tf32: Results | None


class Verdict(NamedTuple):
    """A line for each tensor. failures: those that break the rule. remarks: those that keep it by
    `torch_tf32` alone: torch.nn has not rounded to TF32 where it was allowed to."""

    failures: list[str]
    remarks: list[str]


def check(problem: Problem, provider: Provider) -> Verdict:
    """What `provider` gets wrong on `problem`."""
    return judge(problem, calls(problem, provider))


def calls(problem: Problem, provider: Provider) -> dict[bool, Results]:
    """The results of a call without and of one with state, as `judge` takes them."""
    return {
        with_state: problem.results(provider, problem.dtype, with_state=with_state)
        for with_state in (False, True)
    }


def judge(problem: Problem, found: Mapping[bool, Results]) -> Verdict:
    """What is wrong in `found`."""
    verdict = Verdict([], [])
    for with_state, (truth, torch_nn, torch_float64, torch_tf32) in problem.yardsticks.items():
        ours = found[with_state]
        call = "with initial state" if with_state else "without initial state"
        lines = compare(truth, torch_nn, ours, problem.dtype, torch_float64)
        if torch_tf32 is not None and lines:
            wrong = compare(truth, larger_errors(truth, torch_nn, torch_tf32), ours, problem.dtype)
            names = {line.partition(":")[0] for line in wrong}
            right = [line for line in lines if line.partition(":")[0] not in names]
            verdict.remarks.extend(f"{line}, {call}" for line in right)
            lines = wrong
        verdict.failures.extend(f"{line}, {call}" for line in lines)
    return verdict


def may_be_tf32(problem: Problem) -> bool:
    """Whether products of `problem` may be TF32 now."""
    is_float32 = problem.dtype == torch.float32
    return is_float32 and problem.device != "cpu" and torch.backends.cudnn.allow_tf32


def larger_errors(truth: Results, a: Results, b: Results) -> Results:
    """Of each name the one of the two that is further from the truth."""
    return {
        name: max(a[name], b[name], key=lambda value: largest(value.double() - expected))
        for name, expected in truth.items()
    }


def yardstick_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype in which torch.nn's error is taken, for a contender in `dtype`."""
    return torch.float32 if dtype == torch.float64 else dtype


def stacked(results: Sequence[Results]) -> Results:
    """Several results of the same names and shapes as one.

    The largest error of torch.nn over a handful of elements may be small by luck.
    """
    return {name: torch.stack([found[name] for found in results]) for name in results[0]}


def check_sides(
    truth: Callable[[torch.dtype], Results], sides: Mapping[str, Callable[[], Results]]
) -> list[str]:
    """What is wrong in the float32 results of `sides`, one line a tensor, behind the side's name.

    truth: the results of torch.nn in a dtype.
    """
    held_to = truth(torch.float64), truth(torch.float32)
    return [
        f"{name}{line}"
        for name, results in sides.items()
        for line in compare(*held_to, results(), torch.float32)
    ]


def compare(
    truth: Results,
    yardstick: Results,
    ours: Results,
    dtype: torch.dtype,
    torch_float64: Results | None = None,
) -> list[str]:
    """The tensors of `ours` that break the rule, one line each; names must be the same in all.

    truth: float64. yardstick: torch.nn in `yardstick_dtype(dtype)`. ours: in `dtype`.

    Nothing here is more exact than float64, so torch's float64 error is inferred: its float32 error
    times the ratio of the two roundings, counted once more because the truth carries it as well.
    Or it is taken from `torch_float64`, torch.nn in float64, where the truth is a better one and
    shows the larger error.
    """
    eps = torch.finfo(dtype).eps
    allowance = 3.0 * eps / torch.finfo(torch.float32).eps if dtype == torch.float64 else 2.0
    failures = []
    for name in [*truth, *(name for name in ours if name not in truth)]:
        if name not in ours or name not in truth:
            failures.append(f"{name}: {'missing' if name in truth else 'unexpected'}")
            continue
        expected, got = truth[name], ours[name]
        if got.shape != expected.shape or got.dtype != dtype:
            wanted = f"expected {dtype} {list(expected.shape)}"
            failures.append(f"{name}: {wanted}, got {got.dtype} {list(got.shape)}")
            continue
        error = largest(got.double() - expected)
        torch_error = largest(yardstick[name].double() - expected)
        bound = allowance * torch_error
        if torch_float64 is not None:
            bound = max(bound, 2 * largest(torch_float64[name] - expected))
        bound += eps * largest(expected)
        # Not `error > bound`: a NaN must fail.
        if not error <= bound:
            torch_nn = f"torch.nn {dtype_name(yardstick_dtype(dtype))} {torch_error:.2e}"
            failures.append(f"{name}: error {error:.2e} above {bound:.2e} ({torch_nn})")
    return failures


def largest(values: Tensor) -> float:
    """The largest magnitude in `values`, 0 where there is none; NaN where there is a NaN."""
    return values.abs().max().item() if values.numel() else 0.0
