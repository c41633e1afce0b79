"""The process that measures: python benchmarks/gpu/methods/worker.py, jobs on stdin.

A kernel that fails takes all later calls of its process with it, and one that hangs ends with it
alone. So what is at work is said before it begins: events of jobs.py go to stdout, a line of JSON
each, and {"done": true} after those of a job.
"""

from __future__ import annotations

import gc
import json
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

# Last: fastlstm is that of the environment, and not the one beside the sources.
sys.path.append(str(Path(__file__).resolve().parents[3]))

from benchmarks.common.devices import DEVICES, Device
from benchmarks.gpu.methods.jobs import Job, LostError, Measurement

LOST = 3


def answers(lines: Iterable[str], device: Device) -> Iterator[dict]:
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
