"""What an egress takes of records that come a second time: what its journal misses (spec/repair.md)."""

from __future__ import annotations

from gapconn.journal import Journal
from gapconn.protocol.events import MessageDelivered
from gapconn.ranges import Range
from gapconn.record import Batch, Chunk, Records

Claims = dict[tuple[str, int], tuple[Range, ...]]
"""Positions by stream and partition."""


def claims_of(message: MessageDelivered, journal: Journal) -> Claims:
    """What `message` settles of the journal; nobody else settles it from now on (GC-RPR-6)."""
    claims: Claims = {}
    for span in message.spans:
        key = (span.stream, span.partition)
        ranges = () if span.gone else journal.claim(*key, span.first, span.last)
        if ranges:
            claims[key] = claims.get(key, ()) + ranges
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
