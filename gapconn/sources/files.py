"""A directory whose files are sent, one after the other.

    scan ─▶ files that settled ─▶ read ahead (worker thread) ─▶ pack to batches ─▶ outlet
                                  put away (move, delete, remember) ◀─ the kernel took the batch with the END

Stream names are the session's epoch and a dense number, so the sink notices a file of which nothing arrived. Empty
directories are not carried, nor are the permissions of directories; symbolic links and special files are never read.
"""

from __future__ import annotations

import hashlib
import os
import sqlite3
import stat
from collections.abc import Callable, Generator, Iterable, Iterator
from functools import partial
from typing import Any, ClassVar, Literal, TypeAlias

import attrs
import trio

from gapconn.backoff import Backoff
from gapconn.config import option
from gapconn.filetree import UnsafePathError, path_attributes, printable
from gapconn.plugins import Carries, Context
from gapconn.record import Batch, Chunk, ChunkKind
from gapconn.sources import Outlet
from gapconn.sources.watched_directory import Found, Version, WatchedDirectory, WatchedFile, parent_of
from gapconn.throttle import ThrottledLog
from gapconn.units import Seconds

_BLOCK_BYTES = 1 << 20
"""Read in one go: a worker thread costs 100 us a call, whether for one large file or for a thousand small ones."""

_CHUNK_OVERHEAD_BYTES = 300
"""More than a chunk needs beside its data and path, as MessagePack."""

_IDLE_FIRST_S, _IDLE_AGAIN_S = 3.0, 30.0
"""How long after the last file the sink is told that none is open, and how often again."""


@attrs.frozen(kw_only=True)
class FilesSourceConfig:
    """Keys of `[source]` with `type = "files"`."""

    directory: str = option(
        help="Directory to watch, with all below it. Symbolic links and special files are left alone.",
        validator=attrs.validators.min_len(1),
    )
    pattern: str = option(default="*", help="Only files are sent whose name matches, as in a shell.")
    exclude: list[str] = option(
        factory=lambda: [".*", "*.tmp", "*.part"],
        help="Files are not sent, and directories not entered, if their name matches one of these.",
    )
    poll_interval: Seconds = option(
        default=Seconds(1.0),
        help="How often the directory is looked through.",
        allowed="more than 0",
        validator=attrs.validators.gt(0),
    )
    settle: Seconds = option(
        default=Seconds(1.0),
        help="A file is sent when its size and time of modification have not changed for this long.",
        validator=attrs.validators.ge(0),
    )
    after: Literal["move", "delete", "keep"] = option(
        default="move",
        help="What happens to a file that was sent: `move` it to `sent_directory`, `delete` it, or `keep` it and "
        "remember in `state_file` that it was sent.",
    )
    sent_directory: str | None = option(
        default=None,
        help="Where sent files are moved to, on the same file system; `.sent` in the directory if not given. A file "
        "whose name exists there gets its stream name appended.",
    )
    state_file: str | None = option(
        default=None,
        help="SQLite file that remembers kept files; `.gapconn-sent.sqlite` in the directory if not given. A file that "
        "changes is sent again; one that is gone is forgotten after a week.",
    )


class FilesSource:
    """Sends each file that has settled, in the order of their modification, and puts it away when it was sent.

    A file that changes while it is read is broken off and sent again later. What was sent, but not put away before the
    process ended, is sent again by the next one.
    """

    Config: ClassVar[type[Any]] = FilesSourceConfig
    carries: ClassVar[Carries] = Carries.CHUNKS

    def __init__(self, config: FilesSourceConfig, context: Context) -> None:
        self._config = config
        self._context = context
        self._log = ThrottledLog(context.log)
        self._directory = WatchedDirectory(
            config.directory,
            pattern=config.pattern,
            exclude=config.exclude,
            settle_s=config.settle,
            after=config.after,
            sent_directory=config.sent_directory,
            state_file=config.state_file,
        )
        self._reader = _Reader(config.directory, context.epoch)
        self._sent: list[WatchedFile] = []
        """To be put away."""
        self._sent_more = trio.Event()
        self._stuck = False
        """Sent files cannot be put away; more would only have to be sent again."""
        self._idle_due = 0.0
        context.status.update(files=0, bytes=0, waiting=0, excluded=0, sending=None)

    async def run(self, outlet: Outlet) -> None:
        """Watch until cancelled."""
        packer = _Packer(outlet, self._note_sent)
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._put_away_sent, name="files put away")
                await self._watch(outlet, packer)
        finally:
            with trio.move_on_after(outlet.flush_timeout_s, shield=True):
                await packer.abort_open()
                await outlet.flush()
                await self._put_away()
            if self._sent:
                self._context.counters["sent_but_not_put_away"] += len(self._sent)
                self._context.log.warning("files_not_put_away", files=len(self._sent), hint="they will be sent again")
                self._sent.clear()
            self._stuck = False
            self._directory.close()

    async def _watch(self, outlet: Outlet, packer: _Packer) -> None:
        backoff = Backoff()
        while True:
            started = trio.current_time()
            try:
                found = await trio.to_thread.run_sync(self._directory.scan, started)
            except (OSError, sqlite3.Error) as error:
                delay = backoff.failed()
                self._context.counters["scans_failed"] += 1
                self._context.log.error(
                    "scan_failed",
                    error=str(error),
                    retry_in_s=round(delay, 1),
                    **self._remedy(error),
                )
                await trio.sleep(delay)
                continue
            backoff.succeeded()
            scan_s = trio.current_time() - started
            self._tell(found)
            sending = bool(found.ready) and not self._stuck
            if sending:
                await self._send_files(found.ready, packer)
                self._idle_due = trio.current_time() + _IDLE_FIRST_S
            if not (found.more and sending):
                # A directory that takes long to look through is not looked through all the time.
                await self._pause(outlet, max(self._config.poll_interval, scan_s))

    def _remedy(self, error: OSError | sqlite3.Error) -> dict[str, str]:
        if isinstance(error, FileNotFoundError | NotADirectoryError) and not os.path.isdir(self._config.directory):
            return {"remedy": "create the directory or correct source.directory; it is tried again"}
        return {}

    def _tell(self, found: Found) -> None:
        self._context.status.update(waiting=found.waiting, excluded=found.excluded)
        for path, reason in found.left_alone.items():
            self._context.counters["left_alone"] += 1
            self._log.warning("left_alone", path=printable(path), reason=reason)

    async def _pause(self, outlet: Outlet, seconds: float) -> None:
        """Wait; and while nothing is sent, say so, so that a lost end does not stay unnoticed."""
        until = trio.current_time() + seconds
        while (now := trio.current_time()) < until:
            if now >= self._idle_due:
                attributes: dict[str, str | int | bool | None] = {"open": 0, "finished": self._reader.begun}
                idle = Chunk(stream="", kind=ChunkKind.ALIVE, position=0, attributes=attributes)
                await outlet.send(Batch(parts=[idle]))
                self._idle_due = trio.current_time() + _IDLE_AGAIN_S
            await trio.sleep_until(min(until, self._idle_due))

    async def _send_files(self, files: list[WatchedFile], packer: _Packer) -> None:
        """Send `files`; the next block is read while the link takes the last."""
        items = self._reader.items(files)
        send, receive = trio.open_memory_channel[list[_Item]](1)
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(_read_ahead, items, send, name="files read ahead")
                async for block in receive:
                    for item in block:
                        await self._take(item, packer)
                await packer.flush()
        finally:
            items.close()
            self._context.status["sending"] = None

    async def _take(self, item: _Item, packer: _Packer) -> None:
        context = self._context
        if isinstance(item, Chunk):
            await packer.add(item)
            return
        if isinstance(item, _Begun):
            context.status["sending"] = printable(item.file.path)
            return
        file, path = item.file, printable(item.file.path)
        if isinstance(item, _Finished):
            file.sent_as = item.stream
            packer.finish(file)
            context.status["files"] += 1
            context.status["bytes"] += file.version.size_bytes
            context.log.debug("file_sent", path=path, size_bytes=file.version.size_bytes, stream=item.stream)
        elif item.error is None:
            context.counters["changed_while_read"] += 1
            self._log.warning("file_changed_while_read", path=path, hint="a longer `settle` avoids this")
            file.since = trio.current_time()
        else:
            delay = file.backoff.failed()
            file.not_before = trio.current_time() + delay
            context.counters["unreadable"] += 1
            self._log.warning("file_unreadable", path=path, error=item.error, retry_in_s=round(delay, 1))

    def _note_sent(self, files: list[WatchedFile]) -> None:
        self._sent.extend(files)
        self._sent_more.set()

    async def _put_away_sent(self) -> None:
        backoff = Backoff()
        while True:
            await self._sent_more.wait()
            self._sent_more = trio.Event()
            while self._sent:
                await self._put_away()
                if not self._stuck:
                    backoff.succeeded()
                    continue
                await trio.sleep(backoff.failed())

    async def _put_away(self) -> None:
        """Try to put away what was sent; what cannot be stays."""
        files = list(self._sent)
        if not files:
            return
        failed = await trio.to_thread.run_sync(self._directory.put_away, files)
        self._sent[: len(files)] = [file for file, _ in failed]
        self._stuck = bool(failed)
        if failed:
            file, error = failed[0]
            self._context.counters["put_away_retries"] += len(failed)
            self._context.log.error(
                "put_away_failed", action=self._config.after, files=len(failed), path=printable(file.path), error=error
            )


async def _read_ahead(items: Iterator[_Item], channel: trio.MemorySendChannel[list[_Item]]) -> None:
    with channel:
        while block := await trio.to_thread.run_sync(_next_block, items):
            await channel.send(block)


def _next_block(items: Iterator[_Item]) -> list[_Item]:
    block: list[_Item] = []
    size_bytes = 0
    for item in items:
        block.append(item)
        size_bytes += _cost(item) if isinstance(item, Chunk) else 0
        if size_bytes >= _BLOCK_BYTES:
            break
    return block


def _cost(chunk: Chunk) -> int:
    """More bytes than the chunk takes in a batch."""
    path = chunk.attributes.get("path") or chunk.attributes.get("path_hex") or ""
    return _CHUNK_OVERHEAD_BYTES + len(chunk.data) + 4 * len(str(path))


class _Packer:
    """Puts chunks together to batches: many small files in one, a large file in many."""

    def __init__(self, outlet: Outlet, on_sent: Callable[[list[WatchedFile]], None]) -> None:
        self._outlet = outlet
        self._on_sent = on_sent
        self._limit_bytes = max(min(outlet.batch_bytes, outlet.batch_bytes_max - 1024), 2 * _CHUNK_OVERHEAD_BYTES)
        self._parts: list[Chunk] = []
        self._size_bytes = 0
        self._finished: list[WatchedFile] = []
        self._open: Chunk | None = None
        """Last chunk handed over of a stream that has not ended."""

    async def add(self, chunk: Chunk) -> None:
        """Append a chunk, in pieces if need be."""
        while chunk.kind is ChunkKind.DATA and self._size_bytes + _cost(chunk) > self._limit_bytes:
            room = self._limit_bytes - self._size_bytes - _CHUNK_OVERHEAD_BYTES
            if self._parts and room < self._limit_bytes // 4:
                await self.flush()
                continue
            self._append(_piece(chunk, 0, room))
            chunk = _piece(chunk, room, len(chunk.data))
        if self._size_bytes + _cost(chunk) > self._limit_bytes:
            await self.flush()
        self._append(chunk)

    def finish(self, file: WatchedFile) -> None:
        """All chunks of `file` were added."""
        self._finished.append(file)

    async def flush(self) -> None:
        """Send what is held."""
        if not self._parts:
            return
        parts, finished = self._parts, self._finished
        self._parts, self._finished, self._size_bytes = [], [], 0
        await self._outlet.send(Batch(parts=list(parts)), partial(self._on_sent, finished) if finished else None)
        self._open = None if parts[-1].kind in (ChunkKind.END, ChunkKind.ABORT) else parts[-1]

    async def abort_open(self) -> None:
        """Say that the file in the middle of which the source was stopped will not go on."""
        if self._open is not None:
            position = self._open.position + len(self._open.data)
            await self._outlet.send(
                Batch(parts=[Chunk(stream=self._open.stream, kind=ChunkKind.ABORT, position=position)])
            )
            self._open = None

    def _append(self, chunk: Chunk) -> None:
        self._parts.append(chunk)
        self._size_bytes += _cost(chunk)


def _piece(chunk: Chunk, start: int, stop: int) -> Chunk:
    return Chunk(stream=chunk.stream, kind=chunk.kind, position=chunk.position + start, data=chunk.data[start:stop])


@attrs.frozen
class _Begun:
    file: WatchedFile


@attrs.frozen
class _Finished:
    file: WatchedFile
    stream: str


@attrs.frozen
class _Failed:
    file: WatchedFile
    error: str | None
    """None: the file changed."""


_Item: TypeAlias = Chunk | _Begun | _Finished | _Failed


class _Reader:
    """Reads files; works in a worker thread, one call at a time."""

    def __init__(self, directory: str, epoch: int) -> None:
        self._directory = directory
        self._epoch = epoch
        self.begun = 0
        """Transfers begun so far, the number of the next one."""

    def items(self, files: Iterable[WatchedFile]) -> Generator[_Item, None, None]:
        """The chunks of one file after the other, and what came of each. Closing the iterator closes what is open."""
        for file in files:
            try:
                fd = self._open(file.path)
            except (OSError, UnsafePathError) as error:
                yield _Failed(file, str(error))
                continue
            try:
                if Version.of(os.fstat(fd)) == file.version:
                    yield from self._chunks(fd, file)
                else:
                    yield _Failed(file, None)
            finally:
                os.close(fd)

    def _open(self, path: bytes) -> int:
        with parent_of(self._directory, path) as (parent, name):
            # Not blocking: if the name is a named pipe by now, opening it would wait for a writer.
            return os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=parent)

    def _chunks(self, fd: int, file: WatchedFile) -> Generator[_Item, None, None]:
        stream = f"{self._epoch:x}-{self.begun}"
        self.begun += 1
        version = file.version
        yield _Begun(file)
        attributes = {
            **path_attributes(file.path),
            "size_bytes": version.size_bytes,
            "mode": stat.S_IMODE(os.fstat(fd).st_mode),
            "mtime_ns": version.mtime_ns,
        }
        yield Chunk(stream=stream, kind=ChunkKind.OPEN, position=0, attributes=attributes)
        position, digest, error = 0, hashlib.sha256(), None
        try:
            # One byte more than expected shows the end, and a file that grows without end does not keep us.
            while position <= version.size_bytes and (
                data := os.read(fd, min(_BLOCK_BYTES, version.size_bytes - position + 1))
            ):
                digest.update(data)
                yield Chunk(stream=stream, kind=ChunkKind.DATA, position=position, data=memoryview(data))
                position += len(data)
            unchanged = position == version.size_bytes and Version.of(os.fstat(fd)) == version
        except OSError as reason:
            unchanged, error = False, str(reason)
        if unchanged:
            attributes = {"sha256": digest.hexdigest()}
            yield Chunk(stream=stream, kind=ChunkKind.END, position=position, attributes=attributes)
            yield _Finished(file, stream)
        else:
            yield Chunk(stream=stream, kind=ChunkKind.ABORT, position=position)
            yield _Failed(file, error)
