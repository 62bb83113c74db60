"""Which datagrams of a session have arrived: a sliding window over the sequence (GC-DLV-6, GC-DLV-7, GC-DLV-12)."""

from __future__ import annotations

import itertools

import numpy as np
from numpy.typing import NDArray

from gapconn.protocol.registry import JUMP_UNCONFIRMED_MAX, SEQUENCE_WINDOW, DropReason


class SequenceWindow:
    """Tells new sequence numbers from duplicates and late ones, and counts what is missing.

    The window is a ring of booleans, one per sequence number; a run of consecutive numbers is one or two slices of it.

    Args:
        horizon: Numbers below it are not owed: the receiver joined there.
    """

    __slots__ = ("_candidate", "_ring", "_seen_from_horizon", "highest", "horizon")

    def __init__(self, horizon: int = 0) -> None:
        self.horizon = horizon
        self.highest = horizon - 1
        """The highest number received, or known to be sent."""
        self._seen_from_horizon = 0
        self._ring: NDArray[np.bool_] = np.zeros(SEQUENCE_WINDOW, np.bool_)
        self._candidate: int | None = None
        """The last jump that was not believed. Old copies that arrive between two far datagrams must not undo it."""

    @property
    def missing(self) -> int:
        """Datagrams from the horizon on that were sent and have not arrived (GC-DLV-12)."""
        return self.highest + 1 - self.horizon - self._seen_from_horizon

    def take(self, first: int, count: int) -> list[tuple[int, int, DropReason | None]]:
        """Take in the numbers `first` to `first + count - 1`.

        Returns:
            Consecutive pieces `(from, to, reason)`, `to` excluded, as offsets from `first`; no reason where the
            datagrams are new.
        """
        last = first + count - 1
        if first == self.highest + 1:
            self._advance(last)
            self._set(first, count)
            self._seen_from_horizon += count
            return [(0, count, None)]
        if first > self.highest + JUMP_UNCONFIRMED_MAX and not self._confirmed(first):
            self._candidate = first
            # A run confirms its own first datagram, and counts from the second on.
            rest = self.take(first + 1, count - 1) if count > 1 else []
            return [(0, 1, DropReason.UNCONFIRMED_JUMP), *((a + 1, b + 1, why) for a, b, why in rest)]
        return self._take_slowly(first, count, last)

    def _confirmed(self, first: int) -> bool:
        # The same number again proves nothing: it may be a copy of the one datagram that nobody believes.
        return self._candidate is not None and 0 < abs(first - self._candidate) <= SEQUENCE_WINDOW

    def _take_slowly(self, first: int, count: int, last: int) -> list[tuple[int, int, DropReason | None]]:
        self._advance(last)
        lowest = self.highest - SEQUENCE_WINDOW + 1
        late = min(count, max(0, lowest - first))
        slots = np.arange(first + late, last + 1, dtype=np.uint64) % np.uint64(SEQUENCE_WINDOW)
        seen = self._ring[slots]
        self._ring[slots] = True
        new_from_horizon = np.count_nonzero(~seen[max(0, self.horizon - first - late) :])
        self._seen_from_horizon += int(new_from_horizon)
        pieces: list[tuple[int, int, DropReason | None]] = [(0, late, DropReason.TOO_LATE)] if late else []
        edges = np.flatnonzero(seen[1:] != seen[:-1]) + 1
        bounds = [0, *edges.tolist(), len(seen)]
        for a, b in itertools.pairwise(bounds):
            if a < b:
                pieces.append((a + late, b + late, DropReason.DUPLICATE if seen[a] else None))
        return pieces

    def _advance(self, last: int) -> None:
        """Make `last` the highest, if it is, and forget what falls out of the window."""
        if last > self.highest:
            self._set(self.highest + 1, min(last - self.highest, SEQUENCE_WINDOW), value=False, up_to=last)
            self.highest = last

    def _set(self, first: int, count: int, *, value: bool = True, up_to: int | None = None) -> None:
        if up_to is not None:
            first = up_to - count + 1
        start = first % SEQUENCE_WINDOW
        stop = start + count
        self._ring[start:stop] = value
        if stop > SEQUENCE_WINDOW:
            self._ring[: stop - SEQUENCE_WINDOW] = value
