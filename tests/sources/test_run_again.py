"""A source that was paused is run again: it goes on, and no position and no name of a stream comes a second time."""

from __future__ import annotations

import os
import socket
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio

from gapconn.plugins import Context
from gapconn.record import Batch, Chunk, ChunkKind, Records
from gapconn.sources import Source
from gapconn.sources.files import FilesSource, FilesSourceConfig
from gapconn.sources.generate import GenerateConfig, GenerateSource
from gapconn.sources.stdin import StdinConfig, StdinSource
from gapconn.sources.tcp import TcpSource, TcpSourceConfig
from gapconn.sources.udp import UdpSource, UdpSourceConfig
from gapconn.testing.pipes import RecordingOutlet, make_context
from gapconn.units import Address, Seconds

ANY_PORT = Address("127.0.0.1", 0)


@asynccontextmanager
async def run(source: Source, outlet: RecordingOutlet) -> AsyncIterator[None]:
    """One run of the source, ended as a pause ends it."""
    with trio.fail_after(60):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(source.run, outlet)
            yield
            nursery.cancel_scope.cancel()


def records(batches: list[Batch], context: Context) -> list[tuple[int, bytes | None]]:
    """Number in the session, and value."""
    runs = [part for batch in batches for part in batch.parts if isinstance(part, Records)]
    assert [run.previous for run in runs[1:]] == [run.positions[-1] for run in runs[:-1]], "one chain"
    return [
        (position - context.first_position, value)
        for run in runs
        for position, value in zip(run.positions, run.values, strict=True)
    ]


def streams(batches: list[Batch], kind: ChunkKind) -> list[str]:
    return [part.stream for batch in batches for part in batch.parts if isinstance(part, Chunk) and part.kind is kind]


def at_least(count: int) -> Callable[[list[Batch]], bool]:
    return lambda batches: sum(batch.record_count for batch in batches) >= count


async def listening(context: Context) -> tuple[str, int]:
    while "listening" not in context.status:  # noqa: ASYNC110 - it has no event
        await trio.sleep(0.001)
    host, _, port = context.status.pop("listening").rpartition(":")
    return host, int(port)


async def test_udp() -> None:
    context, outlet = make_context(), RecordingOutlet()
    source = UdpSource(UdpSourceConfig(listen=ANY_PORT), context)
    for number in range(2):
        async with run(source, outlet):
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as peer:
                peer.connect(await listening(context))
                peer.send(b"%d" % number)
            await outlet.wait_until(at_least(number + 1))
    assert records(outlet.batches, context) == [(0, b"0"), (1, b"1")]
    assert "kernel_dropped" not in context.counters


async def test_tcp() -> None:
    context, outlet = make_context(), RecordingOutlet()
    source = TcpSource(TcpSourceConfig(listen=ANY_PORT, alive_interval=Seconds(0.1)), context)
    for number in range(2):
        async with run(source, outlet):
            client = await trio.open_tcp_stream(*await listening(context))
            await client.send_all(b"%d" % number)
            await outlet.wait_until(lambda batches: len(streams(batches, ChunkKind.DATA)) == number + 1)  # noqa: B023
        await client.aclose()
    assert len(set(streams(outlet.batches, ChunkKind.OPEN))) == 2
    # Each was broken off once, by its own pause.
    assert streams(outlet.batches, ChunkKind.ABORT) == streams(outlet.batches, ChunkKind.OPEN)


async def test_files(tmp_path: Path) -> None:
    outlet = RecordingOutlet()
    config = FilesSourceConfig(directory=str(tmp_path), poll_interval=Seconds(0.01), settle=Seconds(0.0), after="keep")
    source = FilesSource(config, make_context())
    for number in range(2):
        await trio.Path(tmp_path / f"{number}.dat").write_bytes(b"%d" % number)
        async with run(source, outlet):
            await outlet.wait_until(lambda batches: len(streams(batches, ChunkKind.END)) == number + 1)  # noqa: B023
    assert Counter(streams(outlet.batches, ChunkKind.OPEN)) == Counter({"1-0": 1, "1-1": 1}), "each file once"


@pytest.mark.parametrize("form", ["lines", "raw"])
async def test_stdin(form: str) -> None:
    context, outlet = make_context(), RecordingOutlet()
    reader, writer = os.pipe()
    try:
        config = StdinConfig(format="raw") if form == "raw" else StdinConfig()
        source = StdinSource(config, context, fd=reader)
        for number in range(2):
            async with run(source, outlet):
                os.write(writer, b"%d\n" % number)
                if form == "lines":
                    await outlet.wait_until(at_least(number + 1))
                else:
                    await outlet.wait_until(lambda b: len(streams(b, ChunkKind.DATA)) == number + 1)  # noqa: B023
    finally:
        os.close(reader)
        os.close(writer)
    if form == "lines":
        assert records(outlet.batches, context) == [(0, b"0"), (1, b"1")]
    else:
        assert streams(outlet.batches, ChunkKind.OPEN) == ["1-stdin", "1-stdin-1"]
        assert streams(outlet.batches, ChunkKind.ABORT) == ["1-stdin", "1-stdin-1"]


async def test_generate() -> None:
    context, outlet = make_context(), RecordingOutlet()
    source = GenerateSource(GenerateConfig(), context)
    for number in range(2):
        async with run(source, outlet):
            before = sum(batch.record_count for batch in outlet.batches)
            await outlet.wait_until(at_least(before + 1 + number))
    numbers = [number for number, _ in records(outlet.batches, context)]
    assert numbers == list(range(len(numbers)))
