"""Byte streams become connections: whole and ended in order, or reset and reported; never with bytes skipped."""

from __future__ import annotations

import random
import socket
import struct
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import attrs
import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from gapconn.plugins import Context
from gapconn.record import Batch, Chunk, ChunkKind, Records
from gapconn.sinks import Delivery
from gapconn.sinks.tcp import TcpSink, TcpSinkConfig
from gapconn.sources.tcp import TcpSource, TcpSourceConfig
from gapconn.testing.pipes import Pipe, ScriptedInlet, make_context
from gapconn.units import Address, Bytes, Seconds


@attrs.define(kw_only=True)
class Received:
    """One connection as the target saw it."""

    connection: trio.SocketStream
    data: bytearray = attrs.field(factory=bytearray)
    ending: str = "open"
    """`open`, `end` or `reset`."""


@attrs.define(kw_only=True)
class Target:
    """A server that reads everything, and what it saw."""

    port: int = 0
    hold_open: bool = False
    """Never close first."""
    gate: trio.Event = attrs.field(factory=trio.Event)
    """Nothing is read before."""
    connections: list[Received] = attrs.field(factory=list)
    _changed: trio.Condition = attrs.field(factory=trio.Condition)

    async def serve(self, listeners: list[trio.SocketListener]) -> None:
        await trio.serve_listeners(self._handle, listeners)

    async def _handle(self, connection: trio.SocketStream) -> None:
        received = Received(connection=connection)
        self.connections.append(received)
        try:
            await self._notify()
            await self.gate.wait()
            while data := await connection.receive_some():
                received.data += data
                await self._notify()
            received.ending = "end"
        except trio.BrokenResourceError:
            received.ending = "reset"
        except trio.ClosedResourceError:
            return  # by the test
        await self._notify()
        if self.hold_open:
            await trio.sleep_forever()

    async def _notify(self) -> None:
        async with self._changed:
            self._changed.notify_all()

    async def wait_until(self, condition: Callable[[], object]) -> None:
        async with self._changed:
            while not condition():
                await self._changed.wait()

    async def ended(self, number: int) -> list[tuple[bytes, str]]:
        """What was seen of the connections, when `number` of them are over."""
        await self.wait_until(lambda: sum(c.ending != "open" for c in self.connections) >= number)
        return sorted((bytes(c.data), c.ending) for c in self.connections)


@asynccontextmanager
async def target_at(port: int = 0, *, hold_open: bool = False, read: bool = True) -> AsyncIterator[Target]:
    listeners = await trio.open_tcp_listeners(port, host="127.0.0.1")
    target = Target(port=listeners[0].socket.getsockname()[1], hold_open=hold_open)
    if read:
        target.gate.set()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(target.serve, listeners)
        yield target
        nursery.cancel_scope.cancel()


class Feed(ScriptedInlet):
    """An inlet that the test fills while the sink runs."""

    def __init__(self) -> None:
        super().__init__(script=())
        self._send, self._receive = trio.open_memory_channel[Delivery](1000)
        self._number = 0

    def put(self, *parts: Chunk | Records, epoch: int = 1) -> None:
        self._send.send_nowait(self.delivery(Batch(parts=list(parts)), message=self._number, epoch=epoch))
        self._number += 1

    def end(self) -> None:
        self._send.close()

    async def __aiter__(self) -> AsyncIterator[Delivery]:
        async for delivery in self._receive:
            yield delivery

    @property
    def waiting(self) -> int:
        """Deliveries that the sink has not taken."""
        return self._send.statistics().current_buffer_used

    @property
    def all_accepted(self) -> bool:
        return sorted(self.accepted) == list(range(self._number))


@asynccontextmanager
async def running(
    port: int, *, max_connections: int = 1024, buffer_bytes: int = 32 << 20, close_timeout_s: float = 10.0
) -> AsyncIterator[tuple[Feed, Context]]:
    """The sink at work; at the end its inlet ends and it must finish by itself."""
    feed, context = Feed(), make_context(epoch=0)
    config = TcpSinkConfig(
        connect=Address("127.0.0.1", port),
        max_connections=max_connections,
        buffer_bytes=Bytes(buffer_bytes),
        close_timeout=Seconds(close_timeout_s),
    )
    with trio.fail_after(10):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(TcpSink(config, context).run, feed)
            yield feed, context
            feed.end()
    assert feed.all_accepted


def opening(stream: str = "a") -> Chunk:
    return Chunk(stream=stream, kind=ChunkKind.OPEN, position=0, attributes={"peer": "192.0.2.1:4000"})


def data(position: int, content: bytes, stream: str = "a") -> Chunk:
    return Chunk(stream=stream, kind=ChunkKind.DATA, position=position, data=memoryview(content))


def end(position: int, stream: str = "a") -> Chunk:
    return Chunk(stream=stream, kind=ChunkKind.END, position=position)


def abort(position: int, stream: str = "a") -> Chunk:
    return Chunk(stream=stream, kind=ChunkKind.ABORT, position=position)


def alive(position: int, stream: str = "a") -> Chunk:
    return Chunk(stream=stream, kind=ChunkKind.ALIVE, position=position)


def roster(*alive_chunks: Chunk, says: int | None = None) -> list[Chunk]:
    attributes: dict[str, str | int | bool | None] = {"open": len(alive_chunks) if says is None else says}
    return [Chunk(stream="", kind=ChunkKind.ALIVE, position=0, attributes=attributes), *alive_chunks]


async def test_streams_are_connections_of_their_own() -> None:
    async with target_at() as target, running(target.port) as (feed, context):
        feed.put(opening("a"))
        feed.put(opening("b"), data(0, b"beta", "b"))
        feed.put(data(0, b"al", "a"), data(2, b"pha", "a"))
        feed.put(end(5, "a"), opening("empty"), end(0, "empty"))
        feed.put(data(4, b"!", "b"), end(5, "b"))
        assert await target.ended(3) == [(b"", "end"), (b"alpha", "end"), (b"beta!", "end")]

    assert feed.losses == []
    assert context.counters["streams_ended"] == 3
    assert context.status["open_streams"] == 0


async def test_an_abort_resets_the_connection() -> None:
    async with target_at() as target, running(target.port) as (feed, context):
        feed.put(opening(), data(0, b"half a mess"))
        await target.wait_until(lambda: target.connections and target.connections[0].data)
        feed.put(abort(11))
        assert await target.ended(1) == [(b"half a mess", "reset")]

    assert feed.losses == []
    assert context.counters["streams_aborted"] == 1


async def wait_for_bytes(target: Target, length: int) -> None:
    await target.wait_until(lambda: sum(len(c.data) for c in target.connections) == length)
    # The sink's kernel knows by the acknowledgement, which follows the data at once while a connection is young.
    await wait_all_tasks_blocked(0.01)


@pytest.mark.parametrize(
    ("after", "lost"),
    [
        pytest.param([data(8, b"xyz")], [("a", 5, 10, "hole")], id="data"),
        pytest.param([end(9)], [("a", 5, 8, "hole")], id="end of another length"),
        pytest.param([abort(9)], [("a", 5, 8, "hole")], id="abort of another length"),
        pytest.param([alive(7)], [("a", 5, 6, "hole")], id="alive with more"),
        pytest.param([alive(7), end(7)], [("a", 5, 6, "hole")], id="end after the hole"),
        pytest.param([data(3, b"lo, world")], [("a", 5, 11, "overlap")], id="overlap"),
        pytest.param([data(0, b"hello")], [], id="again"),
        pytest.param(
            [data(8, b"xyz"), data(11, bytes(100)), end(111)],
            [("a", 5, 10, "hole"), ("a", 11, 110, "after_reset")],
            id="the rest, told once",
        ),
        pytest.param(roster(), [("a", 5, 5, "end_missing")], id="not in the roster"),
        pytest.param(roster(alive(0, "b")), [("a", 5, 5, "end_missing")], id="not in the roster of others"),
    ],
)
async def test_a_hole_resets_the_connection(after: list[Chunk], lost: list[tuple[str, int, int, str]]) -> None:
    async with target_at() as target, running(target.port) as (feed, context):
        feed.put(opening(), data(0, b"hello"))
        await wait_for_bytes(target, 5)
        feed.put(*after)
        await target.wait_until(lambda: target.connections[0].ending != "open")
        assert bytes(target.connections[0].data) == b"hello"
        assert target.connections[0].ending == "reset"

    assert sorted(feed.losses) == lost
    assert context.counters["bytes_lost"] == sum(last - first + 1 for _, first, last, _ in lost)


async def test_what_was_sent_before_a_roster_is_no_hole() -> None:
    async with target_at() as target, running(target.port) as (feed, _):
        feed.put(opening(), data(0, b"hello"))
        feed.put(*roster(alive(3)))
        feed.put(data(5, b", world"), end(12))
        assert await target.ended(1) == [(b"hello, world", "end")]

    assert feed.losses == []


async def test_a_roster_that_contradicts_itself_is_counted_and_ignored() -> None:
    async with target_at() as target, running(target.port) as (feed, context):
        feed.put(opening(), data(0, b"hello"))
        feed.put(*roster(says=1))
        feed.put(end(5))
        assert await target.ended(1) == [(b"hello", "end")]

    assert context.counters["chunks_malformed"] == 1


@pytest.mark.parametrize("first", [data(0, b"hello"), alive(0)], ids=["data", "alive"])
async def test_a_stream_whose_open_was_lost_is_opened_when_no_byte_is_missing(first: Chunk) -> None:
    async with target_at() as target, running(target.port) as (feed, _):
        feed.put(first)
        feed.put(data(len(first.data), b"!"), end(len(first.data) + 1))
        assert await target.ended(1) == [(bytes(first.data) + b"!", "end")]

    assert feed.losses == []


async def test_a_stream_broken_while_it_is_connected_is_never_an_empty_stream_that_ended() -> None:
    async with target_at() as target:
        async with running(target.port) as (feed, _):
            for number in range(60):
                feed.put(opening(f"{number}"))
                for _ in range(number % 12):
                    await trio.lowlevel.checkpoint()
                feed.put(data(3, b"xyz", f"{number}"))
        await wait_all_tasks_blocked(0.01)
        assert {connection.ending for connection in target.connections} <= {"reset"}

    assert len(feed.losses) == 60


@pytest.mark.parametrize("last", [end(30), abort(30)], ids=["end", "abort"])
async def test_a_stream_whose_beginning_was_lost_is_not_opened_and_reported_once(last: Chunk) -> None:
    async with target_at() as target, running(target.port) as (feed, context):
        feed.put(data(10, bytes(10)))
        feed.put(data(20, bytes(10)))
        feed.put(last)
        feed.put(abort(0, "never heard of"))

    assert target.connections == []
    assert feed.losses == [("a", 0, 29, "hole")]
    assert context.counters["streams_broken"] == 1


async def test_broken_streams_are_reported_when_a_roster_misses_them_and_when_the_inlet_ends() -> None:
    async with target_at() as target, running(target.port) as (feed, _):
        feed.put(data(10, bytes(10), "a"), data(10, bytes(20), "b"))
        feed.put(*roster(alive(40, "b")))
        await wait_all_tasks_blocked()
        assert feed.losses == [("a", 0, 19, "hole")]

    assert feed.losses == [("a", 0, 19, "hole"), ("b", 0, 39, "hole")]


async def test_only_so_many_broken_streams_are_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gapconn.sinks.tcp._BROKEN_STREAMS_MAX", 2)
    async with target_at() as target, running(target.port) as (feed, _):
        for name in "abc":
            feed.put(data(10, bytes(10), name))
        await wait_all_tasks_blocked()
        assert feed.losses == [("a", 0, 19, "hole")]


async def test_a_target_that_is_away_is_tried_again_while_the_stream_waits() -> None:
    with socket.socket() as placeholder:
        placeholder.bind(("127.0.0.1", 0))
        port = placeholder.getsockname()[1]
    async with running(port) as (feed, context):
        feed.put(opening(), data(0, b"patience"))
        feed.put(end(8))
        while not context.counters["connect_failed"]:
            await wait_all_tasks_blocked(0.01)
        assert feed.accepted == []
        async with target_at(port) as target:
            assert await target.ended(1) == [(b"patience", "end")]

    assert feed.losses == []


async def test_a_stream_aborted_while_the_target_is_away_is_counted_and_given_up() -> None:
    with socket.socket() as placeholder:
        placeholder.bind(("127.0.0.1", 0))
        port = placeholder.getsockname()[1]
    async with running(port) as (feed, context):
        feed.put(opening(), data(0, b"in vain"), abort(7))

    assert context.counters["aborted_before_connect"] == 1
    assert feed.accepted == [0]


async def test_a_target_that_resets_early_loses_its_stream_and_no_other() -> None:
    async with target_at() as target, running(target.port) as (feed, _):
        feed.put(opening("a"), data(0, b"hello", "a"))
        await wait_for_bytes(target, 5)
        feed.put(opening("b"), data(0, b"world", "b"))
        await wait_for_bytes(target, 10)
        first = target.connections[0].connection
        first.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        await first.aclose()
        await wait_all_tasks_blocked(0.01)
        feed.put(data(5, bytes(100), "a"), data(5, b"!", "b"))
        feed.put(end(105, "a"), end(6, "b"))
        assert (b"world!", "end") in await target.ended(1)

    assert feed.losses == [("a", 5, 104, "after_reset")]


async def test_a_target_that_closes_early_loses_what_it_did_not_acknowledge() -> None:
    async with target_at() as target, running(target.port) as (feed, _):
        feed.put(opening(), data(0, b"hello"))
        await wait_for_bytes(target, 5)
        await target.connections[0].connection.aclose()
        await wait_all_tasks_blocked(0.01)
        feed.put(data(5, bytes(100)))  # taken by the kernel, and answered with a reset
        await wait_all_tasks_blocked(0.01)
        feed.put(data(105, bytes(100)))
        feed.put(end(205))

    # How much of it had arrived when the reset was seen is a matter of time.
    assert {reason for *_, reason in feed.losses} <= {"target_closed", "after_reset"}
    assert [n for _, first, last, _ in feed.losses for n in range(first, last + 1)] == list(range(5, 205))


async def test_a_target_that_only_shuts_its_own_side_still_gets_everything() -> None:
    async with target_at() as target, running(target.port) as (feed, _):
        feed.put(opening(), data(0, b"hello"))
        await wait_for_bytes(target, 5)
        await target.connections[0].connection.send_eof()
        await wait_all_tasks_blocked(0.01)
        feed.put(data(5, b", world"), end(12))
        assert await target.ended(1) == [(b"hello, world", "end")]

    assert feed.losses == []


async def test_a_new_epoch_resets_the_streams_of_the_old_one() -> None:
    async with target_at() as target, running(target.port) as (feed, context):
        feed.put(opening("1-0"), data(0, b"old", "1-0"), data(5, b"broken", "1-1"), epoch=1)
        await wait_for_bytes(target, 3)
        feed.put(*roster(), epoch=2)
        assert await target.ended(1) == [(b"old", "reset")]
        feed.put(opening("2-0"), data(0, b"new", "2-0"), end(3, "2-0"), epoch=2)
        assert await target.ended(2) == [(b"new", "end"), (b"old", "reset")]

    assert feed.losses == [("1-1", 0, 10, "hole")]
    assert context.counters["streams_broken"] == 2


async def test_what_an_old_epoch_still_had_to_write_is_reported() -> None:
    async with target_at(read=False) as target, running(target.port) as (feed, _):
        content = bytes(20 << 20)
        feed.put(opening("1-0"), data(0, content, "1-0"), epoch=1)
        await wait_all_tasks_blocked(0.05)
        feed.put(*roster(), epoch=2)
        await wait_all_tasks_blocked()
        target.gate.set()
        [(arrived, ending)] = await target.ended(1)

    assert ending == "reset"
    [(stream, first, last, reason)] = feed.losses
    assert (stream, last, reason) == ("1-0", len(content) - 1, "ingress_restarted")
    assert 0 < first < len(content)
    assert len(arrived) <= first


async def test_a_slow_target_holds_back_the_inlet_and_loses_nothing() -> None:
    async with target_at(read=False) as target, running(target.port, buffer_bytes=256 << 10) as (feed, _):
        content = random.Random(7).randbytes(20 << 20)
        step = 128 << 10
        for position in range(0, len(content), step):
            feed.put(data(position, content[position : position + step]))
        feed.put(end(len(content)))
        await wait_all_tasks_blocked(0.05)
        assert feed.waiting > 20
        target.gate.set()
        assert await target.ended(1) == [(content, "end")]

    assert feed.losses == []


async def test_answers_are_read_and_thrown_away() -> None:
    async with target_at() as target, running(target.port) as (feed, context):
        feed.put(opening())
        await target.wait_until(lambda: target.connections)
        await target.connections[0].connection.send_all(bytes(10 << 20))
        feed.put(data(0, b"question"), end(8))
        assert await target.ended(1) == [(b"question", "end")]

    assert context.counters["answer_bytes_discarded"] == 10 << 20


async def test_a_target_that_never_closes_is_left_after_a_while_but_not_reset() -> None:
    async with target_at(hold_open=True) as target:
        async with running(target.port, close_timeout_s=0.05) as (feed, context):
            feed.put(opening(), data(0, b"hello"), end(5))
            assert await target.ended(1) == [(b"hello", "end")]
        assert await target.connections[0].connection.receive_some() == b""

    assert context.counters["close_timeouts"] == 1
    assert feed.losses == []


async def test_streams_beyond_the_limit_are_reported_lost() -> None:
    async with target_at() as target, running(target.port, max_connections=1) as (feed, context):
        feed.put(opening("a"), opening("b"))
        feed.put(data(0, b"one", "a"), data(0, b"two", "b"))
        feed.put(end(3, "a"), end(3, "b"))
        feed.put(opening("c"), data(0, b"three", "c"), end(5, "c"))
        assert await target.ended(2) == [(b"one", "end"), (b"three", "end")]

    assert feed.losses == [("b", 0, 2, "too_many_connections")]
    assert context.counters["connections_refused"] == 1


async def test_at_the_stop_held_data_is_written_and_open_streams_are_reset() -> None:
    async with target_at(read=False) as target:
        async with running(target.port) as (feed, context):
            feed.put(opening("a"), data(0, b"hello", "a"))
            feed.put(opening("b"), data(0, b"done", "b"), end(4, "b"))
            feed.end()
            await target.wait_until(lambda: len(target.connections) == 2)
            await wait_all_tasks_blocked(0.01)
            target.gate.set()
        assert [ending for _, ending in await target.ended(2)] == ["end", "reset"]

    assert context.counters["streams_broken"] == 1


async def test_cancellation_resets_at_once_and_accepts_nothing_unwritten() -> None:
    async with target_at(read=False) as target:
        feed = Feed()
        sink = TcpSink(TcpSinkConfig(connect=Address("127.0.0.1", target.port)), make_context(epoch=0))
        with trio.fail_after(5):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(sink.run, feed)
                feed.put(opening())
                feed.put(data(0, bytes(20 << 20)))
                await target.wait_until(lambda: target.connections)
                await wait_all_tasks_blocked(0.01)
                nursery.cancel_scope.cancel()
            assert feed.accepted == [0]
            target.gate.set()
            [(arrived, ending)] = await target.ended(1)
            assert ending == "reset"
            assert len(arrived) < 20 << 20


async def test_what_no_source_says_is_counted_and_does_no_harm() -> None:
    async with target_at() as target, running(target.port) as (feed, context):
        feed.put(opening())
        feed.put(data(-5, b"hello"), data(0, b"nameless", ""), data(0, b"x", "n" * 1000))
        feed.put(Records(stream="orders", positions=[1, 2], values=[b"a", b"b"]))
        feed.put()
        feed.put(data(0, b"hello"), opening(), end(5))
        assert await target.ended(1) == [(b"hello", "end")]

    assert context.counters["chunks_malformed"] == 3
    assert context.counters["records_refused"] == 2
    assert feed.losses == []


@asynccontextmanager
async def crossing(pipe: Pipe, target: Target) -> AsyncIterator[int]:
    """A source and a sink joined by `pipe`; the port to connect to."""
    source_context = make_context()
    source_config = TcpSourceConfig(listen=Address("127.0.0.1", 0), alive_interval=Seconds(0.1))
    sink_config = TcpSinkConfig(connect=Address("127.0.0.1", target.port))
    with trio.fail_after(20):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(TcpSource(source_config, source_context).run, pipe)
            nursery.start_soon(TcpSink(sink_config, make_context(epoch=0)).run, pipe)
            while "listening" not in source_context.status:
                await wait_all_tasks_blocked()
            yield int(source_context.status["listening"].rpartition(":")[2])
            nursery.cancel_scope.cancel()


async def send_and_end(port: int, content: bytes) -> None:
    client = await trio.open_tcp_stream("127.0.0.1", port)
    await client.send_all(content)
    await client.send_eof()
    assert await client.receive_some() == b""
    await client.aclose()


async def test_concurrent_connections_cross_byte_by_byte() -> None:
    contents = [random.Random(number).randbytes(number * 60_013) for number in range(12)]
    async with target_at() as target, crossing(pipe := Pipe(), target) as port:
        async with trio.open_nursery() as nursery:
            for content in contents:
                nursery.start_soon(send_and_end, port, content)
        assert await target.ended(12) == sorted((content, "end") for content in contents)

    assert pipe.losses == []


async def test_a_client_reset_crosses() -> None:
    async with target_at() as target, crossing(Pipe(), target) as port:
        client = await trio.open_tcp_stream("127.0.0.1", port)
        await client.send_all(b"half a mess")
        await wait_for_bytes(target, 11)
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        client.socket.close()
        assert await target.ended(1) == [(b"half a mess", "reset")]


@pytest.mark.parametrize("seed", range(3))
async def test_on_a_lossy_link_every_stream_is_whole_or_reset_and_reported(seed: int) -> None:
    rng = random.Random(seed)
    contents = [bytes([number]) * rng.randrange(200_000, 600_000) for number in range(20)]
    pipe = Pipe(drop=lambda number: rng.random() < 0.1)

    def all_accounted_for() -> bool:
        whole = sum(connection.ending == "end" for connection in target.connections)
        return whole + len({stream for stream, *_ in pipe.losses}) == len(contents)

    async with target_at() as target, crossing(pipe, target) as port:
        async with trio.open_nursery() as nursery:
            for content in contents:
                nursery.start_soon(send_and_end, port, content)
        while not all_accounted_for():  # A lost end is noticed by the next roster that gets through.
            await wait_all_tasks_blocked(0.01)
        seen = await target.ended(len(target.connections))

    whole = [data for data, ending in seen if ending == "end"]
    assert 0 < len(whole) < len(contents)
    assert set(whole) <= set(contents)
    assert len(set(whole)) == len(whole)
    for cut in [data for data, ending in seen if ending == "reset"]:
        assert any(content.startswith(cut) for content in contents)


@pytest.mark.req("GC-DLV-33")
async def test_what_comes_late_is_written_where_it_fits_and_declined_elsewhere() -> None:
    """Nothing can be put into the middle of what a target has read already."""

    def part(stream: str, kind: ChunkKind, position: int, data: bytes = b"") -> Chunk:
        return Chunk(stream=stream, kind=kind, position=position, data=memoryview(data))

    async with target_at() as target:
        inlet = ScriptedInlet(script=[])
        script = [
            (False, [part("a", ChunkKind.OPEN, 0), part("a", ChunkKind.DATA, 0, b"one ")]),
            (False, [part("b", ChunkKind.OPEN, 0), part("b", ChunkKind.DATA, 3, b"behind a hole")]),
            (True, [part("a", ChunkKind.DATA, 4, b"two ")]),
            (True, [part("b", ChunkKind.DATA, 0, b"gap")]),
            (True, [part("c", ChunkKind.OPEN, 0), part("c", ChunkKind.DATA, 0, b"whole"), part("c", ChunkKind.END, 5)]),
            (True, [part("d", ChunkKind.OPEN, 0), part("d", ChunkKind.DATA, 0, b"only the beginning")]),
            (False, [part("a", ChunkKind.END, 8), part("b", ChunkKind.END, 16)]),
        ]
        inlet.script = [
            inlet.delivery(Batch(parts=[*parts]), message=number, late=late)
            for number, (late, parts) in enumerate(script)
        ]
        context = make_context(epoch=0)
        with trio.fail_after(30):
            await TcpSink(TcpSinkConfig(connect=Address("127.0.0.1", target.port)), context).run(inlet)
        with trio.fail_after(30):
            await target.wait_until(lambda: sum(each.ending == "end" for each in target.connections) == 2)
        ended = sorted(bytes(each.data) for each in target.connections if each.ending == "end")
    assert ended == [b"one two ", b"whole"]
    assert inlet.declined == [3, 5]
    assert sorted(inlet.accepted) == [0, 1, 2, 4, 6]
    assert context.counters["late_streams_unusable"] == 2
    assert [loss[0] for loss in inlet.losses] == ["b"]
