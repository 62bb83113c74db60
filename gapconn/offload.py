"""Work that takes long without Python's lock, such as compressing: in a thread if it would hold up the Trio loop."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import trio

INLINE_BYTES_MAX = 16 * 1024
"""Up to here, going over so much data takes less than the way to a thread and back (about 0.1 ms)."""

T = TypeVar("T")


async def run_long(work: Callable[[], T], size_bytes: int) -> T:
    """The result of `work`, which goes over `size_bytes`. Cancelled before it begins or not at all."""
    if size_bytes <= INLINE_BYTES_MAX:
        return work()
    return await trio.to_thread.run_sync(work)
