"""Append-only segment files: what the spool of an egress and the repeat buffer of an ingress are made of.

    00000000000000000001.segment  a head, then entries, each with its length, a dense serial number and checks
    00000000000000000002.segment

Segments are written at the end and deleted at the beginning, never changed. Whatever is found in them is judged by
the checks: an entry that a kill or a power cut left unfinished at the end is cut off, a damaged one is skipped and
told, and the serials say how many are missing. Reading is by `pread`: a memory map would end the process where a file
is short.

An entry is a description, which its owner encodes, and a body. Calls block for the disk. They may come from three
threads at a time: one appends, one reads, one forgets.
"""

from __future__ import annotations

import contextlib
import enum
import errno
import os
import re
import struct
import threading
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, Final, Generic, NamedTuple, TypeAlias, TypeVar

import attrs
import msgspec
from xxhash import xxh3_64_intdigest

from gapconn.store.database import sync_directory

D = TypeVar("D")
"""What the description of an entry says."""

Parts: TypeAlias = tuple[bytes, "bytes | memoryview"]
"""Description and body of an entry that is to be written."""

SEGMENT_BYTES: Final = 64 << 20
"""A segment that would become longer is followed by another one."""
SEGMENTS_AT_LEAST: Final = 16
"""A small spool has smaller segments: space comes back a segment at a time."""
_WRITE_BYTES: Final = 1 << 20
"""Handed to the kernel at once."""
_WINDOW_BYTES: Final = 4 << 20
"""Read at once, at least."""
_SEGMENT_HEAD = struct.Struct(">8sIIQQQ")
"""Magic, version, link id, number of the segment, serial of its first entry, check."""
_ENTRY_HEAD = struct.Struct(">4sIQQQ")
"""Magic, bytes of the description, bytes of the body, serial, check over all of that and the description."""
_CHECK = struct.Struct(">Q")
_ENTRY_MAGIC: Final = b"\x97gce"
_DESCRIPTION_BYTES_MAX: Final = 256 << 20
_BODY_BYTES_MAX: Final = 1 << 32
_SEGMENT_NAME = re.compile(r"(\d{20})\.segment")
_NO_SPACE: Final = frozenset({errno.ENOSPC, errno.EDQUOT})


class Place(NamedTuple):
    """Where an entry begins, or the one before it ends."""

    segment: int
    offset: int
    """In the file, in bytes; 0 stands for its first entry too."""
    serial: int
    """Of the entry that begins here: the serials of a log are dense, also over restarts."""


class Trouble(enum.Enum):
    """Why nothing can be written now. Each may pass."""

    FULL = "it has the size of spool.max_bytes"
    NO_SPACE = "no space is left on its file system (spool.keep_free_bytes stay free)"
    FAILED = "its disk fails"
    UNNOTED = "what was lost before it cannot be stored"


@attrs.frozen(kw_only=True)
class Appended:
    """What became of an `append`."""

    ends: list[Place]
    """Where each entry that is on disk ends: those of the first entries given."""
    trouble: Trouble | None = None
    """Why the others are not."""
    error: str = ""


@attrs.frozen
class Entry(Generic[D]):
    """An entry whose head and description are intact."""

    serial: int
    description: D
    body: memoryview
    size: int
    """All of it, in bytes."""
    intact: bool
    """Whether the body fits its check."""


@attrs.frozen
class Missing:
    """Entries that were in the log and cannot be read any more."""

    serials: int
    """How many."""
    segment: str
    """File in which they were, or behind which they are missing."""
    offset: int
    """Where in it the damage begins, in bytes."""


@attrs.frozen(kw_only=True)
class LogKind(Generic[D]):
    """What tells the logs of one owner from others."""

    magic: bytes
    """Eight bytes at the beginning of each segment."""
    version: int
    decode: Callable[[memoryview], D]
    """Makes a description of its bytes; raises `msgspec.DecodeError` if they are none."""
    refuse_foreign: Callable[..., None]
    """Called with the path, `version` and `link_id` of each segment found: raises `LinkError` if it is not ours."""
    durable: bool = True
    """Whether an append waits for the disk: then it survives a power cut, else only the end of the process."""


class SegmentLog(Generic[D]):
    """The segments in one directory, which the caller has made and locked.

    Args:
        path: The directory.
        kind: Whose log it is.
        link_id: Of the link.
        max_bytes: What all segments may take together.
        keep_free_bytes: What others find free on the file system in any case.
    """

    def __init__(self, path: Path, kind: LogKind[D], *, link_id: int, max_bytes: int, keep_free_bytes: int) -> None:
        self.path = path
        self.kind = kind
        self.max_bytes = max_bytes
        self.keep_free_bytes = keep_free_bytes
        self.cut_bytes = 0
        """What was found at the end when it was opened, and was no whole entry."""
        self.cut: list[D] = []
        """Descriptions of entries in that: only their bodies are damaged, or were never written."""
        self.end = Place(1, 0, 0)
        """Behind the last entry that was written (and is on disk, if the log is durable)."""
        self.segment_bytes = max(min(SEGMENT_BYTES, max_bytes // SEGMENTS_AT_LEAST), 64 << 10)
        self.sizes: dict[int, int] = {}
        """Segments that exist, ascending, with their sizes in bytes."""
        self.first_serials: dict[int, int] = {}
        """Of the segments that exist, as far as their heads are intact. What has such a serial in an earlier segment
        was left behind by a failed write, and is not valid."""
        self._link_id = link_id
        self.changing = threading.Lock()
        """For `end`, `sizes` and `first_serials`."""
        self._appending = threading.Lock()
        self.fd: int | None = None
        """The segment that is written, `end.segment`."""

    @property
    def disk_bytes(self) -> int:
        """What all segments take."""
        with self.changing:
            return sum(self.sizes.values())

    # -- opening ---------------------------------------------------------------------------------------------

    def recover(self, cursor: Place | None) -> Place:
        """Find the end; cut what is unfinished there, and delete what is before `cursor`.

        Returns:
            `cursor`, or where the first entry begins.
        """
        for name in os.listdir(self.path):
            if match := _SEGMENT_NAME.fullmatch(name):
                self.sizes[int(match[1])] = 0
        self.sizes = {number: self.file(number).stat().st_size for number in sorted(self.sizes)}
        for number in self.sizes:
            head = self._head(number)
            if head is not None:
                self.kind.refuse_foreign(self.file(number), version=head[1], link_id=head[2])
                self.first_serials[number] = head[4]
        if cursor is None:
            cursor = self._start(next(iter(self.sizes))) if self.sizes else Place(1, 0, 0)
        for number in [number for number in self.sizes if number < cursor.segment]:
            self.delete(number)
        self.end = cursor
        if self.sizes:
            self._find_end(next(reversed(self.sizes)), cursor)
        return cursor

    def _start(self, number: int) -> Place:
        """Where the first entry of a segment begins."""
        if number in self.first_serials:
            return Place(number, 0, self.first_serials[number])
        return next((place for _, place in self.entries(number, 0, None)), Place(number, 0, 0))

    def _find_end(self, last: int, cursor: Place) -> None:
        size = self.sizes[last]
        end = cursor if cursor.segment == last else self._start(last)
        for entry, place in self.entries(last, end.offset, size):
            self.cut.append(entry.description)
            if entry.intact:  # a damaged one is in the middle if there is an intact one behind it
                end = Place(last, place.offset + entry.size, place.serial + 1)
                self.cut.clear()
        end = Place(last, max(end.offset, min(size, _SEGMENT_HEAD.size)), max(end.serial, cursor.serial))
        if end.offset < size:
            self.cut_bytes = size - end.offset
            os.truncate(self.file(last), end.offset)
            self.sizes[last] = end.offset
        if end.offset <= _SEGMENT_HEAD.size:  # it holds nothing, and perhaps not even a whole head
            self.delete(last)
            serials = [place.serial + 1 for number in self.sizes for _, place in self.entries(number, 0, None)]
            end = Place(last + 1, 0, max([end.serial, *serials]))
        self.end = end

    def _head(self, number: int) -> tuple[Any, ...] | None:
        """The head of a segment; None if it is damaged. What is in it is judged by its own checks then."""
        with self.file(number).open("rb") as file:
            raw = file.read(_SEGMENT_HEAD.size)
        if len(raw) < _SEGMENT_HEAD.size:
            return None
        *head, check = _SEGMENT_HEAD.unpack(raw)
        if head[0] != self.kind.magic or check != xxh3_64_intdigest(raw[:-8]):
            return None
        return tuple(head)

    # -- writing ---------------------------------------------------------------------------------------------

    def append(self, entries: Iterable[Parts]) -> Appended:
        """Write as many of `entries` as there is room for, in order; if the log is durable, wait for the disk."""
        with self._appending:
            return _Writing(self).write(entries)

    def open_segment(self) -> None:
        """Begin a segment behind the last one."""
        number = max([self.end.segment, *self.sizes]) + (1 if self.end.segment in self.sizes else 0)
        path = self.file(number)
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        head = _SEGMENT_HEAD.pack(self.kind.magic, self.kind.version, self._link_id, number, self.end.serial, 0)[:-8]
        try:
            write_all(fd, head + _CHECK.pack(xxh3_64_intdigest(head)), 0)
            sync_directory(self.path)
        except BaseException:
            os.close(fd)
            with contextlib.suppress(OSError):
                path.unlink()
            raise
        with self.changing:
            self.sizes[number] = _SEGMENT_HEAD.size
            self.first_serials[number] = self.end.serial
            self.end = Place(number, _SEGMENT_HEAD.size, self.end.serial)
        self.fd = fd

    def close_segment(self) -> None:
        fd, self.fd = self.fd, None
        if fd is not None:
            os.close(fd)

    # -- reading ---------------------------------------------------------------------------------------------

    def read(self, place: Place, bytes_max: int) -> tuple[list[tuple[Entry[D] | Missing, Place]], Place]:
        """Read what is there from `place` on: at least one entry, and about `bytes_max` at most.

        Returns:
            What was read, in order, each with its end; of an entry that is not `intact` the body is damaged. And where
            to read on.

        Raises:
            OSError: a segment cannot be opened; trying again may help.
        """
        with self.changing:
            end, segments, firsts = self.end, list(self.sizes), dict(self.first_serials)
        items: list[tuple[Entry[D] | Missing, Place]] = []
        size = 0
        damaged_at = (self.name(place.segment), place.offset)
        for number in [number for number in segments if place.segment <= number <= end.segment]:
            begin = place.offset if number == place.segment else 0
            following = min((serial for later, serial in firsts.items() if later > number), default=end.serial)
            for entry, found in self.entries(number, begin, end.offset if number == end.segment else None):
                if not place.serial <= found.serial < following:
                    continue
                if found.serial > place.serial:
                    items.append((Missing(found.serial - place.serial, *damaged_at), found))
                place = Place(number, found.offset + entry.size, found.serial + 1)
                damaged_at = (self.name(number), place.offset)
                items.append((entry, place))
                size += entry.size
                if size >= bytes_max:
                    return items, place
        if place.serial < end.serial:
            items.append((Missing(end.serial - place.serial, *damaged_at), end))
        return items, end

    def entries(
        self, number: int, offset: int, stop: int | None, *, most: int | None = None
    ) -> Iterator[tuple[Entry[D], Place]]:
        """What entries there are in a segment, with their places; damage between them is passed over."""
        try:
            fd = os.open(self.file(number), os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            return  # somebody removed it: the serials tell
        try:
            window = _Window(fd, self.kind.decode, os.fstat(fd).st_size if stop is None else stop)
            offset = max(offset, _SEGMENT_HEAD.size)
            while offset < window.stop and most != 0:
                entry = window.entry(offset)
                if entry is None:
                    offset = window.next_magic(offset + 1)
                    continue
                yield entry, Place(number, offset, entry.serial)
                offset += entry.size
                most = None if most is None else most - 1
        finally:
            os.close(fd)

    # -- forgetting ------------------------------------------------------------------------------------------

    def retire(self, cursor: Place) -> tuple[list[int], Place]:
        """Let go of the segments before `cursor`, also of the last one if nothing is behind it and none is appended.

        Returns:
            The segments, to be deleted; and the cursor, which may be in a segment that does not exist yet.
        """
        with self.changing:
            finished = [number for number in self.sizes if number < cursor.segment]
        # Everything was taken: the last segment is not needed either, unless it is being written just now.
        if cursor.serial == self.end.serial and self._appending.acquire(blocking=False):
            try:
                if cursor.serial == self.end.serial and self.end.segment in self.sizes:
                    with self.changing:
                        finished = list(self.sizes)
                        self.end = cursor = Place(self.end.segment + 1, 0, cursor.serial)
                    self.close_segment()
            finally:
                self._appending.release()
        return finished, cursor

    def delete(self, number: int) -> None:
        """Delete a segment."""
        self.file(number).unlink(missing_ok=True)
        with self.changing:
            del self.sizes[number]
            self.first_serials.pop(number, None)

    @staticmethod
    def name(number: int) -> str:
        """Name of a segment's file."""
        return f"{number:020}.segment"

    def file(self, number: int) -> Path:
        """A segment's file."""
        return self.path / self.name(number)


class _Writing:
    """One `append`: what is on disk by now, and what is on its way."""

    def __init__(self, log: SegmentLog[Any]) -> None:
        self._log = log
        self._ends: list[Place] = []
        """Of entries given to the kernel, or in the buffer."""
        self._synced = 0
        """How many of them are written for certain: on disk, if the log is durable."""
        self._buffer = bytearray()

    def write(self, entries: Iterable[Parts]) -> Appended:
        trouble, error = None, ""
        try:
            trouble = self._fill(entries)
            self._sync()
        except OSError as failure:
            trouble = Trouble.NO_SPACE if failure.errno in _NO_SPACE else Trouble.FAILED
            error = str(failure)
            self._cut()
        return Appended(ends=self._ends[: self._synced], trouble=trouble, error=error)

    def _fill(self, entries: Iterable[Parts]) -> Trouble | None:
        log = self._log
        space = os.statvfs(log.path)
        free_bytes = space.f_bavail * space.f_frsize - log.keep_free_bytes
        room_bytes = log.max_bytes - log.disk_bytes
        place = log.end
        for description, body in entries:
            size = _ENTRY_HEAD.size + len(description) + len(body) + _CHECK.size
            holds_some = place.offset > _SEGMENT_HEAD.size
            if log.fd is None or (holds_some and place.offset + size > log.segment_bytes):
                needed = size + _SEGMENT_HEAD.size
            else:
                needed = size
            if needed > room_bytes:
                return Trouble.FULL
            if needed > free_bytes:
                return Trouble.NO_SPACE
            if needed != size:
                place = self._roll()
            room_bytes -= needed
            free_bytes -= needed
            self._put(description, body, place.serial)
            place = Place(place.segment, place.offset + size, place.serial + 1)
            self._ends.append(place)
            if len(self._buffer) >= _WRITE_BYTES:
                self._flush()
        return None

    def _put(self, description: bytes, body: bytes | memoryview, serial: int) -> None:
        head = _ENTRY_HEAD.pack(_ENTRY_MAGIC, len(description), len(body), serial, 0)[:-8]
        self._buffer += head
        self._buffer += _CHECK.pack(xxh3_64_intdigest(head + description))
        self._buffer += description
        self._buffer += body
        self._buffer += _CHECK.pack(xxh3_64_intdigest(body, serial))

    def _roll(self) -> Place:
        """Go on in a new segment."""
        log = self._log
        if log.fd is not None:
            self._sync()
            log.close_segment()
        log.open_segment()
        return log.end

    def _flush(self) -> None:
        log = self._log
        if self._buffer:
            assert log.fd is not None
            size = log.sizes[log.end.segment]
            try:
                written = write_all(log.fd, self._buffer, size)
            finally:
                self._buffer = bytearray()
            with log.changing:
                log.sizes[log.end.segment] = size + written

    def _sync(self) -> None:
        self._flush()
        if len(self._ends) > self._synced:
            assert self._log.fd is not None
            if self._log.kind.durable:
                os.fdatasync(self._log.fd)
            self._synced = len(self._ends)
            with self._log.changing:
                self._log.end = self._ends[-1]

    def _cut(self) -> None:
        """Leave nothing unfinished behind: the segment ends where it is certain, and what comes next gets a new one.

        After a failed sync the kernel may have thrown away what it held, and would report success the next time.
        """
        log = self._log
        fd = log.fd
        if fd is None:
            return
        # If this fails too, the rest stays behind the end. Its serials come again in the next segment.
        with contextlib.suppress(OSError):
            os.ftruncate(fd, log.end.offset)
            os.fdatasync(fd)
        with log.changing:
            log.sizes[log.end.segment] = max(os.fstat(fd).st_size, log.end.offset)
        log.close_segment()


class _Window(Generic[D]):
    """A piece of a segment in memory, and what is in it."""

    def __init__(self, fd: int, decode: Callable[[memoryview], D], stop: int) -> None:
        self._fd = fd
        self._decode = decode
        self.stop = stop
        """Nothing at or behind this offset is looked at."""
        self._begin = 0
        self._data = memoryview(b"")

    def _bytes(self, offset: int, count: int) -> memoryview:
        """The bytes there; fewer where the file, or what can be read of it, is shorter."""
        if not self._begin <= offset <= offset + count <= self._begin + len(self._data):
            wanted = min(max(count, _WINDOW_BYTES), max(self.stop - offset, 0))
            parts: list[bytes] = []
            got = 0
            while got < wanted:
                try:
                    part = os.pread(self._fd, wanted - got, offset + got)
                except OSError as error:
                    if error.errno != errno.EIO:
                        raise
                    part = b""
                if not part:
                    break
                parts.append(part)
                got += len(part)
            self._begin, self._data = offset, memoryview(parts[0] if len(parts) == 1 else b"".join(parts))
        return self._data[offset - self._begin :][:count]

    def entry(self, offset: int) -> Entry[D] | None:
        """The entry that begins at `offset`; None if none does."""
        head = self._bytes(offset, _ENTRY_HEAD.size)
        if len(head) < _ENTRY_HEAD.size:
            return None
        magic, description_bytes, body_bytes, serial, check = _ENTRY_HEAD.unpack(head)
        size = _ENTRY_HEAD.size + description_bytes + body_bytes + _CHECK.size
        if magic != _ENTRY_MAGIC or offset + size > self.stop or description_bytes > _DESCRIPTION_BYTES_MAX:
            return None
        whole = self._bytes(offset, size)
        body_at = _ENTRY_HEAD.size + description_bytes
        if len(whole) < body_at or check != xxh3_64_intdigest(
            bytes(whole[: _ENTRY_HEAD.size - 8]) + bytes(whole[_ENTRY_HEAD.size : body_at])
        ):
            return None
        try:
            description = self._decode(whole[_ENTRY_HEAD.size : body_at])
        except (msgspec.DecodeError, UnicodeDecodeError):
            return None
        body = whole[body_at : body_at + body_bytes]
        intact = len(whole) == size and _CHECK.unpack(whole[-8:])[0] == xxh3_64_intdigest(body, serial)
        return Entry(serial, description, body, size, intact)

    def next_magic(self, offset: int) -> int:
        """Where an entry may begin, at `offset` or behind it; `stop` if nowhere."""
        while offset < self.stop:
            data = bytes(self._bytes(offset, min(_WINDOW_BYTES, self.stop - offset)))
            found = data.find(_ENTRY_MAGIC)
            if found >= 0:
                return offset + found
            if len(data) < len(_ENTRY_MAGIC):
                break
            offset += len(data) - len(_ENTRY_MAGIC) + 1
        return self.stop


def write_all(fd: int, data: bytes | bytearray, offset: int) -> int:
    """Write all of `data` at `offset`; how many bytes that is."""
    view = memoryview(data)
    written = 0
    try:
        while written < len(view):
            written += os.pwrite(fd, view[written:], offset + written)
    finally:
        view.release()
    return written
