"""Prints what `auto` chooses for the shapes of the grid `gpu` on an H100, as docs/cuda.md has it.

PYTHONPATH=. python tests/choice_table.py
"""

from collections.abc import Iterator
from itertools import product

from test_heuristics import DTYPES, GATES, H100, KIB, Choice, Device, Dtype, Problem, choose

from benchmarks.shapes import GRIDS


def text(choice: Choice) -> str:
    """A cell of a table in docs/cuda.md: method, units x blocks, rows, groups, KiB, microseconds."""
    if choice.method == "stepwise":
        return f"stepwise | | | | | {choice.step_us:.1f}"
    plan = f"{choice.units} x {choice.blocks} | {choice.rows} | {choice.groups}"
    return f"{choice.method} | {plan} | {choice.shared_bytes / KIB:.0f} | {choice.step_us:.2f}"


# Input projections, float32, of the steps of a launch: kPersistentChunkBytes of layer_fwd.cpp.
LAUNCH_BYTES = 128 * KIB * KIB


def table(device: Device, cell: str, dtype: Dtype) -> Iterator[str]:
    yield "| T, N, H | pass | method | units x blocks | rows | groups | KiB | us a step |"
    yield "|---" * 8 + "|"
    for shape, backward in product(GRIDS["gpu"], (False, True)):
        of_step = 4 * GATES[cell] * shape.N * shape.H
        steps = shape.T if backward else min(shape.T, LAUNCH_BYTES // of_step)
        problem = Problem(shape.H, shape.N, steps, cell, dtype, backward)
        sizes = "" if backward else f"{shape.T}, {shape.N}, {shape.H}"
        name = "backward" if backward else "forward"
        yield f"| {sizes} | {name} | {text(choose(problem, device))} |"


if __name__ == "__main__":
    for dtype in ("bf16", "tf32"):
        print(f"\nLSTM, {dtype}, H100\n")
        print("\n".join(table(H100, "LSTM", DTYPES[dtype])))
