"""The receiving end of a bench: what arrives, step by step."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, ClassVar

import attrs
import trio

from gapconn.bench.plan import STREAM as ANNOUNCEMENTS
from gapconn.bench.plan import Announcement, Sent, announcements
from gapconn.config import Pair, SinkSection
from gapconn.egress import Egress
from gapconn.plugins import Carries, Context
from gapconn.protocol.states import ReceiverState
from gapconn.record import Records
from gapconn.selfcheck import STREAM as GENERATED
from gapconn.service import serve_egress
from gapconn.sinks import Inlet
from gapconn.sinks.discard import DiscardConfig, DiscardSink

WATCH_INTERVAL_S = 0.1
PATIENCE_S = 5.0
"""So long after the end of a session, at least, the next step may begin."""


@attrs.frozen(kw_only=True)
class Counts:
    """What an egress has counted at some time; the difference of two is what happened between them."""

    at_s: float
    cpu_s: float
    datagrams: int
    datagrams_missed: int
    """Sent, and not arrived."""
    rebuilt: int
    """Of those, the ones that repair symbols stood in for."""
    kernel_drops: int
    """Packets that this host dropped. The kernel counts many joined datagrams as one."""
    messages_lost: int
    """Not delivered, for any reason."""
    verified: int
    """Records that arrived as they were made."""
    damaged: int

    def since(self, before: Counts) -> Counts:
        """What happened after `before`."""
        names = [field.name for field in attrs.fields(Counts)]
        return Counts(**{name: getattr(self, name) - getattr(before, name) for name in names})


@attrs.frozen(kw_only=True)
class StepResult:
    """What became of a step."""

    step: int
    """From 0."""
    steps: int
    rate_bps: int
    sent: Sent | None
    """None: it broke off, or what was said about its end was lost."""
    arrived: Counts
    payload_bps: float
    """What was verified, per second of the step."""

    @property
    def whole(self) -> bool:
        """Whether everything that was sent was delivered."""
        return (
            self.sent is not None
            and not self.arrived.messages_lost
            and not self.arrived.damaged
            and self.arrived.verified == self.sent.records
        )

    @property
    def held(self) -> bool:
        """Whether the link held the rate: nothing was lost, not even a datagram that could be rebuilt."""
        return self.whole and not self.arrived.datagrams_missed


class StepBook:
    """Keeps account of the steps.

    Args:
        tell: Called with the result of each step.

    Attributes:
        results: Of the steps that are over.
        strangers: Messages of something that is no bench.
        finished: Set behind the last one.
    """

    def __init__(self, tell: Callable[[StepResult], None]) -> None:
        self._tell = tell
        self.results: list[StepResult] = []
        self.strangers = 0
        self.finished = trio.Event()
        self._egress: Egress | None = None
        self._sink_status: dict[str, Any] = {}
        self._epoch = 0
        self._step: Announcement | None = None
        self._before: Counts | None = None

    def follow(self, egress: Egress) -> None:
        """From now on, count what this egress counts."""
        self._egress = egress
        self._sink_status = egress.context.status

    def heard(self, announcement: Announcement, epoch: int) -> None:
        """The ingress said something about a step. It says everything several times."""
        if epoch != self._epoch:
            self.cut_off()
            self._epoch = epoch
            if announcement.sent is None:  # else its beginning was not heard, and nothing can be said about it
                self._step, self._before = announcement, self._count()
        if announcement.sent is not None:
            if self._step is not None:
                self._close(announcement)
            if announcement.is_last:
                self.finished.set()

    def cut_off(self) -> None:
        """No more is coming about the step that was going on, if there was one."""
        if self._step is not None:
            self._close(self._step)

    def _close(self, announcement: Announcement) -> None:
        assert self._before is not None
        arrived, sent = self._count().since(self._before), announcement.sent
        self._step = None
        size_bytes = self._sink_status["bytes"] / max(1, self._sink_status["received"])
        took_s = sent.took_s if sent else announcement.step_s
        if sent and sent.records:
            size_bytes = sent.payload_bytes / sent.records
        result = StepResult(
            step=announcement.step,
            steps=announcement.steps,
            rate_bps=announcement.rate_bps,
            sent=sent,
            arrived=arrived,
            payload_bps=8 * arrived.verified * size_bytes / took_s,
        )
        self.results.append(result)
        self._tell(result)

    def _count(self) -> Counts:
        egress = self._egress
        assert egress is not None, "the egress is followed before its sink runs"
        counters = egress.core.counters
        return Counts(
            at_s=trio.current_time(),
            cpu_s=time.process_time(),
            datagrams=counters.datagrams,
            datagrams_missed=egress.core.datagrams_missed,
            rebuilt=counters.symbols_rebuilt,
            kernel_drops=egress.socket.kernel_drops,
            messages_lost=counters.messages_lost.total() + egress.events.refused.total(),
            verified=self._sink_status["verified"],
            damaged=self._sink_status["damaged"],
        )


class StepSink:
    """Verifies the records as the discard sink does, and tells the book what is said about the steps."""

    Config: ClassVar[type[Any]] = StepBook
    accepts: ClassVar[frozenset[Carries]] = frozenset({Carries.RECORDS})

    def __init__(self, config: StepBook, context: Context) -> None:
        self._book = config
        self._discard = DiscardSink(DiscardConfig(), context)

    async def run(self, inlet: Inlet) -> None:
        """Count until the inlet ends."""
        async for delivery in inlet:
            for part in delivery.batch.parts:
                if isinstance(part, Records) and part.stream == ANNOUNCEMENTS:
                    for announcement in announcements(part):
                        self._book.heard(announcement, delivery.epoch)
                elif isinstance(part, Records) and part.stream == GENERATED:
                    self._discard.count(delivery)
                else:
                    self._book.strangers += 1
            delivery.accept()


async def receive_steps(
    pair: Pair, book: StepBook, listening: Callable[[Egress], None], note: Callable[[str], None]
) -> None:
    """Receive until the last step is over, or the ingress is gone in the middle of them, or a signal comes.

    Args:
        pair: Its link has a state directory of its own; its sink is not used.
        book: Gets the results.
        listening: Called when the egress listens.
        note: Called with what spoils the bench: two ingresses, or that of another link.
    """
    noted: set[str] = set()

    def look_around(egress: Egress) -> None:
        found = {text for name, text in egress.events.alarms.items() if name != "link_interrupted"}
        if egress.core.counters.foreign_links:
            found.add("datagrams of another link arrive here: its link.address is wrong")
        for text in found - noted:
            note(text)
        noted.update(found)

    async def watch(egress: Egress, *, task_status: trio.TaskStatus[None]) -> None:
        book.follow(egress)
        task_status.started()
        listening(egress)
        quiet_since_s: float | None = None
        while not book.finished.is_set():
            await trio.sleep(WATCH_INTERVAL_S)
            look_around(egress)
            going_on = egress.core.state is ReceiverState.FOLLOWING and not egress.core.ended
            if going_on or not egress.core.session_epoch:
                quiet_since_s = None
            elif quiet_since_s is None:
                quiet_since_s = trio.current_time()
            elif trio.current_time() - quiet_since_s > max(PATIENCE_S, pair.link.interruption_timeout_s):
                break
        egress.stop()

    sink = SinkSection(type="bench", config=book, plugin_class=StepSink)
    await serve_egress(attrs.evolve(pair, sink=sink), companion=watch)
    book.cut_off()
