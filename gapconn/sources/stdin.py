"""Standard input: a record per line, or the bytes as they are.

What was read cannot be read again, so what is in hand when the source is told to stop is still sent.
"""

from __future__ import annotations

import errno
import fcntl
import os
from bisect import bisect_right
from collections.abc import Iterable, Iterator
from contextlib import suppress
from itertools import accumulate
from typing import Any, ClassVar, Literal, Protocol

import attrs
import trio

from gapconn.config import option
from gapconn.errors import SourceError
from gapconn.plugins import Carries, Context
from gapconn.record import NO_POSITION, Batch, Chunk, ChunkKind, Records
from gapconn.sources import Outlet
from gapconn.throttle import ThrottledLog
from gapconn.units import Bytes

STREAM = "stdin"

_PIPE_BYTES = 1 << 20
_ENVELOPE_BYTES = 256  # more than a batch needs beside its records or data
_RECORD_OVERHEAD_BYTES = 14  # a position and a length, as MessagePack


@attrs.frozen(kw_only=True)
class StdinConfig:
    """Keys of `[source]` with `type = "stdin"`."""

    format: Literal["lines", "raw"] = option(
        default="lines",
        help="`lines`: each line is a record, without its newline. `raw`: one stream of bytes, whatever they are.",
    )
    max_line_bytes: Bytes = option(
        default=Bytes(1024 * 1024),
        help="A longer line is not sent, but counted and logged. It is never more than a message of the link can hold.",
        allowed="at least 1",
        validator=attrs.validators.ge(1),
    )


class StdinSource:
    """Reads standard input to its end."""

    Config: ClassVar[type[Any]] = StdinConfig
    carries: ClassVar[Carries] = Carries.RECORDS

    @classmethod
    def carries_with(cls, config: StdinConfig) -> Carries:
        """Records, or with the format `raw` chunks."""
        return Carries.CHUNKS if config.format == "raw" else Carries.RECORDS

    def __init__(self, config: StdinConfig, context: Context, *, fd: int = 0) -> None:
        self._config = config
        self._context = context
        self._fd = fd
        self._lines: _Lines | None = None
        self._streams = 0

    async def run(self, outlet: Outlet) -> None:
        """Send until the input ends."""
        limit_bytes = max(1, min(outlet.batch_bytes, outlet.batch_bytes_max - _ENVELOPE_BYTES))
        message_bytes_max = outlet.batch_bytes_max - _ENVELOPE_BYTES - _RECORD_OVERHEAD_BYTES
        standard_input = _Input(self._fd)
        form: _Form
        if self._config.format == "raw":
            form = _Raw(self._context, self._streams)
            self._streams += 1
        else:
            line_bytes_max = min(self._config.max_line_bytes, message_bytes_max)
            form = self._lines = self._lines or _Lines(self._context, line_bytes_max, limit_bytes)
        unsent = list(form.begin())
        try:
            await _send_all(outlet, unsent)
            while data := await standard_input.read(limit_bytes):
                unsent.extend(form.take(data))
                await _send_all(outlet, unsent)
            unsent.extend(form.end())
            await _send_all(outlet, unsent)
        except trio.Cancelled:
            unsent.extend(form.stop())
            with trio.move_on_after(outlet.flush_timeout_s, shield=True):
                await _send_all(outlet, unsent)
            if unsent:
                lost = sum(batch.record_count for batch in unsent)
                self._context.counters["unsent_when_stopped"] += lost
                self._context.log.error("input_lost", parts=lost, reason="the link did not take it in time")
            raise


async def _send_all(outlet: Outlet, batches: list[Batch]) -> None:
    """Send `batches`; those that were handed over are removed, also when this is cancelled."""
    while batches:
        await outlet.send(batches[0])
        del batches[0]


class _Input:
    """A descriptor that is read as data comes.

    It stays in blocking mode: the mode belongs to the open file, which other processes share. So the waiting is done
    before the read, and a cancellation during the read itself does not discard what it brings.
    """

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._pollable = True
        with suppress(OSError):  # not a pipe, or the user's limit is reached: only slower
            fcntl.fcntl(fd, fcntl.F_SETPIPE_SZ, _PIPE_BYTES)

    async def read(self, size_bytes: int) -> bytes:
        """At least one byte and at most `size_bytes`; none at the end."""
        while True:
            try:
                if self._pollable:
                    await trio.lowlevel.wait_readable(self._fd)
                return await trio.to_thread.run_sync(os.read, self._fd, size_bytes)
            except BlockingIOError:
                pass  # another process took the data
            except OSError as error:
                if error.errno != errno.EPERM or not self._pollable:
                    raise SourceError(f"standard input cannot be read: {error}") from error
                self._pollable = False  # a file or /dev/null: cannot be polled, and a read of it does not wait


class _Form(Protocol):
    """How input becomes batches."""

    def begin(self) -> Iterable[Batch]: ...
    def take(self, data: bytes) -> Iterable[Batch]: ...
    def end(self) -> Iterable[Batch]: ...
    def stop(self) -> Iterable[Batch]:
        """What is left to say when the input goes on but the source must stop."""


class _Raw:
    """One byte stream for the whole input; where the source was paused, one more for the rest."""

    def __init__(self, context: Context, number: int) -> None:
        self._stream = f"{context.epoch:x}-{STREAM}" + (f"-{number}" if number else "")
        self._status = context.status
        self._position = 0
        self._ended = False

    def begin(self) -> Iterable[Batch]:
        return [self._batch(ChunkKind.OPEN)]

    def take(self, data: bytes) -> Iterable[Batch]:
        batch = self._batch(ChunkKind.DATA, data)
        self._position += len(data)
        self._status["bytes"] = self._position
        return [batch]

    def end(self) -> Iterable[Batch]:
        self._ended = True
        return [self._batch(ChunkKind.END)]

    def stop(self) -> Iterable[Batch]:
        return [] if self._ended else [self._batch(ChunkKind.ABORT)]

    def _batch(self, kind: ChunkKind, data: bytes = b"") -> Batch:
        return Batch(parts=[Chunk(stream=self._stream, kind=kind, position=self._position, data=memoryview(data))])


class _Lines:
    """A record for each line; a line that is left out has its position too."""

    def __init__(self, context: Context, line_bytes_max: int, batch_bytes: int) -> None:
        self._status = context.status
        self._counters = context.counters
        self._log = ThrottledLog(context.log)
        self._line_bytes_max = line_bytes_max
        self._batch_bytes = batch_bytes
        self._origin = context.origin
        self._first_position = context.first_position
        self._lines = 0
        self._previous = NO_POSITION  # each session begins a chain of its own
        self._begun: list[bytes] = []
        """Pieces of the line whose end was not read yet; none of a line that is too long already."""
        self._begun_bytes = 0

    def begin(self) -> Iterable[Batch]:
        return ()

    def take(self, data: bytes) -> Iterable[Batch]:
        first, *others = data.split(b"\n")
        self._extend(first)
        if not others:
            return ()
        lines = [self._finish(), *others]
        self._extend(lines.pop() or b"")
        return self._batches(lines)

    def end(self) -> Iterable[Batch]:
        return self._batches([self._finish()]) if self._begun_bytes else ()

    def stop(self) -> Iterable[Batch]:
        # The rest of a begun line stays unread. Sending its beginning as a line is better than losing it.
        return self.end()

    def _extend(self, piece: bytes) -> None:
        self._begun_bytes += len(piece)
        if self._begun_bytes <= self._line_bytes_max:
            self._begun.append(piece)
        else:
            self._begun.clear()

    def _finish(self) -> bytes | None:
        """The begun line; None if it is too long."""
        line = b"".join(self._begun) if self._begun_bytes <= self._line_bytes_max else None
        self._begun.clear()
        self._begun_bytes = 0
        return line

    def _batches(self, lines: list[bytes | None]) -> Iterable[Batch]:
        first = self._first_position + self._lines
        positions = list(range(first, first + len(lines)))
        self._lines += len(lines)
        self._status["lines"] = self._lines
        limit = self._line_bytes_max
        if any(line is None or len(line) > limit for line in lines):
            for position, line in zip(positions, lines, strict=True):
                if line is None or len(line) > limit:
                    self._refuse(position)
            kept = [(p, v) for p, v in zip(positions, lines, strict=True) if v is not None and len(v) <= limit]
            positions, lines = [p for p, _ in kept], [v for _, v in kept]
        for part in _cut([len(line or b"") + _RECORD_OVERHEAD_BYTES for line in lines], self._batch_bytes):
            yield Batch(
                origin=self._origin,
                parts=[Records(stream=STREAM, previous=self._previous, positions=positions[part], values=lines[part])],
            )
            self._previous = positions[part][-1]

    def _refuse(self, position: int) -> None:
        self._counters["lines_too_long"] += 1
        line = position - self._first_position + 1
        self._log.warning("line_too_long", line=line, max_line_bytes=self._line_bytes_max)


def _cut(sizes: list[int], limit: int) -> Iterator[slice]:
    """Slices of a column, each of at most `limit` together (or of a single, larger, element)."""
    ends = list(accumulate(sizes))
    start, before = 0, 0
    while start < len(ends):
        stop = max(start + 1, bisect_right(ends, before + limit))
        yield slice(start, stop)
        start, before = stop, ends[stop - 1]
