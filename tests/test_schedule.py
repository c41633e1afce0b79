"""The schedule of the recurrence: who does which rows and hidden units. A pure function."""

from collections import defaultdict
from itertools import product

import pytest

from fastlstm import _C

BATCHES = (1, 2, 5, 6, 7, 12, 13, 32, 50, 128)
HIDDEN = (1, 3, 8, 16, 17, 59, 64, 111, 500, 1024)
THREADS = (1, 2, 3, 4, 8, 17, 64)

Share = dict[str, int]


def schedule(T: int, N: int, H: int, D: int, threads: int, lanes: int) -> list[list[Share]]:
    return _C.schedule(
        num_steps=T,
        batch_size=N,
        hidden_size=H,
        num_directions=D,
        num_threads=threads,
        lanes=lanes,
    )


grid = pytest.mark.parametrize(
    ("D", "threads", "lanes"),
    list(product((1, 2), THREADS, (1, 8, 16))),
    ids=lambda v: str(v),
)


@grid
def test_every_row_and_unit_once(D: int, threads: int, lanes: int) -> None:
    for N, H in product(BATCHES, HIDDEN):
        plan = schedule(50, N, H, D, threads, lanes)
        assert len(plan) == threads
        rectangles = [
            (s["direction"], s["row_begin"], s["row_end"], s["unit_begin"], s["unit_end"])
            for shares in plan
            for s in shares
            if s["row_begin"] < s["row_end"] and s["unit_begin"] < s["unit_end"]
        ]
        for d, row_begin, row_end, unit_begin, unit_end in rectangles:
            assert 0 <= d < D and 0 <= row_begin < row_end <= N and 0 <= unit_begin < unit_end <= H
        # Disjoint within the bounds and of the right total area: a partition.
        area = sum((b - a) * (f - e) for _, a, b, e, f in rectangles)
        assert area == D * N * H, (N, H)
        for k, (d, a, b, e, f) in enumerate(rectangles):
            for other, a2, b2, e2, f2 in rectangles[:k]:
                overlap = d == other and a < b2 and a2 < b and e < f2 and e2 < f
                assert not overlap, (N, H)


@grid
def test_groups_can_run(D: int, threads: int, lanes: int) -> None:
    """A group meets at a barrier each step, so that all its members must come, and with work."""
    for N, H in product(BATCHES, HIDDEN):
        plan = schedule(50, N, H, D, threads, lanes)
        members: dict[int, list[tuple[int, Share]]] = defaultdict(list)
        for thread, shares in enumerate(plan):
            for share in shares:
                members[share["group"]].append((thread, share))
        for group in members.values():
            assert {s["group_size"] for _, s in group} == {len(group)}, (N, H)
            assert len({thread for thread, _ in group}) == len(group), (N, H)
            assert len({s["direction"] for _, s in group}) == 1, (N, H)
            assert len({(s["row_begin"], s["row_end"]) for _, s in group}) == 1, (N, H)
            # The next step reads every unit of its rows: the group has to have made them all.
            spans = sorted((s["unit_begin"], s["unit_end"]) for _, s in group)
            assert spans[0][0] == 0 and spans[-1][1] == H, (N, H)
            assert all(a[1] == b[0] for a, b in zip(spans, spans[1:], strict=False)), (N, H)
            assert all(begin % lanes == 0 for begin, _ in spans), (N, H)
            if len(group) > 1:
                for _, s in group:
                    assert s["row_begin"] < s["row_end"], (N, H)
                    assert s["unit_begin"] < s["unit_end"], (N, H)
        # Threads that share two groups must reach them in the same order.
        waits = [[s["group"] for s in shares if s["group_size"] > 1] for shares in plan]
        for first, second in product(waits, repeat=2):
            common = set(first) & set(second)
            assert [g for g in first if g in common] == [g for g in second if g in common], (N, H)


def test_the_same_question_has_the_same_answer() -> None:
    for N, H, threads in product((1, 7, 50), (17, 500), (1, 2, 8)):
        plan = schedule(50, N, H, 2, threads, 16)
        assert all(schedule(50, N, H, 2, threads, 16) == plan for _ in range(3))


def test_one_thread_needs_no_barrier() -> None:
    for N, H, D in product(BATCHES, HIDDEN, (1, 2)):
        (shares,) = schedule(50, N, H, D, 1, 16)
        assert all(s["group_size"] == 1 for s in shares)
        assert {(s["unit_begin"], s["unit_end"]) for s in shares} == {(0, H)}


def test_work_is_shared() -> None:
    """Where there is plenty of it, no thread of two has more than two thirds."""
    for N, H, D in ((64, 256, 1), (64, 128, 2), (1, 1024, 2), (1, 1024, 1)):
        work = [
            sum((s["row_end"] - s["row_begin"]) * (s["unit_end"] - s["unit_begin"]) for s in shares)
            for shares in schedule(50, N, H, D, 2, 16)
        ]
        assert max(work) <= 2 / 3 * sum(work), (N, H, D, work)


@pytest.mark.parametrize(("T", "N"), [(0, 5), (5, 0), (0, 0)])
def test_nothing_to_do(T: int, N: int) -> None:
    plan = schedule(T, N, 64, 2, 4, 16)
    assert len(plan) == 4
    for shares in plan:
        assert all(N == 0 or s["row_begin"] < s["row_end"] for s in shares)
