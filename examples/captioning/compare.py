"""Training steps a second of a decoder on both backends, on this machine, in a few seconds."""

from __future__ import annotations

import dataclasses
import statistics
import time
from dataclasses import dataclass

import torch
from torch import Tensor

from ..common.config import BACKENDS
from ..common.errors import TrainingError
from ..common.optimize import clip_gradients, make_optimizer
from ..common.turns import describe_ratios, paired_ratios, time_in_turns
from .config import Config
from .data import Batch
from .model import Captioner, decoder_loss

SECONDS_A_TURN = 0.15
TOLERANCE = 1e-4  # relative, between two losses in float32
PACKED = "torch, packed"


@dataclass(frozen=True)
class Comparison:
    """Median milliseconds of a decoder's training step, and ratios to the first, round by round."""

    milliseconds: dict[str, float]
    ratios: dict[str, list[float]]
    loss_difference: float

    def __str__(self) -> str:
        ours = BACKENDS[0]
        times = ", ".join(f"{name} {value:.1f} ms" for name, value in self.milliseconds.items())
        ratios = "; ".join(
            f"{ours} is faster than {name} {describe_ratios(values)}"
            for name, values in self.ratios.items()
        )
        return f"decoder step: {times}; {ratios}; same loss within {self.loss_difference:.0e}"


def compare_backends(
    config: Config, vocab_size: int, batch: Batch, input_shape: tuple[int, ...]
) -> Comparison:
    """Whole training steps of the decoder, in turns, from the same weights on the same batch.

    torch.nn's layer gets padded rows, and in another contender packed ones. TrainingError if the
    losses are not the same first. Draws no random numbers that the caller could notice.
    """
    with torch.random.fork_rng():
        return _compare(config, vocab_size, batch, input_shape)


def _compare(
    config: Config, vocab_size: int, batch: Batch, input_shape: tuple[int, ...]
) -> Comparison:
    # Dropout would give them different masks, and so different losses.
    config = dataclasses.replace(config, dropout=0.0)
    steps = {
        name: _Stepper(dataclasses.replace(config, backend=name), vocab_size, batch, input_shape)
        for name in BACKENDS
    }
    if config.inject != "attend":
        with_torch = dataclasses.replace(config, backend="torch")
        steps[PACKED] = _Stepper(with_torch, vocab_size, batch, input_shape, packed=True)
    ours, *others = steps
    losses = {name: step.loss() for name, step in steps.items()}
    differences = [abs(losses[name] - losses[ours]) / abs(losses[name]) for name in others]
    if not max(differences) <= TOLERANCE:
        shown = ", ".join(f"{loss} with {name}" for name, loss in losses.items())
        raise TrainingError(f"the backends disagree: loss {shown}")
    times = time_in_turns({name: step.run for name, step in steps.items()}, SECONDS_A_TURN)
    return Comparison(
        {name: 1000 * statistics.median(values) for name, values in times.items()},
        {name: paired_ratios(times, ours, name) for name in others},
        max(differences),
    )


class _Stepper:
    def __init__(
        self,
        config: Config,
        vocab_size: int,
        batch: Batch,
        input_shape: tuple[int, ...],
        *,
        packed: bool = False,
    ) -> None:
        torch.manual_seed(config.seed)
        self.config, self.batch = config, batch
        model = Captioner(vocab_size, config, input_shape[0]).to(batch.tokens.device)
        self.decoder = model.decoder
        if packed:
            self.decoder.packed = True
        with torch.no_grad():
            image: Tensor = model.see(batch.inputs)
        # The CNN waits for this gradient, so computing it is a part of the step.
        self.image = image.requires_grad_()
        self.optimizer = make_optimizer(config, self.decoder)

    def _forward(self) -> Tensor:
        penalty = self.config.alpha_c
        return decoder_loss(
            self.decoder, self.image, self.batch.tokens, self.batch.lengths, penalty
        ).total

    def loss(self) -> float:
        with torch.no_grad():
            return self._forward().item()

    def run(self, count: int) -> float:
        """Seconds of ``count`` training steps."""
        began = time.perf_counter()
        for _ in range(count):
            self.optimizer.zero_grad(set_to_none=True)
            self.image.grad = None
            loss = self._forward()
            loss.backward()
            clip_gradients(self.decoder, self.config.clip_norm, self.config.clip_value)
            self.optimizer.step()
            loss.item()
        return time.perf_counter() - began
