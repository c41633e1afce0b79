"""Commands that run together, with a log and a limit, and what is left of them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from benchmarks.common import processes
from benchmarks.common.processes import Command, Finished, run_together

ROOT = Path(__file__).resolve().parents[2]


def command(arguments: list[str], log: Path) -> Command:
    return Command(arguments, log, os.environ, log.parent)


def python(code: str, log: Path, seconds: float) -> Finished:
    (done,) = run_together([command([sys.executable, "-S", "-c", code], log)], seconds)
    return done


def test_command_leaves_its_code_and_all_it_says(tmp_path: Path) -> None:
    code = "import sys; print('out', flush=True); print('err\\n', file=sys.stderr); sys.exit(3)"
    done = python(code, tmp_path / "log", 20)
    assert done.code == 3
    assert done.lines() == ["out", "err", ""]
    assert done.last_line() == "err"
    assert python("", tmp_path / "log", 20).last_line() == ""


def test_command_at_its_limit_may_write_what_it_has_and_is_killed(
    tmp_path: Path, monkeypatch
) -> None:
    polite = "import time\ntry: time.sleep(60)\nexcept KeyboardInterrupt: print('kept')"
    done = python(polite, tmp_path / "log", 2.0)
    assert (done.code, done.last_line()) == (None, "kept")
    monkeypatch.setattr(processes, "GRACE_SECONDS", 0.5)
    # It ignores the interrupt, and has started a process that does so too.
    stubborn = "trap '' INT; sleep 60 & echo $! > pid; wait; wait; sleep 60"
    start = time.monotonic()
    (done,) = run_together([command(["sh", "-c", stubborn], tmp_path / "log")], 0.5)
    assert done.code is None
    assert time.monotonic() - start < 20
    stat = Path(f"/proc/{(tmp_path / 'pid').read_text().strip()}/stat")
    deadline = time.monotonic() + 10
    while stat.exists() and stat.read_text().split()[2] != "Z" and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not stat.exists() or stat.read_text().split()[2] == "Z"


def test_interrupt_stops_the_command_and_is_raised_again(tmp_path: Path) -> None:
    code = f"""
import os, signal, sys, threading
signal.signal(signal.SIGINT, signal.default_int_handler)
sys.path.append({str(ROOT)!r})
from pathlib import Path
from benchmarks.common.processes import Command, run_together
log = Path("log")
def interrupt():
    while "ready" not in (log.read_text() if log.exists() else ""):
        pass
    os.kill(os.getpid(), signal.SIGINT)
threading.Thread(target=interrupt, daemon=True).start()
child = "import time\\ntry: print('ready', flush=True); time.sleep(60)\\nexcept KeyboardInterrupt: print('kept')"
try:
    run_together([Command([sys.executable, "-S", "-c", child], log, os.environ, Path("."))], 50)
except KeyboardInterrupt:
    sys.exit(7)
"""
    done = subprocess.run([sys.executable, "-S", "-c", code], cwd=tmp_path, timeout=60, check=False)
    assert done.returncode == 7
    assert (tmp_path / "log").read_text().split() == ["ready", "kept"]


def test_interrupt_while_a_command_starts_stops_it(tmp_path: Path, monkeypatch) -> None:
    begun = []

    class Popen(subprocess.Popen):
        def __init__(self, *args: object, **options: object) -> None:
            super().__init__(*args, **options)
            begun.append(self)
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(processes.subprocess, "Popen", Popen)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            run_together([command(["sleep", "60"], tmp_path / "log")], 50)
    finally:
        signal.signal(signal.SIGINT, before)
    assert [process.poll() for process in begun] == [-signal.SIGINT]


def test_commands_run_at_the_same_time_and_each_has_its_end(tmp_path: Path) -> None:
    """Each waits for the other, so that one after the other would not end."""
    code = """
import pathlib, sys, time
me, other, code = sys.argv[1:]
pathlib.Path(me).touch()
while not pathlib.Path(other).exists():
    time.sleep(0.01)
print(me)
sys.exit(int(code))
"""
    arguments = [
        [sys.executable, "-S", "-c", code, *rest] for rest in (["a", "b", "0"], ["b", "a", "7"])
    ]
    commands = [command(a, tmp_path / f"log{i}") for i, a in enumerate(arguments)]
    done = run_together(commands, 30)
    assert [one.code for one in done] == [0, 7]
    assert [one.last_line() for one in done] == ["a", "b"]


def test_command_heeds_interrupts_where_its_parent_does_not(tmp_path: Path) -> None:
    """As what a shell runs in the background."""
    polite = "import time\ntry: time.sleep(60)\nexcept KeyboardInterrupt: print('kept')"
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        assert python(polite, tmp_path / "log", 2.0).last_line() == "kept"
    finally:
        signal.signal(signal.SIGINT, before)


def test_limit_is_that_of_all(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(processes, "GRACE_SECONDS", 0.5)
    sleeping = "trap '' INT; sleep 60; sleep 60"
    commands = [
        command(["sh", "-c", c], tmp_path / f"log{i}")
        for i, c in enumerate((sleeping, "exit 3", sleeping))
    ]
    start = time.monotonic()
    assert [one.code for one in run_together(commands, 0.5)] == [None, 3, None]
    assert time.monotonic() - start < 20


def test_command_that_cannot_start_stops_the_others(tmp_path: Path) -> None:
    start = time.monotonic()
    commands = [
        command(["sleep", "60"], tmp_path / "a"),
        command(["/no/such/file"], tmp_path / "b"),
    ]
    try:
        run_together(commands, 60)
    except FileNotFoundError:
        pass
    else:
        raise AssertionError("it was started")
    assert time.monotonic() - start < 20
