"""A gap in memory: datagrams in, datagrams out later, without sockets and clocks.

`MemoryGap` does to a datagram what its `Fate` says, and nothing without one. It is for tests that decide themselves
what goes wrong, datagram by datagram; faults at random rates are in `gapconn.testing.faults`.

    gap = MemoryGap()
    gap.send(datagrams_of(burst), now_s, {3: Fate(copies=0)})       # the fourth datagram is lost
    for burst in bursts_of(gap.arrive(now_s)):
        receiver.receive(burst, now_s)
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Mapping

import attrs
import numpy as np

from gapconn.protocol.wire import ROWS_MAX, SLAB_BYTES, Burst, Slab


@attrs.frozen(kw_only=True)
class Fate:
    """What the gap does to one datagram."""

    copies: int = 1
    """How many arrive: 0 is a loss, 2 a duplicate."""
    delay_s: float = 0.0
    """How much later it arrives. What was sent later with a smaller delay overtakes it."""
    flipped_bits: tuple[int, ...] = ()
    """Bits that arrive damaged, counted from the first one; counting goes on from the start behind the last."""
    kept_bytes: int | None = None
    """So much is left of it; None leaves it whole."""

    def __attrs_post_init__(self) -> None:
        if self.copies < 0 or self.delay_s < 0 or (self.kept_bytes or 0) < 0:
            raise ValueError("copies, delay_s and kept_bytes must be 0 or more")

    def applied_to(self, datagram: bytes) -> bytes:
        """The datagram as each copy of it arrives."""
        damaged = bytearray(datagram[: self.kept_bytes])
        for bit in self.flipped_bits if damaged else ():
            place = bit % (8 * len(damaged))
            damaged[place // 8] ^= 0x80 >> place % 8
        return bytes(damaged)


UNHARMED = Fate()


@attrs.define(kw_only=True)
class MemoryGapCounts:
    """What the gap did, in datagrams: `sent + added == lost + arrived` once nothing is under way."""

    sent: int = 0
    lost: int = 0
    added: int = 0
    """Further copies of duplicates."""
    arrived: int = 0


class MemoryGap:
    """Carries datagrams one way. Times are seconds of any one clock."""

    def __init__(self) -> None:
        self.counts = MemoryGapCounts()
        self._under_way: list[tuple[float, int, bytes]] = []
        """Heap of (arrival time, order of sending, datagram)."""
        self._order = 0

    def send(self, datagrams: Iterable[bytes], now_s: float, fates: Mapping[int, Fate] | None = None) -> None:
        """Take datagrams in; `fates` are by place in `datagrams`, the others arrive unharmed and at once."""
        for place, datagram in enumerate(datagrams):
            fate = UNHARMED if fates is None else fates.get(place, UNHARMED)
            self.counts.sent += 1
            self.counts.lost += fate.copies == 0
            self.counts.added += max(0, fate.copies - 1)
            for _ in range(fate.copies):
                heapq.heappush(self._under_way, (now_s + fate.delay_s, self._order, fate.applied_to(datagram)))
                self._order += 1

    @property
    def under_way(self) -> int:
        """Datagrams that have not arrived yet."""
        return len(self._under_way)

    @property
    def next_arrival_s(self) -> float | None:
        """When the next datagram arrives; None when nothing is under way."""
        return self._under_way[0][0] if self._under_way else None

    def arrive(self, now_s: float) -> list[bytes]:
        """What has arrived by now, in order of arrival. Of two that arrive at once, the first sent is the first."""
        arrived = []
        while self._under_way and self._under_way[0][0] <= now_s:
            arrived.append(heapq.heappop(self._under_way)[2])
        self.counts.arrived += len(arrived)
        return arrived


def datagrams_of(burst: Burst) -> list[bytes]:
    """The datagrams of a burst, copied out."""
    data, size = bytes(burst.bytes), burst.datagram_bytes
    return [data[i * size : (i + 1) * size] for i in range(burst.count)]


def bursts_of(datagrams: Iterable[bytes], datagrams_max: int = ROWS_MAX) -> list[Burst]:
    """Datagrams in their order as bursts, as a kernel with GRO hands them over: equal neighbours share one.

    Args:
        datagrams: Of any length.
        datagrams_max: The most that share one burst; 1 gives each datagram a burst of its own, as without GRO.
    """
    groups: list[list[bytes]] = []
    for datagram in datagrams:
        group = groups[-1] if groups else []
        room = min(datagrams_max, SLAB_BYTES // len(datagram)) if datagram else 1
        if group and len(group) < room and len(group[0]) == len(datagram):
            group.append(datagram)
        else:
            groups.append([datagram])
    return [_burst_of(group) for group in groups]


def _burst_of(group: list[bytes]) -> Burst:
    joined = b"".join(group)
    slab = Slab(max(1, len(joined)))
    slab.flat[: len(joined)] = np.frombuffer(joined, np.uint8)
    return Burst(slab, len(group[0]), len(group))
