"""UDP sockets that move bursts: one system call for many datagrams where the kernel can, one each where it cannot.

Linux takes a whole burst by `UDP_SEGMENT` (GSO) and gives one by `UDP_GRO`, with the datagrams' length as ancillary
data. Elsewhere, or on a device that cannot, the plain path sends and receives single datagrams; it packs what it
receives into the same bursts, so that nothing above can tell the difference.
"""

from __future__ import annotations

import array
import contextlib
import errno
import fcntl
import ipaddress
import socket
import struct
import sys
import termios
from collections import Counter
from typing import TypeAlias, cast

import trio
from structlog.typing import FilteringBoundLogger

from gapconn.backoff import Backoff
from gapconn.errors import LinkError
from gapconn.passed_sockets import passed_socket
from gapconn.protocol.wire import SLAB_BYTES, Burst, Slab
from gapconn.socket_buffers import dropped_datagrams, grow_receive_buffer
from gapconn.throttle import ThrottledLog
from gapconn.units import Address, format_bytes

SOL_UDP = 17
UDP_SEGMENT = 103
UDP_GRO = 104
SO_RXQ_OVFL = 40
"""`socket(7)`: how much was dropped at the socket comes with what is received; only once something was dropped."""
DO_NOT_FRAGMENT = {
    socket.AF_INET: (socket.IPPROTO_IP, 10, 2),  # IP_MTU_DISCOVER, IP_PMTUDISC_DO
    socket.AF_INET6: (socket.IPPROTO_IPV6, 23, 2),  # IPV6_MTU_DISCOVER, IPV6_PMTUDISC_DO
}

_SEGMENT = struct.Struct("=H")
_GRO_SEGMENT = struct.Struct("=i")
_DROPS = struct.Struct("=I")
_ANCILLARY_BYTES = socket.CMSG_SPACE(_GRO_SEGMENT.size) + socket.CMSG_SPACE(_DROPS.size)

RECEIVE_SLAB_BYTES = 8 * SLAB_BYTES
"""Room for several GRO bursts behind each other: equal datagrams then form one larger burst."""

RECEIVE_DATAGRAMS_MAX = 1024
"""Datagrams that are received at once, give or take a GRO burst: more than a slab holds of any MTU. A flood of tiny or
empty ones could otherwise keep the receiver from returning, and make the views of a slab large."""

SocketAddress: TypeAlias = tuple[str, int] | tuple[str, int, int, int]
"""Numeric host and port; for IPv6 also flow and scope, without which a link-local address is useless."""

_NO_MEMORY = {errno.ENOBUFS, errno.ENOMEM}
_NO_ROUTE = {errno.ENETUNREACH, errno.EHOSTUNREACH, errno.ENETDOWN, errno.EHOSTDOWN, errno.EADDRNOTAVAIL, errno.EPERM}


async def resolve(address: Address, key: str) -> tuple[socket.AddressFamily, SocketAddress]:
    """The family and the numeric address of `address`, which the configuration has as `key`.

    Raises:
        LinkError: the name cannot be resolved.
    """
    try:
        found = await trio.socket.getaddrinfo(address.host, address.port, type=socket.SOCK_DGRAM)
    except OSError as error:
        raise LinkError(f"{key}: cannot resolve {address.host!r}: {error}") from error
    family, _, _, _, sockaddr = found[0]
    return family, cast("SocketAddress", sockaddr)  # numbers instead only where the interpreter has no IPv6


def ip_header_bytes(host: str) -> int:
    """IP and UDP headers of a datagram to `host`, a numeric address."""
    return 48 if ipaddress.ip_address(host.partition("%")[0]).version == 6 else 28


class UdpSender:
    """Sends bursts to one address, and never reads: the ingress is blind by design.

    The socket is not connected: where ICMP errors come back, on a connected socket each of them would cost a datagram.

    Attributes:
        gso: Whether the kernel cuts bursts. Turned off for good when a device refuses.
        stalls: Times that the kernel had no room or no route, and the burst was tried again.
        refusals: The same by the name of the error, such as `ENOBUFS`.
    """

    def __init__(
        self,
        family: socket.AddressFamily,
        target: SocketAddress,
        *,
        log: FilteringBoundLogger,
        gso: bool = True,
        send_buffer_bytes: int = 4 << 20,
    ) -> None:
        self._log = log
        self._throttled = ThrottledLog(log)
        self._target = target
        self.stalls = 0
        self.refusals: Counter[str] = Counter()
        self._socket = socket.socket(family, socket.SOCK_DGRAM)
        self._socket.setblocking(False)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, send_buffer_bytes)
        if sys.platform == "linux":
            # A fragment lost is a datagram lost: rather be told at once that the MTU is wrong.
            self._socket.setsockopt(*DO_NOT_FRAGMENT[family])
        self.gso = gso and _has_option(self._socket, UDP_SEGMENT, 0)

    async def send(self, burst: Burst) -> None:
        """Give all datagrams of `burst` to the kernel; waits while it has no room or no route.

        Raises:
            LinkError: the datagrams are larger than the interface carries.
        """
        if self.gso and burst.count > 1:
            segment = [(SOL_UDP, UDP_SEGMENT, _SEGMENT.pack(burst.datagram_bytes))]
            if await self._send(burst.bytes, segment):
                return
        whole, size = burst.bytes, burst.datagram_bytes
        for start in range(0, burst.count * size, size):
            await self._send(whole[start : start + size], [])

    def send_now(self, burst: Burst) -> bool:
        """Give all datagrams of `burst` to the kernel if it takes them at once; else none, and `send` knows why."""
        if burst.count > 1 and not self.gso:
            return False
        segment = [(SOL_UDP, UDP_SEGMENT, _SEGMENT.pack(burst.datagram_bytes))] if burst.count > 1 else []
        try:
            self._socket.sendmsg([burst.bytes], segment, 0, self._target)
        except OSError:
            return False
        return True

    async def _send(self, datagrams: memoryview, ancillary: list[tuple[int, int, bytes]]) -> bool:
        """Send in one call; False if the kernel cannot cut the burst on this path."""
        backoff = None
        while True:
            try:
                self._socket.sendmsg([datagrams], ancillary, 0, self._target)
            except BlockingIOError:
                await trio.lowlevel.wait_writable(self._socket)
            except OSError as error:
                if ancillary and error.errno in (errno.EIO, errno.EINVAL, errno.EOPNOTSUPP):
                    self._log.warning("segmentation_offload_refused", error=str(error), now="one call per datagram")
                    self.gso = False
                    return False
                if error.errno == errno.EMSGSIZE:
                    raise LinkError(
                        f"the interface to {self._target[0]} does not carry datagrams of this size: lower "
                        "link.mtu_bytes to its MTU, at both ends, or raise the interface's MTU"
                    ) from error
                if error.errno not in _NO_MEMORY | _NO_ROUTE:
                    raise LinkError(f"cannot send to {self._target[0]}:{self._target[1]}: {error}") from error
                self.stalls += 1
                self.refusals[errno.errorcode.get(error.errno or 0, str(error.errno))] += 1
                backoff = backoff or Backoff(first_s=0.001, limit_s=1.0)
                if error.errno in _NO_ROUTE:
                    self._throttled.warning("link_not_sendable", error=str(error), tries=backoff.tries + 1)
                await trio.sleep(backoff.failed())
            else:
                return True

    def close(self) -> None:
        """Close the socket."""
        self._socket.close()


class UdpReceiver:
    """Receives bursts on one address.

    Attributes:
        address: Where it listens, as the kernel says.
        gro: Whether the kernel joins datagrams.
        buffer_bytes: Receive buffer that the kernel granted.
        passed: Whether the service manager keeps the socket: what comes when this process is gone waits for the next.
        drained: Whether the kernel held no more when something was received last.
        tells_drops: Whether the kernel says behind what it dropped something; else `Burst.dropped_before` stays 0.
    """

    def __init__(
        self,
        family: socket.AddressFamily,
        listen: SocketAddress,
        *,
        log: FilteringBoundLogger,
        buffer_bytes: int,
        gro: bool = True,
    ) -> None:
        passed = passed_socket(family, socket.SOCK_DGRAM, listen, log)
        self._socket = passed or socket.socket(family, socket.SOCK_DGRAM)
        try:
            self._socket.setblocking(False)
            self.buffer_bytes = grow_receive_buffer(self._socket, buffer_bytes)
            if self.buffer_bytes < buffer_bytes:
                log.warning(
                    "receive_buffer_small",
                    wanted=format_bytes(buffer_bytes),
                    granted=format_bytes(self.buffer_bytes),
                    remedy=f"sysctl -w net.core.rmem_max={buffer_bytes}, or give the process CAP_NET_ADMIN",
                )
            self.gro = gro and _has_option(self._socket, UDP_GRO, 1)
            self.tells_drops = _has_option(self._socket, SO_RXQ_OVFL, 1, socket.SOL_SOCKET)
            if passed is None:
                self._socket.bind(listen)
        except OSError as error:
            self._socket.close()
            raise LinkError(
                f"cannot listen on {listen[0]}:{listen[1]}: {error.strerror or error} "
                "(an egress needs an address of its own host, and a port of its own; see link.address and link.bind)"
            ) from error
        host, port = self._socket.getsockname()[:2]
        self.address = Address(host, port)
        self.passed = passed is not None
        self.drained = True
        self._drops = 0
        """Packets that the kernel had dropped when it took in what was received last."""
        self._joined_max = 1
        """Datagrams that it has given as one packet, at most: so many may have been in one that it dropped."""
        self._sender: SocketAddress = ("", 0)
        self._came_from = ""

    @property
    def kernel_drops(self) -> int:
        """Packets that the kernel dropped since the start: the receive buffer was full, or the UDP checksum wrong.

        The kernel counts a burst that it has joined as one packet.
        """
        return dropped_datagrams(self._socket)

    async def wait_readable(self) -> None:
        """Wait until something has arrived, or `wake` is called.

        It may turn out to be nothing: a datagram with a wrong UDP checksum.
        """
        try:
            await trio.lowlevel.wait_readable(self._socket)
        except trio.ClosedResourceError:
            await trio.lowlevel.checkpoint_if_cancelled()

    def wake(self) -> None:
        """End the wait of whoever waits now: cheaper than a cancel scope around each wait."""
        trio.lowlevel.notify_closing(self._socket)

    def has_waiting(self) -> bool:
        """Whether the kernel holds something that was not taken."""
        waiting = array.array("i", [0])
        with contextlib.suppress(OSError):
            fcntl.ioctl(self._socket, termios.FIONREAD, waiting)
        return bool(waiting[0])

    def receive(self, slab: Slab) -> list[Burst]:
        """What has arrived and fits into `slab`, which has `RECEIVE_SLAB_BYTES`; does not wait.

        Raises:
            LinkError: the socket cannot be used any more.
        """
        bursts: list[Burst] = []
        start = end = size = datagrams = dropped = 0
        room = slab.flat.data
        self.drained = False
        while end + SLAB_BYTES <= len(room) and datagrams < RECEIVE_DATAGRAMS_MAX:
            try:
                got, ancillary, _, sender = self._socket.recvmsg_into([room[end:]], _ANCILLARY_BYTES)
            except BlockingIOError:
                self.drained = True
                break
            except ConnectionError:  # an ICMP error to something that this port never sent
                continue
            except OSError as error:
                raise LinkError(f"cannot receive on {self.address}: {error}") from error
            segment, new_drops = self._told(ancillary, got) if ancillary else (got, 0)
            datagrams += got // segment if segment else 1
            if segment != size or segment == 0 or new_drops or sender != self._sender:
                # Only equal datagrams of one sender directly behind each other are one burst.
                bursts += self._burst(slab, start, end, size, dropped)
                start, size, dropped = end, segment, new_drops
                self._hear(sender)
                if segment == 0:
                    bursts.append(Burst(slab, 0, 1, end, self._came_from, dropped))
                    dropped = 0
            end += got
            if segment and got % segment:
                last = end - got % segment
                bursts += self._burst(slab, start, last, size, dropped)
                bursts += self._burst(slab, last, end, end - last, dropped if start == last else 0)
                start, size, dropped = end, 0, 0
        return bursts + self._burst(slab, start, end, size, dropped)

    def _told(self, ancillary: list[tuple[int, int, bytes]], got: int) -> tuple[int, int]:
        """Length of the datagrams that were received as `got` bytes, and how many were dropped before them, at most."""
        segment, dropped = got, 0
        for level, kind, value in ancillary:
            if (level, kind) == (SOL_UDP, UDP_GRO):
                segment = _GRO_SEGMENT.unpack(value)[0]
                if got > segment * self._joined_max:
                    self._joined_max = -(-got // segment)
            elif (level, kind) == (socket.SOL_SOCKET, SO_RXQ_OVFL):
                drops = _DROPS.unpack(value)[0]
                if drops != self._drops:
                    dropped = (drops - self._drops) % 2**32
                    self._drops = drops
        return segment, dropped * self._joined_max

    def _hear(self, sender: SocketAddress) -> None:
        if sender != self._sender:
            self._sender = sender
            self._came_from = str(Address(*sender[:2]))

    def _burst(self, slab: Slab, start: int, end: int, size: int, dropped: int) -> list[Burst]:
        if not size or end <= start:
            return []
        return [Burst(slab, size, (end - start) // size, start, self._came_from, dropped)]

    def close(self) -> None:
        """Close the socket."""
        self._socket.close()


def _has_option(sock: socket.socket, option: int, value: int, level: int = SOL_UDP) -> bool:
    if sys.platform != "linux":
        return False
    try:
        sock.setsockopt(level, option, value)
    except OSError:
        return False
    return True
