"""Repairs in the core: outside of the chain of positions and of the count of records, for both halves."""

from __future__ import annotations

import pytest

from gapconn.errors import LocalProtocolError
from gapconn.protocol.envelope import Message, Run, Span, open_message
from gapconn.protocol.events import MessageDelivered, MessagesLost, RecordsLost, RecordsMissing
from gapconn.protocol.registry import HEADER_BYTES, MessageKind
from gapconn.protocol.sender import LinkSender, SenderSettings
from gapconn.protocol.wire import Header, Slab
from gapconn.testing.memory_gap import datagrams_of
from tests.protocol.frames import Egress, Session

SPANS = [Span("t", 0, 3, 9, 5), Span("t", 1, 0, 4, 0, "deleted")]


def sender() -> LinkSender:
    core = LinkSender(SenderSettings(link_id=7, epoch=200, previous_epoch=100))
    core.start(0.0)
    return core


def sent(core: LinkSender) -> Message:
    """The composed message, which is one datagram."""
    burst = core.next_burst(Slab())
    assert burst is not None
    assert core.bursts_left == 0
    [datagram] = datagrams_of(burst)
    header = memoryview(datagram)[:HEADER_BYTES]
    length = Header.unpack(header).message_bytes
    return open_message(memoryview(datagram)[HEADER_BYTES : HEADER_BYTES + length])


@pytest.mark.req("GC-RPR-4")
def test_a_repair_changes_nothing_that_the_sender_says_elsewhere() -> None:
    core = sender()

    def body(buffer: bytearray, offset: int) -> None:
        buffer[offset:] = b"records"

    core.compose([Run("t", 0, -1, 10, 14, 5)], 5, body, 0.0)
    sent(core)
    assert core.compose_repair(SPANS, body, 0.1) == 1
    repair = sent(core)
    assert (repair.kind, repair.record_count, repair.first_record) == (MessageKind.REPAIR, 0, 5)
    assert (repair.spans, repair.runs, bytes(repair.body)) == (SPANS, [], b"records")
    core.compose([Run("t", 0, 14, 15, 19, 5)], 5, body, 0.2)
    after = sent(core)
    assert after.first_record == 5
    assert after.runs == [Run("t", 0, 14, 15, 19, 5, 10, False, 0)]
    assert (core.counters.records, core.counters.messages) == (10, 3)


def test_a_repair_waits_for_the_message_before() -> None:
    core = sender()
    core.compose_repair(SPANS, lambda buffer, offset: buffer.extend(b"x"), 0.0)
    with pytest.raises(LocalProtocolError, match="not finished"):
        core.compose_repair(SPANS, lambda buffer, offset: buffer.extend(b"x"), 0.0)


@pytest.mark.req("GC-RPR-6", "GC-RPR-4")
def test_a_repair_is_delivered_and_moves_no_position() -> None:
    egress, session = Egress.make(), Session()
    events = egress.hear(
        session.message(b"a", runs=[Run("t", 0, -1, 10, 14, 5)], record_count=5),
        session.repair(*SPANS, body=b"records"),
        session.message(b"b", runs=[Run("t", 0, 14, 15, 19, 5)], record_count=5),
    )
    first, repair, second = [event for event in events if isinstance(event, MessageDelivered)]
    assert (repair.spans, bytes(repair.body), repair.record_count) == (tuple(SPANS), b"records", 0)
    assert (repair.positions, repair.already_delivered, repair.runs) == ({}, {}, [])
    assert (first.spans, second.spans, second.already_delivered) == ((), (), {})
    assert not [event for event in events if isinstance(event, RecordsMissing | RecordsLost)]


@pytest.mark.req("GC-RPR-4")
def test_a_repair_that_is_lost_is_a_lost_message_without_records() -> None:
    egress, session = Egress.make(), Session()
    events = egress.hear(session.message(b"a", runs=[Run("t", 0, -1, 10, 14, 5)], record_count=5))
    session.repair(*SPANS, body=b"records")
    events += egress.hear(session.message(b"b", runs=[Run("t", 0, 14, 15, 19, 5)], record_count=5))
    events += egress.wait(1.0)
    assert [(event.first, event.last) for event in events if isinstance(event, MessagesLost)] == [(1, 1)]
    assert not [event for event in events if isinstance(event, RecordsMissing | RecordsLost)]
