"""The egress: one nursery that takes datagrams out of the gap and hands the data to the sink.

    gap ══ receiver ──bursts──▶ reassembler ──deliveries──▶ sink
                                     ▲ watchdog (time)

Each box is a task, each arrow is bounded. What a task decides about the protocol, it asks `LinkReceiver`. The receiver
never waits for the sink: when the sink is slower than the link for too long, the newest messages are refused, counted
and logged with their records. When the process is told to stop, it takes what the kernel has received by then, and
drains what it holds to the sink.
"""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncIterator, Callable

import attrs
import structlog
import trio

from gapconn.config import Pair, SinkSection
from gapconn.errors import RemoteProtocolError, SinkError
from gapconn.events_log import EventLog
from gapconn.link.slabs import SlabPool
from gapconn.link.udp import RECEIVE_SLAB_BYTES, UdpReceiver
from gapconn.plugins import Context
from gapconn.progress import ProgressTracker
from gapconn.protocol.events import MessageDelivered, MessagesLost
from gapconn.protocol.receiver import LinkReceiver, Progress
from gapconn.protocol.registry import LossCause
from gapconn.protocol.wire import Burst, Slab
from gapconn.record import Batch, Chunk, Records, decode_batch
from gapconn.repair import claims_of, repaired_batch
from gapconn.sinks import Delivery
from gapconn.store.journal import Changes
from gapconn.store.state import EgressState

ARRIVALS_HELD_MAX = 2
"""Filled slabs between receiver and reassembler; behind them the kernel's receive buffer takes over."""
SLABS = ARRIVALS_HELD_MAX + 2
WAITING_OVERHEAD_BYTES = 1024
"""What a message that waits for the sink takes beside its body."""
WATCH_INTERVAL_S = 0.02
"""How late a timer may be noticed."""
LAST_RECEIVE_S = 1.0
"""How long an egress that was told to stop still takes what the kernel has received."""
CHECKPOINT_INTERVAL_S = 0.1
"""How often progress is stored; what a killed egress delivered since is reported as `while_away`."""
CHECKPOINTS_PER_LOOK = 5
"""After so many of them, the egress looks what operators want closed in the journal."""


@attrs.frozen
class _Arrival:
    """A slab with the bursts that were received into it."""

    slab: Slab
    bursts: list[Burst]


@attrs.frozen
class _Waiting:
    """A message that waits for the sink."""

    message: MessageDelivered
    accept: Callable[[], None]
    lost_before: int
    size_bytes: int


@attrs.define
class SinkQueue:
    """What waits for the sink: in order, bounded in bytes (gapconn.sinks.Inlet).

    Messages wait as they came: decoded, small records take several times their size.
    """

    bytes_max: int
    events: EventLog
    bytes: int = 0
    """Memory of what waits."""
    _waiting: deque[_Waiting] = attrs.field(factory=deque)
    _lost_before: int = 0
    _closed: bool = False
    _changed: trio.lowlevel.ParkingLot = attrs.field(factory=trio.lowlevel.ParkingLot)

    def offer(self, message: MessageDelivered, accept: Callable[[], None], lost_before: int) -> bool:
        """Take `message`, unless there is no room for it; a single one always has room."""
        size_bytes = len(message.body) + WAITING_OVERHEAD_BYTES
        if self._waiting and self.bytes + size_bytes > self.bytes_max:
            return False
        self._waiting.append(_Waiting(message, accept, lost_before, size_bytes))
        self.bytes += size_bytes
        self._changed.unpark_all()
        return True

    def close(self) -> None:
        """No more messages: the sink's loop ends behind those that wait."""
        self._closed = True
        self._changed.unpark_all()

    @property
    def drained(self) -> bool:
        """Whether it is closed and empty."""
        return self._closed and not self._waiting

    def __len__(self) -> int:
        return len(self._waiting)

    def __aiter__(self) -> AsyncIterator[Delivery]:
        # Not an async generator: a sink may leave its loop at any time, and those must be closed.
        return self

    async def __anext__(self) -> Delivery:
        await trio.lowlevel.checkpoint_if_cancelled()
        while True:
            while not self._waiting:
                if self._closed:
                    raise StopAsyncIteration
                await self._changed.park()
            waiting = self._waiting.popleft()
            self.bytes -= waiting.size_bytes
            self._lost_before += waiting.lost_before
            try:
                batch = self._batch(waiting.message)
            except RemoteProtocolError as error:
                self.events.message_refused(waiting.message, LossCause.DAMAGED, str(error))
                self._lost_before += 1
                waiting.accept()
                continue
            if not batch.parts:  # all of it was delivered before
                waiting.accept()
                continue
            lost_before, self._lost_before = self._lost_before, 0
            return Delivery(
                epoch=waiting.message.epoch,
                message=waiting.message.number,
                lost_before=lost_before,
                batch=batch,
                repair=bool(waiting.message.spans),
                accept=waiting.accept,
            )

    def _batch(self, message: MessageDelivered) -> Batch:
        batch = decode_batch(message.body)
        if message.spans:
            repaired = repaired_batch(batch, message)
            for part in repaired.parts:
                assert isinstance(part, Records)
                self.events.records_repaired(part.stream, part.partition, len(part.positions))
            return repaired
        return self._without_delivered(batch, message) if message.already_delivered else batch

    def _without_delivered(self, batch: Batch, message: MessageDelivered) -> Batch:
        """The batch without the records that an ingress sent again (GC-DLV-15)."""
        parts: list[Records | Chunk] = []
        for part in batch.parts:
            delivered = (
                message.already_delivered.get((part.stream, part.partition)) if isinstance(part, Records) else None
            )
            if delivered is None or not isinstance(part, Records):
                parts.append(part)
                continue
            rest = part.after(delivered)
            self.events.duplicates_dropped(part.stream, part.partition, len(part.positions) - len(rest.positions))
            if rest.positions:
                parts.append(rest)
        return Batch(origin=batch.origin, parts=parts)

    def lost(self, *, stream: str, partition: int | None = None, first: int, last: int, reason: str) -> None:
        """The sink reports what will never reach the target."""
        self.events.sink_lost(stream=stream, partition=partition, first=first, last=last, reason=reason)


class Egress:
    """One life of an egress. Its tasks are the methods of their names.

    Attributes:
        core: The receiving half of the protocol.
        socket: The way out of the gap.
        context: What the sink counts and says of itself.
        queue: What waits for the sink.
        events: What happened, logged and counted.
        stopping: Whether it was asked to stop.
    """

    def __init__(
        self,
        pair: Pair,
        section: SinkSection,
        core: LinkReceiver,
        udp: UdpReceiver,
        state: EgressState,
        *,
        resume: Progress | None,
    ) -> None:
        self.pair = pair
        self.core = core
        self.socket = udp
        self.stopping = False
        self.log = structlog.get_logger().bind(link=pair.link.name)
        self.context = Context(link=pair.link.name, link_id=pair.link.id, epoch=0, log=self.log.bind(task="sink"))
        self.sink_type = section.type
        self.started_at_s = trio.current_time()
        self.events = EventLog(self.log, state.journal)
        self.journal = state.journal
        # A gap that ends releases all that waited behind it at once. That was counted as reassembly memory before, so
        # it must not be what fills the queue.
        self.queue = SinkQueue(pair.link.sink_buffer_bytes + pair.link.reassembly_bytes_max, self.events)
        self.progress = ProgressTracker(resume)
        self._state = state
        self._sink = section.plugin_class(section.config, self.context)
        self._pool = SlabPool(SLABS, RECEIVE_SLAB_BYTES)
        self._arrivals_in, self._arrivals_out = trio.open_memory_channel[_Arrival](ARRIVALS_HELD_MAX)
        self._fulfilled: list[int] = []
        """Wishes of operators that were done and are to be taken off the list."""
        self._lost_before = 0
        self._accepted_before = 0
        self._sink_moved_at_s = trio.current_time()
        self._listening = trio.CancelScope()
        self._watching = trio.CancelScope()
        self._storing = trio.CancelScope()

    async def run(self) -> None:
        """All tasks, until it was asked to stop and everything held was handed to the sink."""
        try:
            async with trio.open_nursery() as nursery:
                for task in (self.receiver, self.reassembler, self.sink, self.watchdog, self.checkpoint):
                    nursery.start_soon(task, name=f"egress.{task.__name__}")
        finally:
            # Also when it fails: what is known is told, and what was delivered is not called lost at the next start.
            self.events.tell_all()
            await self._save()

    # -- The tasks -------------------------------------------------------------------------------------------

    async def receiver(self) -> None:
        """Move what the kernel holds into slabs; when told to stop, until it holds nothing more."""
        async with self._arrivals_in:
            while not self.stopping:
                with trio.CancelScope() as self._listening:
                    await self.socket.wait_readable()
                await self._receive()
            until_s = trio.current_time() + LAST_RECEIVE_S
            while await self._receive() and trio.current_time() < until_s:
                pass

    async def _receive(self) -> bool:
        """Move what the kernel holds, as much as a slab takes; whether it held anything."""
        slab = await self._pool.take()
        bursts = self.socket.receive(slab)
        if bursts:
            await self._arrivals_in.send(_Arrival(slab, bursts))
        else:
            self._pool.give(slab)
        return bool(bursts)

    async def reassembler(self) -> None:
        """Make messages of bursts; behind the last burst, hand over what is complete."""
        async for arrival in self._arrivals_out:
            for burst in arrival.bursts:
                self.core.receive(burst, trio.current_time())
            self._pool.give(arrival.slab)
            self._handle_events()
        self._watching.cancel()
        self.core.close(trio.current_time())
        self._handle_events()
        self.queue.close()

    async def sink(self) -> None:
        """Run the sink until the queue is closed and empty."""
        self.log.info("sink_started", type=self.sink_type)
        await self._sink.run(self.queue)
        if not self.queue.drained:
            raise SinkError(f"the {self.sink_type} sink ended by itself")
        self.log.info("sink_drained", records=self.core.counters.records)
        self._storing.cancel()

    async def watchdog(self) -> None:
        """Notice what is due by time: silence, missing messages."""
        with self._watching:
            while True:
                await trio.sleep(WATCH_INTERVAL_S)
                self.core.handle_timeout(trio.current_time())
                self._handle_events()
                self._watch_sink()
                self.events.tell_gathered(trio.current_time())

    async def checkpoint(self) -> None:
        """Store the progress now and then, as long as the sink runs (GC-DLV-18); `run` does it once more at the end."""
        with self._storing:
            while True:
                for _ in range(CHECKPOINTS_PER_LOOK):
                    await trio.sleep(CHECKPOINT_INTERVAL_S)
                    await self._save()
                await self._take_wishes()

    def _watch_sink(self) -> None:
        accepted = self.progress.accepted
        if accepted != self._accepted_before or not self.progress.waiting:
            self._accepted_before = accepted
            self._sink_moved_at_s = trio.current_time()

    @property
    def sink_stalled_s(self) -> float:
        """For how long the sink has accepted nothing although messages wait for it, in seconds."""
        return trio.current_time() - self._sink_moved_at_s if self.progress.waiting else 0.0

    # -- What became of it -----------------------------------------------------------------------------------

    async def _save(self) -> None:
        with trio.CancelScope(shield=True):  # what was taken out of the tracker is stored
            progress, gaps = self.progress.take(), Changes.of(self.journal, self._fulfilled)
            if progress is not None or gaps is not None:
                self._fulfilled = []
                await trio.to_thread.run_sync(self._state.save, progress, gaps)

    async def _take_wishes(self) -> None:
        """Close what an operator wants closed."""
        for number, entries, reason in await trio.to_thread.run_sync(self._state.wishes):
            self.events.close_by_hand(entries, reason)
            self._fulfilled.append(number)

    def _handle_events(self) -> None:
        for event in self.core.take_events():
            if isinstance(event, MessageDelivered):
                self._hand_over(event)
            else:
                self.events.happened(event)
                self.progress.happened(event)
                if isinstance(event, MessagesLost):
                    self._lost_before += event.last - event.first + 1
        core = self.core
        if self.journal.unaccounted and core.accounted:
            self.journal.accounted(core.session_epoch)
        if core.session_epoch:
            self.progress.known(core.session_epoch, core.messages_known, core.records_known, ended=core.ended)

    def _hand_over(self, message: MessageDelivered) -> None:
        if self.journal.unaccounted:
            self.journal.accounted(message.epoch)
        accept = self.progress.expect(message)
        if message.spans:
            message, accept = self._claim(message, accept)
        if not message.body and not message.record_count:  # it only told positions
            accept()
        elif self.queue.offer(message, accept, self._lost_before):
            self._lost_before = 0
        else:
            self._lost_before += 1
            self.events.message_refused(
                message, LossCause.REFUSED, "the sink is slow, and link.sink_buffer_bytes are held for it"
            )
            accept()

    def _claim(
        self, message: MessageDelivered, accept: Callable[[], None]
    ) -> tuple[MessageDelivered, Callable[[], None]]:
        """Take from the journal what this message is to settle of it (GC-RPR-6, GC-RPR-7)."""
        self.events.source_has_no_more(span for span in message.spans if span.gone)
        claims = claims_of(message, self.journal)
        if not claims:
            return message, accept
        claimed = attrs.evolve(message, claimed=claims)

        def accept_and_close() -> None:
            self.events.repair_accepted(claims)
            accept()

        return claimed, accept_and_close

    def stop(self) -> None:
        """Ask for an orderly end."""
        self.stopping = True
        self._listening.cancel()

    def unfinished(self) -> str:
        """What is not done, for an operator who reads that the grace time was spent."""
        return (
            f"the sink did not accept {self.progress.waiting} messages; the next start reports them as lost while it "
            "was away"
        )
