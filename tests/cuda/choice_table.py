"""Prints what `auto` chooses for the shapes of the grid `gpu` on an H100, as docs/cuda.md has it.

PYTHONPATH=.:tests/support python tests/cuda/choice_table.py
"""

from collections.abc import Iterator
from itertools import product

import simt_extension
import torch
from choosing import H100, KIB, Choice, native

from benchmarks.common.shapes import GRIDS


def text(choice: Choice) -> str:
    """A cell of a table in docs/cuda.md: method, units x blocks, rows, groups, KiB, microseconds."""
    if choice.method == "stepwise":
        return f"stepwise | | | | | {choice.step_us:.1f}"
    plan = f"{choice.units} x {choice.blocks} | {choice.rows} | {choice.groups}"
    return f"{choice.method} | {plan} | {choice.shared_bytes / KIB:.0f} | {choice.step_us:.2f}"


def table(mode: str, dtype: torch.dtype, tf32: bool) -> Iterator[str]:
    simt = simt_extension.load()
    simt.set_device(native(H100))
    yield "| T, N, H | pass | method | units x blocks | rows | groups | KiB | us a step |"
    yield "|---" * 8 + "|"
    for (T, N, _, H), backward in product(GRIDS["gpu"], (False, True)):
        choice = simt.cuda_choice(
            mode=mode, backward=backward, T=T, N=N, H=H, dtype=dtype, tf32=tf32, wanted="auto"
        )
        sizes, name = ("", "backward") if backward else (f"{T}, {N}, {H}", "forward")
        yield f"| {sizes} | {name} | {text(Choice(**choice))} |"


if __name__ == "__main__":
    for dtype, name in ((torch.bfloat16, "bf16"), (torch.float32, "tf32")):
        print(f"\nLSTM, {name}, H100\n")
        print("\n".join(table("LSTM", dtype, tf32=True)))
