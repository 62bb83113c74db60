"""The ingress: one nursery that takes data from the source and sends it into the gap.

    source ────batches──▶ fragmenter ──volleys──▶ sender ══ gap
    resender ──repairs──────┘     heartbeat ──volleys──┘     │
                            keeper ──▶ disk ──▶ repeater ────┘ only while the others are idle

Each box is a task, each arrow a bounded memory channel: a slow link slows the source down. Where the tasks behind an
arrow are idle, a small batch need not wait for their turn: the task before does their work. What a task decides about
the protocol, it asks `LinkSender`. When the process is told to stop, the source stops reading, what is held is sent,
the source acknowledges it, and Shutdown is the last thing that is said.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence

import attrs
import structlog
import trio
from trio_util import AsyncBool

from gapconn.config import Link, Pair, SourceSection
from gapconn.errors import LocalProtocolError, SourceError
from gapconn.key_watch import KeyWatch
from gapconn.link.host import HostWatch
from gapconn.link.pacing import Pacer
from gapconn.link.slabs import SlabPool
from gapconn.link.udp import UdpSender
from gapconn.offload import run_long
from gapconn.pauses import Pauses
from gapconn.plugins import Context
from gapconn.protocol.compression import Compressor
from gapconn.protocol.envelope import MESSAGE_OVERHEAD_BYTES, Copy, Run, Span
from gapconn.protocol.registry import Compression
from gapconn.protocol.security import Keys
from gapconn.protocol.sender import LinkSender
from gapconn.protocol.states import SenderState
from gapconn.protocol.wire import ROWS_MAX, SLAB_BYTES, Burst, Slab
from gapconn.record import Batch, Records, encode_batch
from gapconn.repeats import Repeats, Wish
from gapconn.resend import Resends

BATCHES_HELD_MAX = 4
"""Batches between source and fragmenter: enough to overlap the two, few enough to keep memory and latency low."""
VOLLEY_BURSTS_MAX = 6
"""Bursts that travel together: a hop between tasks is paid once for all of them."""
VOLLEYS_HELD_MAX = 1
SMALL_BATCH_RECORDS = 16
SMALL_BATCH_BYTES = 8192
"""Up to here a batch may be passed through at once: it makes a burst or two, and slabs for a volley are free then."""
BUSY_NAP_S = 0.002
"""How often the repeater looks whether the link is idle."""
SLABS = VOLLEY_BURSTS_MAX * (VOLLEYS_HELD_MAX + 2)
"""One volley being built, those held, and one being sent."""


@attrs.frozen
class _Queued:
    """A batch on its way from the source; or nothing, to learn when everything before it was sent."""

    batch: Batch | None
    on_sent: Callable[[], None] | None
    spans: Sequence[Span] = ()
    """What a repair settles."""
    copies: Sequence[Copy] = ()
    """What a copy settles."""
    copied: memoryview | None = None
    """The message that is copied; None if those are gone."""

    @property
    def empty(self) -> bool:
        """Whether nothing is to be sent."""
        return self.batch is None and not self.spans and not self.copies


@attrs.frozen
class _Volley:
    """Bursts to be sent directly after each other."""

    bursts: list[Burst]
    pooled: bool
    """Whether the slabs belong to the pool."""
    on_sent: Callable[[], None] | None = None
    """To be called when the kernel took them."""


def batch_bytes_at(link: Link) -> int:
    """Size to aim for: as configured, but at a low rate no more than a quarter of a heartbeat interval carries."""
    if not link.rate_bps:
        return link.batch_bytes
    return min(link.batch_bytes, max(1024, int(link.rate_bps * link.heartbeat_interval_s / 4 / 8)))


def burst_datagrams_at(link: Link) -> int:
    """Datagrams per burst: as many as possible, but at a low rate no more than 1/16 of a heartbeat interval carries."""
    if not link.rate_bps:
        return ROWS_MAX
    return max(1, min(ROWS_MAX, int(link.rate_bps * link.heartbeat_interval_s / 16 / 8 / link.mtu_bytes)))


def _is_small(batch: Batch) -> bool:
    """Whether it is told at a glance that all of `batch` takes a few datagrams."""
    if len(batch.parts) != 1:
        return not batch.parts
    (part,) = batch.parts
    values = part.values if isinstance(part, Records) else [part.data]
    return len(values) <= SMALL_BATCH_RECORDS and sum(len(value or b"") for value in values) <= SMALL_BATCH_BYTES


class Ingress:
    """One ingress session, from StartUp to Shutdown. Its tasks are the methods of their names.

    Attributes:
        core: The sending half of the protocol.
        socket: The way into the gap.
        context: What the source counts and says of itself.
        key_watch: The keys of a sealed link.
        resends: What operators want sent again; None where nobody can ask.
        repeats: What is kept to be sent again; None where nothing is.
        host: What this host drops; None where nobody looks.
        pauses: Who holds it.
        at_rest: Whether the source stands still because somebody holds it.
        stopping: Whether it was asked to stop.
    """

    def __init__(
        self,
        pair: Pair,
        section: SourceSection,
        core: LinkSender,
        udp: UdpSender,
        *,
        header_bytes: int,
        key_watch: KeyWatch | None = None,
        resends: Resends | None = None,
        repeats: Repeats | None = None,
        host: HostWatch | None = None,
        pauses: Pauses | None = None,
        sleep_until: Callable[[float], Awaitable[None]] = trio.sleep_until,
    ) -> None:
        self.pair = pair
        self.key_watch = key_watch
        self.host = host
        self.core = core
        self.socket = udp
        self.stopping = False
        self.log = structlog.get_logger().bind(link=pair.link.name)
        self.context = Context(
            link=pair.link.name, link_id=pair.link.id, epoch=core.settings.epoch, log=self.log.bind(task="source")
        )
        self.source_type = section.type
        self.started_at_s = trio.current_time()
        self._handed_over = 0
        self._source = section.plugin_class(section.config, self.context)
        compression = Compression[pair.link.compression.upper()]
        self._compressor = Compressor(compression, pair.link.compression_level) if compression else None
        self._plain = bytearray()
        """The body of a message before it is compressed."""
        self._pacer = Pacer(pair.link.rate_bps, header_bytes=header_bytes, mtu_bytes=pair.link.mtu_bytes)
        self._sleep_until = sleep_until
        self._pool = SlabPool(SLABS, SLAB_BYTES)
        self._batches_in, self._batches_out = trio.open_memory_channel[_Queued](BATCHES_HELD_MAX)
        self._volleys_in, self._volleys_out = trio.open_memory_channel[_Volley](VOLLEYS_HELD_MAX)
        self._volley_bursts = max(1, VOLLEY_BURSTS_MAX * burst_datagrams_at(pair.link) // ROWS_MAX)
        self._active = trio.Event()
        self._source_scope = trio.CancelScope()
        self._source_running = trio.CancelScope()
        self.pauses = pauses or Pauses()
        self.at_rest = AsyncBool(False)
        self.resends = resends
        self._resending = trio.CancelScope()
        self._repairs_in = self._batches_in
        self.repeats = repeats
        if resends is not None:
            resends.repeats = repeats
        if repeats is not None:
            core.keep = repeats.keep
        self._repeating = trio.CancelScope()
        self._nap = trio.CancelScope()

    # -- What the source sees (gapconn.sources.Outlet) -------------------------------------------------------

    @property
    def batch_bytes(self) -> int:
        """Size of a batch to aim for."""
        return batch_bytes_at(self.pair.link)

    @property
    def batch_bytes_max(self) -> int:
        """Size that an encoded batch must not exceed: the message limit, less the envelope and room for positions."""
        return self.pair.link.message_bytes_max - MESSAGE_OVERHEAD_BYTES - 8192

    @property
    def flush_timeout_s(self) -> float:
        """How long a source may take to say goodbye."""
        return self.pair.link.shutdown_grace_s

    async def send(self, batch: Batch, on_sent: Callable[[], None] | None = None) -> None:
        """Take a batch from the source."""
        if self._idle and _is_small(batch):
            await trio.lowlevel.checkpoint_if_cancelled()
            self._pass_through(batch, on_sent)
            await trio.lowlevel.cancel_shielded_checkpoint()
        else:
            await self._batches_in.send(_Queued(batch, on_sent))
        self._handed_over += 1

    async def flush(self) -> None:
        """Wait until the kernel has taken everything handed over so far."""
        # Asked through the channels, which keep the order. Counts would have to know of a batch whose sending was
        # cancelled, and of those that wait for a place.
        sent = trio.Event()
        await self._batches_in.send(_Queued(None, sent.set))
        await sent.wait()

    # -- What a replay sees, beside that (gapconn.resend.RepairOutlet) ----------------------------------------

    async def send_repair(self, batch: Batch | None, spans: Sequence[Span], on_sent: Callable[[], None]) -> None:
        """Take a repair; `on_sent` is called when the kernel has it."""
        await self._repairs_in.send(_Queued(batch, on_sent, spans))

    async def send_copy(self, copies: Sequence[Copy], message: memoryview | None, on_sent: Callable[[], None]) -> None:
        """Take a message of an earlier session, or which ones are gone; `on_sent` is called when the kernel has it."""
        await self._repairs_in.send(_Queued(None, on_sent, copies=copies, copied=message))

    @property
    def held_by_monitor(self) -> bool:
        """Whether a monitor holds it: its egress is away, and what is sent is sent in vain."""
        return any(not hold.of_person for hold in self.pauses.holds)

    def take_missed(self) -> list[Span]:
        """What the source has sent in vain and could not go back to (GC-DLV-39), since this was asked last."""
        take_missed: Callable[[], list[Span]] | None = getattr(self._source, "take_missed", None)
        return [] if take_missed is None else take_missed()

    async def flush_repairs(self) -> None:
        """Wait until the kernel has taken every repair so far."""
        sent = trio.Event()
        await self._repairs_in.send(_Queued(None, sent.set))
        await sent.wait()

    # -- The tasks -------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """All tasks, until the session is over."""
        async with trio.open_nursery() as nursery:
            tasks = [self.source, self.resender, self.fragmenter, self.sender, self.heartbeat]
            if self.repeats is not None:
                tasks += [self.keeper, self.repeater]
            for task in tasks:
                nursery.start_soon(task, name=f"ingress.{task.__name__}")

    async def source(self) -> None:
        """Run the source as soon as data may be sent, until it ends or is told to stop."""
        async with self._batches_in:
            with self._source_scope:
                await self._active.wait()
                while not await self._run_source():
                    await self._rest()
            self._resending.cancel()
            self.log.info("source_stopped" if self.stopping else "source_ended", batches=self._handed_over)

    async def _run_source(self) -> bool:
        """Run the source until it ends by itself; False as soon as somebody holds it."""
        if not self.pauses.running.value:
            return False
        self.log.info("source_started", type=self.source_type)
        with trio.CancelScope() as self._source_running:
            await self._source.run(self)
        return not self._source_running.cancelled_caught

    async def _rest(self) -> None:
        """Take nothing from the source as long as somebody holds it; the session goes on (GC-SESS-17)."""
        await self.flush()
        self.core.paused = True
        self.at_rest.value = True
        self.log.warning("source_paused", holds={hold.owner: hold.reason for hold in self.pauses.holds})
        await self.pauses.running.wait_value(True)
        self.core.paused = False
        self.at_rest.value = False

    def hold(self, owner: str, reason: str, positions: Mapping[str, int] | None = None) -> None:
        """Have the source stop until `owner`, and whoever else holds it, lets go; says so before it has stopped.

        Args:
            owner: Who wants it.
            reason: Why, for other people.
            positions: By `cluster/topic/partition`, the next position that the egress misses. A source that can goes
                back there before it stops (GC-DLV-24). If it has stopped already, it does so when it works again.

        Raises:
            ValueError: too many others hold it.
        """
        ran = self.pauses.hold(owner, reason)
        if ran:
            self.log.warning("pausing", owner=owner, reason=reason, positions=len(positions or ()))
        rewind_to = getattr(self._source, "rewind_to", None)
        if positions is not None and rewind_to is not None:
            rewind_to(positions)  # also if somebody who knew none was faster
        if ran:
            self._source_running.cancel()

    async def resender(self) -> None:
        """Send again what an operator asks for, as long as the source runs."""
        with self._resending:
            if self.resends is not None:
                async with self._batches_in.clone() as self._repairs_in:
                    await self._active.wait()
                    await self.resends.run(self)

    async def fragmenter(self) -> None:
        """Make messages of batches and bursts of messages; behind the last one, end the session."""
        async for queued in self._batches_out:
            if queued.empty:
                await self._volleys_in.send(_Volley([], pooled=False, on_sent=queued.on_sent))
                continue
            if queued.copies:
                self._compose_copy(queued)
            else:
                self._compose(queued.batch, await self._compress(queued.batch), queued.spans)
            while left := self.core.bursts_left:
                slabs = [await self._pool.take() for _ in range(min(left, self._volley_bursts))]
                bursts = [burst for slab in slabs if (burst := self.core.next_burst(slab)) is not None]
                on_sent = None if self.core.bursts_left else queued.on_sent
                await self._volleys_in.send(_Volley(bursts, pooled=True, on_sent=on_sent))
        async with self._volleys_in:
            self._repeating.cancel()
            shutdown = self.core.stop()
            if self.repeats is not None:
                self.repeats.close()
            self._nap.cancel()
            await self._volleys_in.send(_Volley(shutdown, pooled=False))

    @property
    def _waiting(self) -> bool:
        """Whether fragmenter and sender wait for something to do: whatever was built was sent."""
        return (
            self._batches_out.statistics().tasks_waiting_receive > 0
            and self._volleys_out.statistics().tasks_waiting_receive > 0
        )

    @property
    def _idle(self) -> bool:
        """Whether a small batch can be passed through, and the link is fast enough for it to matter."""
        return self._volley_bursts == VOLLEY_BURSTS_MAX and self._compressor is None and self._waiting

    def _pass_through(self, batch: Batch, on_sent: Callable[[], None] | None) -> None:
        """Do for a small batch what fragmenter and sender would do; the sender gets what has to wait."""
        self._compose(batch, None)
        bursts: list[Burst] = []
        while self.core.bursts_left:
            slab = self._pool.take_now()
            burst = self.core.next_burst(slab)
            assert burst is not None
            if bursts or not self._send_now(burst):
                bursts.append(burst)
            else:
                self._pool.give(slab)
        if bursts:
            self._volleys_in.send_nowait(_Volley(bursts, pooled=True, on_sent=on_sent))
        elif on_sent is not None:
            on_sent()

    def _send_now(self, burst: Burst) -> bool:
        """Send a burst if neither the rate nor the kernel holds it up."""
        pacer = self._pacer
        fitting = pacer.fit(trio.current_time(), burst.count, burst.datagram_bytes)
        if fitting < burst.count or not self.socket.send_now(burst):
            return False
        pacer.sent(trio.current_time(), pacer.wire_bytes(burst.count, burst.datagram_bytes))
        return True

    def _compose(self, batch: Batch | None, compressed: bytes | None, spans: Sequence[Span] = ()) -> None:
        """Make `batch` the next message; with `spans` as a repair, which may have no batch."""

        def write_body(buffer: bytearray, offset: int) -> None:
            if batch is None:
                return
            if self._compressor is None:
                encode_batch(batch, buffer, offset)
            else:
                buffer[offset:] = compressed or self._plain

        compression = self._compressor.compression if self._compressor and compressed else Compression.NONE
        plain_bytes = len(self._plain) if compressed else 0
        now_s = trio.current_time()
        try:
            if spans:
                self.core.compose_repair(
                    list(spans), write_body, now_s, compression=compression, plain_bytes=plain_bytes
                )
            elif batch is not None:
                self.core.compose(
                    _runs_of(batch),
                    batch.record_count,
                    write_body,
                    now_s,
                    compression=compression,
                    plain_bytes=plain_bytes,
                )
        except LocalProtocolError as error:
            raise SourceError(
                f"{error}: raise link.message_bytes_max at both ends, or lower the source's batch"
            ) from error

    def _compose_copy(self, queued: _Queued) -> None:
        """Make a message of an earlier session the next one."""
        self.core.compose_copy(list(queued.copies), queued.copied or b"", trio.current_time())

    async def _compress(self, batch: Batch | None) -> bytes | None:
        """The compressed body of `batch`, with `_plain` as what was compressed; None if it is to cross as it is."""
        compressor, plain = self._compressor, self._plain
        if compressor is None or batch is None:
            return None
        encode_batch(batch, plain, 0)
        return await run_long(lambda: compressor.compress(plain), len(plain))

    async def sender(self) -> None:
        """Send volleys at the configured rate; tell the source what the kernel took (GC-DLV-1)."""
        wire_bytes = self._pacer.wire_bytes
        async for volley in self._volleys_out:
            left_bytes = sum(wire_bytes(burst.count, burst.datagram_bytes) for burst in volley.bursts)
            for burst in volley.bursts:
                if not self._send_now(burst):
                    await self._send(burst, left_bytes)
                left_bytes -= wire_bytes(burst.count, burst.datagram_bytes)
                if volley.pooled:
                    self._pool.give(burst.slab)
            if volley.on_sent is not None:
                volley.on_sent()
        counters = self.core.counters
        self.log.info("session_closed", messages=counters.messages, records=counters.records)

    async def _send(self, burst: Burst, left_bytes: int) -> None:
        """Send a burst as the rate allows, if need be in pieces; it is the first of `left_bytes` on the wire."""
        size, pacer = burst.datagram_bytes, self._pacer
        first = 0
        while first < burst.count:
            count = pacer.fit(trio.current_time(), burst.count - first, size)
            if count == 0:
                await self._sleep_until(pacer.wake_at(size, left_bytes - pacer.wire_bytes(first, size)))
                continue
            whole = count == burst.count
            await self.socket.send(burst if whole else Burst(burst.slab, size, count, burst.offset + first * size))
            pacer.sent(trio.current_time(), pacer.wire_bytes(count, size))
            first += count

    async def heartbeat(self) -> None:
        """Send what is due by time: StartUp, then HeartBeats, also while data flows (GC-TIME-1)."""
        async with self._volleys_in.clone() as volleys:
            await volleys.send(_Volley(self.core.start(trio.current_time()), pooled=False))
            while (deadline_s := self.core.next_deadline_s()) is not None:
                if self.core.state is SenderState.ACTIVE:
                    self._active.set()
                # Only the nap is cut short at the end: what was built has a sequence number and must be sent.
                with trio.CancelScope() as self._nap:
                    await trio.sleep_until(deadline_s)
                due = self.core.handle_timeout(trio.current_time())
                if due:
                    await volleys.send(_Volley(due, pooled=False))

    async def keeper(self) -> None:
        """Keep on disk what is sent."""
        assert self.repeats is not None
        await self.repeats.keeper()
        if self.repeats.left:
            self.log.info("repeats_left", messages=self.repeats.left, kept_for="gapconn resend")

    async def repeater(self) -> None:
        """Send again what is due, while nothing new is to be sent and a share of the rate is spare (GC-RPT-3)."""
        assert self.repeats is not None
        with self._repeating:
            await self._active.wait()
            slab = Slab(SLAB_BYTES)
            while True:
                due = await self.repeats.next()
                number = due.number if isinstance(due, Wish) else due.sent.number
                await self._spare(0)  # whatever was made is sent then, and it can be told what may be repeated
                self.core.begin_repeat(number, due.message, self._spare_datagrams)
                while count := self.core.repeat_burst_datagrams:
                    await self._spare(self._pacer.wire_bytes(count, self.core.repeat_burst_bytes))
                    await self._send_repeat(slab)
                if isinstance(due, Wish):
                    due.sent.set()

    @property
    def _spare_datagrams(self) -> int:
        """Datagrams of a burst that nothing new can overtake: so few that it does not have to wait for long."""
        return self._pacer.spare_count(ROWS_MAX, self.core.settings.datagram_bytes_max)

    async def _spare(self, wire_bytes: int) -> None:
        """Wait until so much of a repeat is in nobody's way. At least one turn of all other tasks."""
        await trio.lowlevel.checkpoint()
        while True:
            now_s = trio.current_time()
            if not self._waiting:
                await trio.sleep(BUSY_NAP_S)
            elif (spare_at_s := self._pacer.spare_at(now_s, wire_bytes)) > now_s:
                await trio.sleep_until(spare_at_s)
            else:
                return

    async def _send_repeat(self, slab: Slab) -> None:
        """Send a burst of a repeat at once; if the kernel does not take it, the sender waits until it does."""
        burst = self.core.next_repeat_burst(slab)
        assert burst is not None
        if not self._send_now(burst):
            sent = trio.Event()
            self._volleys_in.send_nowait(_Volley([burst], pooled=False, on_sent=sent.set))
            with trio.CancelScope(shield=True):  # the slab is in use until then
                await sent.wait()

    def datagrams_missing(self) -> int:
        """A blind sender cannot know."""
        return 0

    def use_keys(self, keys: Keys) -> None:
        """Seal what is built from now on with these keys."""
        self.core.use_keys(keys)

    def stop(self) -> None:
        """Ask for an orderly end."""
        self.stopping = True
        self._source_scope.cancel()

    def unfinished(self) -> str:
        """What is not done, for an operator who reads that the grace time was spent."""
        return (
            "not everything could be sent; a source that remembers what was acknowledged reads the rest again at the "
            "next start"
        )


def _runs_of(batch: Batch) -> list[Run]:
    return [
        Run(
            part.stream,
            part.partition,
            part.previous,
            part.positions[0],
            part.positions[-1],
            len(part.positions),
            continues=part.since or False,
        )
        for part in batch.parts
        if isinstance(part, Records) and part.positions
    ]
