"""The deduplicator: records of all links in, each once out, with the changes of its state. Knows no Kafka and no clock.

Contract, with origin ids: a record passes when its id comes for the first time. One that comes after later ones of its
source partition is marked late. What comes for a hole that was forgotten (`SeenOffsets`) is dropped. With the other
identities: a record passes when its id is not among the last ones (`Window`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import compress
from typing import Generic, Literal, NamedTuple, Protocol, TypeAlias, TypeVar

import attrs

from gapconn.dedup.changelog import (
    Change,
    RangeLog,
    chunk_change,
    forgotten_change,
    restored_chunks,
    restored_ranges,
)
from gapconn.dedup.identity import Fingerprint, Origin, origins_of
from gapconn.dedup.links import LinkBook, Trail
from gapconn.dedup.offsets import SeenOffsets, Verdict, runs
from gapconn.dedup.order import Hold
from gapconn.dedup.window import Window
from gapconn.ranges import RangeSet
from gapconn.record import Header

T = TypeVar("T")

Unidentified: TypeAlias = Literal["pass", "drop", "fail"]

_NewRow: TypeAlias = tuple[int, int, bool]
"""Offset, row of the run, and whether it is late."""


class UnidentifiedError(Exception):
    """A record has no id, and that was not to be."""

    def __init__(self, row: int) -> None:
        super().__init__(f"row {row} has no id")
        self.row = row
        """Of the run."""


@attrs.frozen(kw_only=True)
class Run(Generic[T]):
    """Records that came over one link, one after the other, for one target. All columns have the same length."""

    link: str
    target: str
    items: Sequence[T]
    """Whatever stands for the records; handed through."""
    keys: Sequence[bytes | None]
    values: Sequence[bytes | None]
    headers: Sequence[list[Header] | None]
    read_before: bool = False
    """They were read before, and what had no id among them was dealt with."""


class Outgoing(NamedTuple, Generic[T]):
    """A record that passes."""

    target: str
    item: T
    headers: list[Header] | None
    late: bool
    """It fills a hole behind later records of its source partition."""


class Deduplicator(Protocol[T]):
    """What a service needs of a deduplicator."""

    def take(self, run: Run[T], now_s: float) -> list[Outgoing[T]]:
        """Records came; what passes now.

        Raises:
            UnidentifiedError: one has no id, and the policy is to fail.
        """

    def release(self, now_s: float) -> list[Outgoing[T]]:
        """What has waited long enough, or for something that has come."""

    def held(self) -> Iterable[T]:
        """What waits."""

    def changes(self, time_s: float, unread: Callable[[], Iterable[str]]) -> list[Change]:
        """How the state differs from that of the last call, without what waits.

        Args:
            time_s: Now, in seconds since 1970.
            unread: The links of which more has arrived than was taken so far.
        """

    def restore(self, values: Mapping[bytes, bytes]) -> None:
        """Take over the state that `changes` has written: the last value of each key."""

    def trails(self) -> Iterable[Trail]:
        """How far the links are in each source partition."""

    def facts(self) -> dict[str, int]:
        """For the status: numbers by name."""


@attrs.define(kw_only=True)
class _Source(Generic[T]):
    """A source partition."""

    seen: SeenOffsets
    log: RangeLog
    hold: Hold[Outgoing[T]]
    trail: Trail
    unsaved: RangeSet = attrs.field(factory=RangeSet)


@attrs.define(kw_only=True)
class OriginDeduplicator(Generic[T]):
    """By the origin id: offsets in source partitions."""

    book: LinkBook
    unidentified: Unidentified
    holes_max: int
    hold_s: float
    hold_bytes_max: int
    counters: Counter[str] = attrs.field(factory=Counter)
    _sources: dict[bytes, _Source[T]] = attrs.field(factory=dict)
    _holding: dict[bytes, _Source[T]] = attrs.field(factory=dict)
    """Those where something waits."""
    _touched: dict[bytes, _Source[T]] = attrs.field(factory=dict)
    """Those with something that is not saved."""

    def take(self, run: Run[T], now_s: float) -> list[Outgoing[T]]:
        passing: list[Outgoing[T]] = []
        first = late = unidentified = again = 0
        for start, end, name, offsets in _stretches(origins_of(run.headers)):
            if name is None:
                unidentified += end - start
                passing += _by_policy(self.unidentified, run, range(start, end))
                continue
            source = self._source(name, offsets[0])
            before = source.trail.highs.get(run.link, -1)
            source.trail.brought(run.link, max(offsets))
            verdicts = source.seen.take(offsets)
            if offsets[0] <= before:
                again += sum(
                    offset <= before and verdict is Verdict.REPEAT
                    for offset, verdict in zip(offsets, verdicts, strict=True)
                )
            if not any(verdicts):
                continue
            self._touched[name] = source
            new = [
                (offset, row, verdict is Verdict.LATE)
                for offset, row, verdict in zip(offsets, range(start, end), verdicts, strict=True)
                if verdict is not Verdict.REPEAT
            ]
            first += len(new)
            if self.hold_s:
                new = self._held_back(name, source, run, new, now_s)
            for first_offset, last_offset in runs([offset for offset, _, _ in new]):
                source.unsaved.add(first_offset, last_offset)
            late += sum(is_late for _, _, is_late in new)
            passing += [Outgoing(run.target, run.items[row], run.headers[row], is_late) for _, row, is_late in new]
        if not run.read_before:
            self.book.links[run.link].again += again
        self.book.note(run.link, records=len(run.items), first=first, late=late, unidentified=unidentified, now_s=now_s)
        return passing

    def _held_back(
        self, name: bytes, source: _Source[T], run: Run[T], new: list[_NewRow], now_s: float
    ) -> list[_NewRow]:
        """Let those wait that are ahead; those that need not."""
        hold, passing = source.hold, []
        for offset, row, _ in new:
            if offset < hold.front:
                passing.append((offset, row, True))
            elif offset == hold.front + 1 and not len(hold):
                hold.front = offset
                passing.append((offset, row, False))
            else:
                outgoing = Outgoing(run.target, run.items[row], run.headers[row], False)
                hold.put(offset, outgoing, size_bytes=len(run.values[row] or b""), now_s=now_s)
                self._holding[name] = source
        return passing

    def release(self, now_s: float) -> list[Outgoing[T]]:
        if not self._holding:
            return []
        links = self.book.waited_for()
        too_much = sum(source.hold.held_bytes for source in self._holding.values()) > self.hold_bytes_max
        if too_much:
            self.counters["hold_overflowed"] += 1
        passing: list[Outgoing[T]] = []
        for name, source in list(self._holding.items()):
            gone = source.hold.release(now_s, passed=source.trail.passed(links), everything=too_much)
            for first, last in runs([offset for offset, _ in gone]):
                source.unsaved.add(first, last)
            self._touched[name] = source
            passing += (outgoing for _, outgoing in gone)
            if not len(source.hold):
                del self._holding[name]
        return passing

    def held(self) -> Iterator[T]:
        for source in self._holding.values():
            for outgoing in source.hold.items:
                yield outgoing.item

    def changes(self, time_s: float, unread: Callable[[], Iterable[str]]) -> list[Change]:
        changes = []
        for source in self._touched.values():
            if source.seen.holes > self.holes_max:
                for hole in source.seen.forget_holes(source.trail.passed(unread())):
                    source.unsaved.add(*hole)
            if not len(source.unsaved):
                continue
            if source.log.snapshot_is_due:
                ranges = RangeSet(source.seen.ranges)
                for held in source.hold.offsets:
                    ranges.remove(*held)
                changes.append(source.log.snapshot(ranges))
            else:
                changes.append(source.log.increment(source.unsaved))
            source.unsaved = RangeSet()
        self._touched.clear()
        return changes

    def restore(self, values: Mapping[bytes, bytes]) -> None:
        for log, ranges in restored_ranges(values):
            source = self._source(log.source, 0)
            source.log = log
            for first, last in ranges:
                source.seen.add(first, last)
            source.hold.front = source.trail.base = source.seen.highest

    def trails(self) -> Iterator[Trail]:
        return (source.trail for source in list(self._sources.values()))

    def facts(self) -> dict[str, int]:
        sources = list(self._sources.values())
        return {
            "source_partitions": len(sources),
            "holes": sum(source.seen.holes for source in sources),
            "holes_forgotten": sum(source.seen.holes_forgotten for source in sources),
            "held": sum(len(source.hold) for source in sources),
            "held_bytes": sum(source.hold.held_bytes for source in sources),
            "hold_overflowed": self.counters["hold_overflowed"],
        }

    def _source(self, name: bytes, offset: int) -> _Source[T]:
        source = self._sources.get(name)
        if source is None:
            # The first record that comes of a partition is not known to be the first that there is.
            source = self._sources[name] = _Source(
                seen=SeenOffsets(holes_max=self.holes_max),
                log=RangeLog(name),
                hold=Hold(hold_s=self.hold_s, front=-1),
                trail=Trail(base=offset - 1),
            )
        return source


@attrs.define(kw_only=True)
class WindowDeduplicator(Generic[T]):
    """By a header, a field or the content: the last ids."""

    book: LinkBook
    unidentified: Unidentified
    fingerprint: Fingerprint
    window: Window

    def take(self, run: Run[T], now_s: float) -> list[Outgoing[T]]:
        fingerprint, target = self.fingerprint, run.target
        ids = [
            fingerprint(target, key, value, headers)
            for key, value, headers in zip(run.keys, run.values, run.headers, strict=True)
        ]
        passing: list[Outgoing[T]] = []
        first = unidentified = start = 0
        # In order, also where some have no id: stretches of those that have one, and single ones that have none.
        while start < len(ids):
            end = next((row for row in range(start, len(ids)) if ids[row] is None), len(ids))
            fresh = self.window.take([each for each in ids[start:end] if each is not None])
            first += sum(fresh)
            passing += (_outgoing(run, row) for row in compress(range(start, end), fresh))
            if end < len(ids):
                unidentified += 1
                passing += _by_policy(self.unidentified, run, range(end, end + 1))
            start = end + 1
        self.book.note(run.link, records=len(ids), first=first, late=0, unidentified=unidentified, now_s=now_s)
        return passing

    def release(self, now_s: float) -> list[Outgoing[T]]:
        return []

    def held(self) -> Iterator[T]:
        return iter(())

    def changes(self, time_s: float, unread: Callable[[], Iterable[str]]) -> list[Change]:
        closed, forgotten = self.window.close_chunk(time_s)
        numbers = {chunk.number for chunk in closed}
        return [
            *(chunk_change(chunk) for chunk in closed if chunk.number not in forgotten),
            *(forgotten_change(number) for number in forgotten if number not in numbers),
        ]

    def restore(self, values: Mapping[bytes, bytes]) -> None:
        self.window.restore(restored_chunks(values))

    def trails(self) -> Iterator[Trail]:
        return iter(())

    def facts(self) -> dict[str, int]:
        return {"window_ids": len(self.window), "held": 0, "held_bytes": 0}


def _outgoing(run: Run[T], row: int) -> Outgoing[T]:
    return Outgoing(run.target, run.items[row], run.headers[row], False)


def _by_policy(policy: Unidentified, run: Run[T], rows: range) -> list[Outgoing[T]]:
    """What passes of records without id."""
    if policy == "fail" and not run.read_before:
        raise UnidentifiedError(rows[0])
    return [_outgoing(run, row) for row in rows] if policy == "pass" and not run.read_before else []


def _stretches(origins: list[Origin | None]) -> Iterator[tuple[int, int, bytes | None, list[int]]]:
    """Stretches of records of one source partition (None: without id): first row, row behind the last, its offsets."""
    start = 0
    current: bytes | None = None
    offsets: list[int] = []
    for row, origin in enumerate(origins):
        source = origin[0] if origin is not None else None
        if source != current and row > start:
            yield start, row, current, offsets
            start, offsets = row, []
        current = source
        if origin is not None:
            offsets.append(origin[1])
    if origins:
        yield start, len(origins), current, offsets
