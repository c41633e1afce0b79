"""Jobs for worker.py, in a process that is replaced when it is lost."""

from __future__ import annotations

import contextlib
import json
import queue
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

from benchmarks.gpu.methods.jobs import Job

COMMAND = (sys.executable, str(Path(__file__).with_name("worker.py")))
# Between two events. The longest ways are to the first one, with torch and CUDA to be loaded, and
# through the rounds.
SILENCE_SECONDS = 60.0
END = None


class WorkerLostError(Exception):
    """The process has ended, or said nothing for too long. at: what was at work, if known."""

    def __init__(self, at: str, why: str) -> None:
        super().__init__(why)
        self.at = at


class Worker:
    """A process that measures, from its first job on."""

    def __init__(self, command: Sequence[str] = COMMAND, silence: float = SILENCE_SECONDS) -> None:
        self._command = command
        self._silence = silence
        self._process: subprocess.Popen | None = None
        self._lines: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        self._reader: threading.Thread | None = None

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *_: object) -> None:
        self._stop()

    def events(self, job: Job) -> Iterator[dict]:
        """Those of jobs.Measurement. Raises WorkerLostError; the next job has a new process."""
        at = ""
        try:
            self._send(job)
            while "done" not in (event := self._event(at)):
                at = event.get("at", at)
                yield event
        except BaseException:
            self._stop()
            raise

    def _send(self, job: Job) -> None:
        if self._process is None:
            self._process = subprocess.Popen(
                self._command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
            )
            self._lines = queue.SimpleQueue()
            self._reader = threading.Thread(
                target=pass_on, args=(self._process.stdout, self._lines), daemon=True
            )
            self._reader.start()
        try:
            self._process.stdin.write(json.dumps(job.as_json()) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            raise WorkerLostError("", "its process has ended") from None

    def _event(self, at: str) -> dict:
        while True:
            try:
                line = self._lines.get(timeout=self._silence)
            except queue.Empty:
                raise WorkerLostError(at, f"silent for {self._silence:.0f} s") from None
            if line is END:
                code = self._process.wait()
                raise WorkerLostError(at, f"its process ended with code {code}")
            try:
                event = json.loads(line)
            except ValueError:
                # Of a library that prints.
                print(line, end="", flush=True)
                continue
            if "lost" in event:
                raise WorkerLostError(at, event["lost"])
            return event

    def _stop(self) -> None:
        if self._process is None:
            return
        self._process.kill()
        self._process.wait()
        self._reader.join()
        self._process.stdout.close()
        # What it has not read is of no use to anyone.
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()
        self._process = None


def pass_on(lines: Iterator[str], to: queue.SimpleQueue[str | None]) -> None:
    # The last one may be half a line.
    for line in lines:
        if line.endswith("\n"):
            to.put(line)
    to.put(END)
