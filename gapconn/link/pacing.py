"""Holding a configured bit rate, since nothing behind a gap says "slower" (spec/limits.md, "Pacing")."""

from __future__ import annotations

BURST_S = 0.002
BURST_BYTES = 128 * 1024


class Pacer:
    """A token bucket: what may be sent when. It is told the time and does not wait itself (GC-PACE-1, GC-PACE-2).

    Args:
        rate_bps: Bits per second, IP and UDP headers counted; 0 is no limit.
        header_bytes: IP and UDP headers of a datagram.
    """

    def __init__(self, rate_bps: int, header_bytes: int) -> None:
        self._seconds_per_byte = 8 / rate_bps if rate_bps else 0.0
        self._depth_s = max(BURST_S, BURST_BYTES * self._seconds_per_byte)
        self._header_bytes = header_bytes
        self._paid_until_s = 0.0

    def send_at(self, now_s: float, datagrams: int, payload_bytes: int) -> float:
        """Account for datagrams that are about to be sent; the time at which they may be: `now_s`, or later."""
        if not self._seconds_per_byte:
            return now_s
        cost_s = (payload_bytes + datagrams * self._header_bytes) * self._seconds_per_byte
        self._paid_until_s = max(self._paid_until_s, now_s) + cost_s
        return max(now_s, self._paid_until_s - self._depth_s)
