"""Ranges of whole numbers do what sets of them do."""

from __future__ import annotations

import itertools

from hypothesis import given
from hypothesis import strategies as st

from gapconn.ranges import Range, RangeSet

ranges = st.tuples(st.integers(0, 60), st.integers(0, 12)).map(lambda pair: (pair[0], pair[0] + pair[1]))


def numbers(parts: list[Range] | RangeSet) -> set[int]:
    return {number for first, last in parts for number in range(first, last + 1)}


@given(st.lists(st.tuples(st.booleans(), ranges), max_size=40))
def test_it_is_a_set_of_numbers(steps: list[tuple[bool, Range]]) -> None:
    found, model = RangeSet(), set[int]()
    for add, (first, last) in steps:
        these = set(range(first, last + 1))
        assert numbers(found.within(first, last)) == model & these
        assert numbers(found.gaps(first, last)) == these - model
        assert found.meets(first, last) or not model & these
        if add:
            assert numbers(found.add(first, last)) == these - model
            model |= these
        else:
            assert numbers(found.remove(first, last)) == these & model
            model -= these
        assert numbers(found) == model
        assert found.count == len(model)
        edges = list(found)
        assert all(a[1] + 1 < b[0] for a, b in itertools.pairwise(edges)), "those that touch are one"


def test_equal_sets_are_equal() -> None:
    assert RangeSet([(1, 2), (3, 4)]) == RangeSet([(1, 4)])
    assert RangeSet([(1, 2)]) != RangeSet([(1, 3)])
    assert repr(RangeSet([(1, 2)])) == "RangeSet([(1, 2)])"
