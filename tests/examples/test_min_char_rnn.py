"""examples/min_char_rnn.py against the same recipe written out in numpy, and what it prints."""

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from examples import min_char_rnn
from examples.min_char_rnn import Adagrad, MinCharRNN, chunks, gradient_check, main, train

ROOT = Path(__file__).resolve().parents[2]


class NumpyProgram:
    """The recipe by hand: forward, backward through time, clipping and Adagrad."""

    def __init__(self, weights: list[np.ndarray], *, lr: float, clip: float) -> None:
        self.weights = [w.copy() for w in weights]
        self.memory = [np.zeros_like(w) for w in weights]
        self.lr, self.clip = lr, clip

    def step(
        self, inputs: list[int], targets: list[int], h: np.ndarray
    ) -> tuple[float, np.ndarray]:
        """Train on one chunk from state ``h``; its loss, and the state after it."""
        w_xh, w_hh, b_h, w_hy, b_y = self.weights
        states, probabilities, loss = [h], [], 0.0
        for x, y in zip(inputs, targets, strict=True):
            states.append(np.tanh(w_xh[:, x] + w_hh @ states[-1] + b_h))
            scores = np.exp(w_hy @ states[-1] + b_y)
            probabilities.append(scores / scores.sum())
            loss -= np.log(probabilities[-1][y])
        grads = [np.zeros_like(w) for w in self.weights]
        dw_xh, dw_hh, db_h, dw_hy, db_y = grads
        dh = np.zeros_like(h)
        for t in reversed(range(len(inputs))):
            dy = probabilities[t].copy()
            dy[targets[t]] -= 1
            dw_hy += np.outer(dy, states[t + 1])
            db_y += dy
            da = (1 - states[t + 1] ** 2) * (w_hy.T @ dy + dh)
            dw_xh[:, inputs[t]] += da
            dw_hh += np.outer(da, states[t])
            db_h += da
            dh = w_hh.T @ da
        for w, g, m in zip(self.weights, grads, self.memory, strict=True):
            g = g.clip(-self.clip, self.clip)
            m += g * g
            w -= self.lr * g / np.sqrt(m + 1e-8)
        return float(loss), states[-1]


def weights_of(model: MinCharRNN) -> list[np.ndarray]:
    rnn, head = model.rnn, model.head
    parameters = (rnn.weight_ih_l0, rnn.weight_hh_l0, rnn.bias_ih_l0, head.weight, head.bias)
    return [p.detach().numpy().copy() for p in parameters]


def default_ids() -> tuple[Tensor, int]:
    text = min_char_rnn.read_text(None)
    characters = sorted(set(text))
    return torch.tensor([characters.index(c) for c in text]), len(characters)


@pytest.mark.parametrize(
    "follow",
    [pytest.param(True, id="step_by_step", marks=pytest.mark.slow), pytest.param(False, id="free")],
)
def test_losses_and_weights_are_those_of_the_numpy_program(follow: bool) -> None:
    """A thousand steps through a text of 97 chunks, each from the same weights in both programs.

    Left alone, the paths of two correct programs part: a difference of 1e-14 in one loss has grown
    to 1e-5 after a hundred of these steps. For the first of them they agree all the same.
    """
    ids, vocab_size = default_ids()
    ids = ids[: 97 * 25 + 12]
    model = MinCharRNN(vocab_size, 100)
    program = NumpyProgram(weights_of(model), lr=0.1, clip=5.0)
    h = np.zeros(100)
    steps = train(model, ids, length=25, lr=0.1, clip=5.0, iterations=1000 if follow else 12)
    for n, loss, inputs, state in steps:
        begin = n % 97 * 25
        h = np.zeros(100) if begin == 0 else h
        assert inputs.tolist() == ids[begin : begin + 25].tolist()
        if follow:
            for own, theirs in zip(program.weights, weights_of(model), strict=True):
                np.testing.assert_allclose(own, theirs, rtol=0, atol=1e-8)
                own[...] = theirs
        np.testing.assert_allclose(h, state[0].numpy(), rtol=0, atol=1e-8)
        chunk = ids[begin : begin + 26].tolist()
        expected, h = program.step(chunk[:-1], chunk[1:], state[0].numpy() if follow else h)
        assert loss == pytest.approx(expected, rel=1e-10, abs=1e-8)
    assert not model.rnn.bias_hh_l0.any()


def test_rounding_parts_the_numpy_program_from_itself() -> None:
    """Which is why no program can have all of its losses: the weights of one character are moved by an ulp."""
    ids, vocab_size = default_ids()
    weights = weights_of(MinCharRNN(vocab_size, 100))
    programs = [NumpyProgram(weights, lr=0.1, clip=5.0) for _ in range(2)]
    states = [np.zeros(100), np.zeros(100)]
    differences = []
    for n in range(100):
        chunk = ids[25 * n : 25 * n + 26].tolist()
        if n == 1:
            moved = programs[1].weights[0]
            moved[:, chunk[0]] = np.nextafter(moved[:, chunk[0]], 1)
        losses = []
        for k, program in enumerate(programs):
            loss, states[k] = program.step(chunk[:-1], chunk[1:], states[k])
            losses.append(loss)
        differences.append(abs(losses[0] - losses[1]) / losses[0])
    assert max(differences[:10]) < 1e-9 and max(differences[90:]) > 1e-8


def test_chunks_go_round() -> None:
    parts = chunks(torch.arange(12), 3)
    seen = [next(parts) for _ in range(8)]
    assert [inputs.tolist() for inputs, _, _ in seen[:4]] == [
        [0, 1, 2],
        [3, 4, 5],
        [6, 7, 8],
        [0, 1, 2],
    ]
    assert all(torch.equal(targets, inputs + 1) for inputs, targets, _ in seen)
    assert [begins for _, _, begins in seen] == [True, False, False] * 2 + [True, False]


def test_adagrad_has_its_epsilon_under_the_root() -> None:
    """From a tiny gradient it takes a small step, where torch's takes one of lr."""
    steps = {}
    for optimizer_class in (Adagrad, torch.optim.Adagrad):
        p = torch.zeros(2, dtype=torch.float64, requires_grad=True)
        optimizer = optimizer_class([p], lr=0.1)
        for grad in ([1e-6, 1.0], [2e-6, 3.0]):
            p.grad = torch.tensor(grad, dtype=torch.float64)
            optimizer.step()
        steps[optimizer_class] = p.detach()
    tiny = 1e-6 / (1e-12 + 1e-8) ** 0.5 + 2e-6 / (5e-12 + 1e-8) ** 0.5
    expected = torch.tensor([-0.1 * tiny, -0.1 * (1 + 3 / 10**0.5)], dtype=torch.float64)
    torch.testing.assert_close(steps[Adagrad], expected, rtol=1e-7, atol=0)
    torch.testing.assert_close(steps[torch.optim.Adagrad][1:], expected[1:])
    assert steps[torch.optim.Adagrad][0] < 50 * expected[0]


def test_gradient_check_passes_and_can_fail(monkeypatch: pytest.MonkeyPatch) -> None:
    ids, vocab_size = default_ids()
    model = MinCharRNN(vocab_size, 100)
    before = weights_of(model)

    def errors() -> dict[str, Tensor]:
        g = torch.Generator().manual_seed(3)
        return gradient_check(model, ids[:25], ids[1:26], g)

    found = errors()
    assert len(found) == 5 and all(e.shape == (10,) and e.max() <= 1e-7 for e in found.values())
    assert all(map(np.array_equal, before, weights_of(model))), "the weights are left as they were"
    original = torch.autograd.grad

    def wrong(*arguments):
        grads = list(original(*arguments))
        grads[1] = grads[1] * (1 + 1e-6)
        grads[2] = torch.zeros_like(grads[2])
        return grads

    monkeypatch.setattr(torch.autograd, "grad", wrong)
    found = list(errors().values())
    assert found[1].min() > 1e-7 and found[2].min() == 1
    assert all(found[k].max() <= 1e-7 for k in (0, 3, 4))


def test_hello() -> None:
    """Three units learn four letters: "hell" -> "ello", and from "h" all of "hello" follows."""
    letters = "helo"
    ids = torch.tensor([letters.index(c) for c in "hello"])
    model = MinCharRNN(4, 3)
    steps = train(model, ids, length=4, lr=0.5, clip=5.0, iterations=500)
    losses = [loss for _, loss, _, _ in steps]
    assert losses[0] == pytest.approx(4 * np.log(4), rel=0.01)
    assert losses[-1] < 0.01
    h = torch.zeros(1, 3, dtype=torch.float64)
    token, word = ids[:1], "h"
    with torch.no_grad():
        for _ in range(4):
            output, h = model.rnn(token, h)
            token = model.head(output[0]).argmax().view(1)
            word += letters[token]
        assert word == "hello"
        drawn = model.sample(torch.zeros(1, 3, dtype=torch.float64), 0, 4, torch.Generator())
    assert "h" + "".join(letters[i] for i in drawn) == "hello"


def test_samples_follow_the_probabilities() -> None:
    model = MinCharRNN(3, 2)
    with torch.no_grad():
        model.head.weight.zero_()
        model.head.bias.copy_(torch.tensor([0.2, 0.5, 0.3]).log())
    h = torch.zeros(1, 2, dtype=torch.float64)
    drawn = torch.tensor(model.sample(h, 0, 4000, torch.Generator().manual_seed(1)))
    shares = torch.bincount(drawn, minlength=3) / 4000
    torch.testing.assert_close(shares, torch.tensor([0.2, 0.5, 0.3]), rtol=0, atol=0.03)
    again = model.sample(h, 0, 50, torch.Generator().manual_seed(1))
    assert again == drawn[:50].tolist() != model.sample(h, 0, 50, torch.Generator().manual_seed(2))


@pytest.mark.slow
def test_the_program_checks_gradients_learns_and_writes() -> None:
    """As started from the root of the repository."""
    command = [sys.executable, "examples/min_char_rnn.py", "--iterations", "1001"]
    command += ["--sample-every", "500"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert result.returncode == 0 and result.stderr == ""
    lines = result.stdout.splitlines()
    assert "different ones" in lines[0] and lines[1].startswith("gradient check")
    worst = float(re.search(r"largest: (\S+)", result.stdout).group(1))
    assert worst <= 1e-7 and "WRONG" not in result.stdout
    losses = re.findall(r"--- iteration (\d+), loss ([\d.]+)", result.stdout)
    assert [int(n) for n, _ in losses] == [0, 500, 1000]
    values = [float(value) for _, value in losses]
    assert values[0] == pytest.approx(25 * np.log(int(lines[0].split()[2])), rel=0.001)
    assert values[2] < 0.83 * values[0] and values[2] < values[1]
    assert len(result.stdout) > 600, "three samples of 200 characters"


def test_texts_that_cannot_be_learned_are_refused(tmp_path: Path, capsys) -> None:
    (tmp_path / "short.txt").write_text("hello")
    (tmp_path / "binary").write_bytes(b"\xff\xfe" * 100)
    for name, words in (("short.txt", "too short: 5"), ("binary", "utf-8"), ("no.txt", "No such")):
        with pytest.raises(SystemExit, match="2"):
            main([str(tmp_path / name)])
        assert words in capsys.readouterr().err
