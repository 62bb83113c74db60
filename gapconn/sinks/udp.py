"""Every record's value as one datagram to one target."""

from __future__ import annotations

import errno
import socket
from typing import Any, ClassVar

import attrs
import trio
from attrs.validators import ge

from gapconn.backoff import Backoff
from gapconn.config import option, subsection
from gapconn.dedup.repeats import RepeatFilter, SinkDedup
from gapconn.plugins import Carries, Context
from gapconn.record import Records
from gapconn.sinks import Inlet
from gapconn.throttle import ThrottledLog
from gapconn.units import Address, BitsPerSecond

_DATAGRAMS_PER_TURN = 256
"""After so many the other tasks of the egress get their turn: about half a millisecond."""
_CATCH_UP_S = 0.002
"""How much lost time a rate may make up for: the operating system wakes a sleeper late by about a millisecond."""


@attrs.frozen(kw_only=True)
class UdpSinkConfig:
    """Keys of `[sink]` with `type = "udp"`."""

    send_to: Address = option(
        help="Target of all datagrams. A name is looked up at start and again after a network error."
    )
    rate: BitsPerSecond = option(
        default=BitsPerSecond(0),
        help="Limit of what is sent, IP and UDP headers counted, for a target that a burst would overrun; 0: no limit.",
        allowed="0 or more",
        validator=ge(0),
    )
    dedup: SinkDedup = subsection(SinkDedup, help="Copies that come over this link are left out.")


class UdpSink:
    """Sends in order. A datagram counts as delivered when the kernel took it: UDP promises no more.

    The socket is connected, so that a closed port is noticed: the kernel reports the ICMP answer to an earlier datagram
    at a later send. It is counted (`refused`) and logged, and the datagrams stay delivered. While the network is
    unreachable, sending is tried again for ever. A null value cannot be a datagram and is skipped (`null_values`);
    one that no datagram can hold is reported lost. Keys, headers and timestamps do not cross.
    """

    Config: ClassVar[type[Any]] = UdpSinkConfig
    accepts: ClassVar[frozenset[Carries]] = frozenset({Carries.RECORDS})

    def __init__(self, config: UdpSinkConfig, context: Context) -> None:
        self._config = config
        self._context = context
        self._log = ThrottledLog(context.log)
        self._socket: socket.socket
        self._header_bytes = 0
        self._due_at = 0.0
        self._repeats = RepeatFilter(config.dedup, context)

    async def run(self, inlet: Inlet) -> None:
        """Send until the inlet ends."""
        self._socket = await self._connect()
        try:
            async for delivery in inlet:
                for part in self._repeats.of(delivery).batch.parts:
                    if isinstance(part, Records):
                        await self._send_records(part, inlet)
                    else:
                        self._context.counters["chunks_refused"] += 1
                        self._log.warning("chunk_refused", stream=part.stream, reason="a udp sink takes records")
                delivery.accept()
        finally:
            self._socket.close()

    async def _send_records(self, records: Records, inlet: Inlet) -> None:
        null_values = 0
        for number, (position, value) in enumerate(zip(records.positions, records.values, strict=True), 1):
            if value is None:
                null_values += 1
            elif await self._send(value):
                if self._config.rate:
                    await self._pace(len(value))
            else:
                self._context.counters["too_large"] += 1
                inlet.lost(stream=records.stream, first=position, last=position, reason="too_large_for_a_datagram")
            if number % _DATAGRAMS_PER_TURN == 0:
                await trio.lowlevel.checkpoint()
        if null_values:
            self._context.counters["null_values"] += null_values
            self._log.warning("null_values_skipped", stream=records.stream, records=null_values)

    async def _send(self, value: bytes) -> bool:
        """Hand `value` to the kernel, however long it takes; False when no datagram can hold it."""
        backoff = Backoff(first_s=0.01)
        size_refused = False
        while True:
            try:
                self._socket.send(value)
                return True
            except BlockingIOError:
                await trio.lowlevel.wait_writable(self._socket)
            except ConnectionRefusedError:
                self._context.counters["refused"] += 1
                self._log.warning("datagrams_refused", target=str(self._config.send_to))
            except OSError as error:
                if error.errno == errno.EMSGSIZE:
                    if size_refused:
                        return False
                    # The first may be a router's answer to an earlier datagram; the second is about this one.
                    size_refused = True
                    continue
                self._context.counters["send_failed"] += 1
                self._log.warning("send_failed", target=str(self._config.send_to), error=str(error))
                await trio.sleep(backoff.failed())
                if error.errno != errno.ENOBUFS:
                    self._socket.close()
                    self._socket = await self._connect()

    async def _pace(self, value_bytes: int) -> None:
        now = trio.current_time()
        bits = 8 * (value_bytes + self._header_bytes)
        self._due_at = max(self._due_at, now - _CATCH_UP_S) + bits / self._config.rate
        if self._due_at > now:
            await trio.sleep_until(self._due_at)

    async def _connect(self) -> socket.socket:
        """A socket towards the target; tries for ever."""
        target = self._config.send_to
        backoff = Backoff()
        while True:
            sock = None
            try:
                family, kind, protocol, _, address = (
                    await trio.socket.getaddrinfo(target.host, target.port, type=socket.SOCK_DGRAM)
                )[0]
                sock = socket.socket(family, kind, protocol)
                sock.setblocking(False)
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
                sock.connect(address)
            except OSError as error:
                if sock is not None:
                    sock.close()
                self._context.counters["connect_failed"] += 1
                self._log.warning("target_unreachable", target=str(target), error=str(error))
                await trio.sleep(backoff.failed())
            else:
                self._header_bytes = 28 if family == socket.AF_INET else 48
                self._context.status["target"] = str(target)
                return sock
