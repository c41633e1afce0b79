"""Characters per second of the two backends on this machine, in a few seconds."""

from __future__ import annotations

import dataclasses
import statistics
import time
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from ..common.config import BACKENDS
from ..common.errors import TrainingError
from ..common.optimize import clip_gradients, make_optimizer
from ..common.turns import describe_ratios, paired_ratios, time_in_turns
from .config import Config
from .data import TrainingStreams
from .model import CharLM

SECONDS_A_TURN = 0.15
TOLERANCE = 1e-4  # relative, between two losses in float32


@dataclass(frozen=True)
class Comparison:
    """Median characters per second of each backend, median and range of the paired ratio."""

    speed: dict[str, float]
    ratios: list[float]
    loss_difference: float

    def __str__(self) -> str:
        speeds = ", ".join(f"{name} {speed:,.0f}" for name, speed in self.speed.items())
        return (
            f"{speeds} characters per second: {describe_ratios(self.ratios)}; "
            f"same loss within {self.loss_difference:.0e}"
        )


def compare_backends(
    config: Config, vocab_size: int, streams: TrainingStreams, device: torch.device
) -> Comparison:
    """Whole training steps, in turns (A B A B), from the same weights on the same window.

    TrainingError if the two do not give the same loss first. Draws no random numbers that the
    caller could notice.
    """
    with torch.random.fork_rng():
        return _compare(config, vocab_size, streams, device)


def _compare(
    config: Config, vocab_size: int, streams: TrainingStreams, device: torch.device
) -> Comparison:
    steps = {
        name: _Stepper(dataclasses.replace(config, backend=name), vocab_size, streams, device)
        for name in BACKENDS
    }
    first, second = (step.loss() for step in steps.values())
    difference = abs(first - second) / abs(second)
    if not difference <= TOLERANCE:
        raise TrainingError(
            f"the backends disagree: loss {first} with {BACKENDS[0]}, {second} with {BACKENDS[1]}"
        )
    times = time_in_turns(
        {name: step.run for name, step in steps.items()}, seconds_a_turn=SECONDS_A_TURN
    )
    chars = streams.batch * streams.seq
    speed = {name: chars / statistics.median(values) for name, values in times.items()}
    return Comparison(speed, paired_ratios(times, *BACKENDS), difference)


class _Stepper:
    def __init__(
        self, config: Config, vocab_size: int, streams: TrainingStreams, device: torch.device
    ) -> None:
        torch.manual_seed(config.seed)
        # Dropout would give the two different masks, and so different losses.
        self.config = dataclasses.replace(config, dropout=0.0)
        self.model = CharLM(vocab_size, self.config).to(device)
        self.optimizer = make_optimizer(self.config, self.model)
        inputs, targets, _ = streams.window(0)
        self.inputs, self.targets = inputs.to(device), targets.to(device)

    def _forward(self) -> torch.Tensor:
        logits, _ = self.model(self.inputs)
        return F.cross_entropy(logits.flatten(0, 1), self.targets.flatten())

    def loss(self) -> float:
        with torch.no_grad():
            return self._forward().item()

    def run(self, count: int) -> float:
        """Seconds of ``count`` training steps."""
        began = time.perf_counter()
        for _ in range(count):
            self.optimizer.zero_grad(set_to_none=True)
            loss = self._forward()
            loss.backward()
            clip_gradients(self.model, self.config.clip_norm, self.config.clip_value)
            self.optimizer.step()
            loss.item()
        return time.perf_counter() - began
