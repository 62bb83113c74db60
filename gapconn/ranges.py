"""Sets of whole numbers as ranges: message numbers, offsets, bytes of a stream."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Iterator

Range = tuple[int, int]
"""First and last, both included."""


class RangeSet:
    """Disjoint ranges in rising order; those that touch are one."""

    def __init__(self, ranges: Iterable[Range] = ()) -> None:
        self._ranges: list[Range] = []
        for first, last in ranges:
            self.add(first, last)

    def __iter__(self) -> Iterator[Range]:
        return iter(self._ranges)

    def __len__(self) -> int:
        """How many ranges there are."""
        return len(self._ranges)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, RangeSet) and self._ranges == other._ranges

    __hash__ = None  # type: ignore[assignment]  # it changes

    def __repr__(self) -> str:
        return f"RangeSet({self._ranges})"

    @property
    def count(self) -> int:
        """How many numbers there are."""
        return sum(last - first + 1 for first, last in self._ranges)

    def add(self, first: int, last: int) -> list[Range]:
        """Put in these; the parts that were not there."""
        new = self.gaps(first, last)
        if new:
            begin, end = self._touched(first - 1, last + 1)
            touched = self._ranges[begin:end]
            if touched:
                first, last = min(first, touched[0][0]), max(last, touched[-1][1])
            self._ranges[begin:end] = [(first, last)]
        return new

    def remove(self, first: int, last: int) -> list[Range]:
        """Take out these; the parts that were there."""
        begin, end = self._touched(first, last)
        touched = self._ranges[begin:end]
        rest = []
        if touched and touched[0][0] < first:
            rest.append((touched[0][0], first - 1))
        if touched and touched[-1][1] > last:
            rest.append((last + 1, touched[-1][1]))
        self._ranges[begin:end] = rest
        return [(max(first, a), min(last, b)) for a, b in touched]

    def meets(self, first: int, last: int) -> bool:
        """Whether any of these may be there: whether they reach into what lies between the first and the last range."""
        return bool(self._ranges) and self._ranges[0][0] <= last and first <= self._ranges[-1][1]

    def within(self, first: int, last: int) -> list[Range]:
        """The parts of these that are there."""
        begin, end = self._touched(first, last)
        return [(max(first, a), min(last, b)) for a, b in self._ranges[begin:end]]

    def gaps(self, first: int, last: int) -> list[Range]:
        """The parts of these that are not there."""
        missing, at = [], first
        for a, b in self.within(first, last):
            if a > at:
                missing.append((at, a - 1))
            at = b + 1
        if at <= last:
            missing.append((at, last))
        return missing

    def _touched(self, first: int, last: int) -> tuple[int, int]:
        """Which ranges have numbers of these, as a slice."""
        begin = bisect_left(self._ranges, first, key=lambda each: each[1])
        end = begin
        while end < len(self._ranges) and self._ranges[end][0] <= last:
            end += 1
        return begin, end
