"""Runs of examples/char_lm for its tests: small ones, and what they leave."""

import contextlib
import json
import random
from pathlib import Path

import pytest
import torch

from examples.char_lm.__main__ import main
from examples.char_lm.trainer import Trainer

ROOT = Path(__file__).resolve().parent.parent

backends = pytest.mark.parametrize("backend", ["torch", "fastlstm"])
SMALL = [
    *("--hidden", "16", "--embedding", "6", "--seq", "12", "--batch", "4", "--threads", "1"),
    *("--sample-length", "20", "--eval-chars", "300", "--warmup", "3"),
]


def write_words(path):
    """4,000 characters in words that repeat."""
    words = ["the", "cat", "sat", "on", "a", "mat", "and", "then", "ran\n"]
    path.write_text(" ".join(random.Random(0).choices(words, k=1100))[:4000])
    return path


def train(text, out, *more, backend="torch"):
    arguments = ["train", "--text", str(text), "--out", str(out), "--backend", backend]
    return main([*arguments, *SMALL, *map(str, more)])


def load(path):
    return torch.load(path, weights_only=True)


def metrics_of(out):
    return json.loads((out / "metrics.json").read_text())


def contents(directory):
    return {
        path: (path.stat().st_mtime_ns, path.read_bytes())
        for path in sorted(directory.rglob("*"))
        if path.is_file()
    }


@contextlib.contextmanager
def stopping_when(monkeypatch, condition):
    """Inside, a run stops the way it does on Ctrl-C once ``condition`` holds for its record."""
    original = Trainer.run

    def stopped(self, out, should_stop):
        original(self, out, lambda: condition(self.record) or should_stop())

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "run", stopped)
        yield


def assert_same_run(first, second):
    """Everything in two checkpoints that does not measure time is equal, to the last bit."""
    one, two = load(first / "checkpoint.pt"), load(second / "checkpoint.pt")
    timings = {"seconds", "step_seconds", "chars_per_second"}

    def compare(a, b, where):
        assert type(a) is type(b), where
        if isinstance(a, dict):
            assert a.keys() == b.keys(), where
            for key in a.keys() - timings:
                compare(a[key], b[key], f"{where}.{key}")
        elif isinstance(a, list):
            assert len(a) == len(b), where
            for number, pair in enumerate(zip(a, b, strict=True)):
                compare(*pair, f"{where}[{number}]")
        elif isinstance(a, torch.Tensor):
            assert torch.equal(a, b), where
        else:
            assert a == b, where

    compare(one, two, "checkpoint")
