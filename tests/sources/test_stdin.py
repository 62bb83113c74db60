"""Standard input as records and as a byte stream, from pipes, files and terminals."""

from __future__ import annotations

import os
import pty
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import attrs
import pytest
import trio
from structlog.testing import capture_logs

from gapconn.errors import SourceError
from gapconn.plugins import Carries, Context
from gapconn.record import NO_POSITION, Batch, Chunk, ChunkKind, Records
from gapconn.sources import carried
from gapconn.sources.stdin import StdinConfig, StdinSource
from gapconn.testing.pipes import RecordingOutlet, make_context
from gapconn.units import Bytes


@attrs.define
class Pipe:
    """A pipe whose writing end the test holds."""

    reader: int
    writer: int

    def write(self, data: bytes) -> None:
        os.write(self.writer, data)

    def close(self) -> None:
        os.close(self.writer)
        self.writer = -1


@pytest.fixture
def pipe() -> Iterator[Pipe]:
    pipe = Pipe(*os.pipe())
    yield pipe
    os.close(pipe.reader)
    if pipe.writer >= 0:
        pipe.close()


def lines_of(batches: list[Batch]) -> list[bytes | None]:
    return [value for batch in batches for part in batch.parts if isinstance(part, Records) for value in part.values]


def numbers_of(batches: list[Batch], context: Context) -> list[int]:
    """The positions behind the first one of the session."""
    runs = [part for batch in batches for part in batch.parts if isinstance(part, Records)]
    return [position - context.first_position for run in runs for position in run.positions]


def assert_chained(batches: list[Batch]) -> None:
    """Each run names the last position before it; the first one of the session claims nothing."""
    runs = [part for batch in batches for part in batch.parts if isinstance(part, Records)]
    assert [run.previous for run in runs] == [NO_POSITION, *(run.positions[-1] for run in runs[:-1])]


def chunks_of(batches: list[Batch]) -> list[Chunk]:
    return [part for batch in batches for part in batch.parts if isinstance(part, Chunk)]


def data_of(batches: list[Batch]) -> bytes:
    return b"".join(chunk.data for chunk in chunks_of(batches))


@contextmanager
def redirected(path: Path, data: bytes) -> Iterator[int]:
    """A descriptor that reads `data` from a file."""
    path.write_bytes(data)
    with path.open("rb") as file:
        yield file.fileno()


async def read_file(path: Path, data: bytes, config: StdinConfig, outlet: RecordingOutlet) -> Context:
    """The context of a source after it read `data` from a redirected file."""
    context = make_context(epoch=0x2A)
    with redirected(path, data) as fd, trio.fail_after(10):
        await StdinSource(config, context, fd=fd).run(outlet)
    return context


LINES = StdinConfig()
RAW = StdinConfig(format="raw")


def test_what_it_carries_depends_on_the_format() -> None:
    assert carried(StdinSource, LINES) is Carries.RECORDS
    assert carried(StdinSource, RAW) is Carries.CHUNKS


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"", []),
        (b"one\ntwo\n", [b"one", b"two"]),
        (b"one\ntwo", [b"one", b"two"]),
        (b"\n\nx\n\n", [b"", b"", b"x", b""]),
        (b"dos\r\n\x00\xff\n", [b"dos\r", b"\x00\xff"]),
    ],
)
async def test_each_line_is_a_record(tmp_path: Path, data: bytes, expected: list[bytes]) -> None:
    outlet = RecordingOutlet()
    context = await read_file(tmp_path / "in", data, LINES, outlet)
    assert lines_of(outlet.batches) == expected
    assert numbers_of(outlet.batches, context) == list(range(len(expected)))


@pytest.mark.parametrize("batch_bytes", [1024, 4096, 64 * 1024])
async def test_lines_survive_every_cut(tmp_path: Path, batch_bytes: int) -> None:
    lines = [bytes([65 + i % 26]) * (i * 37 % 5000) for i in range(400)]
    outlet = RecordingOutlet(batch_bytes=batch_bytes)
    context = await read_file(tmp_path / "in", b"\n".join(lines), LINES, outlet)
    assert lines_of(outlet.batches) == lines
    assert context.status["lines"] == 400
    for batch in outlet.batches:
        values = lines_of([batch])
        assert len(values) == 1 or sum(len(value or b"") for value in values) <= batch_bytes
    assert_chained(outlet.batches)


async def test_many_empty_lines_fit_the_message(tmp_path: Path) -> None:
    outlet = RecordingOutlet(batch_bytes=16 * 1024, batch_bytes_max=16 * 1024)
    await read_file(tmp_path / "in", b"\n" * 100_000, LINES, outlet)
    assert lines_of(outlet.batches) == [b""] * 100_000


@pytest.mark.parametrize("batch_bytes", [1024, 64 * 1024])
async def test_a_line_that_is_too_long_is_counted_and_the_others_cross(tmp_path: Path, batch_bytes: int) -> None:
    data = b"a\n" + b"b" * 3001 + b"\n" + b"c" * 3000 + b"\nd\n" + b"e" * 9000
    outlet = RecordingOutlet(batch_bytes=batch_bytes)
    with capture_logs() as logs:
        context = await read_file(tmp_path / "in", data, StdinConfig(max_line_bytes=Bytes(3000)), outlet)
    assert lines_of(outlet.batches) == [b"a", b"c" * 3000, b"d"]
    assert numbers_of(outlet.batches, context) == [0, 2, 3]
    assert_chained(outlet.batches)
    assert next(entry["line"] for entry in logs if entry["event"] == "line_too_long") == 2
    assert context.counters["lines_too_long"] == 2


async def test_a_line_is_never_larger_than_a_message(tmp_path: Path) -> None:
    outlet = RecordingOutlet(batch_bytes=4096, batch_bytes_max=8192)
    context = await read_file(tmp_path / "in", b"x" * 8192 + b"\n" + b"y" * 7900 + b"\n", LINES, outlet)
    assert lines_of(outlet.batches) == [b"y" * 7900]
    assert context.counters["lines_too_long"] == 1


async def test_lines_cross_as_they_come(pipe: Pipe) -> None:
    outlet = RecordingOutlet()
    with trio.fail_after(5):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(StdinSource(LINES, make_context(), fd=pipe.reader).run, outlet)
            pipe.write(b"first\nsec")
            await outlet.wait_until(lambda batches: lines_of(batches) == [b"first"])
            pipe.write(b"ond\n")
            await outlet.wait_until(lambda batches: lines_of(batches) == [b"first", b"second"])
            pipe.write(b"last")
            pipe.close()
    assert lines_of(outlet.batches) == [b"first", b"second", b"last"]


@pytest.mark.parametrize("size", [0, 1, 300_000])
async def test_raw_bytes_are_one_stream(tmp_path: Path, size: int) -> None:
    data = os.urandom(size)
    outlet = RecordingOutlet()
    await read_file(tmp_path / "in", data, RAW, outlet)
    chunks = chunks_of(outlet.batches)
    assert [chunk.kind for chunk in chunks] == [
        ChunkKind.OPEN, *[ChunkKind.DATA] * (len(chunks) - 2), ChunkKind.END
    ]  # fmt: skip
    assert {chunk.stream for chunk in chunks} == {"2a-stdin"}
    assert data_of(outlet.batches) == data
    position = 0
    for chunk in chunks:
        assert chunk.position == position
        position += len(chunk.data)


async def test_dev_null_is_an_empty_input() -> None:
    fd = os.open("/dev/null", os.O_RDONLY)
    outlet = RecordingOutlet()
    with trio.fail_after(5):
        await StdinSource(LINES, make_context(), fd=fd).run(outlet)
    os.close(fd)
    assert outlet.batches == []


async def test_a_terminal_is_read_and_stays_in_blocking_mode() -> None:
    ours, theirs = pty.openpty()
    outlet = RecordingOutlet()
    with trio.fail_after(5):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(StdinSource(LINES, make_context(), fd=theirs).run, outlet)
            os.write(ours, b"typed\n")
            await outlet.wait_until(lambda batches: lines_of(batches) == [b"typed"])
            assert os.get_blocking(theirs)
            os.write(ours, b"\x04")  # end of input
    os.close(ours)
    os.close(theirs)
    assert lines_of(outlet.batches) == [b"typed"]


async def test_a_closed_input_is_an_error() -> None:
    reader, writer = os.pipe()
    os.close(writer)
    os.close(reader)
    with trio.fail_after(5), pytest.raises(SourceError, match="standard input cannot be read"):
        await StdinSource(LINES, make_context(), fd=reader).run(RecordingOutlet())


@attrs.define(kw_only=True)
class BusyOutlet(RecordingOutlet):
    """Takes the first `free` batches at once and the others when told."""

    free: int = 0
    waiting: trio.Event = attrs.field(factory=trio.Event)
    ready: trio.Event = attrs.field(factory=trio.Event)

    async def send(self, batch: Batch, on_sent: Callable[[], None] | None = None) -> None:
        if len(self.batches) >= self.free:
            self.waiting.set()
            await self.ready.wait()
        await RecordingOutlet.send(self, batch, on_sent)


async def test_what_is_in_hand_when_stopped_is_sent(pipe: Pipe) -> None:
    outlet = BusyOutlet()
    pipe.write(b"one\ntwo\nthr")
    with trio.fail_after(5):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(StdinSource(LINES, make_context(), fd=pipe.reader).run, outlet)
            await outlet.waiting.wait()
            nursery.cancel_scope.cancel()
            outlet.ready.set()
    assert lines_of(outlet.batches) == [b"one", b"two", b"thr"]


async def test_what_the_link_does_not_take_when_stopped_is_reported(pipe: Pipe) -> None:
    outlet = BusyOutlet(flush_timeout_s=0.05)
    context = make_context()
    pipe.write(b"one\ntwo\n")
    with trio.fail_after(5):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(StdinSource(LINES, context, fd=pipe.reader).run, outlet)
            await outlet.waiting.wait()
            nursery.cancel_scope.cancel()
    assert outlet.batches == []
    assert context.counters["unsent_when_stopped"] == 2


async def test_a_stopped_raw_stream_says_that_it_broke_off(pipe: Pipe) -> None:
    outlet = RecordingOutlet()
    pipe.write(b"data")
    with trio.fail_after(5):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(StdinSource(RAW, make_context(), fd=pipe.reader).run, outlet)
            await outlet.wait_until(lambda batches: data_of(batches) == b"data")
            nursery.cancel_scope.cancel()
    last = chunks_of(outlet.batches)[-1]
    assert (last.kind, last.position) == (ChunkKind.ABORT, 4)


async def test_a_stream_that_ended_is_not_also_aborted(pipe: Pipe) -> None:
    outlet = BusyOutlet(free=2)
    pipe.write(b"data")
    pipe.close()
    with trio.fail_after(5):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(StdinSource(RAW, make_context(), fd=pipe.reader).run, outlet)
            await outlet.waiting.wait()
            nursery.cancel_scope.cancel()
            outlet.ready.set()
    assert [chunk.kind for chunk in chunks_of(outlet.batches)] == [ChunkKind.OPEN, ChunkKind.DATA, ChunkKind.END]


PROGRAM = """
import sys, trio
from gapconn.sources.stdin import StdinConfig, StdinSource
from gapconn.testing.pipes import RecordingOutlet, make_context
outlet = RecordingOutlet()
trio.run(StdinSource(StdinConfig(), make_context()).run, outlet)
sys.stdout.write(str(sum(batch.record_count for batch in outlet.batches)))
"""


def test_a_real_process_reads_its_standard_input_to_the_end() -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], input=b"a\nb\nc", capture_output=True, timeout=30, check=True
    )
    assert done.stdout == b"3"
