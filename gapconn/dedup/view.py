"""What a deduplicator shows of itself."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

from prometheus_client.metrics_core import Metric

from gapconn import __version__
from gapconn.admin.metrics import counter, counters, gauge, gauges
from gapconn.admin.view import Page

if TYPE_CHECKING:
    from gapconn.dedup.links import LinkCounts
    from gapconn.dedup.service import DedupService


class DedupView:
    """An `AdminView` of a deduplicator. The label `link` of its metrics is its own name; `input` is a link."""

    role = "dedup"

    def __init__(self, service: DedupService) -> None:
        self._service = service
        self.link = service.file.dedup.name

    def live(self) -> list[str]:
        """A deduplicator that answers is alive."""
        return []

    def health_facts(self) -> dict[str, Any]:
        """Which one it is."""
        return {"role": self.role, "name": self.link}

    def pages(self) -> list[Page]:
        """None beside those that every end has."""
        return []

    def health(self) -> list[str]:
        """The alarms that stand: a link is silent, a link lags."""
        return [sentence for counts in self._service.book.links.values() for sentence in counts.alarms.values()]

    def ready(self) -> list[str]:
        """Why nothing is written."""
        if self._service.stopping:
            return ["it was asked to stop"]
        kafka = self._service.kafka
        if kafka is None:
            return []
        reasons = [kafka.problem] if kafka.problem else []
        return reasons + [f"topic {topic} is missing, or has too few partitions" for topic in kafka.missing]

    def status(self) -> dict[str, Any]:
        """Everything at a glance."""
        service, now_s = self._service, time.monotonic()
        return {
            "role": self.role,
            "link": self.link,
            "version": __version__,
            "uptime_s": round(now_s - service.started_at_s, 3),
            "identity": service.file.dedup.signature,
            "alarms": self.health(),
            "problems": self.ready(),
            "links": {
                name: {
                    "records": counts.records,
                    "first": counts.first,
                    "repeats": counts.repeats,
                    "again": counts.again,
                    "late": counts.late,
                    "unidentified": counts.unidentified,
                    "quiet_s": None if counts.last_s is None else round(now_s - counts.last_s, 3),
                    "missed_since": counts.missed_since,
                    "lag_offsets": counts.lag_offsets,
                    "lag_s": round(counts.lag_s, 3),
                    "alarms": [alarm.value for alarm in counts.alarms],
                }
                for name, counts in service.book.links.items()
            },
            "output": self._output(),
            "state": service.facts,
            "events": service.context.counters,
            **service.context.status,
        }

    def _output(self) -> dict[str, int]:
        if self._service.kafka is not None:
            totals = self._service.kafka.totals
            return {"records": totals.records, "late": totals.late, "transactions": totals.transactions}
        datagrams = self._service.datagrams
        return {"records": datagrams.inlet.records if datagrams is not None else 0}

    def metrics(self) -> Iterable[Metric]:
        """Everything that is worth a curve or an alert."""
        service, now_s = self._service, time.monotonic()

        def by_link(value: Callable[[LinkCounts], float]) -> dict[str, float]:
            return {link: value(counts) for link, counts in service.book.links.items()}

        for name, text, value in (
            ("records", "Records that came over each link.", lambda link: link.records),
            ("first", "Of these, records that no other link had brought before.", lambda link: link.first),
            ("repeats", "Of these, copies that were dropped.", lambda link: link.repeats),
            ("again", "Of the copies, those that the same link had brought before.", lambda link: link.again),
            ("unidentified", "Of these, records without id.", lambda link: link.unidentified),
        ):
            yield counters(f"gapconn_dedup_input_{name}_total", text, "input", by_link(value))
        for name, text, value in (
            (
                "quiet_seconds",
                "Since a link has brought anything, or since the start.",
                lambda link: now_s - (link.last_s or service.started_at_s),
            ),
            (
                "lag_offsets",
                "How far a link is behind the first one, in offsets of the source.",
                lambda link: link.lag_offsets,
            ),
            ("lag_seconds", "The same, in time.", lambda link: link.lag_s),
            ("alarm", "1 while a link is silent or lags.", lambda link: bool(link.alarms)),
        ):
            yield gauges(f"gapconn_dedup_input_{name}", text, "input", by_link(value))
        output = self._output()
        yield counter("gapconn_dedup_records_total", "Records written.", output["records"])
        yield counter("gapconn_dedup_late_total", "Of these, those behind later ones.", output.get("late", 0))
        yield counter("gapconn_dedup_transactions_total", "Transactions committed.", output.get("transactions", 0))
        facts = service.facts
        yield gauge("gapconn_dedup_held_records", "Records that wait for earlier ones.", facts.get("held", 0))
        yield gauge("gapconn_dedup_holes", "Holes in the offsets that are remembered.", facts.get("holes", 0))
        yield gauge("gapconn_dedup_window_ids", "Ids that are remembered.", facts.get("window_ids", 0))
        yield counter(
            "gapconn_dedup_holes_forgotten_total",
            "Holes that were too many: what comes for them is dropped.",
            facts.get("holes_forgotten", 0),
        )
        yield counters("gapconn_dedup_events_total", "What it counted, by event.", "event", service.context.counters)
