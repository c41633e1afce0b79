"""examples/common: clipping, learning rates, curves, files and progress."""

import io
import math
import os
import stat
import sys

import pytest
import torch

from examples.char_lm.record import RunRecord
from examples.common.checkpoint import find
from examples.common.errors import UserError
from examples.common.files import atomic_write, save_checkpoint, write_json, write_text
from examples.common.optimize import clip_gradients
from examples.common.progress import Progress
from examples.common.record import MAX_POINTS, Curve
from examples.common.runs import claim
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
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"]
    assert path.read_text() == "old"
    write_text(path, "new")
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"] and path.read_text() == "new"
    with pytest.raises(UserError, match="cannot write"):
        write_text(tmp_path / "no" / "file", "x")


def test_atomic_write_is_on_disk_before_it_has_its_name_and_so_is_the_name(tmp_path, monkeypatch):
    """Else a power cut may leave the new name with an empty file, or take the file back."""
    done = []

    def synced(handle, fsync=os.fsync):
        fsync(handle)
        about = os.fstat(handle)
        done.append("folder" if stat.S_ISDIR(about.st_mode) else f"{about.st_size} bytes")

    def replaced(source, target, replace=os.replace):
        replace(source, target)
        done.append("name")

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(os, "replace", replaced)
    write_text(tmp_path / "file", "a" * 100)
    assert done == ["100 bytes", "name", "folder"]


@pytest.mark.parametrize(
    ("write", "old", "new"),
    [(write_text, "old", "new"), (write_json, [1], [2]), (save_checkpoint, {"a": 1}, {"a": 2})],
    ids=["text", "json", "checkpoint"],
)
def test_whatever_is_written_is_written_atomically(write, old, new, tmp_path, monkeypatch):
    path = tmp_path / "file"
    write(path, old)
    before = path.read_bytes()

    def interrupted(handle):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write(path, new)
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"] and path.read_bytes() == before


def test_a_run_stands_for_its_best_weights(tmp_path):
    last, best = tmp_path / "checkpoint.pt", tmp_path / "best.pt"
    assert find(tmp_path) == last  # to be named as missing
    last.touch()
    assert find(tmp_path) == last
    best.touch()
    assert find(tmp_path) == best
    assert find(last) == last


def test_a_new_run_has_the_number_after_the_largest(tmp_path):
    runs = tmp_path / "runs"
    assert claim(None, (), runs) == runs / "001"
    for name in ("009", "notes"):
        (runs / name).mkdir()
    assert claim(None, (), runs) == runs / "010"


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
