"""What the phases of check.py share: where they work, how they run commands, how they end."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.common.processes import TAIL_LINES, Command, Finished, run_together

ROOT = Path(__file__).resolve().parents[2]
LEAST_LINES = 6


@dataclass(frozen=True)
class Workplace:
    """Where a check works, and on what.

    capability: of the GPU, (9, 0) say. build: folder of the build. logs: folder of the logs. csv,
    picture: of the benchmark. row_seconds: of the pairs of one row of it.
    """

    capability: tuple[int, int]
    build: Path
    logs: Path
    csv: Path
    picture: Path
    row_seconds: float
    environ: Mapping[str, str] = field(default_factory=lambda: dict(os.environ))

    @property
    def package_folder(self) -> Path:
        """What the build makes: the folder of the package fastlstm."""
        return self.build / "lib"

    def csv_of(self, what: str) -> Path:
        """The file for other rows, beside those of the benchmark."""
        return self.csv.with_name(f"{what}_{self.csv.name.removeprefix('cells_')}")

    @property
    def extension(self) -> Path | None:
        return next((self.package_folder / "fastlstm").glob("_C*.so"), None)

    def run(self, command: Sequence[object], log: str, seconds: float) -> Finished:
        """Run `command` on the package in `package_folder`, not on the one beside the sources."""
        return self.run_all({log: command}, seconds)[log]

    def run_all(
        self, commands: Mapping[str, Sequence[object]], seconds: float, **environ: str
    ) -> dict[str, Finished]:
        """The same for several at the same time, by the names of their logs."""
        paths = [str(self.package_folder), *filter(None, [self.environ.get("PYTHONPATH")])]
        environ |= {"PYTHONPATH": os.pathsep.join(paths), "PYTHONUNBUFFERED": "1"}
        # Working there because `python -m` looks there first.
        self.package_folder.mkdir(parents=True, exist_ok=True)
        together = [
            Command(
                [str(part) for part in command],
                self.logs / f"{log}.log",
                {**self.environ, **environ},
                self.package_folder,
            )
            for log, command in commands.items()
        ]
        return dict(zip(commands, run_together(together, seconds), strict=True))


def arch(capability: tuple[int, int]) -> str:
    """The architecture to compile for: with what only this one has where kernels use it."""
    major, minor = capability
    return f"{major}.{minor}a" if (major, minor) == (9, 0) else f"{major}.{minor}"


def find_tool(name: str, environ: Mapping[str, str], *folders: object) -> str | None:
    """The path of a tool of CUDA: on PATH, in the toolkit, or in one of `folders`."""
    toolkits = [environ.get("CUDA_HOME", ""), "/usr/local/cuda"]
    searched = [environ.get("PATH", ""), *(f"{kit}/bin" for kit in toolkits if kit), *folders]
    return shutil.which(name, path=os.pathsep.join(map(str, searched)))


@dataclass(frozen=True)
class Result:
    """How a phase went. state: "green", "red" or "skipped". detail: more lines for the reader."""

    state: str
    text: str
    detail: str = ""


def red(done: Finished, what: str) -> Result:
    """`done` has failed, or was stopped."""
    why = f"stopped after {done.seconds:.0f} s" if done.code is None else f"exit code {done.code}"
    return Result("red", f"{what}: {why} ({done.log})", done.tail())


def merged(results: Sequence[Result]) -> Result:
    """Several that are red as one, with as many lines of detail as one has."""
    most = max(LEAST_LINES, TAIL_LINES // len(results))
    tails = ["\n".join(result.detail.splitlines()[-most:]) for result in results]
    return Result(
        "red",
        "; ".join(result.text for result in results),
        "\n".join(f"{r.text}\n{tail}" for r, tail in zip(results, tails, strict=True)),
    )
