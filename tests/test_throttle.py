"""A flood of the same event is one log entry, and the next one says how many were held back."""

from __future__ import annotations

import structlog
import trio
from structlog.testing import capture_logs
from trio.testing import MockClock

from gapconn.throttle import ThrottledLog


async def test_one_entry_per_event_and_interval(autojump_clock: MockClock) -> None:
    with capture_logs() as logs:
        log = ThrottledLog(structlog.get_logger(), interval_s=10)
        for number in range(5):
            log.warning("refused", number=number)
        log.warning("dropped")
        await trio.sleep(10)
        log.warning("refused", number=5)
        log.warning("dropped")

    assert logs == [
        {"event": "refused", "log_level": "warning", "number": 0},
        {"event": "dropped", "log_level": "warning"},
        {"event": "refused", "log_level": "warning", "number": 5, "held_back": 4},
        {"event": "dropped", "log_level": "warning"},
    ]
