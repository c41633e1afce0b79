"""A character model in one file, after the recipe of Andrej Karpathy's min-char-rnn (2015).

One tanh layer of 100 units learns to predict the next character of a text, 25 characters at a time,
and writes while it learns. The recipe is that of the numpy program, step by step; what was two
pages of hand-written forward and backward pass is a call of ``fastlstm.RNN``::

    python examples/min_char_rnn.py                  # learns the Python language reference
    python examples/min_char_rnn.py book.txt --iterations 200000

From the same weights an iteration has the loss of the numpy program, up to rounding. Started from
the same weights and left alone, the two agree to ten digits for about ten iterations and to five
for a hundred; from the two hundredth on their losses differ by up to some per cent. So do those of
the numpy program and of itself with one weight moved by an ulp after the first iteration.

Before it trains, it checks the gradients against differences of the loss. Beyond this size use
``python -m examples.char_lm``, which has everything that is left out here.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Iterator
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

from fastlstm import RNN


class MinCharRNN(nn.Module):
    """Characters -> RNN -> logits of the next ones, in float64. V: characters, H: units."""

    def __init__(self, vocab_size: int, hidden_size: int) -> None:
        super().__init__()
        self.rnn = RNN(vocab_size, hidden_size, dtype=torch.float64)
        self.head = nn.Linear(hidden_size, vocab_size, dtype=torch.float64)
        for parameter in self.parameters():
            nn.init.normal_(parameter, std=0.01) if parameter.dim() > 1 else nn.init.zeros_(
                parameter
            )
        # torch.nn has a second bias, for cuDNN. Trained as well, it would double the steps of the sum.
        self.rnn.bias_hh_l0.requires_grad_(False)

    def loss(self, inputs: Tensor, targets: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
        """The sum of the cross entropies of ``targets``, and the state after ``inputs``.

        Both are character numbers, int64 [T]; h is [1, H]. An integer stands for a one-hot vector:
        the layer looks up a column of its weight instead of multiplying by zeros.
        """
        output, h = self.rnn(inputs, h)
        return F.cross_entropy(self.head(output), targets, reduction="sum"), h

    @torch.no_grad()
    def sample(self, h: Tensor, first: int, length: int, generator: torch.Generator) -> list[int]:
        """``length`` characters drawn one after another, each fed back; ``first`` is the first fed."""
        token, drawn = torch.tensor([first]), []
        for _ in range(length):
            output, h = self.rnn(token, h)
            token = self.head(output[0]).softmax(-1).multinomial(1, generator=generator)
            drawn.append(token.item())
        return drawn


class Adagrad(torch.optim.Optimizer):
    """Adagrad (Duchi, Hazan & Singer 2011) with epsilon under the root, as the recipe has it.

    ``torch.optim.Adagrad`` divides by sqrt(sum) + 1e-10, so that its first step is +-lr for every
    weight, however small the gradient. Here it divides by sqrt(sum + 1e-8): a weight moves little
    until its gradients have reached about 1e-4, which from weights of 0.01 is another path.
    """

    def __init__(self, params, lr: float = 0.1, eps: float = 1e-8) -> None:
        super().__init__(params, {"lr": lr, "eps": eps})

    @torch.no_grad()
    def step(self) -> None:
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is None:
                    continue
                memory = self.state[p].setdefault("sum", torch.zeros_like(p))
                memory.addcmul_(p.grad, p.grad)
                p.addcdiv_(p.grad, (memory + group["eps"]).sqrt_(), value=-group["lr"])


def chunks(ids: Tensor, length: int) -> Iterator[tuple[Tensor, Tensor, bool]]:
    """Inputs, targets, and whether an epoch begins, from left to right through the text for ever."""
    while True:
        for begin in range(0, max(1, len(ids) - length - 1), length):
            part = ids[begin : begin + length + 1]
            yield part[:-1], part[1:], begin == 0


def gradient_check(
    model: MinCharRNN,
    inputs: Tensor,
    targets: Tensor,
    generator: torch.Generator,
    entries: int = 10,
) -> dict[str, Tensor]:
    """Relative errors of some random entries of each parameter's gradient, by parameter.

    The numbers to compare with are central differences at d and 2 d, combined so that their errors
    of order d^2 cancel. With one difference at d = 1e-5 the rounding of a loss near 100 would be
    larger than 1e-7 of many a gradient; d = 0.01 leaves little of it, and needs the combination.
    """
    h, d = torch.zeros(1, model.rnn.hidden_size, dtype=torch.float64), 0.01
    loss, _ = model.loss(inputs, targets, h)
    named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    gradients = torch.autograd.grad(loss, [p for _, p in named])
    errors = {}
    for (name, p), gradient in zip(named, gradients, strict=True):
        # Characters that do not occur have gradients of exactly zero, as has their difference.
        candidates = gradient.flatten().nonzero().flatten()
        if not len(candidates):
            candidates = torch.arange(p.numel())
        picked = candidates[torch.randint(len(candidates), (entries,), generator=generator)]
        flat, found = p.data.view(-1), []
        for index in picked.tolist():
            value, losses = flat[index].item(), {}
            for step in (-2, -1, 1, 2):
                flat[index] = value + step * d
                with torch.no_grad():
                    losses[step] = model.loss(inputs, targets, h)[0].item()
            flat[index] = value
            numeric = (8 * (losses[1] - losses[-1]) - (losses[2] - losses[-2])) / (12 * d)
            exact = gradient.view(-1)[index].item()
            found.append(abs(exact - numeric) / max(abs(exact) + abs(numeric), 1e-300))
        errors[name] = torch.tensor(found)
    return errors


def train(
    model: MinCharRNN, ids: Tensor, *, length: int, lr: float, clip: float, iterations: int
) -> Iterator[tuple[int, float, Tensor, Tensor]]:
    """Trains; yields before each iteration's step: number, loss, the inputs, and the state fed."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = Adagrad(parameters, lr=lr)
    h = torch.zeros(1, model.rnn.hidden_size, dtype=torch.float64)
    for n, (inputs, targets, epoch_begins) in zip(
        range(iterations), chunks(ids, length), strict=False
    ):
        h = torch.zeros_like(h) if epoch_begins else h
        loss, after = model.loss(inputs, targets, h)
        yield n, loss.item(), inputs, h
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_value_(parameters, clip)
        optimizer.step()
        # The state goes on into the next chunk, the gradient does not.
        h = after.detach()


def read_text(path: Path | None) -> str:
    if path is not None:
        return path.read_text(encoding="utf-8")
    # Half a megabyte of English and Python that every Python has: its language reference.
    from pydoc_data.topics import topics

    return "\n".join(topics[name] for name in sorted(topics))


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument(
        "text", nargs="?", type=Path, help="UTF-8 file (default: the Python manual)"
    )
    parser.add_argument("--hidden", type=int, default=100, help="units (default 100)")
    parser.add_argument("--length", type=int, default=25, help="characters a step (default 25)")
    parser.add_argument("--lr", type=float, default=0.1, help="of Adagrad (default 0.1)")
    parser.add_argument("--clip", type=float, default=5.0, help="of each gradient (default 5)")
    parser.add_argument("--iterations", type=int, default=50000, help="steps (default 50000)")
    parser.add_argument("--sample-every", type=int, default=5000, help="steps (default 5000)")
    parser.add_argument("--seed", type=int, default=0, help="of weights and samples (default 0)")
    options = parser.parse_args(arguments)

    try:
        data = read_text(options.text)
    except (OSError, UnicodeDecodeError) as error:
        parser.error(f"cannot read {options.text}: {error}")
    if len(data) < options.length + 2:
        parser.error(f"the text is too short: {len(data)} characters, {options.length + 2} needed")
    characters = sorted(set(data))
    number = {c: i for i, c in enumerate(characters)}
    ids = torch.tensor([number[c] for c in data])
    print(f"{len(data):,} characters, {len(characters)} different ones")

    # Layers this small gain nothing from threads.
    torch.set_num_threads(1)
    torch.manual_seed(options.seed)
    generator = torch.Generator().manual_seed(options.seed)
    model = MinCharRNN(len(characters), options.hidden)

    print("gradient check, relative errors:")
    inputs, targets, _ = next(chunks(ids, options.length))
    errors = gradient_check(model, inputs, targets, generator)
    for name, found in errors.items():
        print(f"  {name:18} {' '.join(f'{e:.0e}' for e in found.tolist())}")
    worst = max(found.max().item() for found in errors.values())
    print(f"  largest: {worst:.1e} ({'as it should be' if worst <= 1e-7 else 'WRONG'}: <= 1e-7)")
    if worst > 1e-7:
        return 1

    settings = {"length": options.length, "lr": options.lr, "clip": options.clip}
    steps = train(model, ids, **settings, iterations=options.iterations)
    # What knowing nothing costs; a moving average over about the last thousand steps.
    smooth = math.log(len(characters)) * options.length
    bar = tqdm(steps, total=options.iterations, disable=not sys.stderr.isatty(), leave=False)
    for n, loss, inputs, h in bar:
        smooth = 0.999 * smooth + 0.001 * loss
        if n % 100 == 0:
            bar.set_description(f"loss {smooth:.2f}", refresh=False)
        if n % options.sample_every == 0:
            drawn = model.sample(h, inputs[0].item(), 200, generator)
            text = "".join(characters[i] for i in drawn)
            head = (
                f"--- iteration {n}, loss {smooth:.2f} ({smooth / options.length:.3f} a character) "
            )
            bar.write(f"{head:-<78}\n{text}")
    print(f"{'':-<78}\nloss {smooth:.2f} after {options.iterations} iterations")
    return 0


if __name__ == "__main__":
    sys.exit(main())
