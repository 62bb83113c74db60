"""The egress: one nursery that takes datagrams out of the gap and hands the data to the sink.

    gap ══ receiver ──bursts──▶ reassembler ──deliveries──▶ (spool) ──▶ sink
                                     ▲ watchdog (time)

Each box is a task, each arrow is bounded. Where the receiver has taken all that the kernel held and the reassembler
waits for it, the receiver does its work at once. What a task decides about the protocol, it asks `LinkReceiver`. The
receiver never waits for the sink: what the sink does not take in time goes to disk (`SinkQueue`), and when that is
full, the newest messages are refused, counted and logged with their records. When the process is told to stop, it takes
what the kernel has received by then, and drains what it holds to the sink; what the sink does not take stays in the
spool.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import attrs
import structlog
import trio

from gapconn.config import Pair, SinkSection
from gapconn.errors import SinkError
from gapconn.events_log import EventLog
from gapconn.hangs import HangWatch
from gapconn.key_watch import KeyWatch
from gapconn.link.host import HostWatch
from gapconn.link.slabs import SlabPool
from gapconn.link.udp import RECEIVE_SLAB_BYTES, UdpReceiver
from gapconn.plugins import Context
from gapconn.progress import DeliveredSoFar, ProgressTracker
from gapconn.protocol.events import MessageDelivered, MessageSettled, MessagesLost
from gapconn.protocol.progress import Progress
from gapconn.protocol.receiver import LinkReceiver
from gapconn.protocol.registry import LossCause
from gapconn.protocol.security import Keys
from gapconn.protocol.wire import Burst, Slab
from gapconn.repair import claims_of, opened_copy
from gapconn.sink_queue import CALM_S, SinkQueue
from gapconn.sinks import Reached, Sink
from gapconn.store.database import StateStuckError
from gapconn.store.journal import Changes
from gapconn.store.spool import Spool
from gapconn.store.state import EgressState

ARRIVALS_HELD_MAX = 2
"""Filled slabs between receiver and reassembler; behind them the kernel's receive buffer takes over."""
SLABS = ARRIVALS_HELD_MAX + 2
WATCH_INTERVAL_S = 0.02
"""How late a timer may be noticed."""
LAST_RECEIVE_S = 1.0
"""How long an egress that was told to stop still takes what the kernel has received."""
CHECKPOINT_INTERVAL_S = 0.1
"""How often progress is stored; what a killed egress delivered since is reported as `while_away`, or delivered again if
it was in the spool."""
CHECKPOINTS_PER_LOOK = 5
"""After so many of them, the egress looks what operators want closed in the journal."""
HAND_OUT_SHARE = 0.5
"""Of the grace time. What is in the spool then is not begun any more, so that the sink can end what it has."""


@attrs.frozen
class _Arrival:
    """A slab with the bursts that were received into it."""

    slab: Slab
    bursts: list[Burst]


@attrs.define(kw_only=True, eq=False)
class OpenedSink:
    """A sink before its egress: it may know how far its target has come."""

    sink: Sink
    context: Context
    reached: Reached | None = None
    """What it says that its target has."""

    @classmethod
    def of(cls, pair: Pair, section: SinkSection) -> OpenedSink:
        """Make the sink of a pair."""
        log = structlog.get_logger().bind(link=pair.link.name, task="sink")
        context = Context(link=pair.link.name, link_id=pair.link.id, epoch=0, log=log)
        return cls(sink=section.plugin_class(section.config, context), context=context)

    @property
    def can_tell(self) -> bool:
        """Whether it is to be asked (gapconn.sinks.Sink)."""
        return hasattr(self.sink, "resume")

    async def resume(self) -> None:
        """Ask it how far its target has come."""
        ask: Callable[[], Awaitable[Reached | None]] = self.sink.resume  # type: ignore[attr-defined]  # see above
        self.reached = await ask()

    @property
    def delivered(self) -> tuple[int, int]:
        """Epoch and number of the first message that the target does not have."""
        progress = self.reached.progress if self.reached is not None else None
        return (progress.epoch, progress.next_message) if progress is not None else (0, 0)


class Egress:
    """One life of an egress. Its tasks are the methods of their names.

    Attributes:
        core: The receiving half of the protocol.
        socket: The way out of the gap.
        context: What the sink counts and says of itself.
        queue: What waits for the sink.
        delivered: How far each stream partition is known on disk to be delivered.
        hang: Whether the sink, or what comes before it, stands still.
        events: What happened, logged and counted.
        key_watch: The keys of a sealed link.
        host: What this host drops; None where nobody looks.
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
        key_watch: KeyWatch | None = None,
        spool: Spool | None = None,
        host: HostWatch | None = None,
        sink: OpenedSink | None = None,
    ) -> None:
        self.pair = pair
        self.key_watch = key_watch
        self.host = host
        self.core = core
        self.socket = udp
        self.stopping = False
        self.log = structlog.get_logger().bind(link=pair.link.name)
        opened = sink or OpenedSink.of(pair, section)
        self.context = opened.context
        self.sink_type = section.type
        self.started_at_s = trio.current_time()
        self.events = EventLog(self.log, state.journal)
        self.journal = state.journal
        # A gap that ends releases all that waited behind it at once. That was counted as reassembly memory before, so
        # it must not be what fills the queue.
        self.queue = SinkQueue(
            pair.link.sink_buffer_bytes + pair.link.reassembly_bytes_max,
            self.events,
            spool,
            head_bytes_max=pair.link.sink_buffer_bytes,
            after_s=pair.spool.after_s if pair.spool else 0.0,
            message_bytes_max=pair.link.message_bytes_max,
            note_losses=self._save_gaps,
            missed=core.miss,
            delivered=opened.delivered,
        )
        if spool is not None:
            self.events.spool_resumed(
                messages=self.queue.spooled, disk_bytes=spool.disk_bytes, cut_bytes=spool.cut_bytes
            )
        self.progress = ProgressTracker(resume)
        self.delivered = DeliveredSoFar(resume)
        self.hang = HangWatch(trio.current_time())
        self._state = state
        self._sink = opened.sink
        self._pool = SlabPool(SLABS, RECEIVE_SLAB_BYTES)
        self._arrivals_in, self._arrivals_out = trio.open_memory_channel[_Arrival](ARRIVALS_HELD_MAX)
        self._fulfilled: list[int] = []
        """Wishes of operators that were done and are to be taken off the list."""
        self._using_state = trio.Lock()
        self._state_stuck_at_s: float | None = None
        """When the state could not be stored for the last time."""
        self._lost_before = 0
        self._watching = trio.CancelScope()
        self._storing = trio.CancelScope()

    async def run(self) -> None:
        """All tasks, until it was asked to stop and everything held was handed to the sink."""
        try:
            async with trio.open_nursery() as nursery:
                for task in (self.receiver, self.reassembler, self.sink, self.spool, self.watchdog, self.checkpoint):
                    nursery.start_soon(task, name=f"egress.{task.__name__}")
        finally:
            # Also when it fails: what is known is told, what the sink did not take is kept, and what was delivered is
            # not called lost at the next start.
            self.events.tell_all()  # before a disk is used: it may hang or fail
            try:
                with trio.CancelScope(shield=True):
                    left = await self.queue.keep()
                    if left and self.queue.spool is not None:
                        self.log.error("spool_incomplete", messages=left, why=self.queue.trouble)
                    stuck = await self._save()
            finally:
                self.events.spool_kept(messages=self.queue.spooled, disk_bytes=self.queue.disk_bytes)
                self.events.tell_all()
        if stuck is not None:
            raise stuck

    # -- The tasks -------------------------------------------------------------------------------------------

    async def receiver(self) -> None:
        """Move what the kernel holds into slabs; when told to stop, until it holds nothing more, or keeps the rest."""
        async with self._arrivals_in:
            while not self.stopping:
                if self.socket.drained:
                    await self.socket.wait_readable()
                else:
                    await trio.lowlevel.checkpoint()
                await self._receive()
            until_s = trio.current_time() + LAST_RECEIVE_S
            if self.socket.passed:  # the rest waits there for the next process
                while not self._between_messages and trio.current_time() < until_s:
                    with trio.move_on_after(WATCH_INTERVAL_S):
                        await self.socket.wait_readable()
                    await self._receive()
            else:
                while await self._receive() and trio.current_time() < until_s:
                    await trio.lowlevel.checkpoint()

    @property
    def _between_messages(self) -> bool:
        """Whether no message is cut in two if nothing more is received."""
        # The reassembler waits: nothing is on its way to it, nor in its hands.
        return not self.core.held_messages and self._arrivals_out.statistics().tasks_waiting_receive > 0

    async def _receive(self) -> bool:
        """Move what the kernel holds, as much as a slab takes; whether it held anything.

        Where that was all, and the reassembler waits for it, a hop between tasks is saved: nothing else is delayed.
        """
        slab = await self._pool.take()
        arrival = _Arrival(slab, self.socket.receive(slab))
        if not arrival.bursts:
            self._pool.give(slab)
        elif self.socket.drained and self._arrivals_out.statistics().tasks_waiting_receive:
            self._reassemble(arrival)
            await trio.lowlevel.checkpoint()  # the sink has its turn before what has come meanwhile
        else:
            await self._arrivals_in.send(arrival)
        return bool(arrival.bursts)

    async def reassembler(self) -> None:
        """Make messages of bursts; behind the last burst, hand over what is complete."""
        async for arrival in self._arrivals_out:
            self._reassemble(arrival)
        self._watching.cancel()
        self.core.close(trio.current_time())
        self._handle_events()
        self.queue.close(trio.current_time() + HAND_OUT_SHARE * self.pair.link.shutdown_grace_s)

    def _reassemble(self, arrival: _Arrival) -> None:
        for burst in arrival.bursts:
            self.core.receive(burst, trio.current_time())
        self._pool.give(arrival.slab)
        self._handle_events()

    async def sink(self) -> None:
        """Run the sink until the queue is closed and empty."""
        self.log.info("sink_started", type=self.sink_type)
        await self._sink.run(self.queue)
        if not self.queue.drained:
            raise SinkError(f"the {self.sink_type} sink ended by itself")
        self.log.info("sink_drained", records=self.core.counters.records)
        self._storing.cancel()
        self.queue.finish()

    async def spool(self) -> None:
        """Move what the sink does not take in time to disk, and back."""
        await self.queue.work()

    async def watchdog(self) -> None:
        """Notice what is due by time: silence, missing messages."""
        with self._watching:
            while True:
                await trio.sleep(WATCH_INTERVAL_S)
                self.core.handle_timeout(trio.current_time())
                self._handle_events()
                self._watch_for_hangs()
                self.events.tell_gathered(trio.current_time())

    async def checkpoint(self) -> None:
        """Store the progress now and then, as long as the sink runs (GC-DLV-18); `run` does it once more at the end."""
        with self._storing:
            while True:
                for _ in range(CHECKPOINTS_PER_LOOK):
                    await trio.sleep(CHECKPOINT_INTERVAL_S)
                    if await self._save() is None:
                        self._watch_state()
                    self.queue.watch()
                await self._take_wishes()

    def _watch_for_hangs(self) -> None:
        now_s, queue = trio.current_time(), self.queue
        tries = sum(self.context.counters.values()) + queue.waits_to_note
        self.hang.saw_sink(now_s, queue.accepted, tries, idle=not queue.unaccepted)
        self.hang.saw_receiver(now_s, self.core.counters.datagrams, self.socket.has_waiting)

    @property
    def sink_stalled_s(self) -> float:
        """For how long the sink has accepted nothing although messages wait for it, in seconds."""
        return self.hang.sink_stalled_s(trio.current_time()) if self.queue.unaccepted else 0.0

    # -- What became of it -----------------------------------------------------------------------------------

    async def _save(self) -> StateStuckError | None:
        """Store what changed; why not, if that cannot be done now (GC-DLV-41)."""
        with trio.CancelScope(shield=True):  # what was taken out of the tracker is stored
            cursor = self.queue.cursor  # what is lost before it is in the journal by now
            try:
                await self._store(self.progress)
            except StateStuckError as stuck:
                return stuck
            # Behind the progress: an entry that is forgotten must not be needed to know how far it has come.
            if self.queue.committable:
                try:
                    await trio.to_thread.run_sync(self.queue.commit, cursor)
                except OSError as error:
                    self.events.spool_not_noted(str(error))
        return None

    async def _save_gaps(self) -> None:
        """Store what is missing, before the spool has what came behind it: that counts as progress (GC-RPR-1).

        Raises:
            StateStuckError: it cannot be stored now.
        """
        with trio.CancelScope(shield=True):
            await self._store(None)

    async def _store(self, tracker: ProgressTracker | None) -> None:
        """Store what changed in the journal, and in the progress if it is given.

        Raises:
            StateStuckError: it cannot be stored now. It is kept, and part of what is stored by the next call.
        """
        async with self._using_state:
            progress = tracker.take() if tracker is not None else None
            fulfilled, self._fulfilled = self._fulfilled, []
            gaps = Changes.of(self.journal, fulfilled)
            if progress is None and gaps is None:
                return
            try:
                await trio.to_thread.run_sync(self._state.save, progress, gaps)
            except StateStuckError as stuck:
                if tracker is not None and progress is not None:
                    tracker.give_back(progress)
                if gaps is not None:
                    gaps.give_back(self.journal)
                self._fulfilled = [*fulfilled, *self._fulfilled]
                self._state_is_stuck(stuck)
                raise
            if progress is not None:
                self.delivered.stored(progress)

    def _state_is_stuck(self, stuck: StateStuckError) -> None:
        self._state_stuck_at_s = trio.current_time()
        self.events.state_stuck("state_disk_full" if stuck.no_space else "state_failed", str(stuck))

    def _watch_state(self) -> None:
        """Clear the alarm when nothing was in the way of the state for a while."""
        if self._state_stuck_at_s is not None and trio.current_time() - self._state_stuck_at_s > CALM_S:
            self._state_stuck_at_s = None
            self.events.state_goes_on()

    async def _take_wishes(self) -> None:
        """Close what an operator wants closed."""
        async with self._using_state:
            try:
                wishes = await trio.to_thread.run_sync(self._state.wishes)
            except StateStuckError as stuck:
                self._state_is_stuck(stuck)
                return
        for number, entries, reason in wishes:
            if number in self._fulfilled:  # it stays on the list as long as that cannot be stored
                continue
            self.events.close_by_hand(entries, reason)
            self._fulfilled.append(number)

    def _handle_events(self) -> None:
        for event in self.core.take_events():
            if isinstance(event, MessageDelivered):
                self._hand_over(event)
            else:
                if isinstance(event, MessageSettled):
                    self.events.accounted(event.epoch)
                self.events.happened(event)
                self.progress.happened(event)
                if isinstance(event, MessagesLost):
                    self._lost_before += event.last - event.first + 1
        core = self.core
        if self.journal.unaccounted and core.accounted:
            self.events.accounted(core.session_epoch)
        if core.session_epoch:
            self.progress.known(core.session_epoch, core.messages_known, core.records_known, ended=core.ended)

    def _hand_over(self, message: MessageDelivered) -> None:
        if not (message.late or message.ahead):
            self.events.accounted(message.epoch)
        accept = self.progress.expect(message)
        if message.copies:
            self.events.source_has_no_more_messages(copy for copy in message.copies if copy.gone)
            message = opened_copy(message, self.journal)
        if message.spans or message.late or self.journal.is_lost(message.epoch, message.number):
            message = self._claim(message)
        if message.late:
            self.journal.comes(message)
        if not message.body and not message.record_count:  # it only told positions, or that there were no records
            self.events.accepted(message.epoch, message.number, message.claimed)
            accept()
        elif self.queue.offer(message, accept, self._lost_before):
            self._lost_before = 0
        else:
            self._lost_before += not message.late
            self.events.message_refused(message, LossCause.REFUSED, self.queue.refusal)
            self.core.miss(message.epoch, message.number)
            accept()

    def _claim(self, message: MessageDelivered) -> MessageDelivered:
        """Take from the journal what this message is to settle of it (GC-RPR-6, GC-RPR-7, GC-DLV-33)."""
        self.events.source_has_no_more(span for span in message.spans if span.gone)
        return attrs.evolve(message, claimed=claims_of(message, self.journal))

    def datagrams_missing(self) -> int:
        """Datagrams that are missing and never reached the socket."""
        return self.core.datagrams_missed - self.core.missed_unreadable - self.core.missed_here

    def use_keys(self, keys: Keys) -> None:
        """Open what arrives from now on with these keys."""
        self.core.use_keys(keys)

    def stop(self) -> None:
        """Ask for an orderly end."""
        self.stopping = True
        self.socket.wake()

    def unfinished(self) -> str | None:
        """What is not done, for an operator who reads that the grace time was spent; None if it is kept on disk."""
        if self.queue.spool is not None and not self.queue.trouble:
            return None
        kept = self.queue.spooled
        return (
            f"the sink did not accept {self.queue.unaccepted} messages; "
            + (f"{kept} are kept in the spool, and " if kept else "")
            + f"the next start reports {'the others' if kept else 'them'} as lost while it was away"
        )
