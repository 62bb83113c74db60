"""The sequence window against a model that remembers every number there ever was."""

from __future__ import annotations

import attrs
import pytest
from hypothesis import event, given, settings
from hypothesis import strategies as st

from gapconn.protocol.registry import JUMP_UNCONFIRMED_MAX, SEQUENCE_WINDOW, DropReason
from gapconn.protocol.sequence import SequenceWindow


@attrs.define
class Remembered:
    """The rules of GC-DLV-6 and GC-DLV-7, one number at a time."""

    horizon: int
    highest: int
    seen: set[int] = attrs.field(factory=set)
    unbelieved: int | None = None

    def take(self, number: int) -> DropReason | None:
        if number > self.highest + JUMP_UNCONFIRMED_MAX:
            first, self.unbelieved = self.unbelieved, number
            if first is None or number == first or abs(number - first) > SEQUENCE_WINDOW:
                return DropReason.UNCONFIRMED_JUMP
        if number <= self.highest - SEQUENCE_WINDOW:
            return DropReason.TOO_LATE
        if number in self.seen:
            return DropReason.DUPLICATE
        self.seen.add(number)
        self.highest = max(self.highest, number)
        return None

    @property
    def missing(self) -> int:
        return self.highest + 1 - self.horizon - sum(1 for number in self.seen if number >= self.horizon)


def reasons_of(window: SequenceWindow, first: int, count: int) -> list[DropReason | None]:
    """The answer for each number of a run; the pieces must be in order and leave nothing out."""
    reasons: list[DropReason | None] = []
    for begin, end, reason in window.take(first, count):
        assert begin == len(reasons) < end
        reasons += [reason] * (end - begin)
    assert len(reasons) == count
    return reasons


@given(st.data())
@settings(deadline=None, max_examples=150)
@pytest.mark.req("GC-DLV-6", "GC-DLV-7", "GC-DLV-12")
def test_the_window_agrees_with_a_perfect_memory(data: st.DataObject) -> None:
    horizon = data.draw(st.sampled_from([0, 1, 100, 2**62]), label="horizon")
    window, model = SequenceWindow(horizon), Remembered(horizon, horizon - 1)
    distances = [0, 1, 5, SEQUENCE_WINDOW, 2 * SEQUENCE_WINDOW, JUMP_UNCONFIRMED_MAX, 3 * JUMP_UNCONFIRMED_MAX]
    for _ in range(data.draw(st.integers(1, 12))):
        near = data.draw(st.sampled_from([model.highest, model.unbelieved or model.highest]))
        distance = data.draw(st.sampled_from([*distances, *(-d for d in distances)])) + data.draw(st.integers(-3, 3))
        first = max(0, near + distance)
        count = data.draw(st.sampled_from([1, 2, 3, 10]))
        expected = [model.take(number) for number in range(first, first + count)]
        for reason in set(expected):
            event(reason.name if reason else "new")
        assert reasons_of(window, first, count) == expected
        assert (window.highest, window.missing) == (model.highest, model.missing)


@given(st.lists(st.tuples(st.integers(0, 60), st.integers(1, 40)), max_size=20), st.integers(0, 30))
@settings(deadline=None)
@pytest.mark.req("GC-DLV-6", "GC-DLV-12")
def test_runs_that_overlap_are_taken_apart(taken: list[tuple[int, int]], horizon: int) -> None:
    window, model = SequenceWindow(horizon), Remembered(horizon, horizon - 1)
    for first, count in taken:
        assert reasons_of(window, first, count) == [model.take(number) for number in range(first, first + count)]
        assert window.missing == model.missing


@pytest.mark.req("GC-DLV-6")
def test_the_window_has_its_size() -> None:
    window = SequenceWindow()
    window.take(SEQUENCE_WINDOW, 1)
    assert reasons_of(window, 0, 2) == [DropReason.TOO_LATE, None]
    assert reasons_of(window, 1, 1) == [DropReason.DUPLICATE]


@pytest.mark.req("GC-DLV-6")
def test_what_left_the_window_is_forgotten_when_its_place_is_used_again() -> None:
    window = SequenceWindow()
    window.take(0, 64)
    window.take(SEQUENCE_WINDOW + 32, 1)
    assert reasons_of(window, SEQUENCE_WINDOW, 34) == [None] * 32 + [DropReason.DUPLICATE, None]


@pytest.mark.req("GC-DLV-7")
def test_a_jump_is_believed_when_another_datagram_near_it_confirms_it() -> None:
    window = SequenceWindow()
    window.take(0, 1)
    far = 1 + JUMP_UNCONFIRMED_MAX
    assert reasons_of(window, far - 1, 1) == [None], "as far as is believed at once"
    further = 3 * JUMP_UNCONFIRMED_MAX
    assert reasons_of(window, further, 1) == [DropReason.UNCONFIRMED_JUMP]
    assert reasons_of(window, further, 1) == [DropReason.UNCONFIRMED_JUMP], "a copy confirms nothing"
    assert window.highest == far - 1
    assert reasons_of(window, further - 7, 1) == [None]
    assert reasons_of(window, further, 1) == [None]
    assert window.highest == further


@pytest.mark.req("GC-DLV-7")
def test_the_second_datagram_of_a_run_confirms_the_first() -> None:
    window = SequenceWindow()
    assert reasons_of(window, 2 * JUMP_UNCONFIRMED_MAX, 3) == [DropReason.UNCONFIRMED_JUMP, None, None]


@pytest.mark.req("GC-DLV-7")
def test_two_jumps_far_apart_confirm_nothing() -> None:
    window = SequenceWindow()
    assert reasons_of(window, 2 * JUMP_UNCONFIRMED_MAX, 1) == [DropReason.UNCONFIRMED_JUMP]
    assert reasons_of(window, 9 * JUMP_UNCONFIRMED_MAX, 1) == [DropReason.UNCONFIRMED_JUMP]
    assert reasons_of(window, 2 * JUMP_UNCONFIRMED_MAX + 1, 1) == [DropReason.UNCONFIRMED_JUMP]
    assert window.highest == -1


@pytest.mark.req("GC-DLV-12")
def test_missing_datagrams_are_counted_from_the_first_that_was_heard() -> None:
    window = SequenceWindow(horizon=1_000)
    window.take(1_000, 5)
    window.take(1_010, 2)
    assert window.missing == 5
    window.take(1_006, 1)
    window.take(998, 1)
    assert window.missing == 4
