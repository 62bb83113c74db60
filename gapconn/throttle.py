"""Log entries that a flood of bad input must not turn into a flood of logs."""

from __future__ import annotations

from typing import Any

import attrs
import trio
from structlog.typing import FilteringBoundLogger


@attrs.define
class ThrottledLog:
    """Logs each event at most once per interval, and says how many entries it held back since.

    Only for facts that are counted elsewhere too: the last entries held back are never logged.
    """

    log: FilteringBoundLogger
    interval_s: float = 10.0
    _next_at: dict[str, float] = attrs.field(factory=dict, init=False)
    _held_back: dict[str, int] = attrs.field(factory=dict, init=False)

    def warning(self, event: str, **facts: Any) -> None:
        """Log `event` now, or hold it back."""
        now = trio.current_time()
        if now < self._next_at.get(event, now):
            self._held_back[event] = self._held_back.get(event, 0) + 1
            return
        self._next_at[event] = now + self.interval_s
        held_back = self._held_back.pop(event, 0)
        if held_back:
            facts["held_back"] = held_back
        self.log.warning(event, **facts)
