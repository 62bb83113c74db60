"""What becomes of the chunks of files: one file after the other, whole and verified, or reported.

The source sends one file after the other and numbers them densely, so one file is open at a time, and the beginning of
another (or the word that none is open) shows that the end of the open one was lost. A number that is left out is a
file of which nothing arrived.
"""

from __future__ import annotations

import errno
import hashlib
import os
from collections import deque
from collections.abc import Sequence
from typing import Any

import attrs

from gapconn.filetree import Attributes, Components, UnsafePathError, path_of, printable
from gapconn.record import Chunk, ChunkKind, Records
from gapconn.sinks import Delivery
from gapconn.sinks.files_config import FilesSinkConfig
from gapconn.sinks.files_directory import INCOMING, FilesDirectory

_FOR_EVER = {errno.EISDIR, errno.ENAMETOOLONG, errno.EINVAL, errno.EILSEQ, errno.EXDEV, errno.EFBIG}
"""Errors that say something about one file, and would come again at every try."""


@attrs.frozen(kw_only=True)
class Note:
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


class FilesWriter:
    """The part that works on the disk, called by one worker thread at a time.

    An `OSError` that may pass (a full disk) leaves it as it was before the chunk, so that the chunk can be tried again.
    """

    def __init__(self, config: FilesSinkConfig, link_id: int) -> None:
        self.notes: list[Note] = []
        self.placed: list[tuple[str, int]] = []
        """Path and size of the files that got their names."""
        self.declined: list[Delivery] = []
        """Late deliveries that are done and of which not all could be used."""
        self.files = 0
        self.bytes = 0
        self._config = config
        self._directory = FilesDirectory(config, link_id, self._note)
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
            self._directory.open()
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
        self._directory.leave()
        if problem is not None:
            self._directory.close()  # they may have been replaced, and are opened anew
        return done, problem

    def close(self) -> None:
        """Give up what is open, because nothing more will come."""
        self._give_up("egress_stopped")
        self._directory.leave()
        self._directory.close()

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
        temporary, fd = self._directory.create()
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
            placed = self._directory.place(current.temporary, current.path)
        except UnsafePathError as error:
            self._give_up("path_refused", why=str(error))
            return
        except OSError as error:
            if error.errno in _FOR_EVER:
                self._give_up("path_refused", why=str(error))
                return
            self._directory.leave()
            if not self._directory.has(current.temporary):
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
            self._directory.remove(current.temporary)
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
        self.notes.append(Note(event=event, counter=counter, count=count, loss=loss, found=found, facts=facts))


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


def _number_of(stream: str) -> int | None:
    """The number in a stream name of the files source, `EPOCH-NUMBER`; None for any other name."""
    digits = stream.rpartition("-")[2]
    return int(digits) if digits.isascii() and digits.isdigit() and len(digits) < 20 else None
