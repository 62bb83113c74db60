"""Memory that is freed is used again, instead of being given back to the kernel and asked for anew with every message.

A message is a megabyte that lives for milliseconds. By itself glibc gives such memory back as soon as it can, and the
kernel then clears every page of the next message before it may be written: that costs more than copying the data.

And glibc gives each thread an arena of its own, in which what the thread freed waits for the same thread. Messages are
written to disk and read back in whatever worker thread is idle, and records are sent by those of librdkafka: so each of
these arenas grew to the most that any of them ever held. One arena for all holds a third less.
"""

from __future__ import annotations

import ctypes

REUSED_BYTES_MAX = 4 << 20
"""Blocks up to this size are kept; larger ones are rare, and go back to the kernel as a whole."""
KEPT_BYTES_MAX = 64 << 20
"""So much may be free and not given back."""
ARENAS_MAX = 1

_M_TRIM_THRESHOLD = -1
_M_MMAP_THRESHOLD = -3
_M_ARENA_MAX = -8


def keep_freed_memory() -> bool:
    """Tell the allocator of this process to keep what is freed, within the limits above; whether it can be told.

    Only glibc can. Elsewhere nothing changes.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return False
    mallopt.argtypes = (ctypes.c_int, ctypes.c_int)
    mallopt.restype = ctypes.c_int
    settings = (
        (_M_MMAP_THRESHOLD, REUSED_BYTES_MAX),
        (_M_TRIM_THRESHOLD, KEPT_BYTES_MAX),
        (_M_ARENA_MAX, ARENAS_MAX),
    )
    told = [mallopt(setting, value) for setting, value in settings]
    return all(told)
