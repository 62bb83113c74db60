"""Connections become byte streams: bytes, ends, break-offs, the roster, limits, and what a client is told."""

from __future__ import annotations

import socket
import struct
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import attrs
import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from gapconn.errors import SourceError
from gapconn.plugins import Context
from gapconn.record import Batch, Chunk, ChunkKind
from gapconn.sources.tcp import TcpSource, TcpSourceConfig
from gapconn.testing.pipes import RecordingOutlet, make_context
from gapconn.units import Address, Seconds

ANY_PORT = Address("127.0.0.1", 0)


def chunks(batches: list[Batch], *kinds: ChunkKind) -> list[Chunk]:
    return [part for batch in batches for part in batch.parts if isinstance(part, Chunk) and part.kind in kinds]


def rosters(batches: list[Batch]) -> list[tuple[int, dict[str, int]]]:
    """Each roster: how many streams it says are open, and the positions of those it lists."""
    found = []
    for batch in batches:
        heading, *rest = [part for part in batch.parts if isinstance(part, Chunk)]
        if heading.kind is ChunkKind.ALIVE:
            assert heading.stream == ""
            found.append((int(heading.attributes["open"] or 0), {chunk.stream: chunk.position for chunk in rest}))
    return found


def count(kind: ChunkKind, number: int) -> Callable[[list[Batch]], bool]:
    return lambda batches: len(chunks(batches, kind)) == number


def stream_bytes(batches: list[Batch], stream: str) -> bytes:
    """The bytes of `stream`, whose chunks must stand one behind the other."""
    data = b""
    for chunk in chunks(batches, ChunkKind.DATA):
        if chunk.stream == stream:
            assert chunk.position == len(data)
            data += chunk.data
    return data


@attrs.frozen(kw_only=True)
class Running:
    context: Context
    port: int
    stop: Callable[[], None]

    async def client(self) -> trio.SocketStream:
        return await trio.open_tcp_stream("127.0.0.1", self.port)


@asynccontextmanager
async def running(outlet: RecordingOutlet, *, max_connections: int = 1024, epoch: int = 1) -> AsyncIterator[Running]:
    """The source at work; cancelled at the end."""
    context = make_context(epoch=epoch)
    config = TcpSourceConfig(listen=ANY_PORT, max_connections=max_connections, alive_interval=Seconds(0.1))
    with trio.fail_after(10):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(TcpSource(config, context).run, outlet)
            while "listening" not in context.status:
                await wait_all_tasks_blocked()
            port = int(context.status["listening"].rpartition(":")[2])
            yield Running(context=context, port=port, stop=nursery.cancel_scope.cancel)
            nursery.cancel_scope.cancel()


def reset(client: trio.SocketStream) -> None:
    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    client.socket.close()


async def assert_reset(client: trio.SocketStream) -> None:
    with pytest.raises(trio.BrokenResourceError):
        await client.receive_some()
    await client.aclose()


async def assert_ended(client: trio.SocketStream) -> None:
    assert await client.receive_some() == b""
    await client.aclose()


async def test_connections_are_streams_of_their_own_from_open_to_end() -> None:
    outlet = RecordingOutlet(batch_bytes=4096)
    contents = [bytes([number]) * (number * 10_007) for number in range(8)]

    async def send(content: bytes) -> None:
        client = await source.client()
        await client.send_all(content)
        await client.send_eof()
        await assert_ended(client)

    async with running(outlet, epoch=0xABC) as source:
        async with trio.open_nursery() as nursery:
            for content in contents:
                nursery.start_soon(send, content)

        opens = chunks(outlet.batches, ChunkKind.OPEN)
        assert {chunk.stream for chunk in opens} == {f"abc-{number}" for number in range(8)}
        assert all(str(chunk.attributes["peer"]).startswith("127.0.0.1:") for chunk in opens)
        ends = {chunk.stream: chunk.position for chunk in chunks(outlet.batches, ChunkKind.END)}
        arrived = {stream: stream_bytes(outlet.batches, stream) for stream in ends}
        assert sorted(arrived.values()) == sorted(contents)
        assert ends == {stream: len(data) for stream, data in arrived.items()}
        assert all(len(chunk.data) <= 4096 for chunk in chunks(outlet.batches, ChunkKind.DATA))
        assert source.context.status["open_connections"] == 0

    assert chunks(outlet.batches, ChunkKind.ABORT) == []


async def test_a_reset_is_an_abort_and_no_end() -> None:
    outlet = RecordingOutlet()
    async with running(outlet) as source:
        client = await source.client()
        await client.send_all(b"half a mess")
        await outlet.wait_until(count(ChunkKind.DATA, 1))
        reset(client)
        await outlet.wait_until(count(ChunkKind.ABORT, 1))

    assert stream_bytes(outlet.batches, "1-0") == b"half a mess"
    assert [chunk.position for chunk in chunks(outlet.batches, ChunkKind.ABORT)] == [11]
    assert chunks(outlet.batches, ChunkKind.END) == []
    assert source.context.counters["connections_reset"] == 1


async def test_the_roster_lists_the_open_streams_and_their_lengths() -> None:
    outlet = RecordingOutlet()
    async with running(outlet) as source:
        await outlet.wait_until(lambda batches: (0, {}) in rosters(batches))
        first, second = await source.client(), await source.client()
        await first.send_all(b"12345")
        await outlet.wait_until(lambda batches: (2, {"1-0": 5, "1-1": 0}) in rosters(batches))
        await first.aclose()
        await outlet.wait_until(lambda batches: (1, {"1-1": 0}) in rosters(batches))
        await second.aclose()
        await outlet.wait_until(lambda batches: rosters(batches)[-1] == (0, {}))


async def test_no_open_or_end_overtakes_a_roster() -> None:
    @attrs.define(kw_only=True)
    class HeldRosterOutlet(RecordingOutlet):
        hold: bool = False
        held: trio.Event = attrs.field(factory=trio.Event)
        gate: trio.Event = attrs.field(factory=trio.Event)

        async def send(self, batch: Batch, on_sent: Callable[[], None] | None = None) -> None:
            if self.hold and rosters([batch]):
                self.held.set()
                await self.gate.wait()
            await super().send(batch, on_sent)

    outlet = HeldRosterOutlet()
    async with running(outlet) as source:
        first = await source.client()
        await outlet.wait_until(count(ChunkKind.OPEN, 1))
        outlet.hold = True
        await outlet.held.wait()
        await first.send_eof()
        second = await source.client()
        await wait_all_tasks_blocked()
        assert chunks(outlet.batches, ChunkKind.END) == []
        assert len(chunks(outlet.batches, ChunkKind.OPEN)) == 1
        outlet.gate.set()
        await outlet.wait_until(count(ChunkKind.END, 1))
        await outlet.wait_until(count(ChunkKind.OPEN, 2))
        await first.aclose()
        await second.aclose()


async def test_a_client_sees_its_end_when_the_kernel_has_taken_everything() -> None:
    @attrs.define(kw_only=True)
    class SlowOutlet(RecordingOutlet):
        held: list[Callable[[], None]] = attrs.field(factory=list)

        async def send(self, batch: Batch, on_sent: Callable[[], None] | None = None) -> None:
            if on_sent is not None:
                self.held.append(on_sent)
            await super().send(batch)

    outlet = SlowOutlet()
    async with running(outlet) as source:
        client = await source.client()
        await client.send_all(b"precious")
        await client.send_eof()
        await outlet.wait_until(count(ChunkKind.END, 1))
        with trio.move_on_after(0.05) as waiting:
            await client.receive_some()
        assert waiting.cancelled_caught
        outlet.held.pop()()
        await assert_ended(client)


async def test_a_client_whose_end_was_not_taken_is_reset() -> None:
    class ForgetfulOutlet(RecordingOutlet):
        async def send(self, batch: Batch, on_sent: Callable[[], None] | None = None) -> None:
            await super().send(batch)

    outlet = ForgetfulOutlet()
    async with running(outlet) as source:
        client = await source.client()
        await client.send_eof()
        await outlet.wait_until(count(ChunkKind.END, 1))
        source.stop()
    with trio.fail_after(5):
        await assert_reset(client)
    assert chunks(outlet.batches, ChunkKind.ABORT) == []


async def test_connections_beyond_the_limit_are_reset_and_the_others_go_on() -> None:
    outlet = RecordingOutlet()
    async with running(outlet, max_connections=2) as source:
        clients = [await source.client() for _ in range(2)]
        await outlet.wait_until(count(ChunkKind.OPEN, 2))
        with pytest.raises((OSError, trio.BrokenResourceError)):
            async with await source.client() as refused:
                await refused.receive_some()
        assert source.context.counters["connections_refused"] == 1

        await clients[0].send_all(b"still here")
        await clients[0].send_eof()
        await assert_ended(clients[0])
        successor = await source.client()
        await outlet.wait_until(count(ChunkKind.OPEN, 3))
        await successor.aclose()
        await clients[1].aclose()

    assert stream_bytes(outlet.batches, "1-0") == b"still here"
    assert source.context.counters["connections_accepted"] == 3


async def test_when_stopped_open_streams_are_aborted_and_their_clients_reset() -> None:
    outlet = RecordingOutlet()
    async with running(outlet) as source:
        clients = [await source.client() for _ in range(3)]
        for client in clients:
            await client.send_all(b"unfinished")
        await outlet.wait_until(count(ChunkKind.DATA, 3))
        await wait_all_tasks_blocked()
        source.stop()

    aborts = {chunk.stream: chunk.position for chunk in chunks(outlet.batches, ChunkKind.ABORT)}
    assert aborts == {"1-0": 10, "1-1": 10, "1-2": 10}
    assert source.context.counters["aborted_at_stop"] == 3
    with trio.fail_after(5):
        for client in clients:
            await assert_reset(client)
        with pytest.raises(OSError, match="all attempts to connect"):
            await source.client()


async def test_a_stop_does_not_wait_longer_than_it_may_for_a_stuck_link() -> None:
    class StuckOutlet(RecordingOutlet):
        async def send(self, batch: Batch, on_sent: Callable[[], None] | None = None) -> None:
            if chunks([batch], ChunkKind.OPEN, ChunkKind.ABORT):
                await trio.sleep_forever()
            await super().send(batch)

    outlet = StuckOutlet(flush_timeout_s=0.05)
    async with running(outlet) as source:
        client = await source.client()
        await wait_all_tasks_blocked(0.01)
        source.stop()
    with trio.fail_after(5):
        await assert_reset(client)
    assert source.context.counters["aborted_at_stop"] == 1


async def test_a_busy_link_holds_the_clients_back() -> None:
    @attrs.define(kw_only=True)
    class GatedOutlet(RecordingOutlet):
        gate: trio.Event = attrs.field(factory=trio.Event)

        async def send(self, batch: Batch, on_sent: Callable[[], None] | None = None) -> None:
            if chunks([batch], ChunkKind.DATA):
                await self.gate.wait()
            await super().send(batch, on_sent)

    outlet = GatedOutlet()
    sent = False

    async def send(client: trio.SocketStream) -> None:
        nonlocal sent
        async with client:
            await client.send_all(bytes(64 << 20))  # far more than the sockets hold
        sent = True

    async with running(outlet) as source, trio.open_nursery() as nursery:
        nursery.start_soon(send, await source.client())
        await wait_all_tasks_blocked(0.05)
        assert not sent
        assert chunks(outlet.batches, ChunkKind.DATA) == []
        outlet.gate.set()
        await outlet.wait_until(count(ChunkKind.END, 1))
        assert [chunk.position for chunk in chunks(outlet.batches, ChunkKind.END)] == [64 << 20]


async def test_running_out_of_file_descriptors_does_not_end_it(monkeypatch: pytest.MonkeyPatch) -> None:
    accept = socket.socket.accept
    failures = [OSError(24, "Too many open files"), ConnectionAbortedError()]

    def failing_accept(listener: socket.socket) -> object:
        if failures:
            raise failures.pop(0)
        return accept(listener)

    monkeypatch.setattr(socket.socket, "accept", failing_accept)
    outlet = RecordingOutlet()
    async with running(outlet) as source:
        client = await source.client()
        await client.aclose()
        await outlet.wait_until(count(ChunkKind.END, 1))

    assert not failures
    assert source.context.counters["accept_failed"] == 1


async def test_an_address_in_use_is_an_error_that_names_it() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        listen = Address(*taken.getsockname())
        with pytest.raises(SourceError, match=f"cannot listen on {listen}: .*in use"):
            await TcpSource(TcpSourceConfig(listen=listen), make_context()).run(RecordingOutlet())


async def test_a_roster_must_fit_into_a_message() -> None:
    source = TcpSource(TcpSourceConfig(listen=ANY_PORT, max_connections=1000), make_context())
    with pytest.raises(SourceError, match="max_connections must be at most 512 "):
        await source.run(RecordingOutlet(batch_bytes_max=65_536))
