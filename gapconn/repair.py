"""What an egress takes of records that come a second time: what its journal misses (spec/repair.md)."""

from __future__ import annotations

from collections.abc import Sequence

from gapconn.journal import Journal
from gapconn.protocol.events import MessageDelivered
from gapconn.ranges import Range
from gapconn.record import Batch, Chunk, Records

Claims = dict[tuple[str, int], tuple[Range, ...]]
"""Positions by stream and partition."""


def claims_of(message: MessageDelivered, journal: Journal) -> Claims:
    """What `message` settles of the journal; nobody else settles it from now on (GC-RPR-6, GC-DLV-15)."""
    wanted: list[tuple[str, int, int, int]] = [
        (span.stream, span.partition, span.first, span.last) for span in message.spans if not span.gone
    ]
    for run in message.runs:
        delivered = message.already_delivered.get((run.stream, run.partition), -1)
        if run.first <= delivered:
            wanted.append((run.stream, run.partition, run.first, min(run.last, delivered)))
    claims: Claims = {}
    for stream, partition, first, last in wanted:
        ranges = journal.claim(stream, partition, first, last)
        if ranges:
            claims[stream, partition] = claims.get((stream, partition), ()) + ranges
    return claims


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


def rest_of(part: Records, delivered: int, claimed: Sequence[Range]) -> Records:
    """Of records that were sent again: those beyond the last one delivered, and those that were missing."""
    return part.within(claimed, beyond=delivered) if claimed else part.after(delivered)
