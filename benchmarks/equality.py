"""The gate in front of every timing: a contender that computes something else is not timed.

The tolerance is a rule, not a number: the largest error against a float64 run of the same weights
is at most twice the largest error of torch.nn in the same dtype, plus one rounding of the largest
value. It holds for every output and, in train mode, for every gradient.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor, nn

from benchmarks.providers import PROVIDERS, Cell, Provider
from benchmarks.shapes import Shape


@dataclass
class Problem:
    """One cell, shape, dtype and mode, with weights and inputs drawn from one seed.

    Everything is drawn in float32 and widened exactly, so that the float64 run that serves as the
    truth has the very same weights and inputs.
    """

    cell: Cell
    shape: Shape
    mode: str
    dtype: torch.dtype
    device: str = "cpu"
    seed: int = 0

    def __post_init__(self) -> None:
        T, N, I, H = self.shape  # noqa: E741
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            layer = PROVIDERS["torch"].make(self.cell, I, H)
            self.state_dict = layer.to(torch.float32).state_dict()
            self.x = torch.randn(T, N, I)
            self.grad_output = torch.randn(T, N, H)
            self.states = [torch.randn(1, N, H) for _ in self.cell.states]
            self.grad_states = [torch.randn(1, N, H) for _ in self.cell.states]

    def model(self, provider: Provider, dtype: torch.dtype | None = None) -> nn.Module:
        """`provider`'s module with this problem's weights, training or evaluating as `mode` says."""
        module = provider.make(self.cell, self.shape.I, self.shape.H)
        module.load_state_dict(self.state_dict)
        return module.to(self.device, dtype or self.dtype).train(self.mode == "train")

    def tensor(
        self, value: Tensor, dtype: torch.dtype | None = None, *, leaf: bool = False
    ) -> Tensor:
        """A fresh copy of `value` in `dtype`; where `leaf`, one that takes gradients in train mode."""
        copy = value.to(self.device, dtype or self.dtype, copy=True)
        return copy.requires_grad_(leaf and self.mode == "train")

    def results(
        self, provider: Provider, dtype: torch.dtype, *, with_state: bool
    ) -> dict[str, Tensor]:
        """Every output of one call by `provider` and, in train mode, every gradient, by name.

        Without state it is the call that is timed: hx is None and only `output` has a cotangent.
        With state, h0 (and c0) are given and take gradients, and h_n (and c_n) have cotangents too.
        """
        module = self.model(provider, dtype)
        x = self.tensor(self.x, dtype, leaf=True)
        leaves = {"input": x, **dict(module.named_parameters())}
        hx = None
        if with_state:
            initial = [self.tensor(state, dtype, leaf=True) for state in self.states]
            leaves |= {
                f"{name}0": state for name, state in zip(self.cell.states, initial, strict=True)
            }
            hx = tuple(initial) if len(initial) > 1 else initial[0]

        with provider.context(), torch.set_grad_enabled(self.mode == "train"):
            output, final = module(x, hx)
            final = final if isinstance(final, tuple) else (final,)
            if self.mode == "train":
                ends, cotangents = [output], [self.tensor(self.grad_output, dtype)]
                if with_state:
                    ends += final
                    cotangents += [self.tensor(grad, dtype) for grad in self.grad_states]
                torch.autograd.backward(ends, cotangents)

        found = {"output": output.detach()}
        found |= {
            f"{name}_n": end.detach() for name, end in zip(self.cell.states, final, strict=True)
        }
        if self.mode == "train":
            found |= {
                f"grad {name}": leaf.grad for name, leaf in leaves.items() if leaf.grad is not None
            }
        return found

    @cached_property
    def yardsticks(self) -> dict[bool, tuple[dict[str, Tensor], dict[str, Tensor]]]:
        """For calls without and with state: torch.nn in float64, and in float32."""
        torch_nn = PROVIDERS["torch"]
        return {
            with_state: (
                self.results(torch_nn, torch.float64, with_state=with_state),
                self.results(torch_nn, torch.float32, with_state=with_state),
            )
            for with_state in (False, True)
        }


def check(problem: Problem, provider: Provider) -> list[str]:
    """What `provider` gets wrong on `problem`, one line a tensor; empty when it is equal."""
    failures = []
    for with_state, (truth, yardstick) in problem.yardsticks.items():
        ours = problem.results(provider, problem.dtype, with_state=with_state)
        call = "with initial state" if with_state else "without initial state"
        failures += [f"{line}, {call}" for line in compare(truth, yardstick, ours, problem.dtype)]
    return failures


def compare(
    truth: Mapping[str, Tensor],
    yardstick: Mapping[str, Tensor],
    ours: Mapping[str, Tensor],
    dtype: torch.dtype,
) -> list[str]:
    """The tensors of `ours` that break the rule, one line each; names must be the same in all.

    truth: float64. yardstick: torch.nn in float32. ours: in `dtype`, float32 or float64.

    Nothing here is more exact than float64, so torch's float64 error is inferred: its float32 error
    times the ratio of the two roundings, counted once more because the truth carries it as well.
    """
    eps = torch.finfo(dtype).eps
    allowance = 2.0 if dtype == torch.float32 else 3.0 * eps / torch.finfo(torch.float32).eps
    failures = []
    for name in itertools.chain(truth, (name for name in ours if name not in truth)):
        if name not in ours or name not in truth:
            failures.append(f"{name}: {'missing' if name in truth else 'unexpected'}")
            continue
        expected, got = truth[name], ours[name]
        if got.shape != expected.shape or got.dtype != dtype:
            failures.append(
                f"{name}: expected {dtype} {list(expected.shape)}, got {got.dtype} {list(got.shape)}"
            )
            continue
        error = largest(got.double() - expected)
        torch_error = largest(yardstick[name].double() - expected)
        bound = allowance * torch_error + eps * largest(expected)
        # Not `error > bound`: a NaN must fail.
        if not error <= bound:
            failures.append(
                f"{name}: error {error:.2e} above {bound:.2e} (torch.nn float32 {torch_error:.2e})"
            )
    return failures


def largest(values: Tensor) -> float:
    """The largest magnitude in `values`, 0 where there is none; NaN where there is a NaN."""
    return values.abs().max().item() if values.numel() else 0.0
