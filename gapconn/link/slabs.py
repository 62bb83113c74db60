"""A fixed number of slabs that go round between two tasks: bounded memory, and nothing is allocated on the way."""

from __future__ import annotations

from collections import deque

import trio

from gapconn.protocol.wire import Slab


class SlabPool:
    """Slabs that are free to be used. Whoever takes one gives it back when its bytes were used."""

    def __init__(self, count: int, size_bytes: int) -> None:
        self._free = deque(Slab(size_bytes) for _ in range(count))
        self._waiting = trio.lowlevel.ParkingLot()

    async def take(self) -> Slab:
        """A free slab; waits for one. A checkpoint only if it has to wait."""
        while not self._free:
            await self._waiting.park()
        return self._free.popleft()

    def take_now(self) -> Slab:
        """A free slab. To be called where it is known that there is one."""
        return self._free.popleft()

    def give(self, slab: Slab) -> None:
        """`slab` is free again."""
        self._free.append(slab)
        self._waiting.unpark()
