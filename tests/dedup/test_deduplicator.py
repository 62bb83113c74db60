"""The deduplicator as a whole, with links that lose, restarts, and waiting for order."""

from __future__ import annotations

from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gapconn.dedup.changelog import Change, restored_ranges
from gapconn.dedup.deduplicator import (
    Deduplicator,
    OriginDeduplicator,
    Outgoing,
    Run,
    UnidentifiedError,
    WindowDeduplicator,
)
from gapconn.dedup.identity import make_fingerprint
from gapconn.dedup.links import LinkBook
from gapconn.dedup.window import Window
from gapconn.record import Header

Policy = Literal["pass", "drop", "fail"]


def a_book() -> LinkBook:
    return LinkBook.of(["a", "b"], silent_after_s=30, lag_after_s=300, lag_offsets_max=1000)


def by_origin(
    hold_s: float = 0, unidentified: Policy = "pass", holes_max: int = 10_000, hold_bytes: int = 1 << 20
) -> OriginDeduplicator[int]:
    return OriginDeduplicator(
        book=a_book(), unidentified=unidentified, holes_max=holes_max, hold_s=hold_s, hold_bytes_max=hold_bytes
    )


def by_content(records_max: int = 1000, unidentified: Policy = "pass", field: str = "") -> WindowDeduplicator[int]:
    fingerprint = make_fingerprint("field", field=field) if field else make_fingerprint("hash")
    return WindowDeduplicator(
        book=a_book(),
        unidentified=unidentified,
        fingerprint=fingerprint,
        window=Window(records_max=records_max, age_max_s=1e9),
    )


def run(link: str, offsets: list[int], *, source: str = "c/t/0", read_before: bool = False) -> Run[int]:
    """Records with these offsets; one below 0 has no id."""
    headers: list[list[Header] | None] = [
        [("gapconn-origin", f"{source}/{offset}".encode())] if offset >= 0 else None for offset in offsets
    ]
    return Run(
        link=link,
        target="out",
        items=offsets,
        keys=[None] * len(offsets),
        values=[b"%d" % offset for offset in offsets],
        headers=headers,
        read_before=read_before,
    )


def items(outgoing: list[Outgoing[int]]) -> list[int]:
    return [each.item for each in outgoing]


def late(outgoing: list[Outgoing[int]]) -> list[int]:
    return [each.item for each in outgoing if each.late]


def kept(state: dict[bytes, bytes], changes: list[Change]) -> None:
    """What a compacted topic holds after these."""
    for key, value in changes:
        if value is None:
            state.pop(key, None)
        else:
            state[key] = value


def saved(state: dict[bytes, bytes]) -> set[int]:
    """The offsets that a state has, of all source partitions."""
    return {
        offset for _, ranges in restored_ranges(state) for first, last in ranges for offset in range(first, last + 1)
    }


def test_the_first_copy_passes_and_one_that_fills_a_hole_is_marked() -> None:
    dedup = by_origin()
    assert items(dedup.take(run("a", [0, 1, 4, 5]), 0)) == [0, 1, 4, 5]
    second = dedup.take(run("b", [0, 1, 2, 3, 4, 5, 6]), 1)
    assert items(second) == [2, 3, 6]
    assert late(second) == [2, 3]
    counts = dedup.book.links["b"]
    assert (counts.records, counts.first, counts.repeats, counts.late) == (7, 3, 4, 2)


def test_what_the_same_link_brings_again_is_told_apart_from_the_other_links_copies() -> None:
    """A source topic that was made anew counts from 0: everything looks like a repeat, and somebody must see that."""
    dedup = by_origin()
    dedup.take(run("a", [10, 11, 12]), 0)
    dedup.take(run("b", [10, 11, 12]), 0)
    assert [dedup.book.links[link].again for link in "ab"] == [0, 0]
    assert items(dedup.take(run("a", [9, 11, 12, 13]), 0)) == [9, 13]
    assert dedup.book.links["a"].again == 2


def test_a_hole_that_an_unread_input_may_fill_is_not_forgotten() -> None:
    dedup = by_origin(holes_max=2)
    dedup.take(run("b", [0]), 0)
    dedup.take(run("a", list(range(0, 20, 2))), 0)
    state = dict(dedup.changes(0, lambda: ["b"]))
    assert dedup.facts()["holes"] == 9
    dedup = by_origin(holes_max=2)
    dedup.restore({key: value for key, value in state.items() if value is not None})
    dedup.take(run("a", [20]), 0)
    dedup.changes(0, lambda: ["b"])
    assert dedup.facts()["holes"] == 10, "nor after a restart, when it is not known what b has brought"
    assert items(dedup.take(run("b", [1, 2, 3]), 0)) == [1, 3]
    dedup.changes(0, list)
    assert dedup.facts()["holes"] == 2
    assert items(dedup.take(run("b", [5, 17, 19]), 0)) == [17, 19]


def test_source_partitions_are_apart() -> None:
    dedup = by_origin()
    assert items(dedup.take(run("a", [1], source="c/t/0"), 0)) == [1]
    assert items(dedup.take(run("b", [1], source="c/t/1"), 0)) == [1]
    assert items(dedup.take(run("b", [1], source="other/t/0"), 0)) == [1]
    assert items(dedup.take(run("b", [1], source="c/t/0"), 0)) == []


@pytest.mark.parametrize("make", [by_origin, lambda unidentified: by_content(unidentified=unidentified, field="id")])
def test_records_without_id_go_by_the_policy(make: object) -> None:
    assert callable(make)
    mixed = run("a", [-1, -2])
    passing: Deduplicator[int] = make(unidentified="pass")
    assert items(passing.take(mixed, 0)) == [-1, -2]
    assert items(passing.take(run("a", [-1, -2], read_before=True), 0)) == [], "they were written before"
    dropping: Deduplicator[int] = make(unidentified="drop")
    assert items(dropping.take(mixed, 0)) == []
    failing: Deduplicator[int] = make(unidentified="fail")
    with pytest.raises(UnidentifiedError):
        failing.take(mixed, 0)
    for each in (passing, dropping):
        assert isinstance(each, OriginDeduplicator | WindowDeduplicator)
        assert each.book.links["a"].unidentified >= 2
        assert each.book.links["a"].repeats == 0


def test_records_with_and_without_id_keep_their_order() -> None:
    assert items(by_origin().take(run("a", [0, -1, 1, -2, 0, 2]), 0)) == [0, -1, 1, -2, 2]


def test_a_record_that_is_ahead_waits_for_the_other_link() -> None:
    dedup = by_origin(hold_s=2)
    assert items(dedup.take(run("a", [0]), 0)) == [0]
    assert items(dedup.take(run("a", [1, 4, 5]), 10)) == [1]
    assert dedup.release(11) == []
    assert sorted(dedup.held()) == [4, 5]
    assert items(dedup.take(run("b", [2]), 11.5) + dedup.release(11.5)) == [2]
    assert items(dedup.take(run("b", [4]), 11.6)) == [], "a copy of one that waits"
    assert items(dedup.release(11.6)) == [4, 5], "both links are past 3: it will not come any more"


def test_a_record_waits_no_longer_than_it_is_told_and_what_comes_then_is_late() -> None:
    dedup = by_origin(hold_s=2)
    dedup.take(run("a", [0]), 0)
    dedup.take(run("a", [2]), 10)
    dedup.take(run("a", [4]), 11)
    assert items(dedup.release(11.9)) == []
    assert items(dedup.release(12)) == [2]
    outgoing = dedup.take(run("b", [1, 3]), 12)
    assert items(outgoing) == [1]
    assert late(outgoing) == [1]
    assert items(dedup.release(12)) == [3, 4]


def test_nothing_waits_for_a_silent_link() -> None:
    dedup = by_origin(hold_s=50)
    dedup.take(run("a", [5, 6]), 0)
    assert dedup.release(29) == [], "nobody knows that these are the first of the partition"
    for now in (0, 31):
        list(dedup.book.look(now, dedup.trails()))
    assert items(dedup.release(31)) == [5, 6]
    assert items(dedup.take(run("a", [9]), 32) + dedup.release(32)) == [9]


def test_too_much_that_waits_goes() -> None:
    dedup = by_origin(hold_s=1000, hold_bytes=3)
    dedup.take(run("a", [1, 3, 5]), 0)
    assert dedup.release(1) == []
    dedup.take(run("a", [7]), 2)
    assert items(dedup.release(2)) == [1, 3, 5, 7]
    assert dedup.facts()["hold_overflowed"] == 1
    assert dedup.facts()["held_bytes"] == 0


OFFSETS = 24
ARRIVALS = st.lists(st.sampled_from("ab"), min_size=2 * OFFSETS, max_size=2 * OFFSETS)
"""Which link brings its next record."""


@given(
    lost=st.tuples(st.sets(st.integers(0, OFFSETS - 1)), st.sets(st.integers(0, OFFSETS - 1))),
    arrivals=ARRIVALS,
    hold_s=st.sampled_from([0, 3, 1000]),
    crashes=st.sets(st.integers(0, 2 * OFFSETS)),
    holes_max=st.sampled_from([1, 2, 10_000]),
)
def test_over_lossy_links_and_crashes_each_record_passes_once_and_waiting_keeps_the_order(
    lost: tuple[set[int], set[int]],
    arrivals: list[str],
    hold_s: int,
    crashes: set[int],
    holes_max: int,
) -> None:
    """A batch is committed every few arrivals, as a transaction; a crash goes back to the last commit."""
    logs = {
        link: [offset for offset in range(OFFSETS) if offset not in of_link]
        for link, of_link in zip("ab", lost, strict=True)
    }
    state: dict[bytes, bytes] = {}
    committed = {"a": 0, "b": 0}
    written: list[tuple[int, bool]] = []
    dedup, position, pending = by_origin(hold_s, holes_max=holes_max), dict(committed), list[Outgoing[int]]()

    def commit() -> None:
        nonlocal pending
        kept(state, dedup.changes(0, list))
        waiting = set(dedup.held())
        for link, log in logs.items():
            first = next((at for at in range(position[link]) if log[at] in waiting), position[link])
            committed[link] = first
        written.extend((each.item, each.late) for each in pending)
        pending = []

    for now, link in enumerate(arrivals):
        if now in crashes:
            dedup, position, pending = by_origin(hold_s, holes_max=holes_max), dict(committed), []
            dedup.restore(state)
        log, at = logs[link], position[link]
        pending += dedup.take(run(link, log[at : at + 2]), now)
        position[link] = min(at + 2, len(log))
        pending += dedup.release(now)
        if now % 3 == 0:
            commit()
    for link, log in logs.items():
        pending += dedup.take(run(link, log[position[link] :]), 10_000)
        position[link] = len(log)
        pending += dedup.release(10_000)
    pending += dedup.release(1_000_000)
    commit()

    offsets = [offset for offset, _ in written]
    assert len(offsets) == len(set(offsets)), "a record passed twice"
    if holes_max == 10_000:
        assert set(offsets) == {*logs["a"], *logs["b"]}, "a record was dropped that had not passed"
    for number, (offset, was_late) in enumerate(written):
        if not was_late and holes_max == 10_000:
            assert offset > max(offsets[:number], default=-1), "what is out of order is marked"
    if hold_s == 1000 and not crashes:
        assert offsets == sorted(offsets), "nothing had waited for long enough to be given up"
    if holes_max == 10_000:
        assert saved(state) == set(offsets)


@given(st.lists(st.sets(st.integers(0, 3000), max_size=40), min_size=1, max_size=200))
def test_the_changelog_is_small_and_whole(batches: list[set[int]]) -> None:
    dedup, state = by_origin(), dict[bytes, bytes]()
    taken: set[int] = set()
    for batch in batches:
        dedup.take(run("a", sorted(batch)), 0)
        taken |= batch
        kept(state, dedup.changes(0, list))
        assert len(state) <= 65
    assert saved(state) == taken


@given(batches=st.lists(st.lists(st.integers(0, 30), max_size=6), max_size=20), crash=st.integers(0, 20))
def test_a_window_survives_a_restart(batches: list[list[int]], crash: int) -> None:
    dedup, state = by_content(), dict[bytes, bytes]()
    passed: list[int] = []
    for number, batch in enumerate(batches):
        if number == crash:
            dedup.take(run("a", [99]), 0)  # is lost with the crash
            dedup = by_content()
            dedup.restore(state)
        passed += items(dedup.take(run("ab"[number % 2], batch), number))
        kept(state, dedup.changes(number, list))
    assert passed == list(dict.fromkeys(number for batch in batches for number in batch))


def test_a_window_that_forgets_takes_its_records_from_the_topic() -> None:
    dedup, state = by_content(records_max=2), dict[bytes, bytes]()
    for number in range(10):
        dedup.take(run("a", [number]), 0)
        kept(state, dedup.changes(number, list))
        assert len(state) <= 2
    assert items(dedup.take(run("b", [9, 8, 0]), 0)) == [0]
