"""Messages that come after they were given up: whole, once, marked, and in bounded memory."""

from __future__ import annotations

import pytest

from gapconn.protocol import reassembler
from gapconn.protocol.envelope import Run
from gapconn.protocol.events import Event, MessageDelivered, MessagesLost, RecordsLost, RecordsMissing
from gapconn.protocol.progress import Progress
from gapconn.protocol.registry import DropReason, LossCause
from tests.protocol.frames import EPOCH, Egress, Session


def run(previous: int, first: int, last: int) -> Run:
    return Run("t", 0, previous, first, last, last - first + 1)


def send(session: Session, first: int, count: int = 5) -> list[bytes]:
    """The session's next message, with these positions."""
    return session.message(bytes(100), runs=[run(first - 1, first, first + count - 1)], record_count=count)


def delivered(events: list[Event]) -> list[tuple[int, bool]]:
    return [(event.number, event.late) for event in events if isinstance(event, MessageDelivered)]


def again(session: Session, message: list[bytes]) -> list[bytes]:
    return [session.again(datagram) for datagram in message]


@pytest.mark.req("GC-DLV-31", "GC-MOD-4")
def test_a_lost_message_that_is_repeated_is_delivered_late_and_once() -> None:
    egress, session = Egress.make(), Session()
    messages = [send(session, first) for first in (0, 5, 10)]
    events = egress.hear(messages[0], messages[2])
    events += egress.wait(1.0)
    assert delivered(events) == [(0, False), (2, False)]
    assert [(e.first, e.last) for e in events if isinstance(e, MessagesLost)] == [(1, 1)]
    assert [(e.first, e.last) for e in events if isinstance(e, RecordsMissing)] == [(5, 9)]
    [late] = egress.hear(again(session, messages[1]))
    assert isinstance(late, MessageDelivered)
    assert (late.number, late.late, late.already_delivered) == (1, True, {("t", 0): 9})
    assert (late.first_record, late.record_count, late.runs[0].first) == (5, 5, 5)
    assert egress.receiver.messages_mendable == 0
    assert egress.hear(again(session, messages[1])) == []
    assert egress.dropped == {DropReason.NOT_NEEDED: len(messages[1])}
    counts = egress.receiver.counters
    assert (counts.messages_late, counts.records_late, counts.records_lost) == (1, 5, 5)
    assert egress.receiver.repeats_not_needed == len(messages[1])


@pytest.mark.req("GC-DLV-6")
def test_a_repeat_of_what_was_delivered_is_not_needed() -> None:
    egress, session = Egress.make(), Session()
    message = send(session, 0)
    egress.hear(message)
    assert egress.hear(again(session, message)) == []
    assert egress.dropped == {DropReason.NOT_NEEDED: len(message)}


@pytest.mark.req("GC-DLV-8")
def test_a_repeat_fills_what_is_still_waited_for() -> None:
    egress, session = Egress.make(), Session()
    first, second = send(session, 0), send(session, 5)
    assert delivered(egress.hear(first[1:], second)) == []
    assert delivered(egress.hear(again(session, first), after_s=0.1)) == [(0, False), (1, False)]


@pytest.mark.req("GC-DLV-31")
def test_what_had_arrived_before_it_was_given_up_counts() -> None:
    egress, session = Egress.make(), Session()
    first, second = send(session, 0), send(session, 5)
    egress.hear(first[:-1], second)
    egress.wait(1.0)
    assert egress.receiver.late_messages == 1
    assert delivered(egress.hear(session.again(first[-1]))) == [(0, True)]
    assert (egress.receiver.late_messages, egress.receiver.late_bytes) == (0, 0)


@pytest.mark.req("GC-DLV-33")
def test_a_late_message_before_the_loss_was_located_is_in_the_chain() -> None:
    egress, session = Egress.make(), Session()
    messages = [send(session, first) for first in (0, 5)]
    egress.hear(messages[0])
    egress.hear(session.heartbeat())
    [lost, records] = egress.wait(1.0)
    assert isinstance(lost, MessagesLost)
    assert isinstance(records, RecordsLost)
    [late] = egress.hear(again(session, messages[1]))
    assert isinstance(late, MessageDelivered)
    assert (late.late, late.already_delivered) == (True, {})
    after = egress.hear(send(session, 10))
    assert delivered(after) == [(2, False)]
    assert len(after) == 1, "nothing is missing, and nothing is lost"


@pytest.mark.req("GC-DLV-33", "GC-DLV-14")
def test_a_late_message_shows_the_hole_before_it() -> None:
    egress, session = Egress.make(), Session()
    messages = [send(session, first) for first in (0, 5, 10)]
    egress.hear(messages[0])
    egress.hear(session.heartbeat())
    egress.wait(1.0)
    missing, late = egress.hear(again(session, messages[2]))
    assert isinstance(missing, RecordsMissing)
    assert (missing.first, missing.last) == (5, 9)
    assert isinstance(late, MessageDelivered)
    [earlier] = egress.hear(again(session, messages[1]))
    assert isinstance(earlier, MessageDelivered)
    assert (earlier.late, earlier.already_delivered) == (True, {("t", 0): 9})


@pytest.mark.req("GC-DLV-13")
def test_records_of_a_late_message_that_were_not_counted_yet_are_not_lost() -> None:
    egress, session = Egress.make(), Session()
    first, second, third = (send(session, at) for at in (0, 5, 10))
    egress.hear(first, session.again(third[0]))
    assert [type(event) for event in egress.wait(1.0)] == [MessagesLost], "how many they were is not known yet"
    events = egress.hear(again(session, second)) + egress.hear(third)
    assert delivered(events) == [(1, True), (2, False)]
    assert not [event for event in events if isinstance(event, RecordsLost)]


@pytest.mark.req("GC-DLV-31", "GC-DLV-33", "GC-DLV-11")
def test_what_was_sent_before_the_egress_joined_is_delivered_whole() -> None:
    egress, session = Egress.make(), Session()
    messages = [send(session, first) for first in (0, 5, 10)]
    egress.hear(session.heartbeat(), send(session, 15))
    events = egress.hear(again(session, messages[1]))
    [late] = [event for event in events if isinstance(event, MessageDelivered)]
    assert (late.number, late.late, late.already_delivered) == (1, True, {})


@pytest.mark.req("GC-DLV-34", "GC-DLV-31")
def test_what_was_lost_is_known_to_an_egress_that_resumes() -> None:
    session = Session()
    messages = [send(session, first) for first in (0, 5, 10, 15)]
    resume = Progress(epoch=EPOCH, next_message=2, next_record=10, positions={}, lost=((0, 0),))
    egress = Egress.make(resume=resume)
    events = egress.hear(session.heartbeat())
    assert [(e.first, e.last, e.cause) for e in events if isinstance(e, MessagesLost)] == [(2, 3, LossCause.WHILE_AWAY)]
    events = egress.hear(*(again(session, message) for message in messages))
    assert delivered(events) == [(0, True), (2, True), (3, True)]
    assert egress.dropped == {DropReason.NOT_NEEDED: len(messages[1])}


@pytest.mark.req("GC-DLV-32", "GC-LIM-1")
def test_lost_messages_give_way_to_those_that_are_owed() -> None:
    egress, session = Egress.make(reassembly_bytes_max=900), Session()
    lost = [session.message(bytes(200)) for _ in range(4)]
    egress.hear(session.heartbeat())
    egress.wait(1.0)
    for message in lost[:3]:  # there is room for three
        egress.hear(again(session, message)[1:])
    assert egress.receiver.late_messages == 3
    egress.hear(again(session, lost[3])[1:])
    assert egress.receiver.late_messages == 3, "the one that was added to longest ago was forgotten"
    assert delivered(egress.hear(session.again(lost[1][0]))) == [(1, True)]
    owed = [session.message(bytes(200)) for _ in range(3)]
    for message in owed:
        egress.hear(message[1:])
    assert (egress.receiver.late_messages, egress.receiver.held_messages) == (0, 3)
    egress.hear(again(session, lost[2]))
    assert egress.dropped == {DropReason.OVER_LIMIT: len(lost[2])}
    assert egress.receiver.held_bytes + egress.receiver.late_bytes <= 900


@pytest.mark.req("GC-DLV-32")
def test_of_too_many_ranges_the_oldest_is_forgotten_and_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reassembler, "LOST_RANGES_MAX", 2)
    egress, session = Egress.make(), Session()
    lost = []
    for first in range(0, 40, 10):
        lost.append(send(session, first))
        egress.hear(send(session, first + 5))
    egress.wait(1.0)
    assert (egress.receiver.messages_mendable, egress.receiver.lost_forgotten) == (2, 2)
    events = egress.hear(*(again(session, message) for message in lost))
    assert delivered(events) == [(4, True), (6, True)]


@pytest.mark.req("GC-DLV-5", "GC-DLV-31")
def test_a_symbol_that_contradicts_a_late_message_is_dropped() -> None:
    egress, session = Egress.make(), Session()
    message = send(session, 0)
    other = Session(symbol_bytes=32).message(bytes(100))
    egress.hear(session.heartbeat())
    egress.wait(1.0)
    egress.hear(again(session, message)[1:])
    egress.hear(session.again(other[0]))
    assert egress.dropped == {DropReason.INCONSISTENT_MESSAGE: 1}
    assert delivered(egress.hear(session.again(message[0]))) == [(0, True)]
