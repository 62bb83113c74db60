"""Datagrams become records: boundaries, order, the chain of positions, and what the kernel dropped."""

from __future__ import annotations

import socket
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio
from structlog.testing import capture_logs
from trio.testing import wait_all_tasks_blocked

from gapconn.errors import SourceError
from gapconn.plugins import Context
from gapconn.record import NO_POSITION, Batch, Records, TimestampType
from gapconn.sources.udp import UdpSource, UdpSourceConfig
from gapconn.testing.pipes import RecordingOutlet, make_context
from gapconn.units import Address

ANY_PORT = Address("127.0.0.1", 0)


def runs(batches: list[Batch]) -> list[Records]:
    return [part for batch in batches for part in batch.parts if isinstance(part, Records)]


def values(batches: list[Batch]) -> list[bytes | None]:
    return [value for run in runs(batches) for value in run.values]


def address_of(context: Context) -> tuple[str, int]:
    host, _, port = context.status["listening"].rpartition(":")
    return host, int(port)


@asynccontextmanager
async def running(config: UdpSourceConfig, context: Context, outlet: RecordingOutlet) -> AsyncIterator[socket.socket]:
    """The source at work, and a peer of it; cancelled at the end."""
    with trio.fail_after(10):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(UdpSource(config, context).run, outlet)
            await wait_all_tasks_blocked()
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as peer:
                peer.connect(address_of(context))
                yield peer
            nursery.cancel_scope.cancel()


async def test_each_datagram_is_a_record_whoever_sent_it() -> None:
    context, outlet = make_context(link="meters", epoch=0x2A), RecordingOutlet()
    started_ms = time.time_ns() // 1_000_000
    async with running(UdpSourceConfig(listen=ANY_PORT), context, outlet) as peer:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as other:
            other.connect(address_of(context))
            peer.send(b"one")
            other.send(b"")
            peer.send(b"x" * 65_507)
            await outlet.wait_until(lambda batches: len(values(batches)) == 3)
            other.send(b"four")
            await outlet.wait_until(lambda batches: len(values(batches)) == 4)

    assert values(outlet.batches) == [b"one", b"", b"x" * 65_507, b"four"]
    positions = [position for run in runs(outlet.batches) for position in run.positions]
    assert positions == list(range(context.first_position, context.first_position + 4))
    assert {run.stream for run in runs(outlet.batches)} == {context.status["listening"]}
    assert {batch.origin for batch in outlet.batches} == {"meters-2a"}
    for run in runs(outlet.batches):
        assert run.timestamp_type == TimestampType.CREATE
        assert run.timestamps_ms is not None
        assert all(started_ms <= stamp <= time.time_ns() // 1_000_000 for stamp in run.timestamps_ms)


async def test_a_burst_becomes_few_chained_batches_of_the_size_asked_for() -> None:
    context, outlet = make_context(), RecordingOutlet(batch_bytes=100_000)
    datagrams = [b"%04d" % number + bytes(996) for number in range(1000)]
    async with running(UdpSourceConfig(listen=ANY_PORT), context, outlet) as peer:
        for datagram in datagrams:
            peer.send(datagram)
        await outlet.wait_until(lambda batches: len(values(batches)) == 1000)

    assert values(outlet.batches) == datagrams
    assert len(outlet.batches) < 15
    assert all(sum(len(value or b"") for value in run.values) <= 101_000 for run in runs(outlet.batches))
    last = NO_POSITION
    for run in runs(outlet.batches):
        assert run.previous == last
        last = run.positions[-1]


async def test_what_the_kernel_dropped_is_counted_and_logged(monkeypatch: pytest.MonkeyPatch) -> None:
    def shrink_receive_buffer(sock: socket.socket, wanted_bytes: int) -> int:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8192)
        return wanted_bytes

    monkeypatch.setattr("gapconn.sources.udp.grow_receive_buffer", shrink_receive_buffer)
    context, outlet = make_context(), RecordingOutlet()
    with capture_logs() as logs:
        async with running(UdpSourceConfig(listen=ANY_PORT), context, outlet) as peer:
            for _ in range(100):
                peer.send(bytes(1000))
            await outlet.wait_until(bool)

    dropped = context.counters["kernel_dropped"]
    assert dropped > 0
    assert len(values(outlet.batches)) + dropped == 100
    assert [entry["datagrams"] for entry in logs if entry["event"] == "datagrams_dropped_by_kernel"] == [dropped]


async def test_what_waits_when_it_is_stopped_is_still_sent() -> None:
    context, outlet = make_context(), RecordingOutlet()
    async with running(UdpSourceConfig(listen=ANY_PORT), context, outlet) as peer:
        for number in range(5):
            peer.send(b"%d" % number)
        # No checkpoint: the source sees the cancellation before it sees the datagrams.

    assert values(outlet.batches) == [b"0", b"1", b"2", b"3", b"4"]


async def test_what_cannot_be_sent_when_it_is_stopped_is_counted() -> None:
    class StuckOutlet(RecordingOutlet):
        async def send(self, *_: object) -> None:
            await trio.sleep_forever()

    context, outlet = make_context(), StuckOutlet(flush_timeout_s=0.01)
    async with running(UdpSourceConfig(listen=ANY_PORT), context, outlet) as peer:
        peer.send(b"never")
        peer.send(b"sent")
        await wait_all_tasks_blocked()

    assert context.counters["lost_at_stop"] == 2


async def test_a_datagram_larger_than_a_message_is_counted_and_the_next_one_crosses() -> None:
    context, outlet = make_context(), RecordingOutlet(batch_bytes=2000, batch_bytes_max=4000)
    async with running(UdpSourceConfig(listen=ANY_PORT), context, outlet) as peer:
        peer.send(bytes(5000))
        peer.send(b"small")
        await outlet.wait_until(bool)

    assert values(outlet.batches) == [b"small"]
    assert context.counters["too_large"] == 1


async def test_a_receive_buffer_smaller_than_asked_for_is_warned_about(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gapconn.sources.udp.grow_receive_buffer", lambda sock, wanted_bytes: 212_992)
    context = make_context()
    with capture_logs() as logs:
        async with running(UdpSourceConfig(listen=ANY_PORT), context, RecordingOutlet()):
            pass

    warning = next(entry for entry in logs if entry["event"] == "receive_buffer_refused")
    assert (warning["wanted_bytes"], warning["granted_bytes"]) == (8 << 20, 212_992)
    assert context.status["receive_buffer_bytes"] == 212_992


async def test_an_address_in_use_is_an_error_that_names_it() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as taken:
        taken.bind(("127.0.0.1", 0))
        listen = Address(*taken.getsockname())
        with pytest.raises(SourceError, match=f"cannot listen on {listen}: .*in use"):
            await UdpSource(UdpSourceConfig(listen=listen), make_context()).run(RecordingOutlet())


async def test_a_flood_of_datagrams_that_are_too_large_does_not_keep_it_from_yielding(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Flooded(socket.socket):
        def recv_into(self, *_: object) -> int:
            return 5000

    monkeypatch.setattr("gapconn.sources.udp.socket.socket", Flooded)
    context, outlet = make_context(), RecordingOutlet(batch_bytes=2000, batch_bytes_max=4000)
    with trio.fail_after(60):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(UdpSource(UdpSourceConfig(listen=ANY_PORT), context).run, outlet)
            await wait_all_tasks_blocked()
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as peer:
                peer.sendto(b"it begins", address_of(context))
            while context.counters["too_large"] < 10_000:
                await trio.lowlevel.checkpoint()
            nursery.cancel_scope.cancel()
    assert outlet.batches == []


async def test_what_was_dropped_at_a_passed_socket_is_counted_once(monkeypatch: pytest.MonkeyPatch) -> None:
    context, outlet = make_context(), RecordingOutlet()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as kept, socket.socket(type=socket.SOCK_DGRAM) as peer:
        kept.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8192)
        kept.bind(("127.0.0.1", 0))
        monkeypatch.setattr("gapconn.passed_sockets._passed", lambda: (kept,))
        monkeypatch.setattr("gapconn.sources.udp.grow_receive_buffer", lambda sock, wanted_bytes: wanted_bytes)
        source = UdpSource(UdpSourceConfig(listen=Address(*kept.getsockname())), context)
        sent = 0
        for _ in range(2):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(source.run, outlet)
                await wait_all_tasks_blocked()
                for _ in range(100):
                    peer.sendto(bytes(1000), kept.getsockname())
                    sent += 1
                await wait_all_tasks_blocked(0.05)
                nursery.cancel_scope.cancel()
    dropped = context.counters["kernel_dropped"]
    assert dropped > 0
    assert len(values(outlet.batches)) + dropped == sent


async def test_what_waits_in_a_passed_socket_when_it_is_stopped_waits_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """The senders may be faster than the link: it would never be empty, and the last batch would be lost."""
    with socket.socket(type=socket.SOCK_DGRAM) as kept, socket.socket(type=socket.SOCK_DGRAM) as peer:
        kept.bind(("127.0.0.1", 0))
        kept.setblocking(False)
        monkeypatch.setattr("gapconn.passed_sockets._passed", lambda: (kept,))

        class FullLink(RecordingOutlet):
            async def send(self, *what: Any) -> None:
                peer.sendto(b"more", kept.getsockname())
                await trio.sleep(0.01)
                await super().send(*what)

        context, outlet = make_context(), FullLink(flush_timeout_s=0.5)
        with trio.fail_after(10):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(UdpSource(UdpSourceConfig(listen=Address(*kept.getsockname())), context).run, outlet)
                peer.sendto(b"first", kept.getsockname())
                await outlet.wait_until(lambda batches: len(batches) > 3)
                nursery.cancel_scope.cancel()
        assert context.counters["lost_at_stop"] == 0
        assert kept.recv(100) == b"more"
