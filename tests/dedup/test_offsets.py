"""Offsets that were taken, against a plain set."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from gapconn.dedup.offsets import UNREAD_FACTOR, SeenOffsets, Verdict, runs

OFFSETS = st.lists(st.integers(0, 60), max_size=25)
NO_LIMIT = 10**9


@given(st.lists(OFFSETS, max_size=8))
def test_each_offset_is_new_exactly_once_and_late_where_a_later_one_was_before(batches: list[list[int]]) -> None:
    seen = SeenOffsets(holes_max=NO_LIMIT)
    model: set[int] = set()
    for batch in batches:
        expected = []
        for offset in batch:
            if offset in model:
                expected.append(Verdict.REPEAT)
            else:
                expected.append(Verdict.LATE if model and offset < max(model) else Verdict.NEW)
                model.add(offset)
        assert seen.take(batch) == expected
    assert {offset for first, last in seen.ranges for offset in range(first, last + 1)} == model


@given(st.lists(OFFSETS, max_size=8), st.integers(1, 4))
def test_with_bounded_holes_nothing_passes_twice_and_only_what_is_in_a_forgotten_hole_is_dropped(
    batches: list[list[int]], holes_max: int
) -> None:
    seen = SeenOffsets(holes_max=holes_max)
    passed: set[int] = set()
    forgotten: set[int] = set()
    for batch in batches:
        for offset, verdict in zip(batch, seen.take(batch), strict=True):
            if verdict is Verdict.REPEAT:
                assert offset in passed | forgotten
            else:
                assert offset not in passed | forgotten
                passed.add(offset)
        for first, last in seen.forget_holes(10**9):
            hole = set(range(first, last + 1))
            assert not hole & passed
            forgotten |= hole
        assert seen.holes <= holes_max
    assert seen.holes_forgotten == 0 or forgotten


def test_the_oldest_hole_is_forgotten_first() -> None:
    seen = SeenOffsets(holes_max=1)
    seen.take([1, 3, 5])
    assert seen.forget_holes(10**9) == [(2, 2)]
    assert seen.take([2, 4]) == [Verdict.REPEAT, Verdict.LATE]


def test_holes_that_unread_inputs_may_fill_are_bounded_too() -> None:
    seen = SeenOffsets(holes_max=2)
    seen.take(range(0, 100, 2))
    seen.forget_holes(settled_to=3)
    assert seen.holes == 2 * UNREAD_FACTOR


def test_what_is_older_than_everything_is_not_in_a_hole() -> None:
    seen = SeenOffsets(holes_max=1)
    seen.take([100, 102, 104])
    seen.forget_holes(10**9)
    assert seen.take([99, 101]) == [Verdict.LATE, Verdict.REPEAT]


@given(OFFSETS)
def test_runs_are_the_numbers_in_order(offsets: list[int]) -> None:
    assert [offset for first, last in runs(offsets) for offset in range(first, last + 1)] == offsets
