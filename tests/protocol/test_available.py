"""Messages that are delivered as soon as they are whole: nothing waits, and all that is told of losses stays exact."""

from __future__ import annotations

import pytest

from gapconn.protocol.envelope import Run
from gapconn.protocol.events import Event, MessageDelivered, MessageSettled, MessagesLost, RecordsLost, RecordsMissing
from gapconn.protocol.positions import Standing
from gapconn.protocol.progress import Progress
from gapconn.protocol.reassembler import Ahead
from gapconn.protocol.registry import DropReason
from tests.protocol.frames import EPOCH, Egress, Session
from tests.protocol.test_late import again, delivered, send


def told(events: list[Event]) -> list[Event]:
    """What is told of losses."""
    return [event for event in events if isinstance(event, MessagesLost | RecordsLost | RecordsMissing)]


@pytest.mark.req("GC-DLV-35", "GC-MOD-2")
def test_nothing_waits_for_a_missing_message_and_nothing_is_told_before_it_is_due() -> None:
    egress, session = Egress.make(available=True), Session()
    messages = [send(session, first) for first in (0, 5, 10, 15)]
    events = egress.hear(messages[0], messages[2], messages[3])
    assert delivered(events) == [(0, False), (2, False), (3, False)]
    assert told(events) == []
    assert egress.receiver.ahead_messages == 2
    events = egress.hear(again(session, messages[1]), after_s=0.1)
    [first] = [event for event in events if isinstance(event, MessageDelivered)]
    assert (first.number, first.late, first.overtaken) == (1, False, True)
    settled = [event for event in events if isinstance(event, MessageSettled)]
    assert [(each.number, each.next_record) for each in settled] == [(2, 15), (3, 20)]
    assert settled[1].positions == {("t", 0): Standing(EPOCH, 0, 19)}
    assert told(events + egress.wait(1.0)) == []
    assert (egress.receiver.ahead_messages, egress.receiver.ahead_bytes, egress.receiver.next_message) == (0, 0, 4)


@pytest.mark.req("GC-DLV-35", "GC-DLV-8", "GC-DLV-13", "GC-DLV-14", "GC-DLV-31")
def test_what_does_not_come_is_reported_after_the_hold_and_may_come_late() -> None:
    egress, session = Egress.make(available=True), Session()
    messages = [send(session, first) for first in (0, 5, 10)]
    egress.hear(messages[0], messages[2])
    lost, records, missing, settled = egress.wait(1.0)
    assert isinstance(lost, MessagesLost)
    assert (lost.first, lost.last) == (1, 1)
    assert isinstance(records, RecordsLost)
    assert records.count == 5
    assert isinstance(missing, RecordsMissing)
    assert (missing.first, missing.last) == (5, 9)
    assert isinstance(settled, MessageSettled)
    [late] = egress.hear(again(session, messages[1]))
    assert isinstance(late, MessageDelivered)
    assert (late.late, late.already_delivered) == (True, {("t", 0): 9})


@pytest.mark.req("GC-DLV-35", "GC-DLV-6")
def test_a_repeat_of_what_was_delivered_ahead_is_not_needed() -> None:
    egress, session = Egress.make(available=True), Session()
    egress.hear(session.startup())
    send(session, 0)
    ahead = send(session, 5)
    assert delivered(egress.hear(ahead)) == [(1, False)]
    assert egress.hear(again(session, ahead)) == []
    assert egress.dropped == {DropReason.NOT_NEEDED: len(ahead)}


@pytest.mark.req("GC-DLV-35", "GC-DLV-15")
def test_what_a_restarted_ingress_sends_again_is_dropped_ahead_too() -> None:
    egress, first = Egress.make(available=True), Session()
    egress.hear(send(first, 0, 10))
    second = Session(epoch=EPOCH + 1, previous_epoch=EPOCH)
    messages = [send(second, at) for at in (5, 8)]
    [*_, ahead] = egress.hear(second.startup(messages_sent=0, records_sent=0), messages[1])
    assert isinstance(ahead, MessageDelivered)
    assert (ahead.ahead, ahead.already_delivered) == (True, {("t", 0): 9})
    events = egress.hear(messages[0])
    assert [e.already_delivered for e in events if isinstance(e, MessageDelivered)] == [{("t", 0): 9}]
    assert told(events + egress.wait(1.0)) == []


@pytest.mark.req("GC-DLV-36")
def test_what_was_delivered_ahead_is_known_to_an_egress_that_resumes() -> None:
    session = Session()
    messages = [send(session, first) for first in (0, 5, 10, 15)]
    chained = Run("t", 0, 9, 10, 14, 5, 0, False, 0)
    resume = Progress(
        epoch=EPOCH,
        next_message=1,
        next_record=5,
        positions={("t", 0): Standing(EPOCH, 0, 4)},
        ahead=(Ahead(number=2, first_record=10, record_count=5, runs=(chained,)),),
    )
    egress = Egress.make(resume=resume, available=True)
    events = egress.hear(again(session, messages[2]), messages[3])
    assert DropReason.NOT_NEEDED in egress.dropped
    assert delivered(events) == [(3, False)]
    lost = [event for event in events if isinstance(event, MessagesLost)]
    assert [(each.first, each.last) for each in lost] == [(1, 1)], "while it was away"
    missing = [event for event in events if isinstance(event, RecordsMissing)]
    assert [(each.first, each.last) for each in missing] == [(5, 9)]
    assert [event.count for event in events if isinstance(event, RecordsLost)] == [5]


@pytest.mark.req("GC-DLV-9", "GC-LIM-1")
def test_what_is_remembered_of_messages_delivered_ahead_is_bounded() -> None:
    egress, session = Egress.make(available=True, reassembly_bytes_max=2_000), Session()
    send(session, 0)
    events = egress.hear(session.startup(messages_sent=0, records_sent=0))
    for first in range(5, 50, 5):
        events += egress.hear(send(session, first))
        assert egress.receiver.ahead_bytes <= 2_000
    lost = [event for event in events if isinstance(event, MessagesLost)]
    assert [(each.first, each.last, each.cause.name) for each in lost] == [(0, 0, "OVERFLOW")]
    assert egress.receiver.ahead_messages == 0


def test_a_message_that_was_refused_is_taken_again_when_it_has_had_its_turn() -> None:
    egress, session = Egress.make(available=True), Session()
    egress.hear(session.startup())
    messages = [send(session, first) for first in (0, 5)]
    egress.hear(messages[1])
    egress.receiver.miss(EPOCH, 1)
    egress.hear(messages[0])
    assert egress.receiver.messages_mendable == 1
    assert delivered(egress.hear(again(session, messages[1]))) == [(1, True)]
