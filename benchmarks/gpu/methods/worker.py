"""A process that measures, and what asks it: python benchmarks/gpu/methods/worker.py, jobs on stdin.

A kernel that fails takes all later calls of its process with it, and one that hangs ends with it
alone. So what is at work is said before it begins: events of jobs.py go to stdout, a line of JSON
each, and {"done": true} after those of a job. A process that is lost is replaced.
"""

from __future__ import annotations

import contextlib
import gc
import json
import queue
import subprocess
import sys
import threading
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

# Last: fastlstm is that of the environment, and not the one beside the sources.
sys.path.append(str(Path(__file__).resolve().parents[3]))

from benchmarks.common.devices import DEVICES, Cpu
from benchmarks.gpu.methods.jobs import Job, LostError, Measurement

COMMAND = (sys.executable, str(Path(__file__).resolve()))
# Between two events. The longest ways are to the first one, with torch and CUDA to be loaded, and
# through the rounds.
SILENCE_SECONDS = 60.0
LOST = 3


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
            pipe = subprocess.PIPE
            self._process = subprocess.Popen(self._command, stdin=pipe, stdout=pipe, text=True)
            self._lines: queue.SimpleQueue[str | None] = queue.SimpleQueue()
            streams = (self._process.stdout, self._lines)
            self._reader = threading.Thread(target=pass_on, args=streams, daemon=True)
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
            if line is None:
                raise WorkerLostError(at, f"its process ended with code {self._process.wait()}")
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


def pass_on(lines: Iterable[str], to: queue.SimpleQueue[str | None]) -> None:
    """Whole lines, and None at the end: the last one may be half a line."""
    for line in lines:
        if line.endswith("\n"):
            to.put(line)
    to.put(None)


def answers(lines: Iterable[str], device: Cpu) -> Iterator[dict]:
    """The events of the jobs in `lines`. Raises LostError where the device is lost."""
    for line in lines:
        yield from Measurement(Job.read(json.loads(line)), device).events()
        yield {"done": True}


def main() -> int:
    device = DEVICES["cuda"]()
    # The collector runs before every timing and would search all of torch.
    gc.freeze()
    try:
        for event in answers(sys.stdin, device):
            print(json.dumps(event), flush=True)
    except LostError as error:
        print(json.dumps({"lost": str(error)}), flush=True)
        return LOST
    return 0


if __name__ == "__main__":
    sys.exit(main())
