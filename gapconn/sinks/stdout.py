"""Standard output: a line for each record, and byte streams as they are."""

from __future__ import annotations

import errno
import fcntl
import os
import select
from collections.abc import Iterable, Sequence
from contextlib import suppress
from typing import Any, ClassVar, Literal

import attrs
import trio

from gapconn.backoff import Backoff
from gapconn.config import option
from gapconn.errors import SinkError
from gapconn.plugins import Carries, Context
from gapconn.record import Chunk, ChunkKind, Records
from gapconn.sinks import Inlet
from gapconn.throttle import ThrottledLog

_PIPE_BYTES = 1 << 20
_OPEN_STREAMS_MAX = 1000


@attrs.frozen(kw_only=True)
class StdoutConfig:
    """Keys of `[sink]` with `type = "stdout"`."""

    on_hole: Literal["stop", "continue"] = option(
        default="stop",
        help="When bytes of a stream were lost: `stop` ends the egress with the place, `continue` reports them and "
        "writes on behind the hole. Records are not concerned: a lost record is reported, and the next line is whole.",
    )


class StdoutSink:
    """Writes values with a newline each, and the bytes of streams in the order of their arrival.

    Missing bytes are reported with the reason `hole`, or `end_missing` and `ingress_restarted` where it is not known
    how many there were. A null value is counted and writes nothing: an empty line would be an empty value.
    """

    Config: ClassVar[type[Any]] = StdoutConfig
    accepts: ClassVar[frozenset[Carries]] = frozenset(Carries)

    def __init__(self, config: StdoutConfig, context: Context, *, fd: int = 1) -> None:
        self._config = config
        self._context = context
        self._output = _Output(fd, context)
        self._throttled = ThrottledLog(context.log)
        self._epoch: int | None = None
        self._open: dict[str, int] = {}
        """Open streams, and the offset of the next byte of each."""

    async def run(self, inlet: Inlet) -> None:
        """Write until the inlet ends."""
        async for delivery in inlet:
            pieces: list[bytes | memoryview] = []
            try:
                self._begin_session(delivery.epoch, inlet)
                if delivery.late and not self._fits(delivery.batch.parts):
                    self._context.counters["late_unusable"] += 1
                    delivery.decline()
                    continue
                for part in delivery.batch.parts:
                    if isinstance(part, Records):
                        pieces.extend(self._lines(part))
                    else:
                        self._take(part, pieces, inlet)
            finally:
                await self._output.write(pieces)  # also what stands before a hole at which this stops
            delivery.accept()
        for stream, position in self._open.items():
            self._context.log.warning("stream_unfinished", stream=stream, bytes=position)

    def _fits(self, parts: Sequence[Records | Chunk]) -> bool:
        """Whether nothing that stands behind these was written yet; lines need no order."""
        at = dict(self._open)
        for part in parts:
            if isinstance(part, Chunk):
                if part.stream not in at or part.position != at[part.stream]:
                    return False
                at[part.stream] += len(part.data)
        return True

    def _lines(self, records: Records) -> Iterable[bytes]:
        values = [value for value in records.values if value is not None]
        if len(values) < len(records.values):
            self._context.counters["null_values"] += len(records.values) - len(values)
        return (b"\n".join([*values, b""]),) if values else ()

    def _begin_session(self, epoch: int, inlet: Inlet) -> None:
        if epoch == self._epoch:
            return
        self._epoch = epoch
        while self._open:
            stream, position = self._open.popitem()
            self._hole(inlet, stream, position, position, "ingress_restarted")

    def _take(self, chunk: Chunk, pieces: list[bytes | memoryview], inlet: Inlet) -> None:
        stream, kind = chunk.stream, chunk.kind
        if kind == ChunkKind.OPEN:
            self._begin_stream(stream, inlet)
            return
        if kind == ChunkKind.ALIVE and stream not in self._open:
            return
        expected = self._open.get(stream, 0)
        self._open[stream] = max(expected, chunk.position + len(chunk.data))
        if kind in (ChunkKind.END, ChunkKind.ABORT):
            del self._open[stream]
        if chunk.position > expected:
            self._hole(inlet, stream, expected, chunk.position - 1, "hole")
        if chunk.data:
            pieces.append(chunk.data)
        if kind == ChunkKind.ABORT:
            self._context.counters["streams_aborted"] += 1
            self._context.log.warning("stream_aborted", stream=stream, bytes=chunk.position)

    def _begin_stream(self, stream: str, inlet: Inlet) -> None:
        if self._open:
            self._context.counters["streams_mixed"] += 1
            self._throttled.warning("streams_mixed", stream=stream, others_open=len(self._open))
        self._open[stream] = 0
        if len(self._open) > _OPEN_STREAMS_MAX:
            oldest = next(iter(self._open))
            position = self._open.pop(oldest)
            self._hole(inlet, oldest, position, position, "end_missing")

    def _hole(self, inlet: Inlet, stream: str, first: int, last: int, reason: str) -> None:
        self._context.counters["holes"] += 1
        inlet.lost(stream=stream, first=first, last=last, reason=reason)
        if self._config.on_hole == "stop":
            raise SinkError(
                f"stream {stream!r}: bytes {first} to {last} are missing ({reason.replace('_', ' ')}), "
                'so standard output ends here; with on_hole = "continue" it would go on behind them'
            )


class _Output:
    """A descriptor that is written without blocking the Trio loop, and without changing its mode."""

    def __init__(self, fd: int, context: Context) -> None:
        self._fd = fd
        self._context = context
        with suppress(OSError):  # not a pipe, or the user's limit is reached: only slower
            fcntl.fcntl(fd, fcntl.F_SETPIPE_SZ, _PIPE_BYTES)

    async def write(self, pieces: list[bytes | memoryview]) -> None:
        """Write all of it; waits for ever for a reader, and for space on a full disk."""
        rest = memoryview(pieces[0] if len(pieces) == 1 else b"".join(pieces))
        backoff = Backoff()
        while rest:
            # Abandoned when cancelled, because a reader may never come. What was not written was not accepted.
            written, error = await trio.to_thread.run_sync(_write, self._fd, rest, abandon_on_cancel=True)
            rest = rest[written:]
            if error is None:
                continue
            if error.errno == errno.EPIPE:
                raise SinkError("standard output was closed by its reader") from error
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise SinkError(f"standard output cannot be written: {error}") from error
            delay = backoff.failed()
            self._context.counters["write_retries"] += 1
            self._context.log.warning("disk_full", hint="free space where standard output goes", retry_in_s=delay)
            await trio.sleep(delay)


def _write(fd: int, data: memoryview) -> tuple[int, OSError | None]:
    """How much of `data` was written, and what stopped it if it is not all."""
    written = 0
    while written < len(data):
        try:
            written += os.write(fd, data[written:])
        except BlockingIOError:  # another process made the shared open file non-blocking
            poll = select.poll()
            poll.register(fd, select.POLLOUT)
            poll.poll()
        except OSError as error:
            return written, error
    return written, None
