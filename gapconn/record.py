"""What a link carries: batches of records, or chunks of byte streams, and how a batch becomes bytes.

A batch is columnar: one `Records` holds a run of records of one stream partition, a list per column. A column of bytes
crosses msgspec in one C call, so the cost of a record is its copy and not its Python object.

The protocol core never looks inside a batch. It is told each run's positions beside the batch (`positions_of`).
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import IntEnum
from typing import Final, TypeAlias, TypeVar

import msgspec

from gapconn.errors import RemoteProtocolError

T = TypeVar("T")

Header: TypeAlias = tuple[str, bytes | None]
"""A record header. Names may repeat; a value may be null."""

ORIGIN_HEADER: Final = "gapconn-origin"
"""Added by the Kafka sink: `cluster/topic/partition/offset` of the record at its source.

One header for the whole id: each one costs time at every client and broker that it passes.
"""

NO_POSITION = -1
"""As `Records.previous`: the chain of positions restarts here, and nothing before it is claimed to be lost."""

POSITIONS_PER_MICROSECOND: Final = 2
"""Epochs are microseconds: a session reaches the positions of the next one only above so many records in each of them.
More would come to 2**53, beyond which not every reader of JSON is exact, before the year 2112."""


def first_position(epoch: int) -> int:
    """Where a source that numbers its records itself begins in this session (GC-DLV-42)."""
    return epoch * POSITIONS_PER_MICROSECOND


class TimestampType(IntEnum):
    """What a record's timestamp means."""

    NONE = 0
    CREATE = 1
    """Set by the producer."""
    APPEND = 2
    """Set by the source's log when the record was appended."""


class Records(msgspec.Struct, array_like=True, tag=1, gc=False, kw_only=True):
    """A run of records of one stream partition, in order, one list per column. All lists have the same length."""

    stream: str
    """Where the records come from: a Kafka topic, a listening address, a name."""
    partition: int = 0
    previous: int = NO_POSITION
    """Position of the last record of this partition sent before these; `NO_POSITION` restarts the chain."""
    positions: list[int]
    """Strictly increasing. Holes are not loss: only `previous` says what was sent before."""
    values: list[bytes | None]
    """None is a tombstone."""
    keys: list[bytes | None] | None = None
    """None when no record of the run has a key."""
    headers: list[list[Header] | None] | None = None
    """None when no record of the run has headers."""
    timestamps_ms: list[int] | None = None
    """Milliseconds since 1970, UTC; None when no record has one; -1 for a single record without one."""
    timestamp_type: int = TimestampType.NONE
    since: int = 0
    """With `previous` at `NO_POSITION`: the epoch of a session of this link that began here and may have sent these
    records, without having been able to acknowledge any; 0 if there is none."""

    def after(self, position: int) -> Records:
        """The same run without the records at or before `position` (used to drop redelivered records)."""
        keep = next((i for i, p in enumerate(self.positions) if p > position), len(self.positions))
        return Records(
            stream=self.stream,
            partition=self.partition,
            previous=max(self.previous, position),
            positions=self.positions[keep:],
            values=self.values[keep:],
            keys=None if self.keys is None else self.keys[keep:],
            headers=None if self.headers is None else self.headers[keep:],
            timestamps_ms=None if self.timestamps_ms is None else self.timestamps_ms[keep:],
            timestamp_type=self.timestamp_type,
        )

    def within(self, ranges: Sequence[tuple[int, int]]) -> Records:
        """The same run with only the records in `ranges` (first and last, both included)."""
        rows = [
            row
            for row, position in enumerate(self.positions)
            if any(first <= position <= last for first, last in ranges)
        ]
        return Records(
            stream=self.stream,
            partition=self.partition,
            previous=self.previous,
            positions=[self.positions[row] for row in rows],
            values=[self.values[row] for row in rows],
            keys=_rows_of(self.keys, rows),
            headers=_rows_of(self.headers, rows),
            timestamps_ms=_rows_of(self.timestamps_ms, rows),
            timestamp_type=self.timestamp_type,
        )


def _rows_of(column: list[T] | None, rows: list[int]) -> list[T] | None:
    return None if column is None else [column[row] for row in rows]


class ChunkKind(IntEnum):
    """What a chunk says about its stream."""

    OPEN = 1
    """The stream begins. `attributes` describe it."""
    DATA = 2
    """`data` stands at byte offset `position` of the stream."""
    END = 3
    """The stream ended in order; `position` is its length in bytes."""
    ABORT = 4
    """The stream broke off at the source (a TCP reset, a file that changed while it was read)."""
    ALIVE = 5
    """The stream is still open and `position` bytes were sent, said now and then so that a lost end is noticed."""


class Chunk(msgspec.Struct, array_like=True, tag=2, gc=False, kw_only=True):
    """A piece of one byte stream: a TCP connection, a file, standard input."""

    stream: str
    """Unique among all streams of a link, also across restarts of the ingress."""
    kind: ChunkKind
    position: int
    """Byte offset in the stream."""
    data: memoryview = memoryview(b"")
    """After decoding: a view into the message, which stays in memory as long as the view is held."""
    attributes: dict[str, str | int | bool | None] = {}


class Batch(msgspec.Struct, array_like=True, gc=False, kw_only=True):
    """What a source hands over at once: becomes one message on the link, is delivered whole or not at all."""

    origin: str = ""
    """Which system the data is from (a Kafka cluster id); with stream, partition and position a record's unique id."""
    parts: list[Records | Chunk]

    @property
    def record_count(self) -> int:
        """Records in this batch; a chunk counts as one."""
        return sum(len(part.positions) if isinstance(part, Records) else 1 for part in self.parts)


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(Batch)


def encode_batch(batch: Batch, buffer: bytearray, offset: int) -> None:
    """Write `batch` into `buffer` at `offset`; the buffer grows or shrinks to end with the last byte."""
    _encoder.encode_into(batch, buffer, offset)


def decode_batch(body: memoryview) -> Batch:
    """The batch in `body`. Chunks keep a view of `body`; everything else is copied out.

    Raises:
        RemoteProtocolError: `body` is not a batch (reason `malformed_batch`).
    """
    try:
        batch = _decoder.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise RemoteProtocolError(f"not a batch: {error}", reason="malformed_batch") from error
    if not all(_is_table(part) for part in batch.parts if isinstance(part, Records)):
        raise RemoteProtocolError("not a batch: columns of different lengths", reason="malformed_batch")
    return batch


def _is_table(records: Records) -> bool:
    columns = (records.values, records.keys, records.headers, records.timestamps_ms)
    return all(column is None or len(column) == len(records.positions) for column in columns)
