"""Commands with a log and a time limit, which do not outlive it."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

GRACE_SECONDS = 5.0
TAIL_LINES = 30


@dataclass(frozen=True)
class Finished:
    """A command that has ended. code: None where it was stopped at its limit."""

    code: int | None
    seconds: float
    log: Path

    def lines(self) -> list[str]:
        return self.log.read_text(encoding="utf-8", errors="replace").splitlines()

    def tail(self) -> str:
        return "\n".join(self.lines()[-TAIL_LINES:])

    def last_line(self) -> str:
        """The last line that says something, "" where there is none."""
        return next((line for line in reversed(self.lines()) if line.strip()), "")


@dataclass(frozen=True)
class Command:
    """What is run: its output goes to `log`, which is replaced."""

    arguments: Sequence[str]
    log: Path
    environ: Mapping[str, str]
    cwd: Path


def run_together(commands: Sequence[Command], seconds: float) -> list[Finished]:
    """Run `commands` at the same time, for at most `seconds`.

    At the limit, and when this process is interrupted, those that still run and what they started
    get an interrupt and GRACE_SECONDS to write what they have; then they are killed. An interrupt
    is raised again.
    """
    start = time.monotonic()
    processes: list[subprocess.Popen] = []
    finished = []
    try:
        with interrupts_held():
            for command in commands:
                processes.append(started(command))
        for process, command in zip(processes, commands, strict=True):
            left = start + seconds - time.monotonic()
            try:
                code = process.wait(timeout=max(left, 0))
            except subprocess.TimeoutExpired:
                code = None
            finished.append(Finished(code, time.monotonic() - start, command.log))
    finally:
        stop(processes)
    return finished


@contextlib.contextmanager
def interrupts_held() -> Iterator[None]:
    """An interrupt is raised at the end: a process that has begun is known by then."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    held = []
    before = signal.signal(signal.SIGINT, lambda number, _: held.append(number))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
        if held:
            signal.raise_signal(signal.SIGINT)


def started(command: Command) -> subprocess.Popen:
    with command.log.open("w", encoding="utf-8") as file:
        return subprocess.Popen(
            command.arguments,
            env=command.environ,
            cwd=command.cwd,
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            # A session of its own: compilers and sanitizers start processes that must end as well,
            # and an interrupt from the keyboard reaches this process first.
            start_new_session=True,
            preexec_fn=heed_interrupts,
        )


def heed_interrupts() -> None:
    """What a shell runs in the background ignores interrupts, and so would what that starts."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def stop(processes: Sequence[subprocess.Popen]) -> None:
    """End those that still run, and their sessions."""
    running = [process for process in processes if process.poll() is None]
    for process in running:
        os.killpg(process.pid, signal.SIGINT)
    end = time.monotonic() + GRACE_SECONDS
    try:
        for process in running:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(timeout=max(end - time.monotonic(), 0))
    finally:
        for process in running:
            # Also what the leader left behind.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
