"""UDP with and without the kernel's batching: the same datagrams arrive, whatever the kernel did with them."""

from __future__ import annotations

import errno
import itertools
import random
import socket
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from typing import Any

import numpy as np
import pytest
import structlog
import trio
from structlog.testing import capture_logs

from gapconn.errors import LinkError
from gapconn.link.udp import (
    RECEIVE_DATAGRAMS_MAX,
    RECEIVE_SLAB_BYTES,
    UDP_SEGMENT,
    UdpReceiver,
    UdpSender,
    ip_header_bytes,
    resolve,
)
from gapconn.protocol.wire import Burst, Slab
from gapconn.units import Address

log = structlog.get_logger()

Ways = tuple[bool, bool]
"""Whether the sender tries GSO and the receiver GRO."""


@pytest.fixture(params=[(True, True), (True, False), (False, True), (False, False)], ids=str)
def ways(request: pytest.FixtureRequest) -> Ways:
    gso_gro: Ways = request.param
    return gso_gro


@contextmanager
def receiving(
    *, gro: bool = True, host: str = "127.0.0.1", buffer_bytes: int = 1 << 22
) -> Iterator[tuple[UdpReceiver, Slab]]:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    receiver = UdpReceiver(family, (host, 0), log=log, buffer_bytes=buffer_bytes, gro=gro)
    try:
        yield receiver, Slab(RECEIVE_SLAB_BYTES)
    finally:
        receiver.close()


@contextmanager
def sending(to: Address, *, gso: bool = True) -> Iterator[UdpSender]:
    family = socket.AF_INET6 if ":" in to.host else socket.AF_INET
    sender = UdpSender(family, (to.host, to.port), log=log, gso=gso)
    try:
        yield sender
    finally:
        sender.close()


@asynccontextmanager
async def linked(ways: Ways, host: str = "127.0.0.1") -> AsyncIterator[tuple[UdpSender, UdpReceiver, Slab]]:
    gso, gro = ways
    with (
        trio.fail_after(30),
        receiving(gro=gro, host=host) as (receiver, slab),
        sending(receiver.address, gso=gso) as sender,
    ):
        yield sender, receiver, slab


def burst(datagrams: Sequence[bytes]) -> Burst:
    """Equal datagrams as the fragmenter hands them over."""
    size = len(datagrams[0])
    slab = Slab(max(1, len(datagrams) * size))
    whole = b"".join(datagrams)
    slab.flat[: len(whole)] = np.frombuffer(whole, np.uint8)
    return Burst(slab, size, len(datagrams))


def datagrams_in(arrived: Burst) -> list[bytes]:
    whole, size = bytes(arrived.bytes), arrived.datagram_bytes
    assert len(whole) == size * arrived.count
    return [whole[i * size : (i + 1) * size] for i in range(arrived.count)]


async def take(receiver: UdpReceiver, slab: Slab, count: int) -> list[list[bytes]]:
    """At least `count` datagrams, by burst."""
    bursts: list[list[bytes]] = []
    while sum(map(len, bursts)) < count:
        await receiver.wait_readable()
        bursts += [datagrams_in(arrived) for arrived in receiver.receive(slab)]
    return bursts


def some(count: int, size: int, seed: int = 0) -> list[bytes]:
    generator = random.Random(f"{count} {size} {seed}")
    return [generator.randbytes(size) for _ in range(count)]


@pytest.mark.parametrize(("count", "size"), [(1, 1), (64, 1), (64, 56), (44, 1472), (45, 1440), (7, 8972), (1, 65507)])
async def test_a_burst_arrives_as_it_was_sent(ways: Ways, count: int, size: int) -> None:
    sent = some(count, size)
    async with linked(ways) as (sender, receiver, slab):
        await sender.send(burst(sent))
        arrived = await take(receiver, slab, count)
    assert list(itertools.chain(*arrived)) == sent


async def test_whatever_the_lengths_nothing_is_changed_or_swapped(ways: Ways) -> None:
    """Bursts, odd ends, single, tiny and empty datagrams in any order."""
    generator = random.Random(7)
    counts, sizes = [1, 1, 2, 3, 17, 44], [0, 0, 1, 2, 55, 56, 57, 100, 1000, 1472]
    groups = [some(generator.choice(counts), generator.choice(sizes), seed=i) for i in range(150)]
    sent = list(itertools.chain(*groups))
    async with linked(ways) as (sender, receiver, slab):
        with socket.socket(type=socket.SOCK_DGRAM) as other:
            for group in groups:
                if group[0]:
                    await sender.send(burst(group))
                else:  # only others send empty datagrams
                    for datagram in group:
                        other.sendto(datagram, (receiver.address.host, receiver.address.port))
            arrived = await take(receiver, slab, len(sent))
    assert list(itertools.chain(*arrived)) == sent


async def test_equal_datagrams_behind_each_other_are_one_burst(ways: Ways) -> None:
    groups = [some(40, 1400), some(40, 1400, 1), some(3, 700), some(1, 1400, 2), some(40, 1400, 3)]
    async with linked(ways) as (sender, receiver, slab):
        for group in groups:
            await sender.send(burst(group))
        arrived = await take(receiver, slab, 124)
    assert [len(each) for each in arrived] == [80, 3, 41]


async def test_more_datagrams_than_a_slab_holds_come_in_several_rounds(ways: Ways) -> None:
    sent = [some(44, 1472, i) for i in range(10)]
    async with linked(ways) as (sender, receiver, slab):
        for each in sent:
            await sender.send(burst(each))
        await receiver.wait_readable()
        first = [datagrams_in(arrived) for arrived in receiver.receive(slab)]
        assert 0 < sum(map(len, first)) < 440
        rest = await take(receiver, slab, 440 - sum(map(len, first)))
    assert list(itertools.chain(*first, *rest)) == list(itertools.chain(*sent))


@pytest.mark.parametrize("gro", [True, False])
async def test_the_odd_end_of_what_the_kernel_joined_is_a_burst_of_its_own(gro: bool) -> None:
    """The last datagram of a GSO send may be shorter. Our sender never does that; others may."""
    whole = random.Random(1).randbytes(10 * 1000 + 77)
    expected = [whole[i : i + 1000] for i in range(0, len(whole), 1000)]
    with trio.fail_after(30), receiving(gro=gro) as (receiver, slab), socket.socket(type=socket.SOCK_DGRAM) as raw:
        target = (receiver.address.host, receiver.address.port)
        try:
            raw.sendmsg([whole], [(17, UDP_SEGMENT, (1000).to_bytes(2, "little"))], 0, target)
        except OSError:
            pytest.skip("this kernel has no UDP_SEGMENT")
        raw.sendto(expected[0], target)
        arrived = await take(receiver, slab, 12)
    assert arrived == [expected[:10], expected[10:], expected[:1]]


async def test_ipv6(ways: Ways) -> None:
    sent = some(44, 1452)
    with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as free:
        try:
            free.bind(("::1", 0))
        except OSError:
            pytest.skip("this machine has no IPv6 loopback")
    async with linked(ways, "::1") as (sender, receiver, slab):
        assert str(receiver.address).startswith("[::1]:")
        await sender.send(burst(sent))
        assert list(itertools.chain(*await take(receiver, slab, 44))) == sent


async def test_nothing_is_received_of_nothing() -> None:
    with receiving() as (receiver, slab):
        assert receiver.receive(slab) == []


@pytest.mark.req("GC-MOD-6")
@pytest.mark.parametrize("size", [0, 1])
async def test_a_flood_of_tiny_datagrams_does_not_keep_the_receiver(
    size: int, patched_socket: Callable[..., None]
) -> None:
    """Empty datagrams take no room in the slab: something else has to end the round."""

    def flood(real: Any, buffers: list[memoryview], *arguments: object) -> tuple[int, list[Any], int, tuple[str, int]]:
        buffers[0][:size] = b"x" * size
        return size, [], 0, ("192.0.2.7", 1)

    patched_socket(recvmsg_into=flood)
    with receiving() as (receiver, slab):
        bursts = receiver.receive(slab)
    assert sum(burst.count for burst in bursts) == RECEIVE_DATAGRAMS_MAX


async def test_it_tells_whether_the_kernel_holds_more(ways: Ways) -> None:
    async with linked(ways) as (sender, receiver, slab):
        for _ in range(RECEIVE_SLAB_BYTES // 65_536 + 2):
            await sender.send(burst(some(44, 1472)))
        await receiver.wait_readable()
        receiver.receive(slab)
        assert not receiver.drained
        while receiver.receive(slab):
            pass
        assert receiver.drained


async def test_a_wait_can_be_ended_and_begun_again() -> None:
    woken: list[str] = []

    async def wait(receiver: UdpReceiver, name: str) -> None:
        await receiver.wait_readable()
        woken.append(name)

    with trio.fail_after(30), receiving() as (receiver, slab), sending(receiver.address) as sender:
        receiver.wake()  # nobody waits
        async with trio.open_nursery() as nursery:
            nursery.start_soon(wait, receiver, "first")
            await trio.testing.wait_all_tasks_blocked()
            assert not woken
            receiver.wake()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(wait, receiver, "second")
            await trio.testing.wait_all_tasks_blocked()
            assert woken == ["first"]
            await sender.send(burst(some(1, 100)))
        assert woken == ["first", "second"]
        assert len(await take(receiver, slab, 1)) == 1


@pytest.mark.parametrize("count", [1, 44])
async def test_what_the_kernel_takes_at_once(ways: Ways, count: int) -> None:
    sent = some(count, 1000)
    async with linked(ways) as (sender, receiver, slab):
        taken = sender.send_now(burst(sent))
        assert taken == (count == 1 or sender.gso), "all or nothing, and one call"
        if not taken:
            await sender.send(burst(sent))
        assert list(itertools.chain(*await take(receiver, slab, count))) == sent
        assert receiver.receive(slab) == []


# What the kernel refuses


@pytest.fixture
def patched_socket(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Sockets whose methods are replaced: each is given what calls the real one, and its arguments."""

    def patch(**methods: Callable[..., Any]) -> None:
        def replaced(name: str) -> Callable[..., Any]:
            def method(self: socket.socket, *arguments: Any) -> Any:
                return methods[name](getattr(super(Patched, self), name), *arguments)

            return method

        Patched = type("Patched", (socket.socket,), {name: replaced(name) for name in methods})  # noqa: N806
        monkeypatch.setattr("gapconn.link.udp.socket.socket", Patched)

    return patch


def failing(*failures: OSError | None) -> Callable[..., Any]:
    """A `sendmsg` that fails as told, call by call (None: it works), and then works."""
    script = iter(failures)

    def sendmsg(real: Callable[..., Any], *arguments: Any) -> Any:
        failure = next(script, None)
        if failure is not None:
            raise failure
        return real(*arguments)

    return sendmsg


@pytest.mark.parametrize("number", [errno.EIO, errno.EINVAL, errno.EOPNOTSUPP])
async def test_a_device_without_offload_is_served_datagram_by_datagram(
    number: int, patched_socket: Callable[..., None]
) -> None:
    calls: list[int] = []

    def sendmsg(real: Callable[..., Any], parts: list[memoryview], ancillary: list[Any], *rest: Any) -> Any:
        calls.append(len(parts[0]))
        if ancillary:
            raise OSError(number, "no")
        return real(parts, ancillary, *rest)

    sent = some(5, 1000)
    with trio.fail_after(30), receiving() as (receiver, slab):
        patched_socket(sendmsg=sendmsg)
        with sending(receiver.address) as sender, capture_logs() as logs:
            if not sender.gso:
                pytest.skip("this kernel has no UDP_SEGMENT")
            await sender.send(burst(sent))
            await sender.send(burst(sent))
        assert list(itertools.chain(*await take(receiver, slab, 10))) == sent * 2
    assert calls == [5000] + [1000] * 10, "it is tried once"
    assert [entry["event"] for entry in logs] == ["segmentation_offload_refused"]
    assert not sender.gso


@pytest.mark.parametrize("number", [errno.ENOBUFS, errno.ENETUNREACH, errno.ENETDOWN, errno.EPERM])
async def test_without_room_or_route_the_burst_waits_and_is_not_lost(
    number: int, patched_socket: Callable[..., None], autojump_clock: trio.testing.MockClock
) -> None:
    sent = some(3, 500)
    with receiving() as (receiver, slab):
        patched_socket(sendmsg=failing(*[OSError(number, "no")] * 20))
        with sending(receiver.address, gso=False) as sender, capture_logs() as logs:
            await sender.send(burst(sent))
        assert list(itertools.chain(*await take(receiver, slab, 3))) == sent
        assert sender.stalls == 20
        assert 2 < trio.current_time() < 60, "backing off to a second, and no further"
    told = [entry for entry in logs if entry["event"] == "link_not_sendable"]
    assert bool(told) == (number != errno.ENOBUFS), "a full buffer is no news"
    assert len(told) < 5


async def test_a_full_send_buffer_is_waited_for(patched_socket: Callable[..., None]) -> None:
    sent = some(3, 500)
    with trio.fail_after(30), receiving() as (receiver, slab):
        patched_socket(sendmsg=failing(BlockingIOError(), BlockingIOError()))
        with sending(receiver.address) as sender:
            await sender.send(burst(sent))
        assert list(itertools.chain(*await take(receiver, slab, 3))) == sent
        assert sender.stalls == 0


@pytest.mark.parametrize("error", [BlockingIOError(), OSError(errno.ENOBUFS, "no"), OSError(errno.EMSGSIZE, "no")])
async def test_what_cannot_be_sent_at_once_is_left_to_send(error: OSError, patched_socket: Callable[..., None]) -> None:
    sent = some(3, 500)
    with trio.fail_after(30), receiving() as (receiver, slab):
        patched_socket(sendmsg=failing(error))
        with sending(receiver.address) as sender:
            if not sender.gso:
                pytest.skip("this kernel has no UDP_SEGMENT")
            assert not sender.send_now(burst(sent))
            assert receiver.receive(slab) == []
            assert sender.send_now(burst(sent))
        assert list(itertools.chain(*await take(receiver, slab, 3))) == sent


@pytest.mark.req("GC-WIRE-6")
@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("gso", [True, False])
async def test_datagrams_that_the_interface_does_not_carry(gso: bool, count: int) -> None:
    """Never as fragments: rather not at all, with a word on what to do."""
    with (
        receiving() as (receiver, _),
        sending(receiver.address, gso=gso) as sender,
        pytest.raises(LinkError, match=r"127\.0\.0\.1 does not carry .*: lower link\.mtu_bytes"),
    ):
        await sender.send(burst(some(count, 65_508)))


async def test_another_error_names_the_target(patched_socket: Callable[..., None]) -> None:
    patched_socket(sendmsg=failing(OSError(errno.EBADF, "Bad file descriptor")))
    with (
        sending(Address("127.0.0.1", 9)) as sender,
        pytest.raises(LinkError, match=r"cannot send to 127\.0\.0\.1:9: .*Bad file descriptor"),
    ):
        await sender.send(burst([b"x"]))


async def test_an_egress_that_is_not_there_costs_nothing() -> None:
    """What ICMP says of a closed port must not fail the next send: the ingress is blind."""
    with socket.socket(type=socket.SOCK_DGRAM) as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with sending(Address("127.0.0.1", port)) as sender, trio.fail_after(30):
        for _ in range(20):
            await sender.send(burst([b"x"]))
        assert sender.stalls == 0


async def test_an_error_of_the_receiving_socket_is_told(patched_socket: Callable[..., None]) -> None:
    errors = iter([ConnectionRefusedError(), OSError(errno.EBADF, "Bad file descriptor")])

    def recvmsg_into(real: object, *arguments: object) -> None:
        raise next(errors)

    patched_socket(recvmsg_into=recvmsg_into)
    with (
        receiving() as (receiver, slab),
        pytest.raises(LinkError, match=r"cannot receive on 127\.0\.0\.1:\d+: .*Bad file descriptor"),
    ):
        receiver.receive(slab)


# Buffers and addresses


async def test_a_receive_buffer_smaller_than_wanted_is_told_with_a_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gapconn.link.udp.grow_receive_buffer", lambda sock, wanted: 212_992)
    with capture_logs() as logs, receiving(buffer_bytes=32 << 20) as (receiver, _):
        assert receiver.buffer_bytes == 212_992
    (entry,) = logs
    assert entry["event"] == "receive_buffer_small"
    assert (entry["wanted"], entry["granted"]) == ("32 MiB", "208 KiB")
    assert "net.core.rmem_max=33554432" in entry["remedy"]


async def test_a_receive_buffer_that_is_granted_is_not_mentioned() -> None:
    with capture_logs() as logs, receiving(buffer_bytes=65_536) as (receiver, _):
        assert receiver.buffer_bytes >= 65_536
    assert logs == []


async def test_what_the_kernel_drops_is_counted(ways: Ways) -> None:
    gso, gro = ways
    with trio.fail_after(30), receiving(gro=gro, buffer_bytes=65_536) as (receiver, slab):
        assert receiver.kernel_drops == 0
        with sending(receiver.address, gso=gso) as sender:
            packets = 0
            while not receiver.kernel_drops:
                await sender.send(burst(some(1, 1000)))
                packets += 1
                assert packets < 100_000
        held = packets - receiver.kernel_drops
        assert len(list(itertools.chain(*await take(receiver, slab, held)))) == held
        assert receiver.receive(slab) == []
    assert receiver.kernel_drops == 0, "asked after the end, it does not fail"


def drops_told(bursts: list[Burst]) -> list[tuple[int, int]]:
    """For each burst: the number that its first datagram carries, and how many were dropped before it at most."""
    return [(int.from_bytes(burst.bytes[:4], "big"), burst.dropped_before) for burst in bursts]


async def test_it_is_told_behind_what_the_kernel_dropped(ways: Ways) -> None:
    """Datagrams are numbered: where the numbers have a hole, and only there, the kernel says that it dropped."""
    gso, gro = ways
    with trio.fail_after(30), receiving(gro=gro, buffer_bytes=65_536) as (receiver, slab):
        assert receiver.tells_drops
        with sending(receiver.address, gso=gso) as sender:
            number = 0
            for _ in range(40):
                whole = [(number + each).to_bytes(4, "big") + bytes(996) for each in range(20)]
                await sender.send(burst(whole))
                number += 20
            held = receiver.receive(slab)
            assert all(each.dropped_before == 0 for each in held), "what was dropped, was dropped behind them"
            first = sum(each.count for each in held)
            while not receiver.drained:
                first += sum(each.count for each in receiver.receive(slab))
            assert 0 < first < number
            await sender.send(burst([(number + each).to_bytes(4, "big") + bytes(996) for each in range(20)]))
            await receiver.wait_readable()
            (told, *others) = drops_told(receiver.receive(slab))
            assert told[0] == number
            assert told[1] >= number - first, "no datagram that was dropped is left unexplained"
            assert told[1] <= receiver.kernel_drops * 20
            assert all(count == 0 for _, count in others)
            await sender.send(burst([bytes(1000)] * 3))
            await receiver.wait_readable()
            assert all(each.dropped_before == 0 for each in receiver.receive(slab)), "each drop is told once"


async def test_datagrams_carry_where_they_came_from(ways: Ways) -> None:
    async with linked(ways) as (sender, receiver, slab):
        with socket.socket(type=socket.SOCK_DGRAM) as other:
            other.bind(("127.0.0.1", 0))
            await sender.send(burst(some(3, 1000)))
            other.sendto(bytes(1000), (receiver.address.host, receiver.address.port))
            other.sendto(b"", (receiver.address.host, receiver.address.port))
            await sender.send(burst(some(2, 1000)))
            arrived: list[Burst] = []
            while sum(each.count for each in arrived) < 7:
                await receiver.wait_readable()
                arrived += receiver.receive(slab)
            there = "{}:{}".format(*other.getsockname())
    assert [each.count for each in arrived] == [3, 1, 1, 2], "one sender in each burst"
    assert [each.came_from == there for each in arrived] == [False, True, True, False]
    assert arrived[0].came_from == arrived[3].came_from != ""


def test_a_port_has_one_egress() -> None:
    with receiving() as (receiver, _):
        address = receiver.address
        with pytest.raises(
            LinkError, match=rf"cannot listen on 127\.0\.0\.1:{address.port}: Address already in use .*"
        ):
            UdpReceiver(socket.AF_INET, (address.host, address.port), log=log, buffer_bytes=65_536)


async def test_a_host_that_cannot_be_resolved() -> None:
    with trio.fail_after(60), pytest.raises(LinkError, match=r"link\.bind: cannot resolve 'no\.such\.host\.invalid': "):
        await resolve(Address("no.such.host.invalid", 7400), "link.bind")


async def test_addresses_are_resolved_whole() -> None:
    with trio.fail_after(30):
        assert await resolve(Address("127.0.0.1", 7400), "link.address") == (socket.AF_INET, ("127.0.0.1", 7400))
        family, target = await resolve(Address("fe80::1%lo", 7400), "link.address")
    assert family == socket.AF_INET6
    assert target == ("fe80::1", 7400, 0, socket.if_nametoindex("lo")), "a link-local address needs its interface"


def test_header_bytes() -> None:
    assert (ip_header_bytes("127.0.0.1"), ip_header_bytes("fe80::1%lo")) == (28, 48)
