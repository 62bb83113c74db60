"""Whether an egress that answers works: a sink or a receiver that stands still while there is work is found here.

A sink whose target is away tries again, and counts each try (gapconn.sinks.Sink): that is not a hang, the spool is for
it. A sink that accepts nothing and tries nothing hangs.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

SINK_HANGS_S: Final = 30.0
"""Without a message accepted and without a try: twice the longest pause between two tries."""
RECEIVER_HANGS_S: Final = 2.0
"""With datagrams in the kernel and none taken."""
RECEIVER_LOOK_S: Final = 0.5
"""So long the receiver must have taken nothing before the kernel is asked what it holds."""


class HangWatch:
    """Fed by the egress's watchdog.

    Args:
        now_s: The time, monotonic, in seconds.
    """

    def __init__(self, now_s: float) -> None:
        self._accepted = 0
        self._tries = 0
        self._accepted_at_s = self._tried_at_s = now_s
        self._sink_idle = True
        self._datagrams = 0
        self._received_at_s = self._looked_at_s = now_s

    def saw_sink(self, now_s: float, accepted: int, tries: int, *, idle: bool) -> None:
        """Note what the sink has done.

        Args:
            now_s: The time.
            accepted: Messages it has accepted so far.
            tries: What it has counted so far.
            idle: Whether nothing waits for it.
        """
        self._sink_idle = idle
        if idle or accepted != self._accepted:
            self._accepted, self._accepted_at_s = accepted, now_s
        if idle or tries != self._tries:
            self._tries, self._tried_at_s = tries, now_s

    def saw_receiver(self, now_s: float, datagrams: int, has_waiting: Callable[[], bool]) -> None:
        """Note what the receiver has done.

        Args:
            now_s: The time.
            datagrams: What it has taken so far.
            has_waiting: Whether the kernel holds more; asked only if it has taken none for a while.
        """
        if datagrams != self._datagrams:
            self._datagrams = datagrams
            self._received_at_s = self._looked_at_s = now_s
        elif now_s - self._looked_at_s >= RECEIVER_LOOK_S:
            self._looked_at_s = now_s
            if not has_waiting():
                self._received_at_s = now_s

    def sink_stalled_s(self, now_s: float) -> float:
        """For how long the sink has accepted nothing although messages wait for it, in seconds."""
        return 0.0 if self._sink_idle else now_s - self._accepted_at_s

    def found(self, now_s: float) -> dict[str, str]:
        """What hangs, by name, each with a sentence; empty when nothing does."""
        hangs = {}
        idle_s = now_s - max(self._tried_at_s, self._accepted_at_s)
        if not self._sink_idle and idle_s > SINK_HANGS_S:
            hangs["sink_hangs"] = (
                f"the sink has accepted nothing and tried nothing for {idle_s:.0f} s, and messages wait for it"
            )
        if self._looked_at_s - self._received_at_s > RECEIVER_HANGS_S:
            hangs["receiver_hangs"] = f"datagrams arrive, and none was taken for {now_s - self._received_at_s:.0f} s"
        return hangs
