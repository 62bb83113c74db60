"""What the kernel and the network interfaces of this host dropped, as Linux tells it in `/proc` and `/sys`.

The counters are of the whole host (of its network namespace): others' packets are in them. They are read in a thread,
and told as what they grew by since the start.
"""

from __future__ import annotations

import ipaddress
import socket
import struct
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Final, TypeAlias

import attrs
import trio

READ_INTERVAL_S: Final = 1.0

UDP_COUNTERS: Final = ("InErrors", "RcvbufErrors", "SndbufErrors", "InCsumErrors", "MemErrors")
"""Of `/proc/net/snmp` (IPv4) and `/proc/net/snmp6`, added up. A burst that the kernel has joined is one."""

Counters: TypeAlias = Mapping[str, int]

_RECEIVING: Final = (
    "rx_dropped", "rx_missed_errors", "rx_over_errors", "rx_fifo_errors", "rx_crc_errors", "rx_frame_errors",
    "rx_length_errors",
)  # fmt: skip
_SENDING: Final = ("tx_dropped", "tx_errors", "tx_fifo_errors", "tx_carrier_errors", "tx_aborted_errors")

_RTM_NEWADDR = 20
_RTM_GETADDR = 22
_NLM_F_REQUEST_DUMP = 0x301
_IFA_ADDRESS = 1
_IFA_LOCAL = 2
_MESSAGE = struct.Struct("=IHHII")  # nlmsghdr
_ADDRESS = struct.Struct("=BBBBI")  # ifaddrmsg
_ATTRIBUTE = struct.Struct("=HH")  # rtattr


@attrs.frozen(kw_only=True)
class HostCounters:
    """What was counted, since the host's start or between two readings."""

    udp: Counters = attrs.field(factory=dict)
    """`UDP_COUNTERS`; none where the kernel does not tell them."""
    backlog_dropped: int = 0
    """Packets for which the queue between interface and protocols had no room (`/proc/net/softnet_stat`)."""
    interfaces: Mapping[str, Counters] = attrs.field(factory=dict)
    """By interface: those of its counters that tell of lost packets."""

    def since(self, before: HostCounters) -> HostCounters:
        """What it grew by. A counter that went back (an interface that was made anew) counts from 0."""
        return HostCounters(
            udp=_growth(self.udp, before.udp),
            backlog_dropped=max(0, self.backlog_dropped - before.backlog_dropped),
            interfaces={
                name: _growth(counters, before.interfaces.get(name, {})) for name, counters in self.interfaces.items()
            },
        )


def _growth(now: Counters, before: Counters) -> Counters:
    return {key: value - before.get(key, 0) if value >= before.get(key, 0) else value for key, value in now.items()}


def interface_packets(counters: Counters) -> int:
    """Packets that an interface lost, by its counters; drivers count an overflow under one of two names, or both."""
    receiving = ("rx_dropped", "rx_missed_errors", "rx_crc_errors", "rx_frame_errors", "rx_length_errors")
    overflows = max(counters.get("rx_over_errors", 0), counters.get("rx_fifo_errors", 0))
    # tx_errors is the sum of the others.
    sending = counters.get("tx_dropped", 0) + counters.get("tx_errors", 0)
    return sum(counters.get(key, 0) for key in receiving) + overflows + sending


def read_host(interfaces: tuple[str, ...], *, sending: bool, root: Path = Path("/")) -> HostCounters:
    """The counters as they are. What this kernel does not have is left out."""
    wanted = _SENDING if sending else _RECEIVING
    return HostCounters(
        udp=_read_udp(root / "proc/net"),
        backlog_dropped=_read_backlog(root / "proc/net/softnet_stat"),
        interfaces={name: _read_interface(root / "sys/class/net" / name / "statistics", wanted) for name in interfaces},
    )


def _text(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""


def _read_udp(directory: Path) -> Counters:
    found: dict[str, int] = {}
    names: list[str] = []
    values: list[str] = []
    for line in _text(directory / "snmp").splitlines():
        protocol, _, rest = line.partition(":")
        if protocol == "Udp":
            names, values = values, rest.split()  # a line of names, then one of values
    found.update((key, int(value)) for key, value in zip(names, values, strict=False) if key in UDP_COUNTERS)
    for line in _text(directory / "snmp6").splitlines():
        name, _, value = line.partition(" ")
        key = name.removeprefix("Udp6")
        if key in UDP_COUNTERS and key != name:
            found[key] = found.get(key, 0) + int(value)
    return found


def _read_backlog(path: Path) -> int:
    """The second column, hexadecimal, of each processor."""
    return sum(int(line.split()[1], 16) for line in _text(path).splitlines() if len(line.split()) > 1)


def _read_interface(directory: Path, wanted: tuple[str, ...]) -> Counters:
    return {key: int(text) for key in wanted if (text := _text(directory / key).strip())}


def interfaces_of(host: str, *, root: Path = Path("/")) -> tuple[str, ...]:
    """The interfaces on which packets to or from this address of the host come and go.

    For a wildcard all that are up, without the loopback; none where it is not known.
    """
    address = ipaddress.ip_address(host.partition("%")[0])
    if address.is_loopback:
        return ("lo",)
    if address.is_unspecified:
        directory = root / "sys/class/net"
        with suppress(OSError):
            return tuple(
                sorted(
                    path.name
                    for path in directory.iterdir()
                    if path.name != "lo" and _text(path / "operstate").strip() in ("up", "unknown")
                )
            )
        return ()
    with suppress(OSError, AttributeError):  # where there is no netlink, Python has no name for it
        return tuple(sorted({name for name, one in addresses() if one == address}))
    return ()


def addresses() -> Iterator[tuple[str, ipaddress.IPv4Address | ipaddress.IPv6Address]]:
    """The addresses of this host, each with the name of its interface, as rtnetlink(7) has them.

    Raises:
        OSError: the kernel does not say.
    """
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE) as netlink:
        netlink.settimeout(1.0)
        netlink.send(_MESSAGE.pack(24, _RTM_GETADDR, _NLM_F_REQUEST_DUMP, 1, 0) + _ADDRESS.pack(0, 0, 0, 0, 0))
        while True:
            answer = netlink.recv(1 << 16)
            at = 0
            while at + _MESSAGE.size <= len(answer):
                length, kind, _, _, _ = _MESSAGE.unpack_from(answer, at)
                if kind != _RTM_NEWADDR:  # the end, or an error
                    return
                yield from _address_in(answer[at + _MESSAGE.size : at + length])
                at += (length + 3) & ~3


def _address_in(body: bytes) -> Iterator[tuple[str, ipaddress.IPv4Address | ipaddress.IPv6Address]]:
    _, _, _, _, index = _ADDRESS.unpack_from(body)
    found: dict[int, bytes] = {}
    at = _ADDRESS.size
    while at + _ATTRIBUTE.size <= len(body):
        length, kind = _ATTRIBUTE.unpack_from(body, at)
        found[kind] = body[at + _ATTRIBUTE.size : at + length]
        at += max(_ATTRIBUTE.size, (length + 3) & ~3)
    raw = found.get(_IFA_LOCAL) or found.get(_IFA_ADDRESS)  # of a point-to-point interface, the second is the peer's
    if raw:
        with suppress(OSError):  # it has just gone
            yield socket.if_indextoname(index), ipaddress.ip_address(raw)


def source_address(family: socket.AddressFamily, target: tuple[object, ...]) -> str:
    """The address of this host from which datagrams to `target` leave; the wildcard where there is no route."""
    with socket.socket(family, socket.SOCK_DGRAM) as sock:
        try:
            sock.connect(target)  # sends nothing
        except OSError:
            return "::" if family == socket.AF_INET6 else "0.0.0.0"
        host: str = sock.getsockname()[0]
        return host


class HostWatch:
    """What this host lost since the start of an end.

    Attributes:
        interfaces: Which interfaces are watched; empty where it is not known.
        grown: By what the counters grew; as old as `READ_INTERVAL_S` while `run` runs.
        coincident: Packets that the interfaces lost about when datagrams of the link went missing. An interface also
            drops what nobody here waits for, all day long: that is no reason why something is missing.
    """

    def __init__(self, host: str, *, sending: bool, root: Path = Path("/")) -> None:
        self.interfaces = interfaces_of(host, root=root)
        self.grown = HostCounters()
        self.coincident = 0
        self._unmatched = (0, 0)
        self._sending = sending
        self._root = root
        self._at_start = self._read()
        self.look()

    def _read(self) -> HostCounters:
        return read_host(self.interfaces, sending=self._sending, root=self._root)

    def look(self) -> None:
        """Read the counters. May block."""
        self.grown = self._read().since(self._at_start)

    @property
    def packets_lost(self) -> int:
        """By the interfaces."""
        return sum(map(interface_packets, self.grown.interfaces.values()))

    def compare(self, missing: int, packets: int) -> None:
        """Since the last time so many datagrams went missing, and the interfaces lost so many packets."""
        missing_before, packets_before = self._unmatched  # one may show a moment later than the other
        matched = min(max(0, missing) + missing_before, packets + packets_before)
        self.coincident += matched
        self._unmatched = max(0, missing - matched), max(0, packets - matched)

    async def run(self, missing: Callable[[], int] = int) -> None:
        """Read them now and then, for ever; `missing` tells how many datagrams of the link are."""
        missing_before, packets_before = missing(), self.packets_lost
        while True:
            await trio.sleep(READ_INTERVAL_S)
            await trio.to_thread.run_sync(self.look)
            missing_now, packets_now = missing(), self.packets_lost
            self.compare(missing_now - missing_before, packets_now - packets_before)
            missing_before, packets_before = missing_now, packets_now
