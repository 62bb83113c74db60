"""What an egress takes of records that come a second time: what its journal misses (spec/repair.md)."""

from __future__ import annotations

from collections.abc import Iterator

import attrs

from gapconn.journal import Journal
from gapconn.protocol.envelope import Run
from gapconn.protocol.events import MessageDelivered
from gapconn.protocol.positions import NO_POSITION
from gapconn.protocol.registry import MessageKind
from gapconn.ranges import Range
from gapconn.record import Batch, Chunk, Records

Claims = dict[tuple[str, int], tuple[Range, ...]]
"""Positions by stream and partition."""
_HIGHEST = 2**64 - 1
"""No position is above it."""


def claims_of(message: MessageDelivered, journal: Journal) -> Claims:
    """What `message` settles of the journal; nobody else settles it from now on (GC-RPR-6, GC-DLV-33).

    It may have been reported as lost and not be late: by an egress that was killed before it had stored its progress.
    """
    claims: Claims = {}
    for stream, partition, first, last in _settled_by(message):
        ranges = journal.claim(stream, partition, first, last)
        if ranges:
            claims[stream, partition] = claims.get((stream, partition), ()) + ranges
    return claims


def opened_copy(message: MessageDelivered, journal: Journal) -> MessageDelivered:
    """The message of an earlier session that is in this copy, as one that comes late, if it is wanted; else nothing.

    Of records whose positions the journal knows, those that it has open are taken; all of those that it does not know.
    """
    inner = message.copied
    copy = message.copies[0]
    if inner is None or not journal.wants(copy.epoch, copy.first):  # also while another one is on its way
        return attrs.evolve(message, body=memoryview(b""), copies=())
    known = [run for run in inner.runs if journal.knows(copy.epoch, run.stream, run.partition, run.first, run.last)]
    nothing = inner.kind is MessageKind.COPY
    return MessageDelivered(
        epoch=copy.epoch,
        number=copy.first,
        first_record=inner.first_record,
        record_count=inner.record_count,
        runs=inner.runs,
        already_delivered={(run.stream, run.partition): _HIGHEST - 1 for run in known},
        positions={},
        body=memoryview(b"") if nothing else inner.body,
        compression=inner.compression,
        plain_bytes=inner.plain_bytes,
        spans=tuple(inner.spans),
        late=True,
    )


def _settled_by(message: MessageDelivered) -> Iterator[tuple[str, int, int, int]]:
    """Stream, partition, first and last position of each stretch of which the message has all records."""
    for span in message.spans:
        if not span.gone:
            yield span.stream, span.partition, span.first, span.last
    for run in message.runs:
        yield run.stream, run.partition, _settled_from(run), run.last


def _settled_from(run: Run) -> int:
    """Between the record that was sent before and those of the run there is none."""
    known = run.previous != NO_POSITION and (run.continues or run.previous >= run.begun)
    return run.previous + 1 if known else run.first


def late_batch(batch: Batch, message: MessageDelivered) -> Batch:
    """What of a late message is to be delivered (GC-DLV-33): records beyond what was delivered, and those that were
    claimed; and all that has no positions, since nothing of the message was delivered before."""
    located = {(run.stream, run.partition) for run in message.runs}
    parts: list[Records | Chunk] = []
    for part in batch.parts:
        if not isinstance(part, Records) or (key := (part.stream, part.partition)) not in located:
            parts.append(part)
            continue
        beyond = (message.already_delivered.get(key, NO_POSITION) + 1, _HIGHEST)
        rest = part.within([*message.claimed.get(key, ()), beyond])
        if rest.positions:
            parts.append(rest)
    return Batch(origin=batch.origin, parts=parts)


def repaired_batch(batch: Batch, message: MessageDelivered) -> Batch:
    """The records of a repair that are to be delivered: those that were claimed, and all of spans that say *again*."""
    parts: list[Records | Chunk] = []
    for part in batch.parts:
        if not isinstance(part, Records):
            continue  # only what has positions can be missing
        key = (part.stream, part.partition)
        again = [(s.first, s.last) for s in message.spans if s.again and (s.stream, s.partition) == key]
        rest = part.within([*message.claimed.get(key, ()), *again])
        if rest.positions:
            parts.append(rest)
    return Batch(origin=batch.origin, parts=parts)
