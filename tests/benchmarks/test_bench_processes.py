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
POLITE = "import time\ntry: print('ready', flush=True); time.sleep(60)\nexcept KeyboardInterrupt: print('kept')"
# Ignores interrupts.
STUBBORN = "trap '' INT; sleep 60; sleep 60"


def command(arguments: list[str], log: Path) -> Command:
    return Command(arguments, log, os.environ, log.parent)


def python(code: str, log: Path, seconds: float) -> Finished:
    (done,) = run_together([command([sys.executable, "-S", "-c", code], log)], seconds)
    return done


@pytest.fixture(autouse=True)
def limit():
    """Nothing here waits for a command of 60 s."""
    start = time.monotonic()
    yield
    assert time.monotonic() - start < 30


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
    done = python(POLITE, tmp_path / "log", 2.0)
    assert (done.code, done.last_line()) == (None, "kept")
    monkeypatch.setattr(processes, "GRACE_SECONDS", 0.5)
    # It ignores the interrupt, and has started a process that does so too.
    stubborn = "trap '' INT; sleep 60 & echo $! > pid; wait; wait; sleep 60"
    (done,) = run_together([command(["sh", "-c", stubborn], tmp_path / "log")], 0.5)
    assert done.code is None
    stat = Path(f"/proc/{(tmp_path / 'pid').read_text().strip()}/stat")

    def is_gone() -> bool:
        try:
            # Where nobody collects orphans it stays in the table, as a zombie.
            return stat.read_text().rpartition(")")[2].split()[0] in "ZX"
        except (FileNotFoundError, ProcessLookupError):
            return True

    # Killed, it has to be given a processor once more to end.
    deadline = time.monotonic() + 10
    while not is_gone() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert is_gone()


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
try:
    run_together([Command([sys.executable, "-S", "-c", {POLITE!r}], log, os.environ, Path("."))], 50)
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
    rest = (["a", "b", "0"], ["b", "a", "7"])
    arguments = [[sys.executable, "-S", "-c", code, *words] for words in rest]
    done = run_together([command(a, tmp_path / f"log{a[-3]}") for a in arguments], 30)
    assert [(one.code, one.last_line()) for one in done] == [(0, "a"), (7, "b")]


def test_command_heeds_interrupts_where_its_parent_does_not(tmp_path: Path) -> None:
    """As what a shell runs in the background."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        assert python(POLITE, tmp_path / "log", 2.0).last_line() == "kept"
    finally:
        signal.signal(signal.SIGINT, before)


def test_limit_is_that_of_all(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(processes, "GRACE_SECONDS", 0.5)
    shells = [
        command(["sh", "-c", script], tmp_path / f"log{i}")
        for i, script in enumerate((STUBBORN, "exit 3", STUBBORN))
    ]
    assert [one.code for one in run_together(shells, 0.5)] == [None, 3, None]


def test_command_that_cannot_start_stops_the_others(tmp_path: Path) -> None:
    arguments = (["sleep", "60"], ["/no/such/file"])
    with pytest.raises(FileNotFoundError):
        run_together([command(a, tmp_path / "log") for a in arguments], 60)
