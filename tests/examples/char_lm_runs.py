"""Small runs of examples/char_lm for its tests, and the fixtures that make them.

A test module takes a fixture by giving it its name: ``run = char_lm_runs.run``.
"""

import contextlib
import functools
import random
import shutil
from pathlib import Path

import example_runs
import pytest

from examples.char_lm.__main__ import main
from examples.char_lm.trainer import Trainer

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


@pytest.fixture
def text(tmp_path):
    return write_words(tmp_path / "text.txt")


@functools.cache
def finished_run(session):
    """One for all modules: they have the folder of the session in common."""
    folder = session / "char_lm"
    folder.mkdir()
    assert train(write_words(folder / "text.txt"), folder / "run", "--steps", 20) == 0
    return folder / "run"


@pytest.fixture
def run(tmp_path_factory, tmp_path):
    """A run of 20 steps, to do with as one likes."""
    return Path(shutil.copytree(finished_run(tmp_path_factory.getbasetemp()), tmp_path / "run"))


@contextlib.contextmanager
def stopping_when(monkeypatch, condition):
    """Inside, a run stops the way it does on Ctrl-C once ``condition`` holds for its record."""
    original = Trainer.run

    def stopped(self, out, should_stop):
        original(self, out, lambda: condition(self.record) or should_stop())

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "run", stopped)
        yield


assert_refused = functools.partial(example_runs.assert_refused, main)
