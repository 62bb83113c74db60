"""Records as lines, streams as bytes, and never a hole that nobody hears of."""

from __future__ import annotations

import errno
import os
import tempfile
from collections.abc import Iterator
from typing import IO

import pytest
import trio

from gapconn.errors import SinkError
from gapconn.plugins import Context
from gapconn.record import Batch, Chunk, ChunkKind, Records
from gapconn.sinks.stdout import StdoutConfig, StdoutSink
from gapconn.sources.stdin import StdinConfig, StdinSource
from gapconn.testing.pipes import Pipe, ScriptedInlet, make_context

STOP = StdoutConfig()
CONTINUE = StdoutConfig(on_hole="continue")


@pytest.fixture
def output() -> Iterator[IO[bytes]]:
    with tempfile.TemporaryFile() as file:
        yield file


def written(output: IO[bytes]) -> bytes:
    output.seek(0)
    return output.read()


def lines(*values: bytes | None) -> Batch:
    return Batch(parts=[Records(stream="orders", positions=list(range(len(values))), values=list(values))])


def chunk(kind: ChunkKind, position: int, data: bytes = b"", stream: str = "s") -> Chunk:
    return Chunk(stream=stream, kind=kind, position=position, data=memoryview(data))


def opened(stream: str = "s") -> Chunk:
    return chunk(ChunkKind.OPEN, 0, stream=stream)


def data(position: int, value: bytes, stream: str = "s") -> Chunk:
    return chunk(ChunkKind.DATA, position, value, stream)


def ended(position: int, stream: str = "s") -> Chunk:
    return chunk(ChunkKind.END, position, stream=stream)


async def write(inlet: ScriptedInlet, output: IO[bytes], config: StdoutConfig = STOP) -> Context:
    context = make_context(epoch=0)
    with trio.fail_after(5):
        await StdoutSink(config, context, fd=output.fileno()).run(inlet)
    return context


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([b"one", b"two"], b"one\ntwo\n"),
        ([b""], b"\n"),
        ([b"a", None, b"b", None], b"a\nb\n"),
        ([None], b""),
        ([b"x\ny"], b"x\ny\n"),
    ],
)
async def test_a_value_is_a_line_and_a_null_value_is_counted(
    output: IO[bytes], values: list[bytes | None], expected: bytes
) -> None:
    inlet = ScriptedInlet(script=[lines(*values)])
    context = await write(inlet, output)
    assert written(output) == expected
    assert context.counters["null_values"] == values.count(None)
    assert inlet.accepted == [0]


async def test_a_stream_is_written_as_it_is(output: IO[bytes]) -> None:
    inlet = ScriptedInlet(
        script=[Batch(parts=[opened(), data(0, b"abc\x00")]), Batch(parts=[data(4, b"\xff\n"), ended(6)])]
    )
    await write(inlet, output)
    assert written(output) == b"abc\x00\xff\n"
    assert inlet.accepted == [0, 1]
    assert inlet.losses == []


HOLES = [
    pytest.param([opened(), data(0, b"ab"), data(5, b"fg")], (2, 4), b"ab", b"abfg", id="in-the-middle"),
    pytest.param([opened(), data(3, b"de")], (0, 2), b"", b"de", id="at-the-start"),
    pytest.param([data(3, b"de")], (0, 2), b"", b"de", id="joined-late"),
    pytest.param([opened(), data(0, b"ab"), ended(4)], (2, 3), b"ab", b"ab", id="at-the-end"),
    pytest.param([opened(), data(0, b"ab"), chunk(ChunkKind.ABORT, 4)], (2, 3), b"ab", b"ab", id="before-an-abort"),
    pytest.param([opened(), data(0, b"ab"), chunk(ChunkKind.ALIVE, 4)], (2, 3), b"ab", b"ab", id="seen-when-alive"),
]


@pytest.mark.parametrize(("chunks", "hole", "before", "after"), HOLES)
async def test_a_hole_stops_the_output_at_its_place(
    output: IO[bytes], chunks: list[Chunk], hole: tuple[int, int], before: bytes, after: bytes
) -> None:
    inlet = ScriptedInlet(script=[Batch(parts=list(chunks))])
    with pytest.raises(SinkError, match=f"bytes {hole[0]} to {hole[1]} are missing"):
        await write(inlet, output)
    assert written(output) == before
    assert [(stream, first, last) for stream, first, last, _ in inlet.losses] == [("s", *hole)]
    assert inlet.accepted == []


@pytest.mark.parametrize(("chunks", "hole", "before", "after"), HOLES)
async def test_a_hole_is_reported_when_the_output_goes_on(
    output: IO[bytes], chunks: list[Chunk], hole: tuple[int, int], before: bytes, after: bytes
) -> None:
    inlet = ScriptedInlet(script=[Batch(parts=[part]) for part in chunks])
    context = await write(inlet, output, CONTINUE)
    assert written(output) == after
    assert [(stream, first, last) for stream, first, last, _ in inlet.losses] == [("s", *hole)]
    assert context.counters["holes"] == 1
    assert inlet.accepted == list(range(len(chunks)))


async def test_a_stream_whose_end_a_restart_took_is_a_hole(output: IO[bytes]) -> None:
    inlet = ScriptedInlet(script=[])
    inlet.script = [
        inlet.delivery(Batch(parts=[opened(), data(0, b"ab")]), message=0, epoch=1),
        inlet.delivery(Batch(parts=[opened("t"), data(0, b"cd", "t"), ended(2, "t")]), message=0, epoch=2),
    ]
    with pytest.raises(SinkError, match="ingress restarted"):
        await write(inlet, output)
    assert written(output) == b"ab"


async def test_an_abort_is_not_a_hole(output: IO[bytes]) -> None:
    inlet = ScriptedInlet(script=[Batch(parts=[opened(), data(0, b"ab"), chunk(ChunkKind.ABORT, 2)])])
    context = await write(inlet, output)
    assert written(output) == b"ab"
    assert context.counters["streams_aborted"] == 1
    assert inlet.losses == []


async def test_mixed_streams_are_written_and_said_to_be_mixed(output: IO[bytes]) -> None:
    inlet = ScriptedInlet(
        script=[
            Batch(parts=[opened("s"), data(0, b"ab", "s")]),
            Batch(parts=[opened("t"), data(0, b"12", "t"), data(2, b"cd", "s"), ended(4, "s"), ended(2, "t")]),
        ]
    )
    context = await write(inlet, output)
    assert written(output) == b"ab12cd"
    assert context.counters["streams_mixed"] == 1
    assert inlet.losses == []


async def test_open_streams_are_bounded(output: IO[bytes]) -> None:
    inlet = ScriptedInlet(script=[Batch(parts=[opened(f"s{i}") for i in range(1003)])])
    await write(inlet, output, CONTINUE)
    assert [stream for stream, *_ in inlet.losses] == ["s0", "s1", "s2"]


async def test_a_reader_that_went_away_is_said_plainly() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    with trio.fail_after(5), pytest.raises(SinkError, match="closed by its reader"):
        await StdoutSink(STOP, make_context(), fd=writer).run(ScriptedInlet(script=[lines(b"x")]))
    os.close(writer)


async def test_a_slow_reader_gets_everything_and_the_loop_stays_free() -> None:
    reader, writer = os.pipe()
    value = os.urandom(5 << 20)
    inlet = ScriptedInlet(script=[Batch(parts=[opened(), data(0, value), ended(len(value))])])
    got = bytearray()
    with trio.fail_after(10):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(StdoutSink(STOP, make_context(), fd=writer).run, inlet)
            while len(got) < len(value):
                await trio.lowlevel.wait_readable(reader)
                got += os.read(reader, 100_000)
    os.close(reader)
    os.close(writer)
    assert bytes(got) == value


async def test_a_non_blocking_output_is_written_too() -> None:
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    value = os.urandom(3 << 20)
    inlet = ScriptedInlet(script=[Batch(parts=[opened(), data(0, value), ended(len(value))])])
    got = bytearray()
    with trio.fail_after(10):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(StdoutSink(STOP, make_context(), fd=writer).run, inlet)
            while len(got) < len(value):
                await trio.lowlevel.wait_readable(reader)
                got += os.read(reader, 100_000)
    assert not os.get_blocking(writer)
    os.close(reader)
    os.close(writer)
    assert bytes(got) == value


async def test_a_cancelled_sink_does_not_wait_for_its_reader() -> None:
    reader, writer = os.pipe()
    inlet = ScriptedInlet(script=[Batch(parts=[opened(), data(0, bytes(4 << 20))])])
    with trio.fail_after(5):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(StdoutSink(STOP, make_context(), fd=writer).run, inlet)
            await trio.lowlevel.wait_readable(reader)
            nursery.cancel_scope.cancel()
    assert inlet.accepted == []
    os.close(reader)  # ends the abandoned write
    os.close(writer)


async def test_a_full_disk_is_waited_for(output: IO[bytes], monkeypatch: pytest.MonkeyPatch) -> None:
    really_write, refusals = os.write, [errno.ENOSPC, errno.EDQUOT]

    def write_to_full_disk(fd: int, value: bytes) -> int:
        if fd == output.fileno() and refusals:
            really_write(fd, value[:1])
            raise OSError(refusals.pop(), "no space")
        return really_write(fd, value)

    monkeypatch.setattr(os, "write", write_to_full_disk)
    monkeypatch.setattr("gapconn.sinks.stdout.Backoff.failed", lambda self: 0.0)
    inlet = ScriptedInlet(script=[lines(b"a", b"b")])
    context = await write(inlet, output)
    assert context.counters["write_retries"] == 2
    assert inlet.accepted == [0]


async def test_standard_input_reaches_standard_output(output: IO[bytes]) -> None:
    value = os.urandom(1_000_000)
    reader, writer = os.pipe()
    pipe = Pipe()

    async def run_source() -> None:
        await StdinSource(StdinConfig(format="raw"), make_context(), fd=reader).run(pipe)
        pipe.close()

    def feed() -> None:
        with open(writer, "wb") as file:
            file.write(value)

    with trio.fail_after(10):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(StdoutSink(STOP, make_context(), fd=output.fileno()).run, pipe)
            nursery.start_soon(run_source)
            nursery.start_soon(trio.to_thread.run_sync, feed)
    os.close(reader)
    assert written(output) == value
    assert pipe.losses == []


@pytest.mark.req("GC-DLV-33")
async def test_bytes_that_come_late_are_written_where_they_fit_and_lines_anywhere(output: IO[bytes]) -> None:
    inlet = ScriptedInlet(script=[])
    script: list[tuple[bool, list[Records | Chunk]]] = [
        (False, [opened(), data(0, b"one ")]),
        (True, [data(4, b"two ")]),
        (True, [data(4, b"again")]),
        (False, [ended(8)]),
        (True, lines(b"a line").parts),
    ]
    inlet.script = [
        inlet.delivery(Batch(parts=[*parts]), message=number, late=late) for number, (late, parts) in enumerate(script)
    ]
    context = await write(inlet, output)
    assert written(output) == b"one two a line\n"
    assert (inlet.accepted, inlet.declined, inlet.losses) == ([0, 1, 3, 4], [2], [])
    assert context.counters["late_unusable"] == 1
