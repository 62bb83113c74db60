"""What an egress misses, carried over the management network to its ingress, which sends it again (spec/repair.md)."""

from __future__ import annotations

import json
from typing import TypeAlias

import trio

from gapconn.admin.client import AdminClient
from gapconn.errors import LinkError
from gapconn.monitor.notify import Notifier
from gapconn.monitor.watch import Watcher

_Range: TypeAlias = tuple[str, int, int, int]
"""Stream, partition, first, last."""


class GapReporter:
    """Carries the gap journal of one pair.

    What was reported is not reported again before `gap_retry` has passed: the ingress needs its time, and what it found
    to be gone closes by itself.
    """

    def __init__(self, watcher: Watcher, notifier: Notifier) -> None:
        self._watcher = watcher
        self._notifier = notifier
        self._reported: dict[_Range, float] = {}
        self._trouble = ""

    async def run(self) -> None:
        """Look at the journal now and then, until cancelled."""
        watcher, pair = self._watcher, self._watcher.pair
        timeout_s = watcher.settings.action_timeout
        async with (
            AdminClient(pair.egress, timeout_s=timeout_s) as egress,
            AdminClient(pair.ingress, token=pair.token, timeout_s=timeout_s) as ingress,
        ):
            while True:
                await trio.sleep(pair.settings.gap_interval)
                # An ingress whose egress is away, or that is not working, would send in vain.
                working = watcher.machine.wants_hold is False and watcher.failure is None and not watcher.misconfigured
                if working and watcher.egress.facts.get("gaps") and watcher.ingress.answered:
                    try:
                        await self._report(egress, ingress)
                    except LinkError as error:
                        if str(error) != self._trouble:
                            self._trouble = str(error)
                            self._notifier.tell("warning", "gap_report_failed", pair.name, str(error))
                    else:
                        self._trouble = ""

    async def _report(self, egress: AdminClient, ingress: AdminClient) -> None:
        try:
            bundle = json.loads(await egress.gaps())
            missing = [(str(s), int(p), int(first), int(last)) for s, p, first, last in bundle["missing"]]
        except (ValueError, KeyError, TypeError) as error:
            raise LinkError(f"the list of gaps is not as expected: {error!r}") from error
        now_s = trio.current_time()
        # What is not missing any more is forgotten.
        self._reported = {each: at for each in missing if (at := self._reported.get(each)) is not None}
        due = [
            each for each in missing if now_s - self._reported.get(each, -1e9) >= self._watcher.pair.settings.gap_retry
        ]
        if not due:
            return
        bundle["missing"], bundle["entries"] = due, []
        answer = await ingress.post("/resend", json.dumps(bundle))
        self._reported.update(dict.fromkeys(due, now_s))
        positions = sum(last - first + 1 for _, _, first, last in due)
        self._watcher.counts.gap_reports += 1
        self._watcher.counts.gap_positions += positions
        self._notifier.tell(
            "info", "gaps_reported", self._watcher.pair.name,
            f"{positions} positions in {len(due)} ranges are missing: the ingress sends them again",
            request=answer.get("request"),
        )  # fmt: skip
