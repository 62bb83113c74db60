"""Holding a configured bit rate, since nothing behind a gap says "slower" (spec/limits.md, "Pacing").

Two limits at once. The credit holds the rate in the long run: what is sent has to be paid for by time, and at most
2 ms of it are lent, so that a sender that wakes up late makes up for it. The window counts what was really sent in the
last 10 ms, so that making up for it never exceeds the rate over any 10 ms.
"""

from __future__ import annotations

import math
from collections import deque

import attrs

WINDOW_S = 0.010
"""Over any time of this length the rate is not exceeded (GC-PACE-3)."""
WINDOW_PACKETS = 32
"""Where the window holds fewer packets, one more may be sent in it: they cannot be divided."""
CREDIT_S = 0.002
"""How much time is lent (GC-PACE-2). A loaded machine wakes a sleeper late by about a millisecond."""
TURN_S = 0.001
"""How much credit a sender waits for that has to wait: then it sleeps once for several bursts."""
FREE_SHARE = 0.1
"""Of the rate, which what can wait leaves free for what comes."""
SPARE_TURN_SHARE = 0.25
"""Of the credit, what is sent at once of what can wait."""
_STEP_S = WINDOW_S / 64
"""A burst is cut into pieces no shorter than this: few system calls, and the window is filled but for 1/64."""
_GROUP_S = WINDOW_S / 100
"""What is sent within so short a time leaves the window together: then one sleep makes room for several bursts."""


@attrs.define
class _Group:
    """What was sent at about one time."""

    first_s: float
    last_s: float
    size_bytes: int


class Pacer:
    """When how much may be sent. It is told the time and does not wait itself (GC-PACE-1).

    What was sent is accounted for when it was sent and not when it was planned: the limits hold where the sender woke
    up late, and where the kernel held it up. All bytes are those of IP packets, headers included.

    Args:
        rate_bps: Bits per second; 0 is no limit.
        header_bytes: IP and UDP headers of a datagram.
        mtu_bytes: The largest packet. However low the rate, one may be sent at once.
    """

    def __init__(self, rate_bps: int, *, header_bytes: int, mtu_bytes: int) -> None:
        self._bytes_per_s = rate_bps / 8
        self._seconds_per_byte = 8 / rate_bps if rate_bps else 0.0
        self._header_bytes = header_bytes
        self._credit_s = max(CREDIT_S, mtu_bytes * self._seconds_per_byte)
        self._turn_bytes = max(int(TURN_S * self._bytes_per_s), mtu_bytes)
        self._step_bytes = int(_STEP_S * self._bytes_per_s)
        self._window_bytes = int(WINDOW_S * self._bytes_per_s)
        if self._window_bytes < WINDOW_PACKETS * mtu_bytes:
            self._window_bytes += mtu_bytes
        self._paid_until_s = -math.inf
        self._recent: deque[_Group] = deque()
        """What was sent in the last window."""
        self._recent_bytes = 0

    def wire_bytes(self, count: int, datagram_bytes: int) -> int:
        """What `count` datagrams of that payload are on the wire."""
        return count * (datagram_bytes + self._header_bytes)

    def fit(self, now_s: float, count: int, datagram_bytes: int) -> int:
        """How many of `count` datagrams of that payload may be sent at once now; 0 where to wait is better."""
        if not self._seconds_per_byte:
            return count
        self._forget(now_s)
        size = self.wire_bytes(1, datagram_bytes)
        credit_bytes = (self._credit_s - max(0.0, self._paid_until_s - now_s)) * self._bytes_per_s
        fitting = int(min(credit_bytes, self._window_bytes - self._recent_bytes) // size)
        if fitting >= count:
            return count
        step = min(count, max(1, self._step_bytes // size))
        if fitting >= step:
            return fitting
        # Asked the other way round: at a time that was waited for, rounding must not say "not yet".
        return step if self._ready_at(step * size, step * size) <= now_s else 0

    def wake_at(self, datagram_bytes: int, left_bytes: int) -> float:
        """When to ask again whether something fits: the next datagram, of `left_bytes` to be sent behind each other."""
        step_bytes = max(self.wire_bytes(1, datagram_bytes), min(left_bytes, self._step_bytes))
        return self._ready_at(min(left_bytes, self._turn_bytes), step_bytes)

    def spare_count(self, count: int, datagram_bytes: int) -> int:
        """How many of `count` datagrams that can wait may be sent at once: few, since nothing overtakes them."""
        if not self._seconds_per_byte:
            return count
        most_bytes = SPARE_TURN_SHARE * self._credit_s * self._bytes_per_s
        return min(count, max(1, int(most_bytes // self.wire_bytes(1, datagram_bytes))))

    def spare_at(self, now_s: float, wire_bytes: int) -> float:
        """From when on `wire_bytes` may be sent of what can wait; may have passed (GC-RPT-3).

        A share of the window is left free, and half of the credit, for what comes meanwhile and cannot wait.
        """
        if not self._seconds_per_byte:
            return now_s
        self._forget(now_s)
        cost_s = wire_bytes * self._seconds_per_byte
        lent_s = max(0.0, self._credit_s / 2 - cost_s)
        ready_s = self._paid_until_s - lent_s + FREE_SHARE * cost_s
        return max(ready_s, self._room_at(wire_bytes + int(FREE_SHARE * self._window_bytes)))

    def sent(self, now_s: float, wire_bytes: int) -> None:
        """Account for what was just sent."""
        if not self._seconds_per_byte:
            return
        self._paid_until_s = max(self._paid_until_s, now_s) + wire_bytes * self._seconds_per_byte
        self._recent_bytes += wire_bytes
        group = self._recent[-1] if self._recent else None
        if group is not None and now_s - group.first_s < _GROUP_S:
            group.last_s = now_s
            group.size_bytes += wire_bytes
        else:
            self._recent.append(_Group(now_s, now_s, wire_bytes))

    def _ready_at(self, credit_bytes: int, window_bytes: int) -> float:
        """From when on there is so much credit, and so much room in the window; may have passed."""
        lent_s = max(0.0, self._credit_s - credit_bytes * self._seconds_per_byte)
        return max(self._paid_until_s - lent_s, self._room_at(window_bytes))

    def _room_at(self, window_bytes: int) -> float:
        """From when on there is so much room in the window."""
        ready_s = -math.inf
        excess_bytes = self._recent_bytes + window_bytes - self._window_bytes
        for group in self._recent:
            if excess_bytes <= 0:
                break
            excess_bytes -= group.size_bytes
            ready_s = max(ready_s, group.last_s + WINDOW_S)
        return ready_s

    def _forget(self, now_s: float) -> None:
        recent = self._recent
        while recent and recent[0].last_s + WINDOW_S <= now_s:
            self._recent_bytes -= recent.popleft().size_bytes
