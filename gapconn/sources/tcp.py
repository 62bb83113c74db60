"""TCP connections from many clients: each one is a byte stream of its own, with its end and its break-off carried.

Nothing comes back across the gap, so a client's connection is only read. What its closing tells the client is true all
the same: it ends in order when the kernel has taken every datagram of the stream, and is reset when anything else
happens, the death of this process included.
"""

from __future__ import annotations

import socket
import struct
from typing import Any, ClassVar

import attrs
import trio
from attrs.validators import ge

from gapconn.backoff import Backoff
from gapconn.config import option
from gapconn.errors import SourceError
from gapconn.passed_sockets import passed_socket
from gapconn.plugins import Carries, Context
from gapconn.record import Batch, Chunk, ChunkKind
from gapconn.sources import Outlet
from gapconn.throttle import ThrottledLog
from gapconn.units import Address, Seconds

_RESET_ON_CLOSE = struct.pack("ii", 1, 0)
_FINISH_ON_CLOSE = struct.pack("ii", 0, 0)
_CHUNK_OVERHEAD_BYTES = 128
"""Upper bound of what a chunk adds to an encoded batch beside its data."""
_BACKLOG = 1024


@attrs.frozen(kw_only=True)
class TcpSourceConfig:
    """Keys of `[source]` with `type = "tcp"`."""

    listen: Address = option(help="Address on which connections are accepted; of a name, its first address.")
    max_connections: int = option(
        default=1024,
        help="Connections beyond this many are reset at once, and counted.",
        allowed="1 or more",
        validator=ge(1),
    )
    alive_interval: Seconds = option(
        default=Seconds(5.0),
        help="How often the open streams are listed to the other side, which so notices that an end was lost.",
        allowed="0.1 s or more",
        validator=ge(0.1),
    )


@attrs.define(eq=False)
class _Connection:
    stream: str
    socket: socket.socket
    peer: str
    sent: int = 0
    """Bytes handed over to the link."""

    def chunk(self, kind: ChunkKind, data: bytes = b"") -> Chunk:
        return Chunk(stream=self.stream, kind=kind, position=self.sent, data=memoryview(data))


class TcpSource:
    """One task per connection, which reads at the pace of the link: the clients feel the back-pressure.

    Streams are named by the session's epoch and a number, so no name comes twice. Once per `alive_interval`, and at
    start, one batch is the roster: an ALIVE chunk with an empty stream name and the attribute `open`, the number of
    open streams, and then one ALIVE chunk for each of them. A stream is in every roster after its OPEN and in none
    after its END or ABORT, so whoever misses a stream in a roster knows that its end was lost.

    A chunk is a `bytes` of its own, not a reused buffer: it is encoded after `send` has returned. The kernel's own
    tuning of the receive buffer is left on; a fixed size was no faster.
    """

    Config: ClassVar[type[Any]] = TcpSourceConfig
    carries: ClassVar[Carries] = Carries.CHUNKS

    def __init__(self, config: TcpSourceConfig, context: Context) -> None:
        self._config = config
        self._context = context
        self._log = ThrottledLog(context.log)
        self._accepted = 0
        self._connected = 0
        self._open: dict[str, _Connection] = {}
        """Those whose OPEN was sent, and no END or ABORT."""
        self._roster_lock = trio.Lock()
        """Held while a chunk that changes the roster, or the roster itself, is on its way into the outlet."""

    async def run(self, outlet: Outlet) -> None:
        """Accept until cancelled; then the open streams are aborted and their clients reset."""
        if self._config.max_connections * _CHUNK_OVERHEAD_BYTES > outlet.batch_bytes_max:
            allowed = outlet.batch_bytes_max // _CHUNK_OVERHEAD_BYTES
            raise SourceError(
                f"max_connections must be at most {allowed} with messages of at most {outlet.batch_bytes_max} bytes"
            )
        try:
            with await self._listen() as listener:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self._send_rosters, outlet, name="tcp roster")
                    await self._accept(listener, outlet, nursery)
        finally:
            await self._abort_open(outlet)

    async def _listen(self) -> socket.socket:
        listen = self._config.listen
        sock = None
        try:
            family, kind, protocol, _, address = (
                await trio.socket.getaddrinfo(
                    listen.host, listen.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
                )
            )[0]
            sock = passed_socket(family, kind, address, self._context.log)
            if sock is None:
                sock = socket.socket(family, kind, protocol)
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                sock.bind(address)
            sock.listen(_BACKLOG)
        except OSError as error:
            if sock is not None:
                sock.close()
            raise SourceError(f"cannot listen on {listen}: {error} (see source.listen)") from error
        sock.setblocking(False)
        bound = str(Address(listen.host, sock.getsockname()[1]))
        self._context.status.update(listening=bound, open_connections=0)
        self._context.log.info("listening", address=bound)
        return sock

    async def _accept(self, listener: socket.socket, outlet: Outlet, nursery: trio.Nursery) -> None:
        backoff = Backoff()
        while True:
            await trio.lowlevel.wait_readable(listener)
            try:
                client, address = listener.accept()
            except (BlockingIOError, ConnectionAbortedError):
                continue  # The client gave up before it was accepted.
            except OSError as error:
                # Out of file descriptors or memory, or a network error that the kernel passes on (accept(2)).
                self._context.counters["accept_failed"] += 1
                self._log.warning("accept_failed", error=str(error))
                await trio.sleep(backoff.failed())
                continue
            backoff.succeeded()
            client.setblocking(False)
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
            peer = str(Address(*address[:2]))
            if self._connected >= self._config.max_connections:
                client.close()
                self._context.counters["connections_refused"] += 1
                self._log.warning("connection_refused", peer=peer, max_connections=self._config.max_connections)
                continue
            # Finds clients that vanished without a word, after the system's keep-alive time.
            client.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            name = f"{self._context.epoch:x}-{self._accepted}"
            self._accepted += 1
            self._context.counters["connections_accepted"] += 1
            self._count_connections(+1)
            nursery.start_soon(self._carry, _Connection(name, client, peer), outlet, name=f"tcp stream {name}")

    async def _carry(self, connection: _Connection, outlet: Outlet) -> None:
        """One connection from its OPEN to its END or ABORT."""
        chunk_bytes = min(outlet.batch_bytes, outlet.batch_bytes_max - _CHUNK_OVERHEAD_BYTES)
        with connection.socket:
            try:
                await self._send_open(connection, outlet)
                while data := await self._receive(connection, chunk_bytes):
                    await outlet.send(Batch(parts=[connection.chunk(ChunkKind.DATA, data)]))
                    connection.sent += len(data)
                if data is None:
                    await self._send_last(connection, ChunkKind.ABORT, outlet)
                else:
                    await self._send_last(connection, ChunkKind.END, outlet)
                    connection.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _FINISH_ON_CLOSE)
            finally:
                self._count_connections(-1)

    async def _receive(self, connection: _Connection, size_max: int) -> bytes | None:
        """The next bytes: empty at the end of the stream, None when the connection broke."""
        while True:
            try:
                return connection.socket.recv(size_max)
            except BlockingIOError:
                await trio.lowlevel.wait_readable(connection.socket)
            except OSError as error:
                self._context.counters["connections_reset"] += 1
                self._log.warning(
                    "connection_reset",
                    stream=connection.stream,
                    peer=connection.peer,
                    position=connection.sent,
                    error=str(error),
                )
                return None

    async def _send_open(self, connection: _Connection, outlet: Outlet) -> None:
        async with self._roster_lock:
            self._open[connection.stream] = connection
            chunk = connection.chunk(ChunkKind.OPEN)
            chunk.attributes = {"peer": connection.peer}
            await outlet.send(Batch(parts=[chunk]))

    async def _send_last(self, connection: _Connection, kind: ChunkKind, outlet: Outlet) -> None:
        """Send an END or ABORT and wait until the kernel has taken it, and with it the whole stream."""
        taken = trio.Event()
        async with self._roster_lock:
            await outlet.send(Batch(parts=[connection.chunk(kind)]), on_sent=taken.set)
            del self._open[connection.stream]
        await taken.wait()

    async def _send_rosters(self, outlet: Outlet) -> None:
        while True:
            async with self._roster_lock:
                heading = Chunk(stream="", kind=ChunkKind.ALIVE, position=0, attributes={"open": len(self._open)})
                streams = [connection.chunk(ChunkKind.ALIVE) for connection in self._open.values()]
                await outlet.send(Batch(parts=[heading, *streams]))
            await trio.sleep(self._config.alive_interval)

    async def _abort_open(self, outlet: Outlet) -> None:
        if not self._open:
            return
        self._context.counters["aborted_at_stop"] += len(self._open)
        self._context.log.warning("streams_aborted_at_stop", streams=len(self._open))
        with trio.move_on_after(outlet.flush_timeout_s, shield=True) as scope:
            await outlet.send(Batch(parts=[c.chunk(ChunkKind.ABORT) for c in self._open.values()]))
        if scope.cancelled_caught:
            self._context.log.warning("abort_not_sent", streams=len(self._open))
        self._open.clear()

    def _count_connections(self, change: int) -> None:
        self._connected += change
        self._context.status["open_connections"] = self._connected
