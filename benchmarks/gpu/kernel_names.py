"""The names of kernels, short enough for a column."""

from __future__ import annotations

import re
from collections.abc import Sequence

SHOWN = 3
LONGEST = 60


def heaviest(times: Sequence[tuple[str, float]]) -> str:
    """The two or three kernels that take most of the time in `times` (name, time), with their
    shares: "gemm 62 %; cell 30 %". A third one only if it takes a tenth. "" where there is none."""
    total = sum(time for _, time in times)
    if total <= 0:
        return ""
    merged: dict[str, float] = {}
    for name, time in times:
        merged[trimmed(name)] = merged.get(trimmed(name), 0.0) + time
    ordered = sorted(merged.items(), key=lambda item: -item[1])
    shown = [item for rank, item in enumerate(ordered[:SHOWN]) if rank < 2 or item[1] >= total / 10]
    return "; ".join(f"{name} {100 * time / total:.0f} %" for name, time in shown)


def trimmed(name: str) -> str:
    """`name` without return type, namespaces, template arguments and parameters."""
    name = name.replace("(anonymous namespace)::", "")
    # All of CUTLASS's kernels are called alike: what they are is their argument.
    name = re.sub(r"\bcutlass::Kernel2?<(\w+)", r"\1<", name)
    while (shorter := re.sub(r"<[^<>]*>", "", name)) != name:
        name = shorter
    name = name.partition("(")[0].removeprefix("void ").strip()
    return name.rpartition("::")[2][:LONGEST]


def with_arguments(name: str) -> str:
    """`name` with its template arguments, without return type, namespaces and parameters."""
    name = name.replace("(anonymous namespace)::", "")
    name = re.sub(r"\b\w+::", "", name)
    # Values of an enum: (Exchange)0.
    name = re.sub(r"\(\w+\)(?=\d)", "", name)
    return name.partition("(")[0].removeprefix("void ").strip()
