"""Telling others what happens: a webhook gets each event, an Alertmanager gets alerts while something is wrong.

Nothing here holds a watcher up: what cannot be told is tried a few times, and then logged and counted.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, Final

import attrs
import structlog
import trio

from gapconn.backoff import Backoff
from gapconn.errors import LinkError
from gapconn.monitor.actions import post_json
from gapconn.monitor.config import Notify

RECENT_MAX: Final = 200
WAITING_MAX: Final = 1000
TRIES: Final = 4
ALERTS_AGAIN_S: Final = 60.0
"""An Alertmanager forgets an alert that nobody repeats."""
ALERT_STANDS_S: Final = 240.0


@attrs.frozen(kw_only=True)
class Happening:
    """One thing that the monitor saw or did."""

    at: datetime
    event: str
    pair: str
    text: str

    @property
    def facts(self) -> dict[str, str]:
        """For JSON."""
        return {
            "at": self.at.isoformat(timespec="milliseconds"),
            "event": self.event,
            "pair": self.pair,
            "text": self.text,
        }


@attrs.frozen
class _Alert:
    """Something that is wrong, for an Alertmanager."""

    name: str
    pair: str
    summary: str
    since: datetime
    until: datetime | None = None
    """When it ended."""

    def content(self, monitor: str) -> dict[str, Any]:
        ends = self.until or datetime.now(UTC) + timedelta(seconds=ALERT_STANDS_S)
        return {
            "labels": {"alertname": self.name, "pair": self.pair, "monitor": monitor, "severity": "critical"},
            "annotations": {"summary": self.summary},
            "startsAt": self.since.isoformat(),
            "endsAt": ends.isoformat(),
        }


class Notifier:
    """Tells the log at once, and the others in the background.

    Attributes:
        recent: What happened last, the newest at the end.
        failed: Notifications that nobody took.
    """

    def __init__(self, notify: Notify, monitor: str, timeout_s: float) -> None:
        self.recent: deque[Happening] = deque(maxlen=RECENT_MAX)
        self.failed = 0
        self._notify = notify
        self._monitor = monitor
        self._timeout_s = timeout_s
        self._log = structlog.get_logger().bind(monitor=monitor)
        self._alerts: dict[tuple[str, str], _Alert] = {}
        self._waiting_in, self._waiting_out = trio.open_memory_channel[tuple[str, Any]](WAITING_MAX)

    def tell(self, level: str, event: str, pair: str, text: str, **facts: Any) -> None:
        """Something happened."""
        self._log.log({"info": 20, "warning": 30, "error": 40}[level], event, pair=pair, what=text, **facts)
        happening = Happening(at=datetime.now(UTC), event=event, pair=pair, text=text)
        self.recent.append(happening)
        if self._notify.webhook:
            self._put(self._notify.webhook, {"monitor": self._monitor, "level": level, **happening.facts, **facts})

    def alert(self, name: str, pair: str, summary: str | None) -> None:
        """Something is wrong, or is not any more (None)."""
        standing = self._alerts.get((name, pair))
        if summary is not None and standing is None:
            self._alerts[name, pair] = alert = _Alert(name, pair, summary, datetime.now(UTC))
        elif summary is None and standing is not None:
            alert = attrs.evolve(self._alerts.pop((name, pair)), until=datetime.now(UTC))
        else:
            return
        self._send_alerts([alert])

    async def run(self) -> None:
        """Tell what is to be told, until cancelled."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._repeat_alerts)
            async for url, content in self._waiting_out:
                await self._deliver(url, content)

    def _send_alerts(self, alerts: Sequence[_Alert]) -> None:
        if self._notify.alertmanager and alerts:
            url = f"{self._notify.alertmanager.rstrip('/')}/api/v2/alerts"
            self._put(url, [alert.content(self._monitor) for alert in alerts])

    def _put(self, url: str, content: Any) -> None:
        try:
            self._waiting_in.send_nowait((url, content))
        except trio.WouldBlock:
            self.failed += 1

    async def _repeat_alerts(self) -> None:
        while True:
            await trio.sleep(ALERTS_AGAIN_S)
            self._send_alerts(list(self._alerts.values()))

    async def _deliver(self, url: str, content: Any) -> None:
        backoff = Backoff(limit_s=2.0)
        for remaining in reversed(range(TRIES)):
            try:
                await post_json(url, content, self._timeout_s)
            except LinkError as error:
                if not remaining:
                    self.failed += 1
                    self._log.warning("notification_failed", error=str(error))
                    return
                await trio.sleep(backoff.failed())
            else:
                return
