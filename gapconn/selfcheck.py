"""Data that tells whether it arrived undamaged: what the generate source makes and the discard sink verifies.

A record is its number (64 bits), the session's seed (64 bits), both in network byte order, and then a slice of a fixed
pseudo-random pattern, chosen by the number. So a record that was damaged, put in another's place, or taken from another
session is noticed.
"""

from __future__ import annotations

import itertools
import random
import struct
from collections.abc import Iterator, Sequence
from typing import cast

STREAM = "generate"
"""Stream of generated records. Numbers are dense from 0 in each session; a record's position is its number behind the
first position of the session."""

HEAD_BYTES = 16
"""Smallest record: number and seed."""

_HEAD = struct.Struct("!QQ")
_PATTERN_SEED = 0x6A70
_TAILS_BYTES_MAX = 1 << 20  # all slices of the pattern together stay in the CPU's cache
_TAILS_MAX = 32


class Pattern:
    """The records of one size and seed.

    A run of records is made and verified by a few C-level loops over whole columns, so that a record costs its copy or
    its comparison and not much more.
    """

    def __init__(self, *, size_bytes: int, seed: int) -> None:
        if size_bytes < HEAD_BYTES:
            raise ValueError(f"a record has at least {HEAD_BYTES} bytes")
        self.size_bytes = size_bytes
        self._seed = seed & 0xFFFF_FFFF_FFFF_FFFF
        count = min(max(_TAILS_BYTES_MAX // size_bytes, 2), _TAILS_MAX)
        tail_bytes = size_bytes - HEAD_BYTES
        pattern = random.Random(_PATTERN_SEED).randbytes(tail_bytes + count)
        self._tails = [pattern[i : i + tail_bytes] for i in range(count)]

    def values(self, first: int, count: int) -> list[bytes | None]:
        """The records number `first` to `first + count - 1`."""
        return list(map(bytes.__add__, self._heads(first, count), self._tails_from(first)))

    def matches(self, first: int, values: Sequence[bytes | None]) -> bool:
        """Whether `values` are exactly the records from number `first` on, which may be no number at all."""
        if None in values or first < 0:
            return False
        records = cast("Sequence[bytes]", values)
        # Heads and tails are compared in place; making the expected records would copy every byte first.
        return (
            all(size == self.size_bytes for size in set(map(len, records)))
            and all(map(bytes.startswith, records, self._heads(first, len(records))))
            and all(map(bytes.endswith, records, self._tails_from(first)))
        )

    def _heads(self, first: int, count: int) -> list[bytes]:
        pack, seed = _HEAD.pack, self._seed
        return [pack(number, seed) for number in range(first, first + count)]

    def _tails_from(self, first: int) -> Iterator[bytes]:
        return itertools.islice(itertools.cycle(self._tails), first % len(self._tails), None)
