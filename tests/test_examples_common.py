"""examples/common: clipping, learning rates, curves, files and progress."""

import io
import math
import sys

import pytest
import torch

from examples.char_lm.record import RunRecord
from examples.common.errors import UserError
from examples.common.files import atomic_write, write_text
from examples.common.optimize import clip_gradients
from examples.common.progress import Progress
from examples.common.record import MAX_POINTS, Curve
from examples.common.schedule import learning_rate_factor


def gradients_of(*values):
    layer = torch.nn.Linear(len(values), 1, bias=False)
    layer.weight.grad = torch.tensor([values])
    return layer


def test_clip_by_norm_and_by_value():
    layer = gradients_of(3.0, 4.0)
    assert clip_gradients(layer, 10.0, 0.0) == (5.0, False)
    assert layer.weight.grad.tolist() == [[3.0, 4.0]]
    assert clip_gradients(layer, 1.0, 0.0) == (5.0, True)
    torch.testing.assert_close(layer.weight.grad, torch.tensor([[0.6, 0.8]]))
    layer = gradients_of(3.0, 4.0)
    assert clip_gradients(layer, 0.0, 3.5) == (5.0, True)
    assert layer.weight.grad.tolist() == [[3.0, 3.5]]
    layer = gradients_of(30.0, -40.0)
    assert clip_gradients(layer, 1.0, 3.0) == (50.0, True)
    torch.testing.assert_close(layer.weight.grad, torch.tensor([[0.5**0.5, -(0.5**0.5)]]))
    assert clip_gradients(gradients_of(math.nan, 1.0), 1.0, 1.0)[1] is False


def test_learning_rate_warms_up_and_decays():
    def factors(schedule, total=110, **options):
        return [
            learning_rate_factor(
                step, schedule=schedule, total_steps=total, warmup_steps=10, final=0.1, **options
            )
            for step in range(111)
        ]

    for schedule in ("cosine", "linear"):
        values = factors(schedule)
        assert values[0] == pytest.approx(1 / 11) and values[10] == 1.0
        assert values[60] == pytest.approx(0.55) and values[110] == pytest.approx(0.1)
        assert values[10:] == sorted(values[10:], reverse=True)
        assert factors(schedule, total=None)[10:] == [1.0] * 101
    assert factors("constant")[10:] == [1.0] * 101
    late = factors("exponential", epoch=12.0, decay_rate=0.5, decay_after=10.0)
    assert late[50] == 0.25


def test_curve_stays_small_and_keeps_its_mean():
    curve = Curve()
    for value in range(1600):
        curve.add(float(value))
    x, y = curve.xy(1.0)
    assert len(y) < MAX_POINTS and curve.every == 8
    assert x[0] == 4.0 and y[0] == 3.5
    record = RunRecord(curve=curve)
    assert RunRecord.from_dict(record.to_dict()) == record


def test_atomic_write_is_whole_or_absent(tmp_path):
    path = tmp_path / "file"
    write_text(path, "old")
    with pytest.raises(KeyboardInterrupt), atomic_write(path) as file:
        file.write(b"half of the n")
        file.flush()
        raise KeyboardInterrupt
    assert path.read_text() == "old"
    write_text(path, "new")
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"] and path.read_text() == "new"
    with pytest.raises(UserError, match="cannot write"):
        write_text(tmp_path / "no" / "file", "x")


def test_progress_is_live_on_a_terminal_and_silent_in_a_log(monkeypatch, capsys):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    display = Progress(10)
    for _ in range(10):
        display.step("train 1.234")
    display.log("not shown")
    display.print("shown")
    display.close()
    assert "train 1.234" in terminal.getvalue()
    assert "not shown" not in capsys.readouterr().out

    log = io.StringIO()
    monkeypatch.setattr(sys, "stderr", log)
    display = Progress(10)
    display.step("train 1.234")
    display.log("a line")
    display.close()
    assert log.getvalue() == "" and capsys.readouterr().out == "a line\n"
