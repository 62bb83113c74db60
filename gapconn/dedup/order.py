"""Records of one source partition that are ahead of others wait here for those, for a bounded time."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from heapq import heappop, heappush
from typing import Generic, TypeVar

import attrs

from gapconn.ranges import RangeSet

T = TypeVar("T")


@attrs.define(kw_only=True)
class Hold(Generic[T]):
    """Brings records into the order of their offsets.

    A record waits while an offset before it is missing that some link may still bring: a link whose own highest offset
    is beyond has nothing more to bring (the records of a link are in order). It waits `hold_s` at most.
    """

    hold_s: float
    front: int
    """The highest offset that was let go: what comes below it is late."""
    held_bytes: int = 0
    _waiting: list[tuple[int, int, T]] = attrs.field(factory=list)
    """A heap of offset, size in bytes, record."""
    _arrivals: deque[tuple[float, int]] = attrs.field(factory=deque)
    """When which offset came, the oldest first; those that were let go are still in it."""
    _due: int = -1
    """Up to here records have waited long enough."""

    def __len__(self) -> int:
        return len(self._waiting)

    @property
    def items(self) -> Iterable[T]:
        """What waits, in no order."""
        return (item for _, _, item in self._waiting)

    @property
    def offsets(self) -> RangeSet:
        """The offsets of what waits."""
        return RangeSet((offset, offset) for offset, _, _ in sorted(self._waiting, key=lambda each: each[0]))

    def put(self, offset: int, item: T, *, size_bytes: int, now_s: float) -> None:
        """Let a record wait. No other one of this offset may be waiting, and `offset` is above `front`."""
        heappush(self._waiting, (offset, size_bytes, item))
        self._arrivals.append((now_s, offset))
        self.held_bytes += size_bytes

    def release(self, now_s: float, *, passed: int, everything: bool = False) -> list[tuple[int, T]]:
        """What may go, in order.

        Args:
            now_s: The time, by the clock of `put`.
            passed: Every link that is waited for has brought this offset or a later one.
            everything: Wait for nothing.
        """
        while self._arrivals and (self._arrivals[0][0] + self.hold_s <= now_s or everything):
            self._due = max(self._due, self._arrivals.popleft()[1])
        gone = []
        while self._waiting:
            offset = self._waiting[0][0]
            if offset != self.front + 1 and offset > passed and offset > self._due:
                break
            _, size_bytes, item = heappop(self._waiting)
            self.held_bytes -= size_bytes
            self.front = offset
            gone.append((offset, item))
        if not self._waiting:
            self._arrivals.clear()
        return gone

    @property
    def next_due_s(self) -> float:
        """When something has waited long enough; infinite when nothing waits."""
        return self._arrivals[0][0] + self.hold_s if self._waiting and self._arrivals else float("inf")
