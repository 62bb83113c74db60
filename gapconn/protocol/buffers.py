"""Large buffers that begin on a page.

Copying with `rep movsb` to an address that is 1 to 31 bytes further in its page than the source is many times slower on
some processors. Buffers that all begin on a page keep their rows apart by whole row lengths.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

PAGE_BYTES = 4096


def page_aligned(size_bytes: int) -> NDArray[np.uint8]:
    """So many bytes, not zeroed, that begin on a page."""
    room: NDArray[np.uint8] = np.empty(size_bytes + PAGE_BYTES, np.uint8)
    start = -room.ctypes.data % PAGE_BYTES
    return room[start : start + size_bytes]


class Workspace:
    """One buffer that is used again and again. It grows to the largest size that was asked for."""

    __slots__ = ("_flat",)

    def __init__(self) -> None:
        self._flat = page_aligned(0)

    def matrix(self, rows: int, columns: int) -> NDArray[np.uint8]:
        """A matrix of bytes, not zeroed; the one that was given before must not be used any more."""
        if len(self._flat) < rows * columns:
            self._flat = page_aligned(rows * columns)
        return self._flat[: rows * columns].reshape(rows, columns)
