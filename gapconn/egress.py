"""The egress: one nursery that takes datagrams out of the gap and hands the data to the sink.

    gap ══ receiver ──bursts──▶ reassembler ──deliveries──▶ sink
                                     ▲ watchdog (time)

Each box is a task, each arrow is bounded. What a task decides about the protocol, it asks `LinkReceiver`. The receiver
never waits for the sink: when the sink is slower than the link for too long, the newest messages are refused, counted
and logged with their records. When the process is told to stop, it stops listening and drains what it holds to the
sink.
"""

from __future__ import annotations

import signal
from collections import deque
from collections.abc import AsyncIterator
from pathlib import Path

import attrs
import structlog
import trio

from gapconn.admin.egress_view import EgressView
from gapconn.admin.server import serve_admin
from gapconn.config import Pair, SinkSection
from gapconn.errors import ConfigError, LinkError, RemoteProtocolError, SinkError
from gapconn.events_log import EventLog
from gapconn.link.slabs import SlabPool
from gapconn.link.udp import RECEIVE_SLAB_BYTES, UdpReceiver, resolve
from gapconn.plugins import Context
from gapconn.progress import ProgressTracker
from gapconn.protocol.events import MessageDelivered, MessagesLost
from gapconn.protocol.receiver import LinkReceiver, ReceiverSettings
from gapconn.protocol.registry import LossCause
from gapconn.protocol.wire import Burst, Slab
from gapconn.record import Batch, Records, decode_batch
from gapconn.sinks import Delivery
from gapconn.store.state import EgressState
from gapconn.units import format_bytes

ARRIVALS_HELD_MAX = 2
"""Filled slabs between receiver and reassembler; behind them the kernel's receive buffer takes over."""
SLABS = ARRIVALS_HELD_MAX + 2
WATCH_INTERVAL_S = 0.02
"""How late a timer may be noticed."""
CHECKPOINT_INTERVAL_S = 0.1
"""How often progress is stored; what a killed egress delivered since is reported as `while_away`."""


@attrs.frozen
class _Arrival:
    """A slab with the bursts that were received into it."""

    slab: Slab
    bursts: list[Burst]


@attrs.define
class SinkQueue:
    """What waits for the sink: in order, bounded in bytes (gapconn.sinks.Inlet)."""

    bytes_max: int
    events: EventLog
    bytes: int = 0
    _held: deque[tuple[Delivery, int]] = attrs.field(factory=deque)
    _closed: bool = False
    _changed: trio.lowlevel.ParkingLot = attrs.field(factory=trio.lowlevel.ParkingLot)

    def offer(self, delivery: Delivery, size_bytes: int) -> bool:
        """Take `delivery`, unless it does not fit; a single one always does."""
        if self._held and self.bytes + size_bytes > self.bytes_max:
            return False
        self._held.append((delivery, size_bytes))
        self.bytes += size_bytes
        self._changed.unpark_all()
        return True

    def close(self) -> None:
        """No more deliveries: the sink's loop ends behind those that are held."""
        self._closed = True
        self._changed.unpark_all()

    @property
    def drained(self) -> bool:
        """Whether it is closed and empty."""
        return self._closed and not self._held

    def __len__(self) -> int:
        return len(self._held)

    async def __aiter__(self) -> AsyncIterator[Delivery]:
        while True:
            while self._held:
                delivery, size_bytes = self._held.popleft()
                self.bytes -= size_bytes
                yield delivery
            if self._closed:
                return
            await self._changed.park()

    def lost(self, *, stream: str, first: int, last: int, reason: str) -> None:
        """The sink reports what will never reach the target."""
        self.events.sink_lost(stream=stream, first=first, last=last, reason=reason)


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
        self, pair: Pair, section: SinkSection, core: LinkReceiver, udp: UdpReceiver, state: EgressState
    ) -> None:
        self.pair = pair
        self.core = core
        self.socket = udp
        self.stopping = False
        self.log = structlog.get_logger().bind(link=pair.link.name)
        self.context = Context(link=pair.link.name, link_id=pair.link.id, epoch=0, log=self.log.bind(task="sink"))
        self.sink_type = section.type
        self.started_at_s = trio.current_time()
        self.events = EventLog(self.log)
        # A gap that ends releases all that waited behind it at once. That was counted as reassembly memory before, so
        # it must not be what fills the queue.
        self.queue = SinkQueue(pair.link.sink_buffer_bytes + pair.link.reassembly_bytes_max, self.events)
        self.progress = ProgressTracker()
        self._state = state
        self._sink = section.plugin_class(section.config, self.context)
        self._pool = SlabPool(SLABS, RECEIVE_SLAB_BYTES)
        self._arrivals_in, self._arrivals_out = trio.open_memory_channel[_Arrival](ARRIVALS_HELD_MAX)
        self._lost_before = 0
        self._listening = trio.CancelScope()
        self._watching = trio.CancelScope()

    async def run(self) -> None:
        """All tasks, until it was asked to stop and everything held was handed to the sink."""
        async with trio.open_nursery() as nursery:
            for task in (self.receiver, self.reassembler, self.sink, self.watchdog, self.checkpoint):
                nursery.start_soon(task, name=f"egress.{task.__name__}")

    # -- The tasks -------------------------------------------------------------------------------------------

    async def receiver(self) -> None:
        """Move what the kernel holds into slabs."""
        async with self._arrivals_in:
            with self._listening:
                while True:
                    slab = await self._pool.take()
                    bursts = await self.socket.receive(slab)
                    await self._arrivals_in.send(_Arrival(slab, bursts))

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
        if not self.stopping:
            raise SinkError(f"the {self.sink_type} sink ended by itself")
        self.events.tell_all()
        self.log.info("sink_drained", records=self.core.counters.records)

    async def watchdog(self) -> None:
        """Notice what is due by time: silence, missing messages."""
        with self._watching:
            while True:
                await trio.sleep(WATCH_INTERVAL_S)
                self.core.handle_timeout(trio.current_time())
                self._handle_events()
                self.events.tell_gathered(trio.current_time())

    async def checkpoint(self) -> None:
        """Store the progress now and then, and once more at the end (GC-DLV-18)."""
        while not (self.queue.drained and self.progress.settled):
            await trio.sleep(CHECKPOINT_INTERVAL_S)
            await self._save()
        await self._save()

    # -- What became of it -----------------------------------------------------------------------------------

    async def _save(self) -> None:
        save = self.progress.take()
        if save is not None:
            await trio.to_thread.run_sync(
                self._state.save, save.epoch, save.next_message, save.next_record, save.positions
            )

    def _handle_events(self) -> None:
        for event in self.core.take_events():
            if isinstance(event, MessageDelivered):
                self._hand_over(event)
            else:
                self.events.happened(event)
                if isinstance(event, MessagesLost):
                    self._lost_before += event.last - event.first + 1
                    self.progress.settle(event.epoch, event.last + 1)

    def _hand_over(self, message: MessageDelivered) -> None:
        accept = self.progress.expect(message)
        if not message.body:
            accept()
            return
        try:
            batch = decode_batch(message.body)
        except RemoteProtocolError as error:
            self.events.message_refused(message, LossCause.DAMAGED, str(error))
            accept()
            return
        if message.already_delivered:
            batch = self._without_delivered(batch, message)
        delivery = Delivery(
            epoch=message.epoch, message=message.number, lost_before=self._lost_before, batch=batch, accept=accept
        )
        if self.queue.offer(delivery, len(message.body)):
            self._lost_before = 0
        else:
            self._lost_before += 1
            self.events.message_refused(
                message, LossCause.REFUSED, "the sink is slow, and link.sink_buffer_bytes are held for it"
            )
            accept()

    def _without_delivered(self, batch: Batch, message: MessageDelivered) -> Batch:
        """The batch without the records that an ingress sent again (GC-DLV-15)."""
        parts = []
        for part in batch.parts:
            position = (
                message.already_delivered.get((part.stream, part.partition)) if isinstance(part, Records) else None
            )
            if position is None or not isinstance(part, Records):
                parts.append(part)
                continue
            rest = part.after(position)
            self.events.duplicates_dropped(part.stream, part.partition, len(part.positions) - len(rest.positions))
            if rest.positions:
                parts.append(rest)
        return Batch(origin=batch.origin, parts=parts)

    def stop(self) -> None:
        """Ask for an orderly end."""
        self.stopping = True
        self._listening.cancel()


async def serve_egress(pair: Pair) -> None:
    """Run the egress of `pair` until a signal asks it to stop.

    Raises:
        GapconnError: it cannot start, or cannot go on.
    """
    if pair.sink is None:
        raise ConfigError(["[sink]: the section is missing, and the egress needs it"])
    log = structlog.get_logger().bind(link=pair.link.name)
    family, listen = await resolve(pair.link.listen)
    state = await trio.to_thread.run_sync(
        EgressState.open, Path(pair.link.state_directory), pair.link.name, pair.link.id
    )
    try:
        resume = await trio.to_thread.run_sync(state.load)
        udp = UdpReceiver(family, listen, log=log.bind(task="receiver"), buffer_bytes=pair.link.receive_buffer_bytes)
        try:
            core = LinkReceiver(
                ReceiverSettings(
                    link_id=pair.link.id,
                    interruption_timeout_s=pair.link.interruption_timeout_s,
                    reorder_timeout_s=pair.link.reorder_timeout_s,
                    reassembly_bytes_max=pair.link.reassembly_bytes_max,
                    message_bytes_max=pair.link.message_bytes_max,
                ),
                now_s=trio.current_time(),
                resume=resume,
            )
            log.info(
                "egress_started",
                listening=str(udp.address),
                link_id=pair.link.id,
                receive_buffer=format_bytes(udp.buffer_bytes),
                receive_offload=udp.gro,
                resumes_epoch=resume.epoch if resume else None,
            )
            await _run_until_stopped(Egress(pair, pair.sink, core, udp, state))
        finally:
            udp.close()
    finally:
        state.close()


async def _run_until_stopped(egress: Egress) -> None:
    with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_stop_on_signal, egress, signals, name="egress.signals")
            if egress.pair.admin is not None:
                bound = await nursery.start(serve_admin, egress.pair.admin.listen, EgressView(egress))
                egress.log.info("admin_listening", address=str(bound))
            await egress.run()
            nursery.cancel_scope.cancel()


async def _stop_on_signal(egress: Egress, signals: AsyncIterator[int]) -> None:
    grace_s = egress.pair.link.shutdown_grace_s
    async for number in signals:
        egress.log.info("stopping", signal=signal.Signals(number).name, grace_s=grace_s)
        egress.stop()
        await trio.sleep(grace_s)
        raise LinkError(
            f"the sink did not take everything within link.shutdown_grace ({grace_s:g} s): {len(egress.queue)} "
            "messages were not handed over; the next start reports them as lost while it was away"
        )
