"""Datagrams that many peers send to one address; each datagram is one record.

UDP promises nothing, so neither does this source: what the kernel drops because the link is slower than the peers is
noticed, counted and logged, and that is all.
"""

from __future__ import annotations

import socket
import time
from typing import Any, ClassVar

import attrs
import trio
from attrs.validators import ge, le

from gapconn.config import option
from gapconn.errors import SourceError
from gapconn.passed_sockets import passed_socket
from gapconn.plugins import Carries, Context
from gapconn.record import NO_POSITION, Batch, Records, TimestampType
from gapconn.socket_buffers import dropped_datagrams, grow_receive_buffer
from gapconn.sources import Outlet
from gapconn.throttle import ThrottledLog
from gapconn.units import Address, Bytes

_DATAGRAM_BYTES_MAX = 65_535
_RECORD_OVERHEAD_BYTES = 32
"""Upper bound of what a record adds to an encoded batch beside its value."""
_BATCH_OVERHEAD_BYTES = 1024
_DATAGRAMS_AT_ONCE_MAX = 4096
"""After so many the other tasks get their turn: a flood of what cannot be sent must not keep the source reading."""


@attrs.frozen(kw_only=True)
class UdpSourceConfig:
    """Keys of `[source]` with `type = "udp"`."""

    listen: Address = option(help="Address on which datagrams are received; of a name, its first address.")
    receive_buffer_bytes: Bytes = option(
        default=Bytes(8 << 20),
        help="What the kernel holds while the link is busy; beyond it the kernel drops, counted as `kernel_dropped`.",
        allowed="4 KiB to 1 GiB",
        validator=[ge(4096), le(1 << 30)],
    )


class UdpSource:
    """One record per datagram, empty ones too: timestamps are of arrival.

    The stream is the listening address. Whatever waits in the socket becomes one batch, so latency is low when little
    arrives and batches are full when much does. A plain `recv_into` per datagram takes 1.4 us at 1400 bytes;
    `UDP_GRO` was not used because it merges nothing that peers send one by one.
    """

    Config: ClassVar[type[Any]] = UdpSourceConfig
    carries: ClassVar[Carries] = Carries.RECORDS

    def __init__(self, config: UdpSourceConfig, context: Context) -> None:
        self._config = config
        self._context = context
        self._log = ThrottledLog(context.log)
        self._stream = str(config.listen)
        self._buffer = bytearray(_DATAGRAM_BYTES_MAX)
        self._next_position = context.first_position
        self._dropped = 0
        self._passed = False
        """Whether the service manager keeps the socket: what waits in it goes on waiting."""
        self._in_hand: Batch | None = None

    async def run(self, outlet: Outlet) -> None:
        """Receive until cancelled; then send what is in hand, and what waits in the socket unless it waits on there."""
        with await self._open() as sock:
            try:
                while True:
                    await trio.lowlevel.wait_readable(sock)
                    await self._forward(sock, outlet)
            finally:
                with trio.move_on_after(outlet.flush_timeout_s, shield=True):
                    await self._forward(sock, outlet, in_hand_only=self._passed)
                if self._in_hand is not None:
                    self._context.counters["lost_at_stop"] += self._in_hand.record_count
                    self._context.log.warning("datagrams_lost_at_stop", datagrams=self._in_hand.record_count)
                    self._in_hand = None

    async def _open(self) -> socket.socket:
        listen = self._config.listen
        sock = None
        try:
            family, kind, protocol, _, address = (
                await trio.socket.getaddrinfo(listen.host, listen.port, type=socket.SOCK_DGRAM, flags=socket.AI_PASSIVE)
            )[0]
            sock = passed_socket(family, kind, address, self._context.log)
            self._passed = sock is not None
            if sock is None:
                sock = socket.socket(family, kind, protocol)
                sock.bind(address)
        except OSError as error:
            if sock is not None:
                sock.close()
            raise SourceError(f"cannot listen on {listen}: {error} (see source.listen)") from error
        sock.setblocking(False)
        # Of this socket, since it was opened: if it was passed, also while nobody was here, and over pauses.
        self._dropped = self._dropped if self._passed else 0
        self._stream = str(Address(listen.host, sock.getsockname()[1]))
        wanted = self._config.receive_buffer_bytes
        granted = grow_receive_buffer(sock, wanted)
        if granted < wanted:
            self._context.log.warning(
                "receive_buffer_refused", wanted_bytes=wanted, granted_bytes=granted, remedy="raise net.core.rmem_max"
            )
        self._context.status.update(listening=self._stream, receive_buffer_bytes=granted)
        self._context.log.info("listening", address=self._stream)
        return sock

    async def _forward(self, sock: socket.socket, outlet: Outlet, *, in_hand_only: bool = False) -> None:
        """Send batches until the socket is empty."""
        while batch := self._in_hand or (None if in_hand_only else self._read(sock, outlet)):
            self._in_hand = batch
            await outlet.send(batch)
            self._in_hand = None
            self._count_dropped(sock)

    def _read(self, sock: socket.socket, outlet: Outlet) -> Batch | None:
        """What waits in the socket, at most one batch of it; None when there is nothing."""
        record_limit = outlet.batch_bytes_max - _BATCH_OVERHEAD_BYTES
        batch_limit = min(outlet.batch_bytes, record_limit - len(self._buffer))
        values: list[bytes | None] = []
        view = memoryview(self._buffer)
        size = 0
        for _ in range(_DATAGRAMS_AT_ONCE_MAX):
            try:
                length = sock.recv_into(view)
            except BlockingIOError:
                break
            if length > record_limit:
                self._context.counters["too_large"] += 1
                self._log.warning("datagram_too_large", size_bytes=length, limit_bytes=record_limit)
                continue
            values.append(bytes(view[:length]))
            size += length + _RECORD_OVERHEAD_BYTES
            if size >= batch_limit:
                break
        if not values:
            return None
        first, self._next_position = self._next_position, self._next_position + len(values)
        return Batch(
            origin=self._context.origin,
            parts=[
                Records(
                    stream=self._stream,
                    previous=first - 1 if first > self._context.first_position else NO_POSITION,
                    positions=list(range(first, self._next_position)),
                    values=values,
                    timestamps_ms=[time.time_ns() // 1_000_000] * len(values),
                    timestamp_type=TimestampType.CREATE,
                )
            ],
        )

    def _count_dropped(self, sock: socket.socket) -> None:
        dropped = dropped_datagrams(sock)
        if dropped != self._dropped:
            new = (dropped - self._dropped) % 2**32
            self._dropped = dropped
            self._context.counters["kernel_dropped"] += new
            self._log.warning("datagrams_dropped_by_kernel", datagrams=new, address=self._stream)
