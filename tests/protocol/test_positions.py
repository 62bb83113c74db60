"""Positions: the table of spec/delivery.md row by row, the chains of a session, and the summaries of what was sent."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from gapconn.protocol.envelope import Run
from gapconn.protocol.positions import DeliveredPositions, SentPositions, Standing, StreamPartition
from gapconn.protocol.registry import POSITIONS_TRACKED_MAX

S = ("orders", 3)
EPOCH = 7
"""Of the session."""


def run(
    previous: int,
    first: int,
    last: int,
    count: int | None = None,
    key: StreamPartition = S,
    *,
    begun: int = 0,
    continues: int = False,
    chain: int = 0,
) -> Run:
    """A run of records, of the chain that message `chain` began at position `begun`."""
    count = last - first + 1 if count is None else count
    return Run(key[0], key[1], previous, first, last, count, begun, continues, chain)


def told(position: int, key: StreamPartition = S, *, begun: int = 0, continues: bool = False, chain: int = 0) -> Run:
    """An entry of a `positions` message."""
    return run(position, position, position, 0, key, begun=begun, continues=continues, chain=chain)


def here(position: int) -> Standing:
    """Delivered so far by the chain that message 0 of this session began."""
    return Standing(EPOCH, 0, position)


def earlier(position: int) -> Standing:
    """Delivered so far in the session before."""
    return Standing(EPOCH - 1, 0, position)


def following(delivered: Mapping[StreamPartition, Standing], known_from: int = 0) -> DeliveredPositions:
    positions = DeliveredPositions(delivered)
    positions.follow(EPOCH, known_from)
    return positions


ROWS = [
    pytest.param(here(8), run(8, 9, 12), [], None, 12, id="in chain"),
    pytest.param(here(8), run(8, 30, 90, 2), [], None, 90, id="in chain: holes in the positions are not loss"),
    pytest.param(here(5), run(8, 9, 12), [(6, 8)], None, 12, id="one between is missing"),
    pytest.param(here(0), run(1, 9, 12), [(1, 1)], None, 12, id="position 1 is missing"),
    pytest.param(here(10), run(8, 9, 12), [], 10, 12, id="sent again in part"),
    pytest.param(here(12), run(8, 9, 12), [], 12, 12, id="sent again as a whole"),
    pytest.param(here(20), run(8, 9, 12), [], 20, 20, id="sent again, and more was delivered"),
    pytest.param(here(12), told(12), [], None, 12, id="told, nothing is missing"),
    pytest.param(here(9), told(12), [(10, 12)], None, 12, id="told, the end is missing"),
    pytest.param(here(20), told(12), [], None, 20, id="told, sent again"),
    # The ingress was started again, and its source goes on.
    pytest.param(earlier(8), run(8, 9, 12, begun=9, continues=True), [], None, 12, id="goes on"),
    pytest.param(earlier(10), run(8, 9, 12, begun=9, continues=True), [], 10, 12, id="goes on, sent again in part"),
    pytest.param(
        earlier(5), run(8, 9, 12, begun=9, continues=True), [(6, 8)], None, 12, id="goes on, one between is missing"
    ),
    pytest.param(
        earlier(8), run(11, 12, 12, begun=9, continues=True), [(9, 11)], None, 12, id="goes on, its first run is lost"
    ),
    pytest.param(
        earlier(20), run(11, 12, 12, begun=9, continues=True), [], 20, 20, id="goes on behind, its first run is lost"
    ),
    pytest.param(earlier(9), told(12, begun=9, continues=True), [(10, 12)], None, 12, id="told, goes on"),
    # An earlier session had begun there, and acknowledged nothing: the ingress does not know what it sent.
    pytest.param(earlier(10), run(-1, 9, 12, begun=9, continues=EPOCH - 2), [], 10, 12, id="goes on from somewhere"),
    pytest.param(earlier(12), run(-1, 0, 12, continues=EPOCH - 1), [], 12, 12, id="goes on, all of it sent again"),
    pytest.param(earlier(30), run(12, 13, 15, begun=9, continues=EPOCH - 1), [], 30, 30, id="goes on behind that"),
    pytest.param(
        earlier(10), run(12, 13, 15, begun=9, continues=EPOCH - 1), [(11, 12)], None, 15, id="goes on, lost in between"
    ),
    pytest.param(None, run(-1, 9, 12, begun=9, continues=EPOCH - 1), [], None, 12, id="goes on, nothing had arrived"),
    pytest.param(earlier(500), run(-1, 9, 12, begun=9, continues=EPOCH), [], None, 12, id="d is from before it began"),
    # A chain begins, and what was delivered by others does not count.
    pytest.param(None, run(-1, 9, 12, begun=9), [], None, 12, id="begins, no d known"),
    pytest.param(earlier(20), run(-1, 9, 12, begun=9), [], None, 12, id="begins, further back than a session before"),
    pytest.param(earlier(20), run(-1, 30, 35, begun=30), [], None, 35, id="begins, further on than a session before"),
    pytest.param(earlier(20), run(-1, 0, 12), [], None, 12, id="begins where one began in a session before"),
    pytest.param(here(20), run(-1, 9, 12, begun=9, chain=5), [], None, 12, id="begins further back in the session"),
    pytest.param(here(20), run(-1, 0, 12, chain=5), [], None, 12, id="begins where one of the session began"),
    pytest.param(here(20), run(-1, 0, 12), [], None, 12, id="begins where one of the same message began"),
    pytest.param(None, run(8, 9, 12, begun=9, continues=True), [], None, 12, id="goes on, no d known"),
    # The beginning of a chain did not arrive.
    pytest.param(None, run(9, 10, 12), [(0, 9)], None, 12, id="the beginning is lost, no d known"),
    pytest.param(None, run(9, 10, 12, begun=9), [(9, 9)], None, 12, id="position 9, the beginning, is lost"),
    pytest.param(None, run(9, 12, 12, begun=7, continues=True), [(7, 9)], None, 12, id="goes on, lost, no d known"),
    pytest.param(earlier(1000), run(9, 10, 12), [(0, 9)], None, 12, id="the beginning is lost, others were further"),
    pytest.param(earlier(4), run(9, 10, 12), [(0, 9)], None, 12, id="the beginning is lost, others were on the way"),
    pytest.param(earlier(9), run(9, 10, 12), [(0, 9)], None, 12, id="the beginning is lost, others were just there"),
    pytest.param(
        here(1000), run(9, 10, 12, chain=5), [(0, 9)], None, 12, id="the beginning is lost, in the midst of a session"
    ),
    pytest.param(here(4), run(9, 10, 12, begun=7, chain=5), [(7, 9)], None, 12, id="the same, begun further on"),
    pytest.param(None, told(12), [(0, 12)], None, 12, id="told, all is lost, no d known"),
    pytest.param(earlier(20), told(12), [(0, 12)], None, 12, id="told, all is lost, others were further"),
]


@pytest.mark.parametrize(("delivered", "entry", "missing", "already", "then"), ROWS)
@pytest.mark.req("GC-DLV-14", "GC-DLV-15")
def test_the_table(
    delivered: Standing | None, entry: Run, missing: list[tuple[int, int]], already: int | None, then: int
) -> None:
    positions = following({} if delivered is None else {S: delivered})
    assert positions.settle(9, [entry]) == ([(S, *pair) for pair in missing], {} if already is None else {S: already})
    assert positions.of([entry]) == {S: Standing(EPOCH, entry.chain, then)}
    # What d is now shows in what would be missing before a record that follows `then`, or one more.
    following_one = replace(entry, previous=then, first=then + 1, last=then + 1, count=1)
    assert positions.settle(10, [following_one]) == ([], {})
    behind_a_gap = replace(entry, previous=then + 2, first=then + 3, last=then + 3, count=1)
    assert positions.settle(11, [behind_a_gap]) == ([(S, then + 2, then + 2)], {})


@pytest.mark.parametrize("continues", [False, True])
@pytest.mark.req("GC-DLV-14")
def test_what_was_before_an_egress_joined_is_not_missing(continues: bool) -> None:
    before, since = ("orders", 0), ("orders", 1)
    positions = following({}, known_from=6)
    entries = [
        run(8, 9, 9, key=before, continues=continues, chain=5),
        run(8, 9, 9, key=since, continues=continues, chain=6),
    ]
    assert positions.settle(9, entries) == ([(since, 0, 8)], {})
    assert positions.settle(10, [run(10, 11, 11, key=before, chain=5)]) == ([(before, 10, 10)], {})


@pytest.mark.req("GC-DLV-14")
def test_a_session_that_is_followed_from_its_start_owes_everything() -> None:
    positions = following({}, known_from=6)
    positions.follow(EPOCH + 1, known_from=0)
    assert positions.settle(1, [run(8, 9, 9)]) == ([(S, 0, 8)], {})


@pytest.mark.req("GC-DLV-14", "GC-DLV-15")
def test_stream_partitions_have_chains_of_their_own() -> None:
    a, b = ("orders", 0), ("orders", 1)
    positions = following({a: here(5), b: here(7)})
    entries = [run(6, 7, 7, key=a), run(6, 7, 8, key=b), run(7, 8, 8, key=a)]
    assert positions.settle(9, entries) == ([(a, 6, 6)], {b: 7})


@pytest.mark.req("GC-DLV-15")
def test_two_runs_of_one_partition_in_a_message_that_is_sent_again() -> None:
    positions = following({S: here(12)})
    assert positions.settle(9, [run(5, 6, 8), run(8, 9, 14)]) == ([], {S: 12})
    assert positions.settle(10, [run(14, 15, 15)]) == ([], {})


@given(st.data())
@settings(deadline=None)
@pytest.mark.req("GC-DLV-14", "GC-DLV-15", "GC-DLV-16")
def test_exactly_what_did_not_arrive_is_reported(data: st.DataObject) -> None:
    """Of a source with holes, that restarts now and then, in a new session or not, any messages are lost.

    Nothing that arrives is taken for delivered before, and the ranges of a chain of which something arrived hold every
    lost position and no delivered one.
    """
    positions = DeliveredPositions()
    for epoch in range(1, data.draw(st.integers(2, 3))):
        positions.follow(epoch, 0)
        sent = SentPositions()
        number = 0
        for _ in range(data.draw(st.integers(1, 3))):
            steps = data.draw(st.lists(st.integers(1, 4), min_size=1, max_size=20))
            records = [sum(steps[: i + 1]) for i in range(len(steps))]
            previous, reported, lost, arrived = -1, set[int](), set[int](), set[int]()
            while records:
                size = data.draw(st.integers(1, 5))
                batch, records = records[:size], records[size:]
                runs = sent.chained(number, [Run(*S, previous, batch[0], batch[-1], len(batch))])
                sent.sent(runs)
                if data.draw(st.booleans()):
                    missing, already = positions.settle(number, runs)
                    reported |= {position for _, first, last in missing for position in range(first, last + 1)}
                    arrived |= set(batch)
                    assert not already
                else:
                    lost |= set(batch)
                previous = batch[-1]
                number += 1
            if data.draw(st.booleans()):
                ((summary,),) = sent.take_summary(1_000)
                missing, _ = positions.settle(number, [summary])
                reported |= {position for _, first, last in missing for position in range(first, last + 1)}
                number += 1
                assert lost <= reported
            assert not reported & arrived


@pytest.mark.req("GC-LIM-1", "GC-DLV-14")
def test_the_longest_unused_position_is_forgotten_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gapconn.protocol.positions.POSITIONS_TRACKED_MAX", 3)
    keys = [("s", i) for i in range(4)]
    positions = following(dict.fromkeys(keys[:3], here(5)))
    positions.settle(7, [run(5, 6, 6, key=keys[0])])
    positions.settle(8, [run(-1, 0, 0, key=keys[3], chain=8)])
    assert positions.settle(9, [run(8, 9, 9, key=keys[0])]) == ([(keys[0], 7, 8)], {}), "used lately"
    assert positions.settle(10, [run(8, 9, 9, key=keys[1])]) == ([], {}), "forgotten: nothing can be said"
    lost = run(8, 9, 9, key=("t", 0), chain=11)
    assert positions.settle(12, [lost]) == ([(("t", 0), 0, 8)], {}), "what began later is not forgotten"


# -- what is sent --------------------------------------------------------------------------------------------------


def sent_run(previous: int, first: int, last: int, key: StreamPartition = S) -> Run:
    """A run as a source gives it."""
    return Run(key[0], key[1], previous, first, last, last - first + 1)


def send(sent: SentPositions, number: int, *runs: Run) -> list[tuple[int, int, int]]:
    """Send a message: what each of its runs says of its chain."""
    chained = sent.chained(number, runs)
    sent.sent(chained)
    assert [replace(r, begun=-1, continues=False, chain=-1) for r in chained] == list(runs)
    return [(r.begun, r.continues, r.chain) for r in chained]


@pytest.mark.req("GC-ONCE-1")
def test_all_of_a_chain_names_the_session_that_it_may_continue() -> None:
    sent = SentPositions()
    for number, (run, continues) in enumerate(
        [
            (replace(sent_run(-1, 0, 4), continues=EPOCH - 1), EPOCH - 1),
            (sent_run(4, 5, 9), EPOCH - 1),
            (sent_run(-1, 0, 3), False),
        ]
    ):
        [chained] = sent.chained(number, [run])
        sent.sent([chained])
        assert chained.continues == continues


@pytest.mark.req("GC-DLV-16")
def test_a_run_tells_where_its_chain_began() -> None:
    sent, other = SentPositions(), ("orders", 4)
    assert send(sent, 0, sent_run(-1, 3, 5)) == [(3, False, 0)]
    assert send(sent, 1, sent_run(5, 6, 6), sent_run(40, 42, 42, other), sent_run(6, 7, 8)) == [
        (3, False, 0),
        (42, True, 1),
        (3, False, 0),
    ]
    assert send(sent, 2, sent_run(42, 43, 43, other)) == [(42, True, 1)]
    # It begins anew where nothing is claimed, also at the same position, and where it goes back behind its beginning.
    assert send(sent, 3, sent_run(8, 9, 9), sent_run(-1, 3, 4)) == [(3, False, 0), (3, False, 3)]
    assert send(sent, 4, sent_run(4, 5, 6)) == [(3, False, 3)]
    assert send(sent, 5, sent_run(30, 41, 41, other)) == [(41, True, 5)]
    # Sent again from the middle.
    assert send(sent, 6, sent_run(4, 5, 6)) == [(3, False, 3)]


def test_a_message_that_was_refused_leaves_the_chains_alone() -> None:
    sent = SentPositions()
    send(sent, 0, sent_run(-1, 3, 5))
    sent.chained(1, [sent_run(-1, 0, 2)])
    assert send(sent, 1, sent_run(5, 6, 6)) == [(3, False, 0)]


@pytest.mark.req("GC-LIM-1")
def test_the_chain_used_longest_ago_is_forgotten_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gapconn.protocol.positions.POSITIONS_TRACKED_MAX", 2)
    sent, a, b, c = SentPositions(), ("s", 0), ("s", 1), ("s", 2)
    send(sent, 0, sent_run(-1, 0, 0, a), sent_run(-1, 0, 0, b))
    send(sent, 1, sent_run(0, 1, 1, a))
    send(sent, 2, sent_run(-1, 0, 0, c))
    assert sent.take_summary(1_000) == [[told(0, b), told(1, a), told(0, c, chain=2)]], "nothing is left untold"
    assert send(sent, 3, sent_run(1, 2, 2, a)) == [(0, False, 0)]
    assert send(sent, 4, sent_run(0, 1, 1, b)) == [(1, True, 4)]


@pytest.mark.req("GC-DLV-17")
def test_a_summary_tells_the_last_position_of_what_was_sent_since_the_last_one() -> None:
    sent = SentPositions()
    assert not sent
    assert sent.take_summary(1_000) == []
    other = ("orders", 4)
    send(sent, 0, sent_run(-1, 3, 5), sent_run(7, 8, 8, other))
    send(sent, 1, sent_run(5, 9, 9))
    assert sent
    assert sent.take_summary(1_000) == [[told(8, other, begun=8, continues=True), told(9, begun=3)]]
    assert not sent
    send(sent, 3, sent_run(8, 9, 9, other))
    assert sent.take_summary(1_000) == [[told(9, other, begun=8, continues=True)]]


@given(
    st.dictionaries(st.tuples(st.text(max_size=9), st.integers(0, 2**31)), st.integers(0, 2**63 - 1), max_size=60),
    st.integers(0, 2**64 - 1),
    st.integers(200, 2_000),
)
@settings(deadline=None)
@pytest.mark.req("GC-DLV-17", "GC-DLV-3")
def test_summaries_are_cut_to_fit_a_message(last: dict[StreamPartition, int], number: int, bytes_max: int) -> None:
    sent = SentPositions()
    send(sent, number, *(sent_run(-1, position, position, key) for key, position in last.items()))
    messages = sent.take_summary(bytes_max)
    entries = [told(position, key, begun=position, chain=number) for key, position in last.items()]
    assert entries == [entry for runs in messages for entry in runs]
    assert all(0 < len(msgspec.msgpack.encode(runs)) <= bytes_max for runs in messages)


def test_a_summary_is_due_when_no_more_can_be_noted() -> None:
    sent = SentPositions()
    sent.sent([run(-1, 0, 0, key=("s", i)) for i in range(POSITIONS_TRACKED_MAX - 1)])
    assert not sent.full
    sent.sent([run(-1, 0, 0, key=("t", 0))])
    assert sent.full
