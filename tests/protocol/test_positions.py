"""Positions: the table of spec/delivery.md row by row, and the summaries of what was sent."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gapconn.protocol.envelope import Run
from gapconn.protocol.positions import DeliveredPositions, SentPositions, StreamPartition
from gapconn.protocol.registry import POSITIONS_TRACKED_MAX

S = ("orders", 3)


def run(previous: int, first: int, last: int, count: int | None = None, key: StreamPartition = S) -> Run:
    return Run(key[0], key[1], previous, first, last, last - first + 1 if count is None else count)


def told(position: int, key: StreamPartition = S) -> Run:
    """An entry of a `positions` message."""
    return run(position, position, position, 0, key)


@pytest.mark.parametrize(
    ("delivered", "entry", "missing", "already", "then"),
    [
        pytest.param(None, run(8, 9, 12), [], None, 12, id="no d known"),
        pytest.param(None, run(-1, 9, 12), [], None, 12, id="no d known, nothing claimed"),
        pytest.param(20, run(-1, 9, 12), [], None, 12, id="nothing claimed: the chain restarts, also further back"),
        pytest.param(20, run(-1, 30, 35), [], None, 35, id="nothing claimed: the chain restarts, also further on"),
        pytest.param(8, run(8, 9, 12), [], None, 12, id="in chain"),
        pytest.param(8, run(8, 30, 90, 2), [], None, 90, id="in chain: holes in the positions are not loss"),
        pytest.param(5, run(8, 9, 12), [(6, 8)], None, 12, id="one before is missing"),
        pytest.param(0, run(1, 9, 12), [(1, 1)], None, 12, id="position 1 is missing"),
        pytest.param(10, run(8, 9, 12), [], 10, 12, id="sent again in part"),
        pytest.param(12, run(8, 9, 12), [], 12, 12, id="sent again as a whole"),
        pytest.param(20, run(8, 9, 12), [], 20, 20, id="sent again, and more was delivered"),
        pytest.param(None, told(12), [], None, 12, id="told, no d known"),
        pytest.param(12, told(12), [], None, 12, id="told, nothing is missing"),
        pytest.param(9, told(12), [(10, 12)], None, 12, id="told, the end is missing"),
        pytest.param(20, told(12), [], None, 20, id="told, sent again after a restart"),
    ],
)
@pytest.mark.req("GC-DLV-14", "GC-DLV-15")
def test_the_table(
    delivered: int | None, entry: Run, missing: list[tuple[int, int]], already: int | None, then: int
) -> None:
    positions = DeliveredPositions({} if delivered is None else {S: delivered})
    assert positions.settle([entry]) == ([(S, *pair) for pair in missing], {} if already is None else {S: already})
    # What d is now shows in what would be missing before a record that follows `then`, or one more.
    assert positions.settle([run(then, then + 1, then + 1)]) == ([], {})
    assert positions.settle([run(then + 2, then + 3, then + 3)]) == ([(S, then + 2, then + 2)], {})


@pytest.mark.req("GC-DLV-14", "GC-DLV-15")
def test_stream_partitions_have_chains_of_their_own() -> None:
    a, b = ("orders", 0), ("orders", 1)
    positions = DeliveredPositions({a: 5, b: 7})
    entries = [run(6, 7, 7, key=a), run(6, 7, 8, key=b), run(7, 8, 8, key=a)]
    assert positions.settle(entries) == ([(a, 6, 6)], {b: 7})


@pytest.mark.req("GC-DLV-15")
def test_two_runs_of_one_partition_in_a_message_that_is_sent_again() -> None:
    positions = DeliveredPositions({S: 12})
    assert positions.settle([run(5, 6, 8), run(8, 9, 14)]) == ([], {S: 12})
    assert positions.settle([run(14, 15, 15)]) == ([], {})


@given(st.data())
@settings(deadline=None)
@pytest.mark.req("GC-DLV-14")
def test_exactly_what_did_not_arrive_is_reported(data: st.DataObject) -> None:
    """Of a source with holes any messages are lost: the ranges hold every lost position and no delivered one."""
    steps = data.draw(st.lists(st.integers(1, 4), min_size=2, max_size=40))
    records = [sum(steps[: i + 1]) for i in range(len(steps))]
    positions = DeliveredPositions({S: 0})
    previous, reported, lost, arrived = 0, set[int](), set[int](), set[int]()
    while records:
        size = data.draw(st.integers(1, 5))
        batch, records = records[:size], records[size:]
        if data.draw(st.booleans()):
            missing, already = positions.settle([run(previous, batch[0], batch[-1], len(batch))])
            reported |= {position for _, first, last in missing for position in range(first, last + 1)}
            arrived |= set(batch)
            assert not already
        else:
            lost |= set(batch)
        previous = batch[-1]
    missing, _ = positions.settle([told(previous)])
    reported |= {position for _, first, last in missing for position in range(first, last + 1)}
    assert lost <= reported
    assert not reported & arrived


@pytest.mark.req("GC-LIM-1")
def test_the_longest_unused_position_is_forgotten_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gapconn.protocol.positions.POSITIONS_TRACKED_MAX", 3)
    keys = [("s", i) for i in range(4)]
    positions = DeliveredPositions(dict.fromkeys(keys[:3], 5))
    positions.settle([run(5, 6, 6, key=keys[0])])
    positions.settle([run(-1, 0, 0, key=keys[3])])
    assert positions.settle([run(8, 9, 9, key=keys[0])]) == ([(keys[0], 7, 8)], {}), "used lately"
    assert positions.settle([run(8, 9, 9, key=keys[1])]) == ([], {}), "forgotten: its chain restarts"


@pytest.mark.req("GC-DLV-17")
def test_a_summary_tells_the_last_position_of_what_was_sent_since_the_last_one() -> None:
    sent = SentPositions()
    assert not sent
    assert sent.take_summary(1_000) == []
    other = ("orders", 4)
    sent.sent([run(-1, 3, 5), run(-1, 0, 0, key=other)])
    sent.sent([run(5, 9, 9)])
    assert sent
    assert sent.take_summary(1_000) == [[told(9), told(0, other)]]
    assert not sent
    sent.sent([run(0, 1, 1, key=other)])
    assert sent.take_summary(1_000) == [[told(1, other)]]


@given(
    st.dictionaries(st.tuples(st.text(max_size=9), st.integers(0, 2**31)), st.integers(0, 2**63 - 1), max_size=60),
    st.integers(200, 2_000),
)
@settings(deadline=None)
@pytest.mark.req("GC-DLV-17", "GC-DLV-3")
def test_summaries_are_cut_to_fit_a_message(last: dict[StreamPartition, int], bytes_max: int) -> None:
    sent = SentPositions()
    sent.sent([run(-1, position, position, key=key) for key, position in last.items()])
    messages = sent.take_summary(bytes_max)
    assert [told(position, key) for key, position in last.items()] == [entry for runs in messages for entry in runs]
    assert all(0 < len(msgspec.msgpack.encode(runs)) <= bytes_max for runs in messages)


def test_a_summary_is_due_when_no_more_can_be_noted() -> None:
    sent = SentPositions()
    sent.sent([run(-1, 0, 0, key=("s", i)) for i in range(POSITIONS_TRACKED_MAX - 1)])
    assert not sent.full
    sent.sent([run(-1, 0, 0, key=("t", 0))])
    assert sent.full
