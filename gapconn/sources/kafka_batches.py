"""Messages of the Kafka client become batches: read into columns, cut, and chained per partition."""

from __future__ import annotations

from bisect import bisect_right
from itertools import accumulate, pairwise, repeat, takewhile
from operator import add, methodcaller
from typing import Any, Final, TypeAlias

import attrs
import msgspec
from confluent_kafka import Message

from gapconn.record import NO_POSITION, Batch, Chunk, Header, Records, TimestampType

Place: TypeAlias = tuple[str, int]
"""Topic and partition."""

RECORD_OVERHEAD_BYTES: Final = 48
"""At most what a record's position, timestamp and length prefixes add to a batch."""
HEADER_OVERHEAD_BYTES: Final = 16
RUN_OVERHEAD_BYTES: Final = 1024
"""At most what the names and lengths of a run and of its batch add."""

_encode: Final = msgspec.msgpack.Encoder().encode


@attrs.define(kw_only=True, eq=False)
class Partition:
    """One assignment of one partition; a later assignment of the same is another object."""

    place: Place
    handed: int
    """Position of the last record handed over, also in earlier runs of this link: the chain's last link."""
    since: int = 0
    """While nothing was handed over: the session of this link that began here before; 0 if none did."""
    taken_up: int = NO_POSITION
    """`handed` as it was when the partition was assigned: with it, the chain of an earlier run goes on."""
    began: int = NO_POSITION
    """Position of the first record that was read since it was assigned."""
    sent: int = NO_POSITION
    """Position of the last record that the kernel took. Written in Trio's thread."""
    committed: int = NO_POSITION
    """`sent` as of the last commit."""
    doubtful: int = NO_POSITION
    """Where the egress stands, up to here, may be told of an earlier topic of this name: this one began again below."""
    owned: bool = True
    """What is sent may be acknowledged."""

    @property
    def last(self) -> int:
        """The last position that this link sent, also in earlier runs."""
        return max(self.sent, self.taken_up)


@attrs.frozen(kw_only=True)
class Hand:
    """A batch that was read and waits to be sent."""

    batch: Batch
    partitions: list[Partition]
    """Of each part of the batch."""

    def still_owned(self) -> Hand:
        """The same without partitions that were lost meanwhile: their new owner sends these records."""
        if all(partition.owned for partition in self.partitions):
            return self
        kept = [(p, part) for p, part in zip(self.partitions, self.batch.parts, strict=True) if p.owned]
        return Hand(
            batch=Batch(origin=self.batch.origin, parts=[part for _, part in kept]), partitions=[p for p, _ in kept]
        )

    def note_sent(self) -> None:
        """The kernel took it: these offsets may be committed."""
        for partition, part in zip(self.partitions, self.batch.parts, strict=True):
            assert isinstance(part, Records)
            if partition.owned:
                partition.sent = part.positions[-1]


@attrs.define(kw_only=True)
class Columns:
    """Records of one partition with one type of timestamp, a list per column."""

    positions: list[int]
    values: list[bytes | None]
    keys: list[bytes | None] | None
    headers: list[list[Header] | None] | None
    timestamps_ms: list[int] | None
    timestamp_type: TimestampType
    ends: list[int]
    """Bytes of the records up to each, the first entry being 0: about what they take in a batch. Where headers are not
    small against `batch_bytes_max`, never less than that."""
    largest_bytes: int
    """No record takes more than that in a batch."""
    unreadable_follows: bool
    """The message after these has headers that the client library cannot decode."""

    @classmethod
    def of(cls, messages: list[Message], *, batch_bytes: int, batch_bytes_max: int) -> Columns:
        """The columns of the first messages of one partition: up to where the topic's type of timestamp changed, or to
        where headers cannot be read.

        This is the cost of a record: a few methods of its message, called from C, and nothing in Python.
        """
        kinds, stamps = zip(*map(Message.timestamp, messages), strict=True)
        if kinds.count(kinds[0]) < len(kinds):
            alike = len(list(takewhile(kinds[0].__eq__, kinds)))
            messages, stamps = messages[:alike], stamps[:alike]
        headers: list[Any] = []
        unreadable = False
        try:
            headers.extend(map(methodcaller("headers"), messages))
        except SystemError:
            # Raised for a name that is not UTF-8. The list keeps what came before, and asking once more gives None.
            unreadable = True
            messages, stamps = messages[: len(headers)], stamps[: len(headers)]
        kind = TimestampType(kinds[0])
        keys = list(map(Message.key, messages))
        has_keys = any(keys) or keys.count(None) < len(keys)
        has_headers = any(headers) or headers.count(None) < len(headers)
        sizes = list(map(len, messages))
        if has_keys:
            sizes = list(map(add, sizes, _lengths(keys)))
        rest = repeat(RECORD_OVERHEAD_BYTES)
        largest_bytes = max(sizes, default=0) + RECORD_OVERHEAD_BYTES
        if has_headers:
            together = len(_encode(headers))
            largest_bytes += together
            if 2 * together <= batch_bytes_max - batch_bytes and largest_bytes <= batch_bytes_max - RUN_OVERHEAD_BYTES:
                # Whichever record has all of them, it fits, also behind such a run: an average will do to cut by.
                rest = repeat(RECORD_OVERHEAD_BYTES + together // len(headers) + 1)
            else:
                sizes = [
                    size + _header_bytes(each) if each else size for size, each in zip(sizes, headers, strict=True)
                ]
                largest_bytes = max(sizes) + RECORD_OVERHEAD_BYTES
        return cls(
            positions=list(map(Message.offset, messages)),  # type: ignore[arg-type]  # never None
            values=list(map(Message.value, messages)),
            keys=keys if has_keys else None,
            headers=headers if has_headers else None,
            timestamps_ms=None if kind is TimestampType.NONE else list(stamps),
            timestamp_type=kind,
            ends=list(accumulate(map(add, sizes, rest), initial=0)),
            largest_bytes=largest_bytes,
            unreadable_follows=unreadable,
        )

    def sizes(self) -> list[int]:
        """Bytes of each record; never less than what it takes in a batch."""
        return [end - start for start, end in pairwise(self.ends)]

    def run(self, partition: Partition, start: int, end: int) -> Records:
        """The records from `start` to before `end`, chained to what was handed over of the partition so far."""
        first = self.positions[start]
        return Records(
            stream=partition.place[0],
            partition=partition.place[1],
            previous=partition.handed if first > partition.handed else NO_POSITION,
            since=partition.since if partition.handed == NO_POSITION else 0,
            positions=self.positions[start:end],
            values=self.values[start:end],
            keys=None if self.keys is None else self.keys[start:end],
            headers=None if self.headers is None else self.headers[start:end],
            timestamps_ms=None if self.timestamps_ms is None else self.timestamps_ms[start:end],
            timestamp_type=self.timestamp_type,
        )


def _lengths(columns: list[bytes | None]) -> list[int]:
    try:
        return list(map(len, columns))  # type: ignore[arg-type]  # None is what the except is for
    except TypeError:
        return [len(each) if each else 0 for each in columns]


def _header_bytes(headers: Any) -> int:
    """At most what a record's headers take in a batch; a character of a name takes up to four bytes."""
    return sum(HEADER_OVERHEAD_BYTES + 4 * len(name) + len(value or b"") for name, value in headers)


@attrs.define(kw_only=True)
class Packer:
    """Cuts runs of records into batches of about `batch_bytes`."""

    origin: str
    batch_bytes: int
    record_count: int = 0
    total_bytes: int = 0
    _hands: list[Hand] = attrs.field(factory=list)
    _parts: list[Records | Chunk] = attrs.field(factory=list)
    _partitions: list[Partition] = attrs.field(factory=list)
    _size: int = 0

    def add(self, partition: Partition, columns: Columns, start: int, end: int) -> None:
        """Add the records from `start` to before `end`."""
        ends = columns.ends
        while start < end:
            room = self.batch_bytes - self._size - RUN_OVERHEAD_BYTES
            cut = bisect_right(ends, ends[start] + room, start, end + 1) - 1
            if cut <= start:
                if self._parts:
                    self._close()
                    continue
                cut = start + 1
            self._parts.append(columns.run(partition, start, cut))
            self._partitions.append(partition)
            partition.handed = columns.positions[cut - 1]
            self._size += RUN_OVERHEAD_BYTES + ends[cut] - ends[start]
            self.total_bytes += ends[cut] - ends[start]
            self.record_count += cut - start
            start = cut

    def finish(self) -> list[Hand]:
        """All batches."""
        if self._parts:
            self._close()
        return self._hands

    def _close(self) -> None:
        self._hands.append(Hand(batch=Batch(origin=self.origin, parts=self._parts), partitions=self._partitions))
        self._parts, self._partitions, self._size = [], [], 0
