"""Holding a configured bit rate, since nothing behind a gap says "slower" (spec/limits.md, "Pacing")."""

from __future__ import annotations

import math

BURST_S = 0.002
BURST_BYTES = 128 * 1024


class Pacer:
    """A token bucket: when how much may be sent. It is told the time and does not wait itself (GC-PACE-1, GC-PACE-2).

    What was sent is accounted for when it was sent and not when it was planned: the bucket is also right where the
    sender woke up late, or the kernel held it up.

    Args:
        rate_bps: Bits per second, IP and UDP headers counted; 0 is no limit.
        header_bytes: IP and UDP headers of a datagram.
    """

    def __init__(self, rate_bps: int, header_bytes: int) -> None:
        self._seconds_per_byte = 8 / rate_bps if rate_bps else 0.0
        self._depth_s = max(BURST_S, BURST_BYTES * self._seconds_per_byte)
        self._header_bytes = header_bytes
        self._paid_until_s = -math.inf

    def ready_at(self, datagrams: int, payload_bytes: int) -> float:
        """The time from which on these datagrams may be sent; often one that has passed."""
        return self._paid_until_s + self._cost_s(datagrams, payload_bytes) - self._depth_s

    def sent(self, now_s: float, datagrams: int, payload_bytes: int) -> None:
        """Account for datagrams that were just sent."""
        self._paid_until_s = max(self._paid_until_s, now_s) + self._cost_s(datagrams, payload_bytes)

    def _cost_s(self, datagrams: int, payload_bytes: int) -> float:
        return (payload_bytes + datagrams * self._header_bytes) * self._seconds_per_byte
