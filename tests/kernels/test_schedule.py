"""The schedule of the recurrence: who does which rows and hidden units. A pure function."""

from collections import defaultdict
from itertools import product

import pytest

from fastlstm import _C

BATCHES = (1, 2, 5, 6, 7, 12, 13, 32, 50, 128)
HIDDEN = (1, 3, 8, 16, 17, 59, 64, 111, 500, 1024)
THREADS = (1, 2, 3, 4, 8, 17, 64)

Share = dict[str, int]


def schedule(
    N: int,
    H: int,
    D: int,
    threads: int,
    lanes: int,
    gates: int = 4,
    ragged: bool = False,
    crowded: bool = False,
) -> list[list[Share]]:
    return _C.schedule(
        batch_size=N,
        hidden_size=H,
        gates=gates,
        num_directions=D,
        ragged=ragged,
        num_threads=threads,
        lanes=lanes,
        crowded=crowded,
    )


grid = pytest.mark.parametrize(
    ("D", "threads", "lanes"),
    list(product((1, 2), THREADS, (1, 8, 16))),
    ids=lambda v: str(v),
)
ragged_too = pytest.mark.parametrize("ragged", [False, True], ids=["even", "ragged"])


def rows(share: Share) -> range:
    return range(share["row_begin"], share["row_end"], share["row_step"])


@pytest.mark.parametrize("crowded", [False, True], ids=["quiet", "crowded"])
@ragged_too
@grid
def test_every_row_and_unit_once(
    D: int, threads: int, lanes: int, ragged: bool, crowded: bool
) -> None:
    for N, H in product(BATCHES, HIDDEN):
        plan = schedule(N, H, D, threads, lanes, ragged=ragged, crowded=crowded)
        assert len(plan) == threads
        done: dict[tuple[int, int], list[tuple[int, int]]] = defaultdict(list)
        for share in (s for shares in plan for s in shares):
            assert share["row_step"] == 1 or ragged
            for row in rows(share):
                done[share["direction"], row].append((share["unit_begin"], share["unit_end"]))
        assert set(done) == set(product(range(D), range(N))), (N, H)
        for spans in done.values():
            spans = sorted(spans)
            assert spans[0][0] == 0 and spans[-1][1] == H, (N, H)
            assert all(a[1] == b[0] for a, b in zip(spans, spans[1:], strict=False)), (N, H)


@ragged_too
@grid
def test_groups_can_run(D: int, threads: int, lanes: int, ragged: bool) -> None:
    """A group meets at a barrier each step, so that all its members must come, and with work."""
    for N, H in product(BATCHES, HIDDEN):
        plan = schedule(N, H, D, threads, lanes, ragged=ragged)
        members: dict[int, list[tuple[int, Share]]] = defaultdict(list)
        for thread, shares in enumerate(plan):
            for share in shares:
                members[share["group"]].append((thread, share))
        for group in members.values():
            assert {s["group_size"] for _, s in group} == {len(group)}, (N, H)
            assert len({thread for thread, _ in group}) == len(group), (N, H)
            assert len({s["direction"] for _, s in group}) == 1, (N, H)
            assert len({rows(s) for _, s in group}) == 1, (N, H)
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
        plan = schedule(N, H, 2, threads, 16)
        assert all(schedule(N, H, 2, threads, 16) == plan for _ in range(3))


def test_one_thread_needs_no_barrier() -> None:
    for N, H, D in product(BATCHES, HIDDEN, (1, 2)):
        (shares,) = schedule(N, H, D, 1, 16)
        assert all(s["group_size"] == 1 for s in shares)
        assert {(s["unit_begin"], s["unit_end"]) for s in shares} == {(0, H)}


def test_work_is_shared() -> None:
    """Where there is plenty of it, no thread of two has more than two thirds."""
    for N, H, D in ((64, 256, 1), (64, 128, 2), (1, 1024, 2), (1, 1024, 1)):
        work = [
            sum((s["row_end"] - s["row_begin"]) * (s["unit_end"] - s["unit_begin"]) for s in shares)
            for shares in schedule(N, H, D, 2, 16)
        ]
        assert max(work) <= 2 / 3 * sum(work), (N, H, D, work)


def test_ragged_rows_are_shared_evenly() -> None:
    """Every group of threads has long sequences and short ones: row n is the n-th longest."""
    for N, H in ((64, 256), (63, 100)):
        shares = [s for shares in schedule(N, H, 1, 2, 16, ragged=True) for s in shares]
        assert len(shares) == 2
        lengths = [sum(N - row for row in rows(share)) for share in shares]
        assert max(lengths) <= 1.05 * min(lengths)


def test_few_gates_are_little_work() -> None:
    """The work that a second thread must find grows with the gates of the cell."""
    busy = [sum(bool(s) for s in schedule(1, 130, 1, 2, 16, gates=gates)) for gates in (1, 4)]
    assert busy == [1, 2]


def test_nothing_to_do() -> None:
    assert schedule(0, 64, 2, 4, 16) == [[], [], [], []]


@ragged_too
@grid
def test_no_thread_waits_for_another_where_it_is_crowded(
    D: int, threads: int, lanes: int, ragged: bool
) -> None:
    for N, H in product(BATCHES, HIDDEN):
        quiet, crowded = (
            [
                share
                for shares in schedule(N, H, D, threads, lanes, ragged=ragged, crowded=c)
                for share in shares
            ]
            for c in (False, True)
        )
        assert all(share["group_size"] == 1 for share in crowded)
        # Rows are shared out as before: their groups need nothing from each other.
        assert {s["group"] for s in quiet} == {s["group"] for s in crowded}
