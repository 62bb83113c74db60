"""Sending again what the egress misses: requests of operators, taken up by the one ingress that may send on the link.

gapconn resend ──▶ {link}.resend.sqlite ──▶ Resends ──▶ the source's replay ──▶ repairs ──▶ fragmenter
                            ▲─── progress ───┘
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, ClassVar, Final, Protocol, TypeVar

import attrs
import trio
from structlog.typing import FilteringBoundLogger

from gapconn.bundle import Lost
from gapconn.config import Link, SourceSection
from gapconn.errors import GapconnError, LinkError, SourceError
from gapconn.plugins import Carries, Context
from gapconn.protocol.envelope import Copy, Span
from gapconn.record import Batch
from gapconn.repeats import Repeats
from gapconn.sources import Outlet
from gapconn.sources.replay import REPLAYS
from gapconn.store.database import StateStuckError
from gapconn.store.resends import ResendFile, ResendProgress, Wanted
from gapconn.throttle import ThrottledLog

LOOK_INTERVAL_S: Final = 0.5
"""How often the ingress looks whether there is something to send again, and says how far it is."""
GONE_NAMED_MAX: Final = 100
PROBLEMS_MAX: Final = 100
COPIES_MAX: Final = 100
"""Ranges of messages that are told to be gone in one message."""
NOT_KEPT: Final = "the repeat buffer of the ingress has it no more"


T = TypeVar("T")


class RepairOutlet(Protocol):
    """What `Resends` writes to: the ingress."""

    @property
    def batch_bytes(self) -> int:
        """As `gapconn.sources.Outlet` has it."""

    @property
    def batch_bytes_max(self) -> int:
        """As `gapconn.sources.Outlet` has it."""

    @property
    def held_by_monitor(self) -> bool:
        """Whether a monitor holds the ingress: nothing new is begun then, as the egress is away."""

    def take_missed(self) -> list[Span]:
        """What is to be sent again without anybody asking for it."""

    async def send_repair(self, batch: Batch | None, spans: Sequence[Span], on_sent: Callable[[], None]) -> None:
        """Send a repair; `on_sent` is called when the kernel has it."""

    async def send_copy(self, copies: Sequence[Copy], message: memoryview | None, on_sent: Callable[[], None]) -> None:
        """Send a message of an earlier session, or say that some are gone; `on_sent` is called as for a repair."""

    async def flush_repairs(self) -> None:
        """Wait until the kernel has taken every repair so far."""


def cannot_resend(source_type: str, *, buffered: bool = False) -> str | None:
    """Why a source of this type cannot send again, with a repeat buffer or without; None if it can."""
    if buffered or source_type in REPLAYS.names():
        return None
    return (
        f"the source {source_type!r} cannot be read a second time, and there is no [repeat_buffer] that would have kept"
        f" what was sent; these can: {', '.join(REPLAYS.names())}. Have the"
        " data sent once more by whoever sent it, and close the entries at the egress (gapconn gaps close)"
    )


class Resends:
    """Takes up the requests of one link, one after the other."""

    def __init__(self, file: ResendFile, section: SourceSection, *, link: Link, log: FilteringBoundLogger) -> None:
        self.repeats: Repeats | None = None
        """Where messages can be taken from to be sent again."""
        self.idle = trio.Event()
        """There is nothing to be sent again, or there was not."""
        self.records = 0
        """Records handed to the network."""
        self.messages = 0
        """Messages sent again from the repeat buffer."""
        self.positions_gone = 0
        """Positions of which the egress was told that they are gone."""
        self.current: int | None = None
        """Number of the request that is being done."""
        self._file = file
        self._section = section
        self._link = link
        self._log = log
        self._throttled = ThrottledLog(log)

    def as_source(self) -> SourceSection:
        """In place of the real source: one that ends when all requests are done."""
        return SourceSection(type="resend", config=self, plugin_class=_UntilIdle)

    async def run(self, outlet: RepairOutlet) -> None:
        """Do what is asked for until cancelled; what is not finished then is done again by the next ingress."""
        while True:
            if missed := outlet.take_missed():
                await self._ask(missed)
            if outlet.held_by_monitor:
                await trio.sleep(LOOK_INTERVAL_S)
                continue
            request = await self._use_file(self._file.next)
            if request is None:
                self.idle.set()
                await trio.sleep(LOOK_INTERVAL_S)
                continue
            number, wanted = request
            self.current = number
            job = _Job(self, number, wanted, outlet)
            self._log.info("resend_started", request=number)
            try:
                await job.run(self._section, self._context())
            except GapconnError as error:
                job.problems.append(str(error))
                job.state = "failed"
            await self.note(number, job.progress)
            told = {
                "request": number,
                "records": job.records,
                "messages": job.messages,
                "positions_gone": job.gone_count,
            }
            if job.problems:
                self._log.error("resend_incomplete", **told, problems=job.problems)
            else:
                self._log.info("resend_finished", **told)
            self.current = None

    async def _ask(self, spans: Sequence[Span]) -> None:
        """Ask for what the egress does not know that it misses."""
        try:
            number = await self._use_file(partial(self._file.add, Wanted(spans=spans, again=True)))
        except LinkError as error:
            self._log.error(
                "resend_not_asked", error=str(error), do="have it sent again by the commands that were logged"
            )
        else:
            self._log.warning("resend_asked", request=number, ranges=len(spans))

    async def note(self, number: int, progress: ResendProgress) -> None:
        """Say how far a request is."""
        await self._use_file(partial(self._file.note, number, progress))

    async def _use_file(self, call: Callable[[], T]) -> T:
        """Try until it can be done: what is wrong with the disk of the requests must not end the ingress."""
        while True:
            try:
                return await trio.to_thread.run_sync(call)
            except StateStuckError as stuck:
                self._throttled.warning("resend_file_stuck", error=str(stuck), effect="tried again; data flows on")
                await trio.sleep(LOOK_INTERVAL_S)

    def _context(self) -> Context:
        return Context(link=self._link.name, link_id=self._link.id, epoch=0, log=self._log)


@attrs.define(eq=False)
class _Job:
    """One request, and how far it is. It is the replay's outlet."""

    resends: Resends
    number: int
    wanted: Wanted
    outlet: RepairOutlet
    state: str = "running"
    records: int = 0
    messages: int = 0
    messages_wanted: int = 0
    messages_repeated: int = 0
    messages_gone: list[tuple[int, int, int, str]] = attrs.field(factory=list)
    positions: int = 0
    positions_wanted: int = 0
    gone: list[tuple[str, int, int, int, str]] = attrs.field(factory=list)
    gone_count: int = 0
    problems: list[str] = attrs.field(factory=list)

    @property
    def batch_bytes(self) -> int:
        return self.outlet.batch_bytes

    @property
    def batch_bytes_max(self) -> int:
        return self.outlet.batch_bytes_max

    @property
    def progress(self) -> ResendProgress:
        """What the operator is shown."""
        return ResendProgress(
            state=self.state,
            records=self.records,
            messages=self.messages,
            positions=self.positions,
            positions_wanted=self.positions_wanted,
            messages_wanted=self.messages_wanted,
            messages_repeated=self.messages_repeated,
            messages_gone=list(self.messages_gone),
            gone=list(self.gone),
            problems=list(self.problems),
        )

    async def run(self, section: SourceSection, context: Context) -> None:
        """Have the source replay it.

        Raises:
            GapconnError: it cannot.
        """
        by_position = section.type in REPLAYS.names()
        problem = cannot_resend(section.type, buffered=self.resends.repeats is not None and not self.wanted.between)
        if problem is not None:
            raise SourceError(problem)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._tell)
            try:
                if by_position:
                    await self._replay(section, context)
                elif self.resends.repeats is not None:
                    await self._repeat(self.resends.repeats)
                await self.outlet.flush_repairs()
            except GapconnError as error:  # not in a group: it is told in one line
                self.problems.append(str(error))
            nursery.cancel_scope.cancel()
        self.state = "failed" if self.problems else "done"

    async def _replay(self, section: SourceSection, context: Context) -> None:
        """Have the source read the records again, by their positions."""
        replay = REPLAYS.load(section.type)(section.config, context)
        spans = list(self.wanted.spans)
        between = self.wanted.between
        if between is not None:
            spans += await replay.between(between.stream, between.from_ms, between.to_ms)
        self.positions_wanted = sum(span.last - span.first + 1 for span in spans)
        await replay.run(spans, self)

    async def _repeat(self, repeats: Repeats) -> None:
        """Send the messages again from the repeat buffer: in this session as repeats, of another one as copies."""
        if self.wanted.spans and not self.wanted.messages:
            self.cannot_tell("the list names only positions of records, and this source cannot read them again")
        self.messages_wanted = sum(lost.last - lost.first + 1 for lost in self.wanted.messages)
        gone: list[Lost] = []
        for lost in self.wanted.messages:
            at = lost.first
            found = repeats.buffer.find(*lost)
            while (kept := await trio.to_thread.run_sync(next, found, None)) is not None:
                number = kept.sent.number
                if number < at:
                    continue
                if number > at:
                    gone.append(Lost(lost.epoch, at, number - 1))
                at = number + 1
                if lost.epoch == repeats.epoch:
                    await repeats.send_again(number, kept.message)
                    self._repeated()
                elif len(kept.message) > self.outlet.batch_bytes_max:
                    self.cannot_tell(
                        f"message {number} of session {lost.epoch}: {len(kept.message)} bytes are too many to be sent"
                        " inside of another message: raise link.message_bytes_max at both ends"
                    )
                else:
                    await self.outlet.send_copy([Copy(lost.epoch, number, number)], kept.message, self._repeated)
            if at <= lost.last:
                gone.append(Lost(lost.epoch, at, lost.last))
        for begin in range(0, len(gone), COPIES_MAX):
            await self._say_gone(gone[begin : begin + COPIES_MAX])

    def _repeated(self) -> None:
        self.messages += 1
        self.messages_repeated += 1
        self.resends.messages += 1

    async def _say_gone(self, gone: Sequence[Lost]) -> None:
        """Behind what is there: then nothing of it is taken for gone before it arrives."""

        def on_sent() -> None:
            self.messages += 1
            room = GONE_NAMED_MAX - len(self.messages_gone)
            self.messages_gone += [(*lost, NOT_KEPT) for lost in gone[: max(0, room)]]

        copies = [Copy(*lost, NOT_KEPT) for lost in gone]
        await self.outlet.send_copy(copies, None, on_sent)

    async def _tell(self) -> None:
        while True:
            await self.resends.note(self.number, self.progress)
            await trio.sleep(LOOK_INTERVAL_S)

    async def send_repair(self, batch: Batch | None, spans: Sequence[Span]) -> None:
        """What the replay found of some spans."""
        if self.wanted.again:
            spans = [Span(s.stream, s.partition, s.first, s.last, s.count, s.gone, True) for s in spans]
        count = batch.record_count if batch else 0

        def on_sent() -> None:
            self.messages += 1
            self.records += count
            self.resends.records += count
            self.positions += sum(span.last - span.first + 1 for span in spans)
            for span in spans:
                if span.gone:
                    gone = span.last - span.first + 1
                    self.gone_count += gone
                    self.resends.positions_gone += gone
                    if len(self.gone) < GONE_NAMED_MAX:
                        self.gone.append((span.stream, span.partition, span.first, span.last, span.gone))

        await self.outlet.send_repair(batch, spans, on_sent)

    def cannot_tell(self, problem: str) -> None:
        """Some of it is neither there nor gone."""
        if len(self.problems) < PROBLEMS_MAX:
            self.problems.append(problem)


class _UntilIdle:
    """A source without data, for an ingress that only sends again."""

    Config: ClassVar[type[Any]] = object
    carries: ClassVar[Carries] = Carries.RECORDS

    def __init__(self, config: Any, context: Context) -> None:
        self._resends: Resends = config

    async def run(self, outlet: Outlet) -> None:
        await self._resends.idle.wait()
