"""The counters of a host, as the kernel writes them: real ones, and files that look like them."""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Callable
from pathlib import Path

import pytest
import trio

from gapconn.link.host import (
    READ_INTERVAL_S,
    HostCounters,
    HostWatch,
    addresses,
    interface_packets,
    interfaces_of,
    read_host,
    source_address,
)

SNMP = """\
Ip: Forwarding DefaultTTL InReceives
Ip: 1 64 4001
Udp: InDatagrams NoPorts InErrors OutDatagrams RcvbufErrors SndbufErrors InCsumErrors IgnoredMulti MemErrors
Udp: 13998606 200058 195240 13911607 {rcvbuf} 3 2 0 0
UdpLite: InDatagrams NoPorts InErrors OutDatagrams RcvbufErrors SndbufErrors InCsumErrors IgnoredMulti MemErrors
UdpLite: 0 0 99 0 99 99 99 0 99
"""
SNMP6 = """\
Ip6InReceives                   \t3884
Udp6InDatagrams                 \t4721
Udp6InErrors                    \t5
Udp6RcvbufErrors                \t4
UdpLite6RcvbufErrors            \t77
"""
SOFTNET = "01049cae 00000002 00000007 00000000\n00fed44d 0000000a 00000009 00000000\n"


@pytest.fixture
def root(tmp_path: Path) -> Callable[..., Path]:
    """Writes the files of a host; `rcvbuf` and `missed` are counters."""

    def write(*, rcvbuf: int = 195_240, missed: int = 0) -> Path:
        net = tmp_path / "proc/net"
        net.mkdir(parents=True, exist_ok=True)
        (net / "snmp").write_text(SNMP.format(rcvbuf=rcvbuf))
        (net / "snmp6").write_text(SNMP6)
        (net / "softnet_stat").write_text(SOFTNET)
        for name, state in (("eth0", "up"), ("eth1", "down"), ("lo", "unknown"), ("tun0", "unknown")):
            directory = tmp_path / "sys/class/net" / name
            (directory / "statistics").mkdir(parents=True, exist_ok=True)
            (directory / "operstate").write_text(f"{state}\n")
            (directory / "statistics/rx_missed_errors").write_text(f"{missed}\n")
            (directory / "statistics/rx_packets").write_text("5\n")
            (directory / "statistics/tx_dropped").write_text("1\n")
        return tmp_path

    return write


def test_the_files_of_a_host_are_read(root: Callable[..., Path]) -> None:
    found = read_host(("eth0", "gone0"), sending=False, root=root(missed=6))
    assert found.udp == {
        "InErrors": 195_245, "RcvbufErrors": 195_244, "SndbufErrors": 3, "InCsumErrors": 2, "MemErrors": 0,
    }  # fmt: skip
    assert found.backlog_dropped == 12
    assert found.interfaces == {"eth0": {"rx_missed_errors": 6}, "gone0": {}}
    assert read_host(("eth0",), sending=True, root=root()).interfaces == {"eth0": {"tx_dropped": 1}}


def test_a_host_without_them(tmp_path: Path) -> None:
    assert read_host(("eth0",), sending=False, root=tmp_path) == HostCounters(interfaces={"eth0": {}})
    assert HostWatch("0.0.0.0", sending=False, root=tmp_path).interfaces == ()


def test_what_grew_since_the_start(root: Callable[..., Path]) -> None:
    watch = HostWatch("0.0.0.0", sending=False, root=root(rcvbuf=7, missed=100))
    assert watch.interfaces == ("eth0", "tun0"), "those that are up, without the loopback"
    assert watch.packets_lost == sum(watch.grown.udp.values()) == 0
    root(rcvbuf=10, missed=104)
    watch.look()
    assert watch.grown.udp["RcvbufErrors"] == 3
    assert watch.packets_lost == 8
    root(rcvbuf=10, missed=2)
    watch.look()
    assert watch.grown.interfaces["eth0"] == {"rx_missed_errors": 2}, "an interface that was made anew counts from 0"


@pytest.mark.parametrize(
    ("counters", "packets"),
    [
        ({}, 0),
        ({"rx_dropped": 3, "rx_missed_errors": 4, "rx_crc_errors": 1, "rx_frame_errors": 1, "rx_length_errors": 1}, 10),
        ({"rx_over_errors": 5, "rx_fifo_errors": 5}, 5),
        ({"rx_over_errors": 2, "rx_fifo_errors": 5}, 5),
        ({"tx_dropped": 1, "tx_errors": 2, "tx_fifo_errors": 1, "tx_carrier_errors": 1}, 3),
    ],
)
def test_no_packet_of_an_interface_counts_twice(counters: dict[str, int], packets: int) -> None:
    assert interface_packets(counters) == packets


@pytest.mark.parametrize(
    ("steps", "coincident"),
    [
        ([(5, 5)], 5),
        ([(5, 0), (0, 5)], 5),
        ([(0, 5), (5, 0)], 5),
        ([(5, 0), (0, 0), (0, 5)], 0),
        ([(0, 100)] * 50, 0),
        ([(3, 100)] * 2, 6),
        ([(100, 3)] * 2, 6),
        ([(5, 5), (-5, 0), (0, 0)], 5),
    ],
)
def test_packets_of_an_interface_count_only_when_something_goes_missing(
    steps: list[tuple[int, int]], coincident: int, tmp_path: Path
) -> None:
    watch = HostWatch("0.0.0.0", sending=False, root=tmp_path)
    for missing, packets in steps:
        watch.compare(missing, packets)
    assert watch.coincident == coincident


async def test_it_is_read_again_and_again(root: Callable[..., Path]) -> None:
    watch = HostWatch("0.0.0.0", sending=False, root=root())
    missing = 0
    with trio.fail_after(30 * READ_INTERVAL_S):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(watch.run, lambda: missing)
            await trio.testing.wait_all_tasks_blocked()
            missing = 3
            root(missed=9)
            while not watch.coincident:  # noqa: ASYNC110 - no event tells of it
                await trio.sleep(0.02)
            nursery.cancel_scope.cancel()
    assert watch.coincident == 3


def test_the_interfaces_of_this_host() -> None:
    assert interfaces_of("127.4.5.6") == interfaces_of("::1") == ("lo",)
    found = list(addresses())
    assert ("lo", ipaddress.ip_address("127.0.0.1")) in found
    names = {name for _, name in socket.if_nameindex()}
    for name, address in found:
        assert name in names
        if not address.is_loopback:
            assert name in interfaces_of(str(address))
    assert interfaces_of("192.0.2.255") == ()
    assert set(interfaces_of("0.0.0.0")) <= names - {"lo"}


def test_from_where_datagrams_leave() -> None:
    assert source_address(socket.AF_INET, ("127.0.0.1", 7400)) == "127.0.0.1"


def test_the_counters_of_this_host() -> None:
    watch = HostWatch("127.0.0.1", sending=False)
    assert watch.grown.udp.keys() >= {"RcvbufErrors", "InCsumErrors"}
    assert "rx_dropped" in watch.grown.interfaces["lo"]
