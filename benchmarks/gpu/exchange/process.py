"""Jobs for worker.py, in a process that ends with them."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]


def answers(library: Path, jobs: Sequence[dict], seconds: float) -> list[dict]:
    """An answer for each job; {"error"} for those that were not answered within `seconds`."""
    process = subprocess.Popen(
        [sys.executable, "-m", "benchmarks.gpu.exchange.worker", str(library)],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    asked = "".join(json.dumps(job) + "\n" for job in jobs)
    why = ""
    try:
        output, errors = process.communicate(asked, timeout=max(seconds, 0.1))
    except subprocess.TimeoutExpired:
        process.kill()
        output, errors = process.communicate()
        why = f"stopped after {seconds:.0f} s"
    finally:
        process.kill()
    # The last line may be half an answer.
    lines = output[: output.rfind("\n") + 1].splitlines()
    found = [json.loads(line) for line in lines]
    if len(found) < len(jobs):
        last = next((line for line in reversed(errors.splitlines()) if line.strip()), "")
        why = why or f"its process ended with code {process.returncode}: {last}"
    return found + [{"error": why}] * (len(jobs) - len(found))
