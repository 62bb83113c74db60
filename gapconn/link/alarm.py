"""Waking up in time. Trio's own sleep ends up to a millisecond late: epoll counts in whole milliseconds.

At a rate that may not be exceeded over 10 ms, time that was overslept can hardly be made up for: one millisecond too
long in ten costs a tenth of the rate.
"""

from __future__ import annotations

import ctypes
import os
import time

import trio

_LIBC = ctypes.CDLL(None, use_errno=True)
_PRECISE_BELOW_S = 0.5
"""Longer sleeps are Trio's: a millisecond is little of them."""


class _TimeSpec(ctypes.Structure):
    _fields_ = (("seconds", ctypes.c_long), ("nanoseconds", ctypes.c_long))


class _TimerSpec(ctypes.Structure):
    _fields_ = (("interval", _TimeSpec), ("value", _TimeSpec))


class Alarm:
    """One sleeper's alarm: a Linux timer that is a file (`timerfd`), to which epoll wakes up within some 60 us.

    Where there is none, it sleeps as Trio does. (Python has it from 3.13 on as `os.timerfd_create`.)
    """

    def __init__(self) -> None:
        self._fd = _timer()
        self._spec = _TimerSpec()

    @property
    def precise(self) -> bool:
        """Whether the system has such a timer."""
        return self._fd >= 0

    async def sleep_until(self, time_s: float) -> None:
        """Sleep until Trio's clock shows `time_s`; a checkpoint even if that has passed."""
        left_s = time_s - trio.current_time()
        if self._fd < 0 or not 0 < left_s < _PRECISE_BELOW_S:
            await trio.sleep_until(time_s)
            return
        self._spec.value.nanoseconds = int(left_s * 1e9) + 1
        if _LIBC.timerfd_settime(self._fd, 0, ctypes.byref(self._spec), None) != 0:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number))
        await trio.lowlevel.wait_readable(self._fd)

    def close(self) -> None:
        """Give the timer back."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def _timer() -> int:
    """A timer's file; -1 where the system has none."""
    create = getattr(_LIBC, "timerfd_create", None)
    return -1 if create is None else int(create(time.CLOCK_MONOTONIC, os.O_NONBLOCK | os.O_CLOEXEC))
