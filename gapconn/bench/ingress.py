"""The sending end of a bench: one session for each step."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, ClassVar

import attrs
import trio

from gapconn.bench.plan import PAUSE_S, REPEAT_INTERVAL_S, REPEATS, Announcement, Plan, Sent
from gapconn.config import Pair, SourceSection
from gapconn.ingress import Ingress
from gapconn.plugins import Carries, Context
from gapconn.service import serve_ingress
from gapconn.sources import Outlet
from gapconn.sources.generate import GenerateConfig, GenerateSource

REACHED = 0.9
"""Share of the rate that an ingress sends at least, if it can."""
MORE = 1.1
"""An ingress that does not reach the rate, nor so much more than in the step before, is at its limit."""


@attrs.define(kw_only=True)
class Step:
    """One step: what is to be done, and what was."""

    plan: Plan
    number: int
    """From 0."""
    ingress: Ingress | None = None
    """While it runs."""
    sent: Sent | None = None
    """When it is over."""
    before_bps: float = 0.0
    """What was sent in the step before this one."""

    @property
    def rate_bps(self) -> int:
        """Of the link."""
        return self.plan.rates_bps[self.number]

    @property
    def is_last(self) -> bool:
        """Whether no step follows: it was the last one, or the ingress is at its limit."""
        if self.number + 1 == len(self.plan.rates_bps):
            return True
        return self.sent is not None and self.sent.wire_bps < min(REACHED * self.rate_bps, MORE * self.before_bps)

    async def meet(self, ingress: Ingress, *, task_status: trio.TaskStatus[None]) -> None:
        """Learn which ingress runs it."""
        self.ingress = ingress
        task_status.started()

    def announcement(self) -> Announcement:
        """What is said about it now."""
        return Announcement(
            step=self.number,
            steps=len(self.plan.rates_bps),
            rate_bps=self.rate_bps,
            step_s=self.plan.step_s,
            sent=self.sent,
            is_last=self.sent is not None and self.is_last,
        )


class StepSource:
    """Announces a step, generates records for its time, and says what it sent."""

    Config: ClassVar[type[Any]] = Step
    carries: ClassVar[Carries] = Carries.RECORDS

    def __init__(self, config: Step, context: Context) -> None:
        self._step = config
        self._context = context

    async def run(self, outlet: Outlet) -> None:
        """The whole step."""
        step, ingress = self._step, self._step.ingress
        assert ingress is not None, "the step is told its ingress before the source runs"
        await self._say(outlet)
        counters, header_bytes = ingress.core.counters, ingress.core.settings.ip_header_bytes
        before = attrs.evolve(counters)
        cpu_s, started_s = time.process_time(), trio.current_time()
        with trio.move_on_after(step.plan.step_s):
            await GenerateSource(GenerateConfig(size_bytes=step.plan.size_bytes), self._context).run(outlet)
        await outlet.flush()
        datagrams, data_bytes = counters.datagrams - before.datagrams, counters.bytes - before.bytes
        records = counters.records - before.records
        sent = Sent(
            records=records,
            payload_bytes=records * step.plan.size_bytes,
            datagrams=datagrams,
            wire_bytes=data_bytes + datagrams * header_bytes,
            took_s=trio.current_time() - started_s,
            cpu_s=time.process_time() - cpu_s,
        )
        await trio.sleep(min(PAUSE_S, step.plan.step_s))
        step.sent = sent
        await self._say(outlet)

    async def _say(self, outlet: Outlet) -> None:
        for _ in range(REPEATS):
            await outlet.send(self._step.announcement().batch())
            await outlet.flush()
            await trio.sleep(REPEAT_INTERVAL_S)


async def send_steps(pair: Pair, plan: Plan, tell: Callable[[Step], None]) -> bool:
    """Send all steps, or as many as make sense.

    Args:
        pair: Its link has a state directory of its own; its source is not used.
        plan: The steps.
        tell: Called before and after each step.

    Returns:
        Whether it came to the end: a signal may have ended it before.
    """
    before_bps = 0.0
    for number, rate_bps in enumerate(plan.rates_bps):
        step = Step(plan=plan, number=number, before_bps=before_bps)

        tell(step)
        link = attrs.evolve(pair.link, rate=rate_bps)
        source = SourceSection(type="bench", config=step, plugin_class=StepSource)
        await serve_ingress(attrs.evolve(pair, link=link, source=source), companion=step.meet)
        if step.sent is None:
            return False
        tell(step)
        if step.is_last:
            break
        before_bps = step.sent.wire_bps
    return True
