"""The process of one scheme: python -m benchmarks.gpu.exchange.worker LIBRARY, jobs on stdin.

A launch that ends with an error leaves nothing behind with which its process could go on, and one
that hangs has to be killed: so each scheme has a process of its own. A job and its answer are a
line of JSON each. {"scheme", "problem"} is answered by {"ms": [...], "empty_ms": [...]} or
{"error"}; the other jobs are in JOBS.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from benchmarks.gpu.exchange.native import EVERY_WARP, ROOT, Library, Problem


def answers(library: Path, jobs: Sequence[dict], seconds: float) -> list[dict]:
    """An answer for each job; {"error"} for those that were not answered within `seconds`."""
    command = [sys.executable, "-m", "benchmarks.gpu.exchange.worker", str(library)]
    asked = "".join(json.dumps(job) + "\n" for job in jobs)
    try:
        done = subprocess.run(
            command,
            cwd=ROOT,
            input=asked.encode(),
            capture_output=True,
            timeout=max(seconds, 0.1),
            check=False,
        )
        output, errors = done.stdout, done.stderr.decode(errors="replace").strip()
        why = f"its process ended with code {done.returncode}: {errors.rpartition(chr(10))[2]}"
    except subprocess.TimeoutExpired as late:
        output, why = late.stdout or b"", f"stopped after {seconds:.0f} s"
    # The last line may be half an answer.
    found = [json.loads(line) for line in output.split(b"\n")[:-1]]
    return found + [{"error": why}] * (len(jobs) - len(found))


def measure(library: Library, job: dict) -> dict:
    """A scheme, and the loop alone right after it, both once for nothing first."""
    scheme, problem = job["scheme"], Problem(**job["problem"])
    empty = "empty_block" if scheme in EVERY_WARP else "empty"
    return {"ms": library.run(scheme, problem)[1:], "empty_ms": library.run(empty, problem)[1:]}


def launches(library: Library, job: dict) -> dict:
    stream, graph = library.launches(job["blocks"], job["threads"], job["count"], job["times"])
    return {"stream": stream[1:], "graph": graph[1:]}


def max_clusters(library: Library, job: dict) -> dict:
    return {"clusters": library.max_clusters(job["size"], job["threads"], job["shared_bytes"])}


JOBS: dict[str, Callable[[Library, dict], dict]] = {
    "measure": measure,
    "launches": launches,
    "max_clusters": max_clusters,
    "device": lambda library, _: library.device(),
}


def answer(library: Library, job: dict) -> dict:
    try:
        return JOBS[job["job"]](library, job)
    except (RuntimeError, ValueError) as error:
        return {"error": str(error)}


def main() -> None:
    library = Library(Path(sys.argv[1]))
    for line in sys.stdin:
        print(json.dumps(answer(library, json.loads(line))), flush=True)


if __name__ == "__main__":
    main()
