"""Byte streams to one target: each stream gets a TCP connection of its own.

    inlet ─▶ run ─▶ the stream's queue ─▶ one task per stream ─▶ target
                                       ◀─ what the target answers is read and thrown away

The target sees either every byte of a stream and then its end, or a reset. Bytes are never skipped: at a hole, or when
the end was lost, the connection is reset, the loss is reported, and the rest of the stream is left out. A connection is
set to be reset by whatever closes it, the death of this process included, until its END was written.
"""

from __future__ import annotations

import socket
import struct
from collections import deque
from collections.abc import Callable
from typing import Any, ClassVar

import attrs
import trio
from attrs.validators import ge, gt

from gapconn.backoff import Backoff
from gapconn.config import option
from gapconn.plugins import Carries, Context
from gapconn.record import Chunk, ChunkKind, Records
from gapconn.sinks import Delivery, Inlet
from gapconn.throttle import ThrottledLog
from gapconn.units import Address, Bytes, Seconds

_RESET_ON_CLOSE = struct.pack("ii", 1, 0)
_FINISH_ON_CLOSE = struct.pack("ii", 0, 0)
_TCP_INFO_BYTES_ACKED = struct.Struct("=120xQ")
"""`<linux/tcp.h>`: what the peer acknowledged, its SYN counted as one byte. Linux 4.1."""

_DELIVERY_OVERHEAD_BYTES = 2048
"""What a held delivery costs beside its data, so that many tiny ones are bounded too."""
_STREAM_NAME_LENGTH_MAX = 256
_BROKEN_STREAMS_MAX = 10_000
"""Broken streams that are remembered until they end. A forgotten one is reported once more if it goes on."""


@attrs.frozen(kw_only=True)
class TcpSinkConfig:
    """Keys of `[sink]` with `type = "tcp"`."""

    connect: Address = option(help="Target of all connections. A name is looked up for each connection.")
    connect_timeout: Seconds = option(
        default=Seconds(10.0),
        help="How long one try to connect may take; it is tried again for ever.",
        allowed="more than 0",
        validator=gt(0),
    )
    close_timeout: Seconds = option(
        default=Seconds(10.0),
        help="How long the target may take to close its side after the end of a stream; then it is closed anyway.",
        allowed="more than 0",
        validator=gt(0),
    )
    max_connections: int = option(
        default=1024,
        help="Streams beyond this many are not opened, and reported lost.",
        allowed="1 or more",
        validator=ge(1),
    )
    buffer_bytes: Bytes = option(
        default=Bytes(32 << 20),
        help="What is held for slow connections, over all streams; when it is full, all streams wait.",
        allowed="64 KiB or more",
        validator=ge(64 << 10),
    )


@attrs.define(eq=False)
class _Ticket:
    """A delivery until every chunk of it was written or given up."""

    accept: Callable[[], None]
    size_bytes: int
    holders: int = 1


@attrs.define(eq=False)
class _Stream:
    """An open stream."""

    name: str
    arrived: int = 0
    """Length of the unbroken beginning that arrived."""
    queue: deque[tuple[Chunk, _Ticket]] = attrs.field(factory=deque)
    news: trio.lowlevel.ParkingLot = attrs.field(factory=trio.lowlevel.ParkingLot)
    """Where the stream's task waits while the queue is empty."""
    scope: trio.CancelScope = attrs.field(factory=trio.CancelScope)
    stopping: bool = False
    """Nothing will be queued any more."""
    fault: str | None = None
    """Why the connection is reset before its end."""
    reach: int = 0
    """With a fault: the length that the source is known to have sent."""

    @property
    def aborted(self) -> bool:
        """The source has broken off the stream, whatever is still to be written."""
        return bool(self.queue) and self.queue[-1][0].kind is ChunkKind.ABORT


@attrs.define
class _Rest:
    """The part of a broken stream that is not reported yet."""

    first: int
    end: int
    reason: str


class TcpSink:
    """One task and connection per stream; a target that is away is tried again for ever while the stream waits.

    What is held for slow or absent targets is bounded over all streams (`buffer_bytes`). When it is full no stream
    gets anything: the egress holds what it can, and then refuses the newest, counted.

    A delivery is accepted when the kernel took all its bytes, or their loss was reported. What a reset destroyed in
    the kernel's buffer is reported lost as well, by what the target's kernel acknowledged. Losses are told per stream,
    with these reasons:

    - `hole`: data in between, or the beginning, did not arrive;
    - `overlap`: data arrived twice, which a link never does;
    - `end_missing`: the source says that the stream is over, but its end did not arrive; the last position is the one
      where the end should stand;
    - `target_closed`: the target closed or reset the connection before the end;
    - `ingress_restarted`: the stream belonged to an ingress session that is over;
    - `egress_stopped`: the stream was still open when the egress was stopped;
    - `too_many_connections`: there were `max_connections` already;
    - `after_reset`: all that came after one of the above, told once, when the stream ends.

    A late delivery is written where it fits, and declined where a stream in it was broken off
    (`late_streams_unusable`).
    """

    Config: ClassVar[type[Any]] = TcpSinkConfig
    accepts: ClassVar[frozenset[Carries]] = frozenset({Carries.CHUNKS})

    def __init__(self, config: TcpSinkConfig, context: Context) -> None:
        self._config = config
        self._context = context
        self._log = ThrottledLog(context.log)
        self._epoch = 0
        self._open: dict[str, _Stream] = {}
        """Those that expect more chunks. A stream whose END is queued is not among them."""
        self._broken: dict[str, _Rest] = {}
        self._streams = 0
        self._held_bytes = 0
        self._room = trio.lowlevel.ParkingLot()
        self._inlet: Inlet
        self._nursery: trio.Nursery

    async def run(self, inlet: Inlet) -> None:
        """Write deliveries until the inlet ends and everything held is written; then reset the streams still open."""
        self._inlet = inlet
        async with trio.open_nursery() as self._nursery:
            async for delivery in inlet:
                self._take(delivery)
                while self._held_bytes > self._config.buffer_bytes:
                    await self._room.park()
            for stream in self._open.values():
                stream.stopping = True
                stream.news.unpark_all()
        for name in list(self._broken):
            self._report_rest(name)

    # The sorting of what arrives: nothing here waits.

    def _take(self, delivery: Delivery) -> None:
        if delivery.epoch != self._epoch:
            self._leave_session()
            self._epoch = delivery.epoch
        parts = delivery.batch.parts
        accept = delivery.accept
        if delivery.late:
            parts, whole = self._fitting(parts)
            accept = delivery.accept if whole else delivery.decline
        data_bytes = sum(len(part.data) for part in parts if isinstance(part, Chunk))
        ticket = _Ticket(accept, _DELIVERY_OVERHEAD_BYTES + data_bytes)
        self._held_bytes += ticket.size_bytes
        for part in parts:
            if isinstance(part, Records):
                self._context.counters["records_refused"] += len(part.positions)
                self._log.warning("records_refused", stream=part.stream, reason="a tcp sink takes byte streams")
            elif _is_malformed(part):
                self._context.counters["chunks_malformed"] += 1
                self._log.warning("chunk_malformed", stream=part.stream[:_STREAM_NAME_LENGTH_MAX])
            elif part.stream:
                self._take_chunk(part, ticket)
        if not delivery.late:  # what it said of the streams that are open may be true no more
            self._take_roster(parts)
        self._settle(ticket)

    def _fitting(self, parts: list[Records | Chunk]) -> tuple[list[Records | Chunk], bool]:
        """What of a late delivery can be written, and whether that is all that has data.

        A stream in which the hole was noticed is broken off, and stays so: nothing can be put into the middle of what a
        target has read. Where nothing behind the hole has come yet, the piece fits; and a short stream that is whole in
        one message is written whole.
        """
        by_stream: dict[str, list[Chunk]] = {}
        for part in parts:
            if isinstance(part, Chunk) and part.stream and part.kind is not ChunkKind.ALIVE:
                by_stream.setdefault(part.stream, []).append(part)
        fitting = {name for name, chunks in by_stream.items() if self._fits(name, chunks)}
        unusable = len(by_stream) - len(fitting)
        if unusable:
            self._context.counters["late_streams_unusable"] += unusable
            self._log.warning("late_streams_unusable", streams=unusable)
        return [chunk for name in by_stream if name in fitting for chunk in by_stream[name]], not unusable

    def _fits(self, name: str, chunks: list[Chunk]) -> bool:
        if name in self._broken or any(_is_malformed(chunk) for chunk in chunks):
            return False
        stream = self._open.get(name)
        at = stream.arrived if stream is not None else 0
        for chunk in chunks:
            if chunk.position != at:
                return False
            at += len(chunk.data)
        # What is not known may have been open once, and be over.
        return stream is not None or (chunks[0].kind is ChunkKind.OPEN and chunks[-1].kind is ChunkKind.END)

    def _take_chunk(self, chunk: Chunk, ticket: _Ticket) -> None:
        if chunk.stream in self._broken:
            self._miss(chunk)
            return
        stream = self._open.get(chunk.stream) or self._begin(chunk)
        if stream is None:
            return
        reach = chunk.position + len(chunk.data)
        if chunk.position > stream.arrived:
            self._break_off(stream, "hole", reach)
        elif chunk.position < stream.arrived and chunk.kind in (ChunkKind.DATA, ChunkKind.END):
            self._break_off(stream, "overlap", reach)
        if chunk.stream in self._broken:
            self._miss(chunk)
            return
        if chunk.kind in (ChunkKind.OPEN, ChunkKind.ALIVE):
            return
        stream.arrived = max(stream.arrived, reach)
        if chunk.kind is not ChunkKind.DATA:
            del self._open[stream.name]
        ticket.holders += 1
        stream.queue.append((chunk, ticket))
        stream.news.unpark()

    def _begin(self, chunk: Chunk) -> _Stream | None:
        """A stream that was not known: opened when nothing of it is missing, even if its OPEN is."""
        if chunk.position == 0 and chunk.kind is ChunkKind.ABORT:
            return None
        if chunk.position > 0:
            reason = "hole"
        elif len(self._open) >= self._config.max_connections:
            reason = "too_many_connections"
            self._context.counters["connections_refused"] += 1
        else:
            stream = self._open[chunk.stream] = _Stream(chunk.stream)
            self._nursery.start_soon(self._carry, stream, name=f"tcp stream {stream.name}")
            return stream
        self._context.counters["streams_broken"] += 1
        self._remember(chunk.stream, _Rest(0, 0, reason))
        self._miss(chunk)
        return None

    def _take_roster(self, parts: list[Records | Chunk]) -> None:
        """Miss the streams that a roster of the source does not list."""
        heading = parts[0] if parts else None
        if not isinstance(heading, Chunk) or heading.stream or heading.kind is not ChunkKind.ALIVE:
            return
        listed = {part.stream for part in parts[1:] if isinstance(part, Chunk) and part.kind is ChunkKind.ALIVE}
        if heading.attributes.get("open") != len(listed):
            self._context.counters["chunks_malformed"] += 1
            self._log.warning("roster_malformed", listed=len(listed), attributes=heading.attributes)
            return
        for stream in [stream for name, stream in self._open.items() if name not in listed]:
            self._break_off(stream, "end_missing", stream.arrived + 1)
        for name in [name for name in self._broken if name not in listed]:
            self._report_rest(name)

    def _leave_session(self) -> None:
        for stream in list(self._open.values()):
            self._break_off(stream, "ingress_restarted", stream.arrived)
        for name in list(self._broken):
            self._report_rest(name)

    # Broken streams.

    def _break_off(self, stream: _Stream, fault: str, reach: int) -> None:
        """Have the stream's connection reset; what follows of it is missed."""
        if stream.fault is not None:
            return
        stream.fault = fault
        stream.reach = max(reach, stream.arrived)
        self._context.counters["streams_broken"] += 1
        self._log.warning("stream_broken", stream=stream.name, reason=fault, position=stream.arrived)
        if self._open.pop(stream.name, None) is not None:
            self._remember(stream.name, _Rest(stream.reach, stream.reach, "after_reset"))
        stream.scope.cancel()

    def _remember(self, name: str, rest: _Rest) -> None:
        while len(self._broken) >= _BROKEN_STREAMS_MAX:
            self._report_rest(next(iter(self._broken)))
        self._broken[name] = rest

    def _miss(self, chunk: Chunk) -> None:
        rest = self._broken[chunk.stream]
        rest.end = max(rest.end, chunk.position + len(chunk.data))
        if chunk.kind in (ChunkKind.END, ChunkKind.ABORT):
            self._report_rest(chunk.stream)

    def _report_rest(self, name: str) -> None:
        rest = self._broken.pop(name)
        self._report(name, rest.first, rest.end, rest.reason)

    def _report(self, name: str, first: int, end: int, reason: str) -> None:
        if first < end:
            self._context.counters["bytes_lost"] += end - first
            self._inlet.lost(stream=name, first=first, last=end - 1, reason=reason)

    def _settle(self, ticket: _Ticket) -> None:
        ticket.holders -= 1
        if ticket.holders == 0:
            self._held_bytes -= ticket.size_bytes
            self._room.unpark_all()
            ticket.accept()

    # One stream and its connection.

    async def _carry(self, stream: _Stream) -> None:
        connection = None
        self._count_streams(+1)
        try:
            with stream.scope:
                connection = await self._connect(stream)
                if connection is not None:
                    async with trio.open_nursery() as nursery:
                        target_closed = trio.Event()
                        nursery.start_soon(self._discard_answers, stream, connection, target_closed)
                        await self._write(stream, connection, target_closed)
                        nursery.cancel_scope.cancel()
            if stream.fault is not None:
                first = 0 if connection is None else min(_acknowledged_bytes(connection), stream.arrived)
                self._report(stream.name, first, stream.reach, stream.fault)
        finally:
            if connection is not None:
                connection.socket.close()
            self._count_streams(-1)
        while stream.queue:
            self._settle(stream.queue.popleft()[1])

    async def _connect(self, stream: _Stream) -> trio.SocketStream | None:
        """Connect, however long it takes; None when the source broke off the stream in the meantime."""
        target = self._config.connect
        backoff = Backoff()
        while True:
            try:
                with trio.fail_after(self._config.connect_timeout):
                    return await _connected(target)
            except (OSError, trio.TooSlowError) as error:
                self._context.counters["connect_failed"] += 1
                self._log.warning("connect_failed", target=str(target), error=str(error) or "timed out")
            if stream.aborted:
                self._context.counters["aborted_before_connect"] += 1
                self._log.warning("stream_aborted_before_connect", stream=stream.name, bytes=stream.arrived)
                return None
            if stream.stopping and not stream.queue:
                self._break_off(stream, "egress_stopped", stream.arrived)
            await trio.sleep(backoff.failed())

    async def _write(self, stream: _Stream, connection: trio.SocketStream, target_closed: trio.Event) -> None:
        """Write what is queued, until the end, the source's abort, or the stop of the egress."""
        try:
            while True:
                while not stream.queue:
                    if stream.stopping:
                        self._break_off(stream, "egress_stopped", stream.arrived)
                    await stream.news.park()
                chunk, ticket = stream.queue[0]
                match chunk.kind:
                    case ChunkKind.DATA:
                        await connection.send_all(chunk.data)
                        self._context.counters["bytes_written"] += len(chunk.data)
                    case ChunkKind.END:
                        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _FINISH_ON_CLOSE)
                        await connection.send_eof()
                        self._context.counters["streams_ended"] += 1
                    case ChunkKind.ABORT:
                        self._context.counters["streams_aborted"] += 1
                stream.queue.popleft()
                self._settle(ticket)
                if chunk.kind is not ChunkKind.DATA:
                    break
        except trio.BrokenResourceError:
            self._break_off(stream, "target_closed", stream.arrived)
            await trio.sleep_forever()
        if chunk.kind is ChunkKind.END:
            with trio.move_on_after(self._config.close_timeout) as scope:
                await target_closed.wait()
            if scope.cancelled_caught:
                self._context.counters["close_timeouts"] += 1
                self._log.warning("target_close_timed_out", stream=stream.name)

    async def _discard_answers(self, stream: _Stream, connection: trio.SocketStream, target_closed: trio.Event) -> None:
        """Keep the target from blocking: nothing can go back across the gap."""
        try:
            while answer := await connection.receive_some():
                self._context.counters["answer_bytes_discarded"] += len(answer)
        except trio.BrokenResourceError:
            self._break_off(stream, "target_closed", stream.arrived)
        target_closed.set()

    def _count_streams(self, change: int) -> None:
        self._streams += change
        self._context.status["open_streams"] = self._streams


def _is_malformed(chunk: Chunk) -> bool:
    """No source of gapconn says such a thing."""
    nameless = not chunk.stream and chunk.kind is not ChunkKind.ALIVE
    return nameless or chunk.position < 0 or len(chunk.stream) > _STREAM_NAME_LENGTH_MAX


async def _connected(target: Address) -> trio.SocketStream:
    """A connection to the first address of `target` that answers.

    Not `trio.open_tcp_stream`: it closes a connection that was cancelled when it had just been made, and to the target
    that would look like an empty stream that ended in order. Here the reset on closing is set before connecting.
    """
    failure: OSError | None = None
    for family, kind, protocol, _, address in await trio.socket.getaddrinfo(
        target.host, target.port, type=socket.SOCK_STREAM
    ):
        sock = trio.socket.socket(family, kind, protocol)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        try:
            await sock.connect(address)
        except OSError as error:
            sock.close()
            failure = error
        else:
            return trio.SocketStream(sock)
    raise failure or OSError("the name has no address")


def _acknowledged_bytes(connection: trio.SocketStream) -> int:
    """How much of what was written the target's kernel has acknowledged; also after a reset."""
    info = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _TCP_INFO_BYTES_ACKED.size)
    acknowledged: int = _TCP_INFO_BYTES_ACKED.unpack(info)[0]
    return max(0, acknowledged - 1)
