"""The state as records of a compacted Kafka topic: what was taken, and what was forgotten.

    key                  value
    format               what these records are, and by which identity
    r/0/SOURCE           snapshot of a source partition: generation, ranges
    r/N/SOURCE           increment N (1 to 64) to the snapshot of the same generation: ranges
    w/N                  chunk N of the window: time, ids; null when it is forgotten

A batch writes an increment for each source partition that it touched, and a snapshot in its place as soon as the
increments are as large as the snapshot, or their keys are used up. So writing costs at most about twice the increments,
and after compaction the topic holds at most 65 records for a source partition. Increments of an older generation, which
compaction has not reached yet, are part of the newer snapshot.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import Final, TypeAlias

import attrs
import msgspec

from gapconn.dedup.window import Chunk
from gapconn.ranges import Range, RangeSet

Change: TypeAlias = tuple[bytes, bytes | None]
"""Key and value of a record."""

FORMAT_KEY: Final = b"format"
INCREMENTS_MAX: Final = 64
ID_BYTES: Final = 16

_encode = msgspec.msgpack.Encoder().encode
_decode_ranges = msgspec.msgpack.Decoder(tuple[int, list[int]]).decode
_decode_chunk = msgspec.msgpack.Decoder(tuple[float, bytes]).decode


class ChangelogError(ValueError):
    """The topic holds something else than this state."""


def format_change(identity: str) -> Change:
    """The record that says what the others are."""
    return FORMAT_KEY, f"gapconn dedup 1 {identity}".encode()


@attrs.define
class RangeLog:
    """How the ranges of one source partition are written."""

    source: bytes
    generation: int = 0
    increments: int = 0
    increment_bytes: int = 0
    snapshot_bytes: int = 0

    @property
    def snapshot_is_due(self) -> bool:
        """Whether the next record is to have all ranges."""
        return self.increments == INCREMENTS_MAX or self.increment_bytes >= self.snapshot_bytes

    def snapshot(self, ranges: Iterable[Range]) -> Change:
        """The record of all ranges."""
        self.generation += 1
        self.increments = self.increment_bytes = 0
        value = _encode((self.generation, _deltas(ranges)))
        self.snapshot_bytes = len(value)
        return self._key(0), value

    def increment(self, ranges: Iterable[Range]) -> Change:
        """The record of further ranges."""
        self.increments += 1
        value = _encode((self.generation, _deltas(ranges)))
        self.increment_bytes += len(value)
        return self._key(self.increments), value

    def _key(self, slot: int) -> bytes:
        return b"r/%d/%b" % (slot, self.source)


def chunk_change(chunk: Chunk) -> Change:
    """The record of a chunk of the window."""
    return _chunk_key(chunk.number), _encode((chunk.time_s, b"".join(chunk.ids)))


def forgotten_change(number: int) -> Change:
    """The record that deletes that of a chunk."""
    return _chunk_key(number), None


def restored_ranges(values: Mapping[bytes, bytes]) -> list[tuple[RangeLog, RangeSet]]:
    """What the topic says of each source partition.

    Args:
        values: The last value of each key.

    Raises:
        ChangelogError: a value is not what is written there.
    """
    slots: defaultdict[bytes, dict[int, bytes]] = defaultdict(dict)
    for key, value in values.items():
        if key.startswith(b"r/"):
            number, _, source = key[2:].partition(b"/")
            slots[source][_number(number)] = value
    restored = []
    for source, of_source in slots.items():
        log, ranges = RangeLog(source), RangeSet()
        snapshot = of_source.pop(0, b"")
        log.generation, found = _ranges(snapshot)
        log.snapshot_bytes = len(snapshot)
        for first, last in found:
            ranges.add(first, last)
        for slot, value in sorted(of_source.items()):
            generation, found = _ranges(value)
            if generation == log.generation:
                log.increments = slot
                log.increment_bytes += len(value)
                for first, last in found:
                    ranges.add(first, last)
        restored.append((log, ranges))
    return restored


def restored_chunks(values: Mapping[bytes, bytes]) -> list[Chunk]:
    """The chunks of the window.

    Raises:
        ChangelogError: a value is not what is written there.
    """
    chunks = []
    for key, value in values.items():
        if key.startswith(b"w/"):
            try:
                time_s, joined = _decode_chunk(value)
            except msgspec.DecodeError as error:
                raise ChangelogError(f"{key!r}: {error}") from error
            ids = [joined[at : at + ID_BYTES] for at in range(0, len(joined), ID_BYTES)]
            chunks.append(Chunk(number=_number(key[2:]), time_s=time_s, ids=ids))
    return chunks


def _chunk_key(number: int) -> bytes:
    return b"w/%d" % number


def _number(text: bytes) -> int:
    if not text.isdigit():
        raise ChangelogError(f"{text!r} is no number")
    return int(text)


def _deltas(ranges: Iterable[Range]) -> list[int]:
    """Distances and lengths in turn: small numbers, which take few bytes."""
    deltas, at = [], 0
    for first, last in ranges:
        deltas += [first - at, last - first]
        at = last
    return deltas


def _ranges(value: bytes) -> tuple[int, list[Range]]:
    try:
        generation, deltas = _decode_ranges(value)
    except msgspec.DecodeError as error:
        raise ChangelogError(f"no ranges: {error}") from error
    ranges, at = [], 0
    for distance, length in zip(deltas[::2], deltas[1::2], strict=True):
        first = at + distance
        at = first + length
        ranges.append((first, at))
    return generation, ranges
