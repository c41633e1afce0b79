"""The rule that judges whoever solves a problem of helpers.py.

A problem is solved by fastlstm, by torch.nn in the same dtype, and by an oracle in higher
precision. The error of fastlstm may be at most twice that of torch.nn, plus one rounding.
"""

from collections.abc import Callable, Iterable

import torch
from cell_kinds import TORCH_MODES
from helpers import OUTPUTS, Case, Solver, Values, oracles, ours, plain, solve, stacked, theirs
from torch import Tensor


def max_error(value: Tensor, ref: Tensor) -> float:
    if ref.is_complex():
        return ((value - ref.real) - ref.imag).abs().max().item()
    return (value.double() - ref.double()).abs().max().item()


def assert_error_within(name: str, ours: Tensor, theirs: Tensor, ref: Tensor) -> None:
    """Fail unless the largest error of ``ours`` is at most twice that of ``theirs``, plus a floor.

    The floor is one rounding of the largest value, and the smallest normal number.

    Args:
        name: what is compared, for the message.
        ours, theirs: results in the dtype under test, of equal shape.
        ref: the true values in higher precision: float64, or ``high + 1j * low`` in complex128.
    """
    assert ours.shape == theirs.shape == ref.shape, f"{name}: {ours.shape}, expected {ref.shape}"
    assert ours.dtype == theirs.dtype, f"{name}: {ours.dtype}, expected {theirs.dtype}"
    if not ref.numel():
        return
    assert ours.isfinite().all(), f"{name}: not finite"
    info = torch.finfo(ours.dtype)
    floor = info.eps * ref.abs().max().item() + info.tiny
    error, allowed = max_error(ours, ref), 2 * max_error(theirs, ref) + floor
    assert error <= allowed, f"{name}: error {error:.3g}, allowed {allowed:.3g}"


def assert_errors_within(ours: Values, theirs: Values, ref: Values) -> None:
    for name in ours:
        assert_error_within(name, ours[name], theirs[name], ref[name])


def assert_parity(
    case: Case,
    dtype: torch.dtype,
    *,
    outputs: Iterable[str] = OUTPUTS,
    change: Callable[[Values], Values] | None = None,
    baseline: Solver | None = None,
    solver: Solver | None = None,
    elements: int = 10_000,
) -> None:
    """Hold every output and every gradient of ``case`` to the error rule.

    Small problems are solved many times over with other numbers: the largest error of torch.nn
    over a handful of elements may be small by luck, over a thousand it is not.

    Args:
        outputs: which results get a cotangent; none of them means forward alone.
        change: applied to the values before all solvers (to make them special).
        baseline: who sets the error allowed. Default: torch.nn, or the reference loop in the dtype
            under test for what torch.nn does not have.
        solver: who is judged. Default: fastlstm.functional.
        elements: of the output, in all problems together.
    """
    judged = solver or ours
    repeats = max(2, min(48, elements // max(1, case.T * case.N * case.H)))
    problems, mine, base = [], [], []
    for seed in range(repeats):
        values = case.problem(dtype, seed)
        values = change(values) if change else values
        cotangents = {n: g for n, g in case.cotangents(dtype, seed).items() if n in outputs} or None
        # One of them on two threads; that their number changes nothing has a test of its own.
        torch.set_num_threads(2 if seed == 0 else 1)
        mine.append(solve(judged, case, values, cotangents))
        torch.set_num_threads(1)
        contiguous = {n: v.clone(memory_format=torch.contiguous_format) for n, v in values.items()}
        yardstick = baseline or (plain if "reset" in values else theirs)
        base.append(solve(yardstick, case, contiguous, cotangents))
        problems.append((contiguous, cotangents))
    found, expected = stacked(mine), stacked(base)
    if dtype == torch.float64 and case.mode not in TORCH_MODES:
        # Nothing is closer to the truth than the loop itself, which differs by a few roundings.
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-13)
        return
    true = oracles(case, problems)
    smooth = torch.ones(repeats, dtype=torch.bool)
    if case.mode == "RNN_RELU" and torch.finfo(dtype).bits == 16:
        smooth = have_same_signs(found["output"], expected["output"], true["output"])
        assert smooth.sum() > repeats // 3, "too few problems without a relu that flips"
    for name in found:
        some = smooth if name.startswith("grad ") else slice(None)
        assert_error_within(name, found[name][some], expected[name][some], true[name][some])


def have_same_signs(*outputs: Tensor) -> Tensor:
    """For each problem, whether all agree on which units of a relu are on.

    Where rounding decides, the gradient jumps by its whole size: a matter of luck, in 16 bits once
    in a few hundred units to ten thousand. Layers below the last are not seen here.
    """
    on = torch.stack([output.double() > 0 for output in outputs])
    return (on == on[0]).flatten(2).all(2).all(0)


def assert_same(a: Values, b: Values) -> None:
    """Fail unless both hold the same names and bitwise the same values."""
    assert a.keys() == b.keys()
    for name in a:
        assert a[name].dtype == b[name].dtype, name
        assert torch.equal(a[name], b[name]), (
            f"{name}: differs by {(a[name] - b[name]).abs().max().item():.3g}"
        )
