"""The ids that were seen of late, for identities that have no order: bounded by number and by age.

Ids are kept in chunks, one for each batch that was written, and forgotten by the chunk: the oldest one goes as soon as
those behind it are enough, or when it is too old. So at least the last `records_max` ids are known, if they are not
older than `age_max_s`; a repeat that is farther apart passes.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Final

import attrs

CHUNK_IDS_MAX: Final = 10_000
"""Ids of a chunk; a larger batch makes several. At 16 bytes each a chunk stays a small Kafka record."""


@attrs.frozen(kw_only=True)
class Chunk:
    """Ids that were taken together."""

    number: int
    """Rises by one from chunk to chunk."""
    time_s: float
    """When, in seconds since 1970."""
    ids: list[bytes]


@attrs.define(kw_only=True)
class Window:
    """The last ids."""

    records_max: int
    age_max_s: float
    chunks: deque[Chunk] = attrs.field(factory=deque)
    """The oldest first."""
    _known: set[bytes] = attrs.field(factory=set)
    _open: list[bytes] = attrs.field(factory=list)
    """Ids that are in no chunk yet."""
    _next_number: int = 0

    def __len__(self) -> int:
        """How many ids are known."""
        return len(self._known)

    def take(self, ids: Sequence[bytes]) -> list[bool]:
        """Take these; for each whether it is new."""
        fresh = []
        for each in ids:
            new = each not in self._known
            if new:
                self._known.add(each)
                self._open.append(each)
            fresh.append(new)
        return fresh

    def close_chunk(self, time_s: float) -> tuple[list[Chunk], list[int]]:
        """Make chunks of what was taken since the last call; these, and the numbers of the chunks forgotten for them.

        Args:
            time_s: Now, in seconds since 1970.
        """
        closed = []
        for start in range(0, len(self._open), CHUNK_IDS_MAX):
            chunk = Chunk(number=self._next_number, time_s=time_s, ids=self._open[start : start + CHUNK_IDS_MAX])
            self._next_number += 1
            self.chunks.append(chunk)
            closed.append(chunk)
        self._open = []
        return closed, self._forget(time_s)

    def restore(self, chunks: Sequence[Chunk]) -> None:
        """Know these chunks, as they were before a restart."""
        for chunk in sorted(chunks, key=lambda each: each.number):
            self.chunks.append(chunk)
            self._known.update(chunk.ids)
            self._next_number = chunk.number + 1

    def _forget(self, time_s: float) -> list[int]:
        forgotten = []
        while self.chunks:
            oldest = self.chunks[0]
            if len(self._known) - len(oldest.ids) < self.records_max and time_s - oldest.time_s <= self.age_max_s:
                break
            self.chunks.popleft()
            self._known.difference_update(oldest.ids)
            forgotten.append(oldest.number)
        return forgotten
