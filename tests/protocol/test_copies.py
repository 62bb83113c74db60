"""Copies in the core: a message of an earlier session inside of a new one, for both halves."""

from __future__ import annotations

import pytest

from gapconn.errors import RemoteProtocolError
from gapconn.protocol.envelope import Copy, Message, Run, begin_message, end_message, open_message
from gapconn.protocol.events import MessageDelivered, RecordsLost, RecordsMissing
from gapconn.protocol.receiver import LinkReceiver, ReceiverSettings
from gapconn.protocol.registry import Compression, MessageKind
from gapconn.protocol.sender import LinkSender, SenderSettings
from gapconn.protocol.wire import Slab

NO_RUNS: list[Run] = []
RUNS = [Run("t", 0, -1, 10, 14, 5, 10, False, 0)]


def message_of(
    body: bytes,
    runs: list[Run] | list[Copy] = NO_RUNS,
    *,
    kind: MessageKind = MessageKind.BATCH,
    records: int = 0,
    compression: Compression = Compression.NONE,
) -> bytes:
    buffer = bytearray()
    plain_bytes = len(body) + 1 if compression else 0
    begin_message(
        buffer, kind=kind, first_record=3, record_count=records, runs=runs, compression=compression,
        plain_bytes=plain_bytes,
    )  # fmt: skip
    buffer += body
    end_message(buffer)
    return bytes(buffer)


INNER = message_of(b"records", RUNS, records=5)


def copy_of(*copies: Copy, body: bytes = b"", **changes: int | Compression) -> bytes:
    return message_of(body, list(copies), kind=MessageKind.COPY, **changes)  # type: ignore[arg-type]


def opened(message: bytes) -> Message:
    return open_message(memoryview(message))


@pytest.mark.req("GC-RPR-8")
def test_a_copy_has_a_whole_message_in_it_or_says_what_is_gone() -> None:
    copy = opened(copy_of(Copy(7, 4, 4), body=INNER))
    assert (copy.copies, bytes(copy.body)) == ([Copy(7, 4, 4)], INNER)
    assert copy.copied is not None
    assert (copy.copied.runs, copy.copied.record_count, bytes(copy.copied.body)) == (RUNS, 5, b"records")
    gone = opened(copy_of(Copy(7, 4, 9, "old"), Copy(8, 0, 0, "older")))
    assert (gone.copies, gone.copied) == ([Copy(7, 4, 9, "old"), Copy(8, 0, 0, "older")], None)
    nested = opened(copy_of(Copy(9, 0, 0), body=copy_of(Copy(7, 4, 4), body=INNER)))
    assert nested.copied is not None
    assert nested.copied.copied is None, "nothing is looked at any deeper"


@pytest.mark.req("GC-RPR-8", "GC-WIRE-11")
@pytest.mark.parametrize(
    "message",
    [
        copy_of(),
        copy_of(body=INNER),
        copy_of(Copy(7, 4, 4)),
        copy_of(Copy(7, 4, 5), body=INNER),
        copy_of(Copy(7, 4, 4, "gone"), body=INNER),
        copy_of(Copy(7, 4, 4), Copy(7, 5, 5), body=INNER),
        copy_of(Copy(7, 5, 4, "gone")),
        copy_of(Copy(7, 4, 5, "gone"), Copy(7, 6, 6)),
        copy_of(Copy(0, 4, 4), body=INNER),
        copy_of(Copy(7, 4, 4, "x" * 201)),
        copy_of(Copy(7, 4, 4), body=INNER[:-1]),
        copy_of(Copy(7, 4, 4), body=b"short"),
        copy_of(Copy(7, 4, 4), body=INNER, records=1),
        copy_of(Copy(7, 4, 4), body=INNER, compression=Compression.ZSTD),
    ],
)
def test_anything_else_is_damaged(message: bytes) -> None:
    with pytest.raises(RemoteProtocolError):
        opened(message)


@pytest.mark.req("GC-RPR-8")
def test_a_copy_counts_no_records_and_moves_no_position() -> None:
    core = LinkSender(SenderSettings(link_id=7, epoch=200, previous_epoch=100))
    bursts = core.start(0.0)

    def build() -> None:
        while (burst := core.next_burst(Slab())) is not None:
            bursts.append(burst)

    core.compose([Run("t", 0, -1, 0, 0, 1)], 1, lambda buffer, offset: buffer.extend(b"a"), 0.0)
    build()
    assert core.compose_copy([Copy(7, 4, 4)], INNER, 0.1) == 1
    build()
    core.compose([Run("t", 0, 0, 1, 1, 1)], 1, lambda buffer, offset: buffer.extend(b"b"), 0.2)
    build()
    assert (core.counters.messages, core.counters.records) == (3, 2)
    receiver = LinkReceiver(ReceiverSettings(link_id=7), now_s=0.0)
    for burst in bursts:
        receiver.receive(burst, 0.3)
    events = receiver.take_events()
    first, copy, second = [event for event in events if isinstance(event, MessageDelivered)]
    assert copy.copies == (Copy(7, 4, 4),)
    assert copy.copied is not None
    assert (copy.runs, copy.positions, copy.record_count) == ([], {}, 0)
    assert (first.copies, second.copied) == ((), None)
    assert not [event for event in events if isinstance(event, RecordsMissing | RecordsLost)]
