"""What runs of the example programs leave, and how they end on a mistake."""

import json
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[2]


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


def assert_same_run(first, second):
    """Everything in two checkpoints that does not measure time is equal, to the last bit."""
    one, two = load(first / "checkpoint.pt"), load(second / "checkpoint.pt")
    timings = {"seconds", "step_seconds", "aside_seconds"}
    timings |= {"chars_per_second", "pictures_per_second"}

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


def assert_refused(main, capsys, directory, arguments, *words):
    """``main`` ends with code 2 and one line that has ``words``, and leaves ``directory`` alone."""
    before = contents(directory)
    capsys.readouterr()
    assert main([str(argument) for argument in arguments]) == 2
    output, error = capsys.readouterr()
    assert error.startswith("error: ") and error.count("\n") == 1 and output == ""
    for word in words:
        assert word in error
    assert contents(directory) == before
