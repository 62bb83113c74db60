"""What an egress shows of itself before it has begun: it asks its target what was delivered."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import trio
from prometheus_client.metrics_core import Metric

from gapconn import __version__
from gapconn.admin.view import Page
from gapconn.config import Link
from gapconn.plugins import Context


class AskingView:
    """An `AdminView` of an egress that takes nothing yet."""

    role = "egress"

    def __init__(self, link: Link, context: Context) -> None:
        self.link = link.name
        self._link_id = link.id
        self._context = context
        self._started_at_s = trio.current_time()

    def health(self) -> list[str]:
        """No alarm can stand yet."""
        return []

    def live(self) -> list[str]:
        """A start anew would not help."""
        return []

    def health_facts(self) -> dict[str, Any]:
        """Who this is; a monitor sees that it lives."""
        return {
            "role": self.role,
            "link": self.link,
            "uptime_s": round(trio.current_time() - self._started_at_s, 3),
        }

    def ready(self) -> list[str]:
        """Why no data flows."""
        return ["the target has not said yet what was delivered, and nothing is taken from the gap before"]

    def status(self) -> dict[str, Any]:
        """What is known already."""
        return {
            "role": self.role,
            "link": self.link,
            "link_id": self._link_id,
            "version": __version__,
            "uptime_s": round(trio.current_time() - self._started_at_s, 3),
            "state": "asking the target",
            "sink": {"events": dict(self._context.counters), **self._context.status},
        }

    def metrics(self) -> Iterable[Metric]:
        """Nothing is counted yet."""
        return []

    def pages(self) -> Sequence[Page]:
        """What is delivered is not known yet."""
        return []
