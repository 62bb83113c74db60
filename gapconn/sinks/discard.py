"""Counts what arrives and forgets it, for benches and trials. Records of the generate source are verified."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator
from typing import Any, ClassVar

import attrs

from gapconn.plugins import Carries, Context
from gapconn.record import Records, first_position
from gapconn.selfcheck import HEAD_BYTES, STREAM, Pattern
from gapconn.sinks import Delivery, Inlet

_HOLES_MAX = 10_000
_PLACES_LOGGED_MAX = 10


@attrs.frozen(kw_only=True)
class DiscardConfig:
    """`[sink]` with `type = "discard"` has no further keys."""


@attrs.define(kw_only=True)
class _Numbers:
    """Which record numbers of one session have come."""

    expected: int | None
    """The number behind the highest; None before the first record of a session that began unseen."""
    holes: list[tuple[int, int]] = attrs.field(factory=list)
    """Missing numbers as ascending, half-open ranges. Bounded: the oldest are forgotten first."""

    def skip_to(self, number: int) -> int:
        """Note that the next is `number`, not below `expected`; how many are newly missing."""
        missing = 0 if self.expected is None else number - self.expected
        if missing:
            self.holes.append((number - missing, number))
            del self.holes[:-_HOLES_MAX]
        return missing

    def fill(self, number: int) -> bool:
        """Take a number below `expected`: whether it was missing (and is not any more)."""
        i = bisect_right(self.holes, number, key=lambda hole: hole[0]) - 1
        if i < 0 or number >= self.holes[i][1]:
            return False
        start, end = self.holes[i]
        self.holes[i : i + 1] = [hole for hole in ((start, number), (number + 1, end)) if hole[0] < hole[1]]
        return True


class DiscardSink:
    """Counts records and bytes; for generated records also what is missing, damaged, doubled or out of order."""

    Config: ClassVar[type[Any]] = DiscardConfig
    accepts: ClassVar[frozenset[Carries]] = frozenset(Carries)

    def __init__(self, config: DiscardConfig, context: Context) -> None:
        self._context = context
        self._status = context.status
        self._status.update(
            received=0, bytes=0, verified=0, first=None, last=None, missing=0, damaged=0, duplicates=0, reordered=0
        )
        self._epoch: int | None = None
        self._numbers = _Numbers(expected=None)
        self._pattern: Pattern | None = None

    async def run(self, inlet: Inlet) -> None:
        """Count until the inlet ends, then log the sum."""
        try:
            async for delivery in inlet:
                self.count(delivery)
                delivery.accept()
        finally:
            self._context.log.info("discard_finished", **self._status)

    def count(self, delivery: Delivery) -> None:
        """Take a delivery into account."""
        status = self._status
        for part in delivery.batch.parts:
            if isinstance(part, Records):
                status["received"] += len(part.values)
                status["bytes"] += sum(map(len, filter(None, part.values)))
                if part.stream == STREAM and part.positions:
                    self._verify(delivery, part)
            else:
                status["received"] += 1
                status["bytes"] += len(part.data)

    def _verify(self, delivery: Delivery, records: Records) -> None:
        if delivery.epoch != self._epoch:
            # A session that begins while this sink runs begins at number 0; the start of the first may be long past.
            self._numbers = _Numbers(expected=None if self._epoch is None else 0)
            self._epoch = delivery.epoch
            self._pattern = None
        if self._pattern is None:
            size_bytes = max(HEAD_BYTES, *(len(value or b"") for value in records.values))
            self._pattern = Pattern(size_bytes=size_bytes, seed=delivery.epoch)
        for position, values in _runs(records):
            first = position - first_position(delivery.epoch)
            self._order(first, len(values))
            damaged = self._damaged(self._pattern, first, values)
            self._status["verified"] += len(values) - len(damaged)
            for number in damaged:
                self._note_damage(delivery, number)

    def _damaged(self, pattern: Pattern, first: int, values: list[bytes | None]) -> list[int]:
        if pattern.matches(first, values):
            return []
        return [number for number, value in enumerate(values, first) if not pattern.matches(number, [value])]

    def _note_damage(self, delivery: Delivery, number: int) -> None:
        self._status["damaged"] += 1
        self._context.counters["records_damaged"] += 1
        if self._status["damaged"] <= _PLACES_LOGGED_MAX:
            self._context.log.error(
                "generated_record_damaged", epoch=delivery.epoch, message=delivery.message, number=number
            )

    def _order(self, first: int, count: int) -> None:
        """Account for the numbers `first` to `first + count - 1`."""
        status, counters, numbers = self._status, self._context.counters, self._numbers
        if status["first"] is None:
            status["first"] = first
        behind = first + count
        if numbers.expected is not None and first < numbers.expected:
            late = range(first, min(behind, numbers.expected))
            filled = sum(map(numbers.fill, late))
            status["missing"] -= filled
            status["reordered"] += filled
            status["duplicates"] += len(late) - filled
            counters["records_reordered"] += filled
            counters["records_duplicate"] += len(late) - filled
            if behind <= numbers.expected:
                return
        else:
            missing = numbers.skip_to(first)
            status["missing"] += missing
            counters["records_missing"] += missing
        numbers.expected = behind
        status["last"] = behind - 1


def _runs(records: Records) -> Iterator[tuple[int, list[bytes | None]]]:
    """The records as runs of consecutive positions: first position and values of each."""
    positions, values = records.positions, records.values
    if positions == list(range(positions[0], positions[0] + len(positions))):
        yield positions[0], values
        return
    start = 0
    for i in range(1, len(positions) + 1):
        if i == len(positions) or positions[i] != positions[i - 1] + 1:
            yield positions[start], values[start:i]
            start = i
