"""How the datagrams of a link are protected against damage, and against forgery where the link is sealed.

Each link has one protection, and both halves know which. The rest of the core asks it through the two protocols here,
so that there is one data path. Without a key it is the check of this file; `gapconn.protocol.security` has the sealed
one.
"""

from __future__ import annotations

import itertools
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from xxhash import xxh3_64_intdigest

from gapconn.protocol.registry import (
    CHECK_BYTES,
    HEADER_BYTES,
    MAGIC,
    VERSION,
    DropReason,
    Flag,
    SecurityMode,
)
from gapconn.protocol.wire import Layout

VERIFIED = 0
"""Stands in an array of drop reasons for none."""
_STEP = np.array([0, 0, 0, 1, 0, 1], np.uint64)
"""From the header words of one datagram to those of the next of its message: sequence and symbol."""


class Protector(Protocol):
    """The sending half."""

    mode: SecurityMode
    trailer_bytes: int
    flags: int
    """Header flags of every datagram."""
    key_id: int
    """Key id in the header of the next datagrams."""

    def protect(self, rows: Layout, count: int) -> None:
        """Finish the first `count` rows, whose headers and payloads are in place and number consecutive datagrams."""


class Verifier(Protocol):
    """The receiving half. It keeps nothing of what it could not verify."""

    trailer_bytes: int
    flags: int
    """Header flags that every datagram has."""

    def verify(self, rows: Layout, count: int) -> tuple[NDArray[np.uint8], NDArray[np.uint8] | None]:
        """Look at the first `count` rows.

        Returns:
            Their payloads in the clear, one a row, until the next call; and for each row the reason to drop it, or
            `VERIFIED`. No reasons at all when all are verified.
        """

    def verify_one(self, datagram: memoryview) -> tuple[memoryview | bytes, DropReason | None]:
        """The payload of one datagram in the clear, and why it is to be dropped, if it is."""


class Checksum:
    """Security mode `none`: a check that tells accidents (GC-WIRE-2, GC-WIRE-3). Both halves."""

    mode = SecurityMode.NONE
    trailer_bytes = CHECK_BYTES
    flags = 0
    key_id = 0

    def protect(self, rows: Layout, count: int) -> None:
        """Set the checks."""
        rows.checks[:count] = np.fromiter(map(xxh3_64_intdigest, rows.covered[:count]), np.uint64, count)

    def verify(self, rows: Layout, count: int) -> tuple[NDArray[np.uint8], NDArray[np.uint8] | None]:
        """Compare the checks."""
        checks = list(map(xxh3_64_intdigest, rows.covered[:count]))
        if checks == rows.checks[:count].tolist():
            return rows.payloads, None
        damaged = np.array(checks, np.uint64) != rows.checks[:count]
        return rows.payloads, np.where(damaged, _reasons_of_damaged(rows.matrix[:count]), VERIFIED)

    def verify_one(self, datagram: memoryview) -> tuple[memoryview, DropReason | None]:
        """Compare the check."""
        covered = datagram[:-CHECK_BYTES]
        reason = None
        if xxh3_64_intdigest(covered) != int.from_bytes(datagram[-CHECK_BYTES:], "big"):
            reason = DropReason(int(_reasons_of_damaged(np.frombuffer(datagram, np.uint8)[np.newaxis])[0]))
        return covered[HEADER_BYTES:], reason


CHECKSUM = Checksum()


def _reasons_of_damaged(matrix: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The first reason that applies to each datagram whose check does not fit (GC-WIRE-3)."""
    reasons = np.full(len(matrix), DropReason.BAD_CHECK, np.uint8)
    reasons[(matrix[:, 5] & Flag.SEALED) != 0] = DropReason.WRONG_SECURITY_MODE
    reasons[matrix[:, 2] != VERSION] = DropReason.UNSUPPORTED_VERSION
    reasons[(matrix[:, 0] != MAGIC >> 8) | (matrix[:, 1] != MAGIC & 0xFF)] = DropReason.BAD_MAGIC
    return reasons


def runs_of_rows(rows: Layout, count: int, reasons: NDArray[np.uint8] | None) -> list[tuple[int, int]]:
    """The longest runs of rows that continue each other, in order, as (first, stop).

    Such rows have the same header but for sequence and symbol, each one more; or they are to be dropped for the same
    reason. No `reasons` when all are verified.
    """
    words = rows.words[:count].view(">u8").astype(np.uint64)
    steps = words[1:] - words[:-1] == _STEP
    if reasons is None and steps.all():  # nearly always, and it takes a third of the time
        return [(0, count)]
    continues = steps.all(axis=1)
    if reasons is not None:
        continues = (reasons[1:] == reasons[:-1]) & (continues | (reasons[1:] != VERIFIED))
    edges = (np.flatnonzero(~continues) + 1).tolist()
    return list(itertools.pairwise([0, *edges, count]))
