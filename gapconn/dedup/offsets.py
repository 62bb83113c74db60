"""Which offsets of a source partition were taken: ranges, so that millions of records in a row are one entry.

Offsets have holes that never fill (transaction markers, compaction), and holes that fill late (what one link lost and
the other has, what is sent again). Nobody can tell them apart, so holes are kept, up to a number. Beyond it the oldest
hole is forgotten: it counts as taken from then on, and whatever should still come for it is dropped as a repeat. The
other choice, to let it pass, would let everything pass a second time that a slow link brings from there.

A hole for which copies may already lie in an input, only not read yet, is not forgotten for that: after a standstill
one input may be read far ahead of another.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from enum import IntEnum
from typing import Final

import attrs

from gapconn.ranges import Range, RangeSet


class Verdict(IntEnum):
    """What a record is, by its id."""

    REPEAT = 0
    NEW = 1
    LATE = 2
    """New, and behind one that was taken before: it fills a hole."""


UNREAD_FACTOR: Final = 10
"""So many times more holes are kept while inputs that may fill them are read."""


@attrs.define(kw_only=True)
class SeenOffsets:
    """The offsets taken of one source partition."""

    holes_max: int
    """So many holes are kept."""
    ranges: RangeSet = attrs.field(factory=RangeSet)
    highest: int = -1
    holes_forgotten: int = 0

    def take(self, offsets: Sequence[int]) -> list[Verdict]:
        """Take these, in any order and with repeats among them; a verdict for each."""
        verdicts: list[Verdict] = []
        for first, last in runs(offsets):
            at = first
            for begin, end in self.ranges.add(first, last):
                verdicts += [Verdict.REPEAT] * (begin - at)
                # Of what reaches beyond the highest one so far, that part is not late.
                late = max(min(end, self.highest) - begin + 1, 0)
                verdicts += [Verdict.LATE] * late
                verdicts += [Verdict.NEW] * (end - begin + 1 - late)
                at = end + 1
            verdicts += [Verdict.REPEAT] * (last - at + 1)
            self.highest = max(self.highest, last)
        return verdicts

    def add(self, first: int, last: int) -> None:
        """Take a range that was taken before a restart."""
        self.ranges.add(first, last)
        self.highest = max(self.highest, last)

    @property
    def holes(self) -> int:
        """How many holes there are between the first and the last that was taken."""
        return max(len(self.ranges) - 1, 0)

    def forget_holes(self, settled_to: int) -> list[Range]:
        """Forget the oldest holes that are too many; which ones.

        Args:
            settled_to: For what is above it, copies may already lie in an input.
        """
        forgotten = []
        while self.holes > self.holes_max:
            ranges = iter(self.ranges)
            hole = (next(ranges)[1] + 1, next(ranges)[0] - 1)
            if hole[1] > settled_to and self.holes <= UNREAD_FACTOR * self.holes_max:
                break
            self.ranges.add(*hole)
            forgotten.append(hole)
        self.holes_forgotten += len(forgotten)
        return forgotten


def runs(offsets: Sequence[int]) -> Iterator[Range]:
    """Runs of numbers that follow each other, as first and last."""
    if not offsets:
        return
    if offsets[-1] - offsets[0] == len(offsets) - 1 and list(offsets) == list(range(offsets[0], offsets[-1] + 1)):
        yield offsets[0], offsets[-1]  # nearly always
        return
    first = last = offsets[0]
    for offset in offsets[1:]:
        if offset != last + 1:
            yield first, last
            first = offset
        last = offset
    yield first, last
