"""What a monitor shows of itself: an `AdminView`, served like that of an end."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import trio
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response

from gapconn import __version__
from gapconn.admin.metrics import counter, gauges
from gapconn.admin.view import Page
from gapconn.monitor.notify import Notifier
from gapconn.monitor.page import render
from gapconn.monitor.states import PairState
from gapconn.monitor.verdict import EndReport
from gapconn.monitor.watch import Watcher


class MonitorView:
    """What `/health`, `/status`, `/metrics` and `/` of a monitor say."""

    role = "monitor"
    link = ""

    def __init__(self, name: str, watchers: Sequence[Watcher], notifier: Notifier) -> None:
        self._name = name
        self._watchers = watchers
        self._notifier = notifier
        self._started_s = trio.current_time()

    def live(self) -> list[str]:
        """A monitor that answers is alive."""
        return []

    def health(self) -> list[str]:
        """What keeps the monitor itself from its work. A pair that is out is no fault of it: see `/status`."""
        return [f"{watcher.pair.name}: {watcher.misconfigured}" for watcher in self._watchers if watcher.misconfigured]

    def health_facts(self) -> dict[str, Any]:
        """Which pairs are out."""
        return {
            "role": self.role,
            "name": self._name,
            "out": [watcher.pair.name for watcher in self._watchers if watcher.machine.wants_hold],
        }

    def ready(self) -> list[str]:
        """Pairs of which nothing is known yet."""
        return [
            f"{watcher.pair.name}: not judged yet"
            for watcher in self._watchers
            if watcher.machine.state is PairState.UNKNOWN
        ]

    def status(self) -> dict[str, Any]:
        """All pairs, and what was done."""
        return {
            "role": self.role,
            "name": self._name,
            "version": __version__,
            "uptime_s": round(trio.current_time() - self._started_s, 3),
            "pairs": [_pair_status(watcher) for watcher in self._watchers],
            "notifications_failed": self._notifier.failed,
            "log": [happening.facts for happening in reversed(self._notifier.recent)],
        }

    def pages(self) -> list[Page]:
        """The page for people."""

        async def page(request: Request) -> Response:
            return HTMLResponse(render(self.status()), headers={"Cache-Control": "no-store"})

        return [Page("/", "all pairs, for people", page)]

    def metrics(self) -> Iterable[Metric]:
        """By pair; the state is a gauge of 0 and 1 for each state that there is."""
        state = GaugeMetricFamily(
            "gapconn_monitor_pair_state", "1 for the state in which the pair is.", labels=["pair", "state"]
        )
        for watcher in self._watchers:
            for each in PairState:
                state.add_metric([watcher.pair.name, each.value], watcher.machine.state is each)
        yield state
        up = GaugeMetricFamily("gapconn_monitor_end_up", "1 while the end answers.", labels=["pair", "end"])
        took = GaugeMetricFamily(
            "gapconn_monitor_check_seconds", "How long the last check took.", labels=["pair", "end"]
        )
        for watcher in self._watchers:
            for role, report in (("egress", watcher.egress), ("ingress", watcher.ingress)):
                up.add_metric([watcher.pair.name, role], report.answered)
                took.add_metric([watcher.pair.name, role], report.took_s)
        yield up
        yield took
        yield gauges(
            "gapconn_monitor_held", "1 while this monitor holds the ingress.", "pair", self._by_pair(lambda w: w.held)
        )
        for name, text, value in (
            ("pauses", "Times that the ingress was taken out.", lambda w: w.counts.pauses),
            ("resumes", "Holds that were taken away.", lambda w: w.counts.resumes),
            ("actions_failed", "Tries to pause or resume that failed.", lambda w: w.counts.actions_failed),
            ("checks", "Questions to the ends.", lambda w: w.counts.checks),
            ("checks_failed", "Questions without an answer.", lambda w: w.counts.checks_failed),
            ("gap_reports", "Lists of gaps that were carried to the ingress.", lambda w: w.counts.gap_reports),
            ("gap_positions", "Positions in them.", lambda w: w.counts.gap_positions),
        ):
            family = CounterMetricFamily(f"gapconn_monitor_{name}_total", text, labels=["pair"])
            for pair, number in self._by_pair(value).items():
                family.add_metric([pair], number)
            yield family
        yield counter(
            "gapconn_monitor_notifications_failed_total", "Notifications that nobody took.", self._notifier.failed
        )

    def _by_pair(self, value: Any) -> dict[str, float]:
        return {watcher.pair.name: float(value(watcher)) for watcher in self._watchers}


def _pair_status(watcher: Watcher) -> dict[str, Any]:
    machine, now_s = watcher.machine, trio.current_time()
    return {
        "pair": watcher.pair.name,
        "state": machine.state.value,
        "failure": watcher.failure,
        "misconfigured": watcher.misconfigured or None,
        "held": watcher.held,
        "times_out": machine.times_out,
        "out_for_s": None if watcher.out_since_s is None else round(now_s - watcher.out_since_s, 1),
        "healthy_for_s": round(watcher.good_for_s(), 1),
        "must_be_healthy_for_s": machine.hold_s,
        "action": watcher.pair.settings.action,
        "egress": _end_status(watcher.pair.egress, watcher.egress),
        "ingress": _end_status(watcher.pair.ingress, watcher.ingress),
        "positions_known": None if watcher.positions is None else len(watcher.positions),
        "gap_reports": watcher.counts.gap_reports if watcher.pair.settings.gap_reports else None,
    }


def _end_status(url: str, report: EndReport) -> dict[str, Any]:
    return {
        "url": url,
        "answers": report.answered,
        "took_s": round(report.took_s, 4),
        "link": report.link or None,
        "why": report.why or None,
        "problems": report.problems,
        "holds": report.facts.get("holds", []),
        "at_rest": report.facts.get("at_rest"),
        "sink_stalled_s": report.facts.get("sink_stalled_s"),
        "gaps": report.facts.get("gaps"),
    }
