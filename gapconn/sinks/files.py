"""Files into a directory: whole and verified, or not at all.

    inlet ─▶ gather ─▶ run ─▶ _Writer, in a worker thread: DIRECTORY/.incoming/NAME ─▶ verify ─▶ sync ─▶ rename

The source sends one file after the other and numbers them densely, so one file is open at a time, and the beginning of
another (or the word that none is open) shows that the end of the open one was lost. A number that is left out is a
file of which nothing arrived.
"""

from __future__ import annotations

import errno
import hashlib
import itertools
import os
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import suppress
from typing import Any, ClassVar, Literal

import attrs
import trio

from gapconn.backoff import Backoff
from gapconn.config import option
from gapconn.errors import SinkError
from gapconn.filetree import Attributes, Components, UnsafePathError, open_directory, path_of, printable
from gapconn.plugins import Carries, Context
from gapconn.record import Chunk, ChunkKind, Records
from gapconn.sinks import Delivery, Inlet
from gapconn.throttle import ThrottledLog

INCOMING = b".incoming"
"""Directory below the sink's directory that holds files until they are whole."""

_GATHERED_MAX = 4
"""Deliveries taken ahead, so that the disk and the link work at the same time."""

_FOR_EVER = {errno.EISDIR, errno.ENAMETOOLONG, errno.EINVAL, errno.EILSEQ, errno.EXDEV, errno.EFBIG}
"""Errors that say something about one file, and would come again at every try."""

_HINTS = {
    errno.ENOSPC: "free disk space",
    errno.EDQUOT: "raise the quota, or free disk space",
    errno.EACCES: "let the user of this process write there",
    errno.EPERM: "let the user of this process write there",
    errno.EROFS: "mount it writable",
    errno.EMFILE: "raise the limit of open files",
}


@attrs.frozen(kw_only=True)
class FilesSinkConfig:
    """Keys of `[sink]` with `type = "files"`."""

    directory: str = option(
        help="Where files are put. It is created if absent. Nothing outside it is ever written, whatever a name says.",
        validator=attrs.validators.min_len(1),
    )
    overwrite: Literal["replace", "keep", "number"] = option(
        default="replace",
        help="When a file of the name exists: `replace` it atomically; `keep` the old one and throw the new one away, "
        "counted; `number` the new one (`name.1`).",
    )
    fsync: bool = option(
        default=True,
        help="Have each file on the disk before it counts as delivered. Without it a power cut loses files.",
    )
    preserve: bool = option(
        default=True,
        help="Give files the time of modification and the permission bits of the original (never setuid or setgid).",
    )


class FilesSink:
    """Writes each file under a temporary name, verifies its length and SHA-256, and then renames it.

    A file that did not arrive whole leaves nothing behind and is reported once, as positions 0 to its last byte as far
    as its length is known, with one of these reasons:

    - `beginning_missing`, `hole`, `end_missing`: that part was lost on the link;
    - `wrong_length`, `wrong_hash`: what arrived is not what the source read;
    - `aborted`: the source broke off (the file changed while it was read, or the ingress was stopped);
    - `ingress_restarted`, `egress_stopped`: the file was still open then;
    - `path_refused`: the path is not below the directory, passes through a symbolic link, or cannot exist there;
    - `vanished`, `sync_failed`: somebody removed the temporary file, or the disk did not take it after all.

    Files of which nothing arrived are reported with the epoch in hexadecimal as the stream, their numbers as positions,
    and the reason `file_missing`.

    Of a late delivery, files that are whole in it are put where they belong, and are found again if they were reported
    as missing. What it has of others is thrown away and counted (`late_unusable`): their beginnings were.
    """

    Config: ClassVar[type[Any]] = FilesSinkConfig
    accepts: ClassVar[frozenset[Carries]] = frozenset({Carries.CHUNKS})

    def __init__(self, config: FilesSinkConfig, context: Context) -> None:
        self._context = context
        self._log = ThrottledLog(context.log)
        self._writer = _Writer(config, context.link_id)
        self._directory = config.directory
        context.status.update(files=0, bytes=0, receiving=None)

    async def run(self, inlet: Inlet) -> None:
        """Write until the inlet ends."""
        send, receive = trio.open_memory_channel[Delivery](_GATHERED_MAX)
        try:
            await self._write(deque(), inlet)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(_gather, inlet, send, name="files gather")
                async for delivery in receive:
                    await self._write(deque([delivery, *_waiting(receive)]), inlet)
        finally:
            self._writer.close()
            self._tell(inlet)

    async def _write(self, deliveries: deque[Delivery], inlet: Inlet) -> None:
        """Make the directory ready and write `deliveries`, however many tries it takes."""
        backoff = Backoff()
        while True:
            done, error = await trio.to_thread.run_sync(self._writer.write, deliveries)
            self._tell(inlet)
            for delivery in done:
                if delivery in self._writer.declined:
                    delivery.decline()
                else:
                    delivery.accept()
            self._writer.declined.clear()
            if error is None:
                return
            if done:
                backoff.succeeded()
            delay = backoff.failed()
            self._context.counters["write_retries"] += 1
            self._context.log.error(
                "write_failed",
                directory=self._directory,
                error=str(error),
                hint=_HINTS.get(error.errno or 0, "see the error; it is tried again for ever"),
                retry_in_s=round(delay, 1),
            )
            await trio.sleep(delay)

    def _tell(self, inlet: Inlet) -> None:
        """Pass on what the worker thread noted: counters, logs and the inlet belong to Trio's thread."""
        writer = self._writer
        for note in writer.notes:
            self._context.counters[note.counter] += note.count
            if note.loss is not None:
                stream, first, last = note.loss
                inlet.lost(stream=stream, first=first, last=last, reason=note.event)
            if note.found is not None:
                stream, first, last = note.found
                inlet.found(stream=stream, first=first, last=last)
            self._log.warning(note.event, **note.facts)
        writer.notes.clear()
        for path, size_bytes in writer.placed:
            self._context.log.debug("file_received", path=path, size_bytes=size_bytes)
        writer.placed.clear()
        self._context.status.update(files=writer.files, bytes=writer.bytes, receiving=writer.receiving)


async def _gather(inlet: Inlet, channel: trio.MemorySendChannel[Delivery]) -> None:
    with channel:
        async for delivery in inlet:
            await channel.send(delivery)


def _waiting(channel: trio.MemoryReceiveChannel[Delivery]) -> Iterator[Delivery]:
    """What can be had without waiting."""
    with suppress(trio.WouldBlock, trio.EndOfChannel):
        while True:
            yield channel.receive_nowait()


@attrs.frozen(kw_only=True)
class _Note:
    """Something that the operator must know."""

    event: str
    counter: str
    count: int = 1
    facts: dict[str, Any] = attrs.field(factory=dict)
    loss: tuple[str, int, int] | None = None
    """Stream and range of positions, where something is lost."""
    found: tuple[str, int, int] | None = None
    """The same, where something that was reported as lost is there after all."""


@attrs.define(kw_only=True)
class _Incoming:
    """A file of which a part has arrived."""

    stream: str
    path: Components
    size_bytes: int | None
    mode: int | None
    mtime_ns: int | None
    temporary: bytes
    """Its name in the incoming directory."""
    fd: int
    position: int = 0
    """Bytes that arrived, were written and hashed."""
    digest: Any = attrs.field(factory=hashlib.sha256)


class _Writer:
    """The part that works on the disk, called by one worker thread at a time.

    An `OSError` that may pass (a full disk) leaves it as it was before the chunk, so that the chunk can be tried again.
    """

    def __init__(self, config: FilesSinkConfig, link_id: int) -> None:
        self.notes: list[_Note] = []
        self.placed: list[tuple[str, int]] = []
        """Path and size of the files that got their names."""
        self.declined: list[Delivery] = []
        """Late deliveries that are done and of which not all could be used."""
        self.files = 0
        self.bytes = 0
        self._config = config
        self._prefix = b"%x-" % link_id  # another link may have the same directory
        self._temporaries = 0
        self._cleaned = False
        self._root: int | None = None
        self._incoming = -1
        self._target: tuple[Components, int] | None = None
        """Directory into which the last file was renamed; not synced yet."""
        self._epoch: int | None = None
        self._next_number: int | None = None
        """Number of the next file; None while unknown, because an earlier run of this egress may have had the first."""
        self._current: _Incoming | None = None
        self._left_out: str | None = None
        """The stream whose rest is thrown away."""
        self._parts_done = 0
        """Of the first delivery in hand."""
        self._late_done = 0
        """Whole files of the first delivery in hand, if that is late."""

    @property
    def receiving(self) -> str | None:
        """Path of the file that is open."""
        return None if self._current is None else printable(self._current.path)

    def write(self, deliveries: deque[Delivery]) -> tuple[list[Delivery], OSError | None]:
        """Write the deliveries and remove them from the queue; those, and the error that stopped it before the end."""
        done: list[Delivery] = []
        problem = None
        try:
            self._open_directories()
            while deliveries:
                self._begin_session(deliveries[0].epoch)
                parts = deliveries[0].batch.parts
                if deliveries[0].late and not self._goes_on(parts):
                    self._take_late(deliveries[0])
                while self._parts_done < len(parts):
                    self._take(parts[self._parts_done])
                    self._parts_done += 1
                self._parts_done = 0
                done.append(deliveries.popleft())
        except OSError as error:
            problem = error
        self._leave_target()
        if problem is not None:
            self._close_directories()  # they may have been replaced, and are opened anew
        return done, problem

    def close(self) -> None:
        """Give up what is open, because nothing more will come."""
        self._give_up("egress_stopped")
        self._leave_target()
        self._close_directories()

    # Directories

    def _open_directories(self) -> None:
        if self._root is not None:
            with suppress(FileNotFoundError):
                if os.path.samestat(os.stat(self._config.directory), os.fstat(self._root)):
                    return
            self._close_directories()  # it was moved away, or removed
        os.makedirs(self._config.directory, exist_ok=True)
        root = os.open(self._config.directory, os.O_RDONLY | os.O_DIRECTORY)
        try:
            with suppress(FileExistsError):
                os.mkdir(INCOMING, mode=0o700, dir_fd=root)
            self._incoming = open_directory(root, [INCOMING])
        except UnsafePathError as error:
            os.close(root)
            raise SinkError(f"{self._config.directory}: {error}; remove it") from error
        except OSError:
            os.close(root)
            raise
        self._root = root
        if not self._cleaned:
            self._remove_leftovers()
            self._cleaned = True

    def _remove_leftovers(self) -> None:
        leftovers = [name for name in os.listdir(self._incoming) if os.fsencode(name).startswith(self._prefix)]
        for name in leftovers:
            os.unlink(name, dir_fd=self._incoming)
        if leftovers:
            self._note("leftovers_removed", "leftovers_removed", count=len(leftovers), files=len(leftovers))

    def _close_directories(self) -> None:
        if self._root is not None:
            os.close(self._incoming)
            os.close(self._root)
            self._root, self._incoming = None, -1

    def _enter_target(self, directory: Components) -> int:
        """The directory for a file; it stays open for the next ones, so that many files cost one sync."""
        if self._target is not None and self._target[0] == directory:
            return self._target[1]
        self._leave_target()
        assert self._root is not None
        fd = open_directory(self._root, directory, create=True, durable=self._config.fsync)
        self._target = directory, fd
        return fd

    def _leave_target(self) -> None:
        if self._target is None:
            return
        directory, fd = self._target
        self._target = None
        try:
            if self._config.fsync:
                os.fsync(fd)
        except OSError as error:
            self._note("directory_sync_failed", "directory_syncs_failed", path=printable(directory), error=str(error))
        finally:
            os.close(fd)

    # Streams

    def _begin_session(self, epoch: int) -> None:
        if epoch == self._epoch:
            return
        self._give_up("ingress_restarted")
        self._next_number = None if self._epoch is None else 0
        self._left_out = None
        self._epoch = epoch

    def _take(self, part: Records | Chunk) -> None:
        if isinstance(part, Records):
            if part.positions:
                self._note(
                    "not_a_file",
                    "records_refused",
                    count=len(part.positions),
                    loss=(part.stream, part.positions[0], part.positions[-1]),
                )
        elif part.kind is ChunkKind.ALIVE:
            if part.stream == "":
                self._give_up("end_missing")
                self._files_before(part.attributes.get("finished"))
        elif part.kind is ChunkKind.OPEN:
            self._open(part)
        elif self._current is not None and self._current.stream == part.stream:
            self._continue(self._current, part)
        elif self._left_out != part.stream:
            self._give_up("end_missing")
            self._begin_number(part.stream)
            self._left_out = part.stream
            self._lose("beginning_missing", part.stream, 0, max(part.position + len(part.data), 1) - 1)

    def _goes_on(self, parts: Sequence[Records | Chunk]) -> bool:
        """Whether a late delivery begins where the last one ended: nothing of what stands behind it has come."""
        if self._parts_done:
            return True
        first = next((part for part in parts if isinstance(part, Chunk) and part.stream), None)
        current = self._current
        if first is None:
            return False
        if current is not None:
            return (first.stream, first.position) == (current.stream, current.position)
        return first.kind is ChunkKind.OPEN and _number_of(first.stream) == self._next_number is not None

    def _take_late(self, delivery: Delivery) -> None:
        """Put the files that are whole in this delivery where they belong; the file that is open stays so."""
        parts = delivery.batch.parts
        open_now = self._current, self._left_out
        for first, last in _whole_files(parts)[self._late_done :]:
            self._current = None
            try:
                for part in parts[first : last + 1]:
                    self._take(part)
            finally:
                self._remove_open()  # if the disk did not take it, it comes again
                self._current, self._left_out = open_now
            self._late_done += 1
            stream = parts[first].stream
            number = _number_of(stream)
            if number is not None:
                self._note(
                    "file_came_late",
                    "files_late",
                    found=(f"{self._epoch:x}", number, number),
                    stream=stream,
                )
        whole = {parts[first].stream for first, _ in _whole_files(parts)}
        unusable = {p.stream for p in parts if isinstance(p, Chunk) and p.stream and p.stream not in whole}
        if unusable:
            self._note("late_unusable", "late_unusable", count=len(unusable), streams=sorted(unusable))
            self.declined.append(delivery)
        self._late_done = 0
        self._parts_done = len(parts)

    def _open(self, chunk: Chunk) -> None:
        self._give_up("end_missing")
        self._begin_number(chunk.stream)
        size_bytes = _integer(chunk.attributes, "size_bytes")
        try:
            path = path_of(chunk.attributes)
            if path[0].lower() == INCOMING:
                raise UnsafePathError(f"{INCOMING.decode()!r} is reserved")
        except UnsafePathError as error:
            self._left_out = chunk.stream
            path_text = str(chunk.attributes.get("path") or chunk.attributes.get("path_hex"))
            self._lose("path_refused", chunk.stream, 0, max(size_bytes or 0, 1) - 1, path=path_text, why=str(error))
            return
        self._temporaries += 1
        temporary = self._prefix + b"%d.part" % self._temporaries
        fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode=0o666, dir_fd=self._incoming)
        self._current = _Incoming(
            stream=chunk.stream,
            path=path,
            size_bytes=size_bytes,
            mode=_integer(chunk.attributes, "mode"),
            mtime_ns=_integer(chunk.attributes, "mtime_ns"),
            temporary=temporary,
            fd=fd,
        )

    def _continue(self, current: _Incoming, chunk: Chunk) -> None:
        if chunk.position != current.position:
            self._give_up("hole")
        elif chunk.kind is ChunkKind.ABORT:
            self._give_up("aborted")
        elif chunk.kind is ChunkKind.END:
            self._finish(current, chunk)
        else:
            self._append(current, chunk.data)

    def _append(self, current: _Incoming, data: memoryview) -> None:
        written = 0
        try:
            while written < len(data):
                written += os.pwrite(current.fd, data[written:], current.position + written)
        except OSError as error:
            if error.errno != errno.EFBIG:
                raise
            self._give_up("path_refused", why=str(error))
            return
        current.digest.update(data)
        current.position += len(data)

    def _finish(self, current: _Incoming, chunk: Chunk) -> None:
        if current.size_bytes not in (None, current.position):
            self._give_up("wrong_length")
            return
        if chunk.attributes.get("sha256") != current.digest.hexdigest():
            self._give_up("wrong_hash")
            return
        if self._config.preserve:
            self._preserve(current)
        try:
            if self._config.fsync:
                os.fsync(current.fd)
        except OSError as error:
            # The kernel has thrown the data away, and would report success the next time.
            self._give_up("sync_failed", error=str(error))
            return
        try:
            placed = self._place(current)
        except UnsafePathError as error:
            self._give_up("path_refused", why=str(error))
            return
        except OSError as error:
            if error.errno in _FOR_EVER:
                self._give_up("path_refused", why=str(error))
                return
            self._leave_target()
            if not _exists(current.temporary, self._incoming):
                self._give_up("vanished")
                return
            raise
        os.close(current.fd)
        self._current = None
        if placed:
            self.files += 1
            self.bytes += current.position
            self.placed.append((printable(current.path), current.position))
        else:
            self._note("existing_file_kept", "existing_files_kept", path=printable(current.path))

    def _preserve(self, current: _Incoming) -> None:
        if current.mode is not None:
            os.fchmod(current.fd, current.mode & 0o777)
        if current.mtime_ns is not None:
            try:
                os.utime(current.fd, ns=(current.mtime_ns, current.mtime_ns))
            except (OverflowError, OSError) as error:
                self._note("mtime_not_set", "mtimes_not_set", path=printable(current.path), error=str(error))

    def _place(self, current: _Incoming) -> bool:
        """Give the file its name; False if the existing one is kept."""
        *directory, name = current.path
        target = self._enter_target(tuple(directory))
        if self._config.overwrite == "replace":
            os.rename(current.temporary, name, src_dir_fd=self._incoming, dst_dir_fd=target)
            return True
        if self._config.overwrite == "number":
            names = (name if n == 0 else b"%b.%d" % (name, n) for n in itertools.count())
            return any(self._place_new(current.temporary, numbered, target) for numbered in names)
        if self._place_new(current.temporary, name, target):
            return True
        os.unlink(current.temporary, dir_fd=self._incoming)
        return False

    def _place_new(self, temporary: bytes, name: bytes, target: int) -> bool:
        """Give the file this name unless it exists; whether it was given."""
        try:
            os.link(temporary, name, src_dir_fd=self._incoming, dst_dir_fd=target, follow_symlinks=False)
        except FileExistsError:
            return False
        except OSError as error:
            if error.errno not in (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS):
                raise
            # No hard links on this file system, so somebody else's file could be replaced in this moment.
            if _exists(name, target):
                return False
            os.rename(temporary, name, src_dir_fd=self._incoming, dst_dir_fd=target)
            return True
        with suppress(OSError):  # what stays is a leftover
            os.unlink(temporary, dir_fd=self._incoming)
        return True

    # Losses

    def _begin_number(self, stream: str) -> None:
        """A file begins: those of which nothing came are between it and the one before."""
        number = _number_of(stream)
        if number is not None:
            self._files_before(number)
            self._next_number = max(number + 1, self._next_number or 0)

    def _files_before(self, number: object) -> None:
        """The source has begun as many files before this moment."""
        if not isinstance(number, int):
            return
        if self._next_number is not None and number > self._next_number:
            lost = number - self._next_number
            self._note(
                "file_missing",
                "files_lost",
                count=lost,
                loss=(f"{self._epoch:x}", self._next_number, number - 1),
                files=lost,
            )
        self._next_number = max(number, self._next_number or 0)

    def _give_up(self, reason: str, **facts: Any) -> None:
        """Remove the open file, if any, and report it."""
        current = self._remove_open()
        if current is None:
            return
        self._left_out = current.stream
        last = max(current.size_bytes or 0, current.position, 1) - 1
        self._lose(reason, current.stream, 0, last, path=printable(current.path), **facts)

    def _remove_open(self) -> _Incoming | None:
        """Remove the open file; which one it was."""
        current, self._current = self._current, None
        if current is not None:
            os.close(current.fd)
            with suppress(OSError):
                os.unlink(current.temporary, dir_fd=self._incoming)
        return current

    def _lose(self, reason: str, stream: str, first: int, last: int, **facts: Any) -> None:
        self._note(reason, "files_lost", loss=(stream, first, last), stream=stream, **facts)

    def _note(
        self,
        event: str,
        counter: str,
        *,
        count: int = 1,
        loss: tuple[str, int, int] | None = None,
        found: tuple[str, int, int] | None = None,
        **facts: Any,
    ) -> None:
        self.notes.append(_Note(event=event, counter=counter, count=count, loss=loss, found=found, facts=facts))


def _whole_files(parts: Sequence[Records | Chunk]) -> list[tuple[int, int]]:
    """The places of the first and the last part of each file that is in these from its beginning to its end."""
    whole = []
    begun: tuple[str, int] | None = None
    for place, part in enumerate(parts):
        if not isinstance(part, Chunk) or not part.stream:
            continue
        if part.kind is ChunkKind.OPEN:
            begun = part.stream, place
        elif begun is not None and part.stream == begun[0] and part.kind is ChunkKind.END:
            whole.append((begun[1], place))
            begun = None
    return whole


def _integer(attributes: Attributes, name: str) -> int | None:
    value = attributes.get(name)
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _exists(name: bytes, directory: int) -> bool:
    try:
        os.stat(name, dir_fd=directory, follow_symlinks=False)
    except FileNotFoundError:
        return False
    return True


def _number_of(stream: str) -> int | None:
    """The number in a stream name of the files source, `EPOCH-NUMBER`; None for any other name."""
    digits = stream.rpartition("-")[2]
    return int(digits) if digits.isascii() and digits.isdigit() and len(digits) < 20 else None
