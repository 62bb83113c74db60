"""Compression from one end to the other: it changes what crosses, and nothing that arrives."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import structlog
import trio
from structlog.testing import capture_logs
from trio.testing import wait_all_tasks_blocked

from gapconn.admin.egress_view import EgressView
from gapconn.config import Link
from gapconn.errors import RemoteProtocolError
from gapconn.events_log import EventLog
from gapconn.ingress import Ingress
from gapconn.offload import INLINE_BYTES_MAX, run_long
from gapconn.protocol import compression
from gapconn.protocol.events import MessageDelivered
from gapconn.protocol.registry import Compression
from gapconn.record import Batch, Chunk, ChunkKind, encode_batch
from gapconn.sink_queue import SinkQueue
from gapconn.sources import Outlet
from tests.services import Session, Taking, feed, ingress, link, numbers, numbers_in, running, socket_of, until

METHODS = ["none", "zstd", "lz4"]
each_method = pytest.mark.parametrize("method", METHODS)
COUNTS = [1, 10, 2_000, 1, 3_000, 5]
"""Records in each batch: some are compressed at once, the long ones in a thread."""


async def sent(way: Link, batches: list[Batch]) -> Ingress:
    """An ingress that has sent these batches and ended."""

    async def source(outlet: Outlet) -> None:
        for batch in batches:
            await outlet.send(batch)

    end = ingress(way, source)
    with trio.fail_after(60):
        await end.run()
    return end


@each_method
@pytest.mark.req("GC-COMP-1", "GC-COMP-3", "GC-MOD-2", "GC-MOD-3")
async def test_records_cross_in_order_however_they_are_compressed(tmp_path: Path, method: str) -> None:
    firsts = [sum(COUNTS[:i]) for i in range(len(COUNTS))]
    batches = [numbers(first, count, size_bytes=100) for first, count in zip(firsts, COUNTS, strict=True)]
    end = await sent(link(tmp_path, rate_bps=0, compression=method), batches)
    counters = end.core.counters
    assert counters.plain_body_bytes > 100 * sum(COUNTS)
    if method == "none":
        assert counters.body_bytes == counters.plain_body_bytes
    else:
        assert counters.body_bytes < counters.plain_body_bytes / 5
    assert counters.bytes > counters.body_bytes
    sink = Taking()
    async with running(link(tmp_path / "egress", heartbeat_interval=5), sink) as egress:  # it is not told how
        await feed(egress, socket_of(end).datagrams)
        await until(lambda: len(sink.deliveries) == len(COUNTS))
        received = egress.core.counters
        assert (received.body_bytes, received.plain_body_bytes) == (counters.body_bytes, counters.plain_body_bytes)
        ratio = EgressView(egress).status()["bodies"]["ratio"]
        assert ratio == pytest.approx(counters.plain_body_bytes / counters.body_bytes, abs=0.01)
    assert sink.numbers == list(range(sum(COUNTS)))
    assert [len(numbers_in(delivery.batch)) for delivery in sink.deliveries] == COUNTS


@pytest.mark.parametrize("method", ["zstd", "lz4"])
@pytest.mark.req("GC-COMP-1")
async def test_a_message_that_would_not_get_smaller_crosses_as_it_is(tmp_path: Path, method: str) -> None:
    noise = random.Random(3).randbytes(300_000)
    chunk = Chunk(stream="s", kind=ChunkKind.DATA, position=0, data=memoryview(noise))
    end = await sent(link(tmp_path, rate_bps=0, compression=method), [Batch(parts=[chunk]), numbers(0, 500)])
    counters = end.core.counters
    assert counters.plain_body_bytes > counters.body_bytes > len(noise)
    sink = Taking()
    async with running(link(tmp_path / "egress", heartbeat_interval=5), sink) as egress:
        await feed(egress, socket_of(end).datagrams)
        await until(lambda: len(sink.deliveries) == 2)
    (arrived,) = sink.deliveries[0].batch.parts
    assert isinstance(arrived, Chunk)
    assert arrived.data == noise
    assert numbers_in(sink.deliveries[1].batch) == list(range(500))


def body_of(batch: Batch, method: Compression) -> tuple[bytes, int]:
    """The compressed body of a batch, and its length when inflated."""
    plain = bytearray()
    encode_batch(batch, plain, 0)
    packed = compression.Compressor(method).compress(plain)
    assert packed is not None
    return packed, len(plain)


@pytest.mark.parametrize("method", [Compression.ZSTD, Compression.LZ4])
@pytest.mark.req("GC-COMP-3", "GC-MOD-6")
async def test_what_cannot_be_inflated_is_reported_as_lost_and_does_no_harm(
    tmp_path: Path, method: Compression
) -> None:
    packed, plain_bytes = body_of(numbers(0, 3_000, size_bytes=100), method)
    bad = {
        "a lying length": (packed, plain_bytes + 1),
        "a broken stream": (packed[: len(packed) // 2], plain_bytes),
        "too long": (packed, 1_000_000),
    }
    way = link(tmp_path, heartbeat_interval=5, message_bytes_max=700_000)
    sink, session = Taking(), Session(way)
    with capture_logs() as logs:
        async with running(way, sink) as egress:
            await feed(egress, session.start + session.numbers((0, 1)))
            for body, announced in bad.values():
                await feed(egress, session.body(body, compression=method, plain_bytes=announced))
            await feed(egress, session.numbers((1, 1)))
            await until(lambda: len(sink.deliveries) == 2)
            assert egress.events.refused == {"damaged": len(bad)}
            assert EgressView(egress).status()["missed"]["refused_messages"] == {"damaged": len(bad)}
    assert sink.numbers == [0, 1]
    assert [delivery.lost_before for delivery in sink.deliveries] == [0, len(bad)]
    told = [entry for entry in logs if entry["event"] == "messages_refused"]
    assert {entry["cause"] for entry in told} == {"damaged"}
    assert any("the limit is 700000" in entry["why"] for entry in told)


@pytest.mark.req("GC-COMP-4", "GC-LIM-1")
async def test_what_waits_for_the_sink_waits_compressed(tmp_path: Path) -> None:
    """Thirty messages of half a megabyte each wait in a queue of a few hundred kilobytes."""
    way = link(
        tmp_path,
        heartbeat_interval=5,
        message_bytes_max=600_000,
        sink_buffer_bytes=600_000,
        reassembly_bytes_max=1_200_000,
    )
    session = Session(way)
    sink = Taking(going=trio.Event())
    assert sink.going is not None
    async with running(way, sink) as egress:
        await feed(egress, session.start)
        for i in range(30):
            packed, plain_bytes = body_of(numbers(5_000 * i, 5_000, size_bytes=100), Compression.ZSTD)
            await feed(egress, session.body(packed, compression=Compression.ZSTD, plain_bytes=plain_bytes))
        assert len(egress.queue) == 30
        assert egress.queue.bytes < 1_800_000 < egress.core.counters.plain_body_bytes / 8
        sink.going.set()
        await until(lambda: len(sink.deliveries) == 30)
        assert not egress.events.refused
    assert sink.numbers == list(range(150_000))


@pytest.mark.parametrize("size_bytes", [0, INLINE_BYTES_MAX, INLINE_BYTES_MAX + 1])
async def test_long_work_is_done_elsewhere_and_its_failure_comes_back(size_bytes: int) -> None:
    loop = trio.lowlevel.current_trio_token()

    def elsewhere() -> bool:
        try:
            return trio.lowlevel.current_trio_token() is not loop
        except RuntimeError:
            return True

    def failing() -> None:
        raise RemoteProtocolError("no", reason="damaged")

    assert await run_long(elsewhere, size_bytes) == (size_bytes > INLINE_BYTES_MAX)
    with pytest.raises(RemoteProtocolError):
        await run_long(failing, size_bytes)


async def test_a_delivery_is_not_lost_where_the_sink_gives_up_waiting_for_it() -> None:
    """It comes and the sink gives up, both in the same moment: the sink gets it when it asks again."""
    packed, plain_bytes = body_of(numbers(0, 5_000, size_bytes=100), Compression.ZSTD)
    message = MessageDelivered(
        epoch=1,
        number=0,
        first_record=0,
        record_count=5_000,
        runs=[],
        already_delivered={},
        positions={},
        body=memoryview(packed),
        compression=Compression.ZSTD,
        plain_bytes=plain_bytes,
    )
    queue = SinkQueue(1 << 20, EventLog(structlog.get_logger()))
    impatience = trio.CancelScope()

    async def ask() -> None:
        with impatience:
            await queue.__anext__()

    with trio.fail_after(60):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(ask)
            await wait_all_tasks_blocked()
            assert queue.offer(message, lambda: None, 0)
            impatience.cancel()
        assert impatience.cancelled_caught
        delivery = await queue.__anext__()
    assert numbers_in(delivery.batch) == list(range(5_000))
    assert (len(queue), queue.bytes) == (0, 0)
