"""Commands with a log and a time limit, which do not outlive it."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
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


def run_logged(
    command: Sequence[str],
    log: Path,
    seconds: float,
    *,
    environ: Mapping[str, str],
    cwd: Path,
) -> Finished:
    """Run `command` for at most `seconds`, its output in `log`, which is replaced.

    At the limit, and when this process is interrupted, the command and what it started get an
    interrupt and GRACE_SECONDS to write what they have; then they are killed. An interrupt is
    raised again.
    """
    start = time.monotonic()
    with log.open("w", encoding="utf-8") as file:
        process = subprocess.Popen(
            command,
            env=environ,
            cwd=cwd,
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            # A session of its own: compilers and sanitizers start processes that must end as well,
            # and an interrupt from the keyboard reaches this process first.
            start_new_session=True,
        )
        try:
            code = process.wait(timeout=max(seconds, 0))
        except subprocess.TimeoutExpired:
            code = None
        finally:
            stop(process)
    return Finished(code, time.monotonic() - start, log)


def stop(process: subprocess.Popen) -> None:
    """End `process` and its session, if it still runs."""
    if process.poll() is not None:
        return
    os.killpg(process.pid, signal.SIGINT)
    try:
        process.wait(timeout=GRACE_SECONDS)
    except subprocess.TimeoutExpired:
        pass
    finally:
        # Also what the leader left behind.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
