"""The disk spool of an egress: what arrived and the sink has not taken, in order, in append-only segment files.

    {link}.spool/
      lock                          one process at a time
      cursor                        the place before which the sink has everything
      00000000000000000001.segment  a head, then entries, each with its length, a dense serial number and checks
      00000000000000000002.segment

Segments are written at the end and deleted at the beginning, never changed. Whatever is found in them is judged by
the checks: an entry that a kill or a power cut left unfinished at the end is cut off, a damaged one is skipped and
told, and the serials say how many are missing. Reading is by `pread`: a memory map would end the process where a file
is short.

Calls block for the disk. They may come from three threads at a time: one appends, one reads, one commits.
"""

from __future__ import annotations

import contextlib
import enum
import errno
import os
import re
import struct
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Final, NamedTuple, Self

import attrs
import msgspec
from xxhash import xxh3_64_intdigest

from gapconn.errors import LinkError
from gapconn.protocol.envelope import Run, Span
from gapconn.protocol.events import MessageDelivered
from gapconn.protocol.positions import Standing
from gapconn.protocol.registry import Compression
from gapconn.store.database import lock_file, sync_directory

SEGMENT_BYTES: Final = 64 << 20
"""A segment that would become longer is followed by another one."""
SEGMENTS_AT_LEAST: Final = 16
"""A small spool has smaller segments: space comes back a segment at a time."""
_WRITE_BYTES: Final = 1 << 20
"""Handed to the kernel at once."""
_WINDOW_BYTES: Final = 4 << 20
"""Read at once, at least."""
_VERSION: Final = 1
_SEGMENT_HEAD = struct.Struct(">8sIIQQQ")
"""Magic, version, link id, number of the segment, serial of its first entry, check."""
_ENTRY_HEAD = struct.Struct(">4sIQQQ")
"""Magic, bytes of the description, bytes of the body, serial, check over all of that and the description."""
_CHECK = struct.Struct(">Q")
_CURSOR = struct.Struct(">8sIIQQQQ")
"""Magic, version, link id, segment, offset, serial, check."""
_SEGMENT_MAGIC: Final = b"gcspool\n"
_ENTRY_MAGIC: Final = b"\x97gce"
_CURSOR_MAGIC: Final = b"gccursor"
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
    """Of the entry that begins here: the serials of a spool are dense, also over restarts."""


@attrs.frozen(kw_only=True)
class Spooled:
    """A message as it goes into the spool and comes back."""

    message: MessageDelivered
    lost_before: int
    """Messages lost directly before this one."""
    arrived_s: float
    """Wall-clock time, in seconds since 1970."""


@attrs.frozen(kw_only=True)
class Damage:
    """Entries that were in the spool and cannot be read any more."""

    serials: int
    """How many."""
    segment: str
    """File in which they were, or behind which they are missing."""
    offset: int
    """Where in it the damage begins, in bytes."""
    known: Spooled | None = None
    """If only the body of one entry is damaged: what it was, with an empty body."""


class Trouble(enum.Enum):
    """Why nothing can be written now. Each may pass."""

    FULL = "it has the size of spool.max_bytes"
    NO_SPACE = "no space is left on its file system (spool.keep_free_bytes stay free)"
    FAILED = "its disk fails"


@attrs.frozen(kw_only=True)
class Appended:
    """What became of an `append`."""

    ends: list[Place]
    """Where each entry that is on disk ends: those of the first entries given."""
    trouble: Trouble | None = None
    """Why the others are not."""
    error: str = ""


@attrs.frozen(kw_only=True)
class Read:
    """What was read, in order; and where to read on."""

    items: list[tuple[Spooled | Damage, Place]]
    """Each with its end."""
    place: Place


class _Description(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """An entry without its body."""

    arrived_s: float
    lost_before: int
    epoch: int
    number: int
    first_record: int
    record_count: int
    runs: list[Run]
    already: list[tuple[str, int, int]]
    positions: list[tuple[str, int, int, int, int]]
    compression: int
    plain_bytes: int
    spans: list[Span] = []
    """Of a repair: what it settles."""
    claimed: list[tuple[str, int, list[tuple[int, int]]]] = []
    """Of a repair or a late message: stream, partition, and the ranges of positions that are to be delivered of it."""
    late: bool = False
    ahead: bool = False
    overtaken: bool = False


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(_Description).decode


class Spool:
    """The spool of one link's egress. Made by the constructor, holds the directory's lock until `close`.

    What `append` returned as written is on disk: it survives the end of the process in any way, and a power cut as far
    as the disk keeps its word. What `commit` noted survives the end of the process; a power cut may take it back, and
    then entries are read again that the sink had taken.

    Args:
        directory: Where the link's own directory is, or is made.
        link: Name of the link.
        link_id: A spool of another id is refused.
        max_bytes: What all segments may take together.
        keep_free_bytes: What others find free on the file system in any case.

    Raises:
        LinkError: the directory cannot be used, another process has it, or it belongs to another link.
    """

    def __init__(self, directory: Path, *, link: str, link_id: int, max_bytes: int, keep_free_bytes: int = 0) -> None:
        self.path = directory / f"{link}.spool"
        self.max_bytes = max_bytes
        self.keep_free_bytes = keep_free_bytes
        self.cut_bytes = 0
        """What was found at the end when it was opened, and was no whole entry."""
        self.cursor = Place(1, 0, 0)
        """Before it the sink has everything, as it is noted on disk."""
        self.end = Place(1, 0, 0)
        """Behind the last entry that is on disk."""
        self._link_id = link_id
        self._segment_bytes = max(min(SEGMENT_BYTES, max_bytes // SEGMENTS_AT_LEAST), 64 << 10)
        self._sizes: dict[int, int] = {}
        """Segments that exist, ascending, with their sizes in bytes."""
        self._first_serials: dict[int, int] = {}
        """Of the segments that exist, as far as their heads are intact. What has such a serial in an earlier segment
        was left behind by a failed write, and is not valid."""
        self._changing = threading.Lock()
        """For `end`, `_sizes` and `_first_serials`."""
        self._appending = threading.Lock()
        self._fd: int | None = None
        """The segment that is written, `end.segment`."""
        self._cursor_fd: int | None = None
        self._lock_fd: int | None = None
        try:
            self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._lock_fd = lock_file(self.path / "lock", link=link, role="egress")
            self._cursor_fd = os.open(self.path / "cursor", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            self._recover()
        except OSError as error:
            self.close()
            raise LinkError(
                f"{self.path}: the spool cannot be used: {error}. spool.directory must be writable by the user that"
                " runs gapconn; spool.max_bytes = 0 does without a spool"
            ) from error
        except BaseException:
            self.close()
            raise

    @property
    def disk_bytes(self) -> int:
        """What all segments take."""
        with self._changing:
            return sum(self._sizes.values())

    # -- opening ---------------------------------------------------------------------------------------------

    def _recover(self) -> None:
        """Find the cursor and the end; cut what is unfinished there."""
        for name in os.listdir(self.path):
            if match := _SEGMENT_NAME.fullmatch(name):
                self._sizes[int(match[1])] = 0
        self._sizes = {number: self._file(number).stat().st_size for number in sorted(self._sizes)}
        cursor = self._load_cursor()
        for number in self._sizes:
            head = self._head(number)
            if head is not None:
                self._refuse_foreign(self._file(number), version=head[1], link_id=head[2])
                self._first_serials[number] = head[4]
        if cursor is None:
            cursor = self._start(next(iter(self._sizes))) if self._sizes else Place(1, 0, 0)
        for number in [number for number in self._sizes if number < cursor.segment]:
            self._delete(number)
        self.cursor = self.end = cursor
        if self._sizes:
            self._find_end(next(reversed(self._sizes)))

    def _start(self, number: int) -> Place:
        """Where the first entry of a segment begins."""
        if number in self._first_serials:
            return Place(number, 0, self._first_serials[number])
        return next((place for _, place in self._entries(number, 0, None)), Place(number, 0, 0))

    def _find_end(self, last: int) -> None:
        size = self._sizes[last]
        end = self.cursor if self.cursor.segment == last else self._start(last)
        for entry, place in self._entries(last, end.offset, size):
            if entry.intact:  # a damaged one is in the middle if there is an intact one behind it
                end = Place(last, place.offset + entry.size, place.serial + 1)
        end = Place(last, max(end.offset, min(size, _SEGMENT_HEAD.size)), max(end.serial, self.cursor.serial))
        if end.offset < size:
            self.cut_bytes = size - end.offset
            os.truncate(self._file(last), end.offset)
            self._sizes[last] = end.offset
        if end.offset <= _SEGMENT_HEAD.size:  # it holds nothing, and perhaps not even a whole head
            self._delete(last)
            serials = [place.serial + 1 for number in self._sizes for _, place in self._entries(number, 0, None)]
            end = Place(last + 1, 0, max([end.serial, *serials]))
        self.end = end

    def _head(self, number: int) -> tuple[bytes, int, int, int, int] | None:
        """The head of a segment; None if it is damaged. What is in it is judged by its own checks then."""
        with self._file(number).open("rb") as file:
            raw = file.read(_SEGMENT_HEAD.size)
        if len(raw) < _SEGMENT_HEAD.size:
            return None
        *head, check = _SEGMENT_HEAD.unpack(raw)
        if head[0] != _SEGMENT_MAGIC or check != xxh3_64_intdigest(raw[:-8]):
            return None
        return tuple(head)

    def _refuse_foreign(self, path: Path, *, version: int, link_id: int) -> None:
        if version != _VERSION:
            raise LinkError(
                f"{path}: the spool has version {version}, and this gapconn knows version {_VERSION}. Run the gapconn"
                " that wrote it until it is empty, or move the directory away: what is in it is not delivered then"
            )
        if link_id != self._link_id:
            raise LinkError(
                f"{path}: this spool belongs to the egress of link id {link_id}, and not to link id {self._link_id}."
                " Give each link a name or a spool directory of its own; if you changed the link's id on purpose, move"
                " the directory away: what is in it is not delivered then"
            )

    def _load_cursor(self) -> Place | None:
        assert self._cursor_fd is not None
        raw = os.pread(self._cursor_fd, _CURSOR.size, 0)
        if len(raw) < _CURSOR.size:
            return None
        magic, version, link_id, *place, check = _CURSOR.unpack(raw)
        if magic != _CURSOR_MAGIC or check != xxh3_64_intdigest(raw[:-8]):
            return None
        self._refuse_foreign(self.path / "cursor", version=version, link_id=link_id)
        return Place(*place)

    # -- writing ---------------------------------------------------------------------------------------------

    def append(self, entries: Sequence[Spooled]) -> Appended:
        """Write as many of `entries` as there is room for, in order, and wait until they are on disk."""
        with self._appending:
            return _Writing(self).write(entries)

    def _open_segment(self) -> None:
        """Begin a segment behind the last one."""
        number = max([self.end.segment, *self._sizes]) + (1 if self.end.segment in self._sizes else 0)
        path = self._file(number)
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        head = _SEGMENT_HEAD.pack(_SEGMENT_MAGIC, _VERSION, self._link_id, number, self.end.serial, 0)[:-8]
        try:
            _write_all(fd, head + _CHECK.pack(xxh3_64_intdigest(head)), 0)
            sync_directory(self.path)
        except BaseException:
            os.close(fd)
            with contextlib.suppress(OSError):
                path.unlink()
            raise
        with self._changing:
            self._sizes[number] = _SEGMENT_HEAD.size
            self._first_serials[number] = self.end.serial
            self.end = Place(number, _SEGMENT_HEAD.size, self.end.serial)
        self._fd = fd

    def _close_segment(self) -> None:
        fd, self._fd = self._fd, None
        if fd is not None:
            os.close(fd)

    # -- reading ---------------------------------------------------------------------------------------------

    def read(self, place: Place, bytes_max: int) -> Read:
        """Read what is on disk from `place` on: at least one entry, and about `bytes_max` at most.

        Raises:
            OSError: a segment cannot be opened; trying again may help.
        """
        with self._changing:
            end, segments, firsts = self.end, list(self._sizes), dict(self._first_serials)
        items: list[tuple[Spooled | Damage, Place]] = []
        size = 0
        damaged_at = (self._name(place.segment), place.offset)
        for number in [number for number in segments if place.segment <= number <= end.segment]:
            begin = place.offset if number == place.segment else 0
            following = min((serial for later, serial in firsts.items() if later > number), default=end.serial)
            for entry, found in self._entries(number, begin, end.offset if number == end.segment else None):
                if not place.serial <= found.serial < following:
                    continue
                if found.serial > place.serial:
                    items.append((_damage(found.serial - place.serial, damaged_at), found))
                place = Place(number, found.offset + entry.size, found.serial + 1)
                damaged_at = (self._name(number), place.offset)
                items.append((entry.opened(self._name(number), found.offset), place))
                size += entry.size
                if size >= bytes_max:
                    return Read(items=items, place=place)
        if place.serial < end.serial:
            items.append((_damage(end.serial - place.serial, damaged_at), end))
        return Read(items=items, place=end)

    def described_since(self, epoch: int, next_message: int) -> Iterator[MessageDelivered]:
        """The messages in the spool from this one on, without their bodies."""
        begin = next(iter(self._sizes), 0)
        for number in reversed(self._sizes):
            entries = (entry.description for entry, _ in self._entries(number, 0, self._sizes[number]))
            first = next((entry for entry in entries if not (entry.late or entry.ahead)), None)
            if first is not None and (first.epoch, first.number) <= (epoch, next_message):
                begin = number
                break
        for number in [number for number in self._sizes if number >= begin]:
            for entry, _ in self._entries(number, 0, self._sizes[number]):
                about = entry.description
                if (about.epoch, about.number) >= (epoch, next_message) or (about.late and about.epoch >= epoch):
                    yield entry.spooled(memoryview(b"")).message

    def described_late(self) -> Iterator[MessageDelivered]:
        """The late messages that the sink has not accepted, without their bodies."""
        for number in [number for number in self._sizes if number >= self.cursor.segment]:
            for entry, place in self._entries(number, 0, self._sizes[number]):
                if entry.description.late and place.serial >= self.cursor.serial:
                    yield entry.spooled(memoryview(b"")).message

    def _entries(self, number: int, offset: int, stop: int | None) -> Iterator[tuple[_Entry, Place]]:
        """What entries there are in a segment, with their places; damage between them is passed over."""
        try:
            fd = os.open(self._file(number), os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            return  # somebody removed it: the serials tell
        try:
            window = _Window(fd, os.fstat(fd).st_size if stop is None else stop)
            offset = max(offset, _SEGMENT_HEAD.size)
            while offset < window.stop:
                entry = window.entry(offset)
                if entry is None:
                    offset = window.next_magic(offset + 1)
                    continue
                yield entry, Place(number, offset, entry.serial)
                offset += entry.size
        finally:
            os.close(fd)

    # -- forgetting ------------------------------------------------------------------------------------------

    def commit(self, cursor: Place) -> None:
        """Note that the sink has everything before `cursor`; delete what holds nothing else.

        Raises:
            OSError: it cannot be noted or deleted now; trying again may help.
        """
        assert self._cursor_fd is not None
        with self._changing:
            finished = [number for number in self._sizes if number < cursor.segment]
        # Everything was taken: the last segment is not needed either, unless it is being written just now.
        if cursor.serial == self.end.serial and self._appending.acquire(blocking=False):
            try:
                if cursor.serial == self.end.serial and self.end.segment in self._sizes:
                    with self._changing:
                        finished = list(self._sizes)
                        self.end = cursor = Place(self.end.segment + 1, 0, cursor.serial)
                    self._close_segment()
            finally:
                self._appending.release()
        if cursor != self.cursor:
            head = _CURSOR.pack(_CURSOR_MAGIC, _VERSION, self._link_id, *cursor, 0)[:-8]
            _write_all(self._cursor_fd, head + _CHECK.pack(xxh3_64_intdigest(head)), 0)
            self.cursor = cursor
        if finished:
            os.fdatasync(self._cursor_fd)  # a cursor that a power cut took back must not point to what is deleted
        for number in finished:
            self._delete(number)

    def _delete(self, number: int) -> None:
        self._file(number).unlink(missing_ok=True)
        with self._changing:
            del self._sizes[number]
            self._first_serials.pop(number, None)

    def close(self) -> None:
        """Let go of the files and the lock. May be called again."""
        self._close_segment()
        for fd in (self._cursor_fd, self._lock_fd):
            if fd is not None:
                os.close(fd)
        self._cursor_fd = self._lock_fd = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @staticmethod
    def _name(number: int) -> str:
        return f"{number:020}.segment"

    def _file(self, number: int) -> Path:
        return self.path / self._name(number)


class _Writing:
    """One `append`: what is on disk by now, and what is on its way."""

    def __init__(self, spool: Spool) -> None:
        self._spool = spool
        self._ends: list[Place] = []
        """Of entries given to the kernel, or in the buffer."""
        self._synced = 0
        """How many of them are on disk for certain."""
        self._buffer = bytearray()

    def write(self, entries: Sequence[Spooled]) -> Appended:
        trouble, error = None, ""
        try:
            trouble = self._fill(entries)
            self._sync()
        except OSError as failure:
            trouble = Trouble.NO_SPACE if failure.errno in _NO_SPACE else Trouble.FAILED
            error = str(failure)
            self._cut()
        return Appended(ends=self._ends[: self._synced], trouble=trouble, error=error)

    def _fill(self, entries: Sequence[Spooled]) -> Trouble | None:
        spool = self._spool
        space = os.statvfs(spool.path)
        free_bytes = space.f_bavail * space.f_frsize - spool.keep_free_bytes
        room_bytes = spool.max_bytes - spool.disk_bytes
        place = spool.end
        for entry in entries:
            description, body = _describe(entry), entry.message.body
            size = _ENTRY_HEAD.size + len(description) + len(body) + _CHECK.size
            holds_some = place.offset > _SEGMENT_HEAD.size
            if spool._fd is None or (holds_some and place.offset + size > spool._segment_bytes):
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

    def _put(self, description: bytes, body: memoryview, serial: int) -> None:
        head = _ENTRY_HEAD.pack(_ENTRY_MAGIC, len(description), len(body), serial, 0)[:-8]
        self._buffer += head
        self._buffer += _CHECK.pack(xxh3_64_intdigest(head + description))
        self._buffer += description
        self._buffer += body
        self._buffer += _CHECK.pack(xxh3_64_intdigest(body, serial))

    def _roll(self) -> Place:
        """Go on in a new segment."""
        spool = self._spool
        if spool._fd is not None:
            self._sync()
            spool._close_segment()
        spool._open_segment()
        return spool.end

    def _flush(self) -> None:
        spool = self._spool
        if self._buffer:
            assert spool._fd is not None
            size = spool._sizes[spool.end.segment]
            try:
                written = _write_all(spool._fd, self._buffer, size)
            finally:
                self._buffer = bytearray()
            with spool._changing:
                spool._sizes[spool.end.segment] = size + written

    def _sync(self) -> None:
        self._flush()
        if len(self._ends) > self._synced:
            assert self._spool._fd is not None
            os.fdatasync(self._spool._fd)
            self._synced = len(self._ends)
            with self._spool._changing:
                self._spool.end = self._ends[-1]

    def _cut(self) -> None:
        """Leave nothing unfinished behind: the segment ends where it is certain, and what comes next gets a new one.

        After a failed sync the kernel may have thrown away what it held, and would report success the next time.
        """
        spool = self._spool
        fd = spool._fd
        if fd is None:
            return
        # If this fails too, the rest stays behind the end. Its serials come again in the next segment.
        with contextlib.suppress(OSError):
            os.ftruncate(fd, spool.end.offset)
            os.fdatasync(fd)
        with spool._changing:
            spool._sizes[spool.end.segment] = max(os.fstat(fd).st_size, spool.end.offset)
        spool._close_segment()


@attrs.frozen
class _Entry:
    """An entry whose head and description are intact."""

    serial: int
    description: _Description
    body: memoryview
    size: int
    """All of it, in bytes."""
    intact: bool
    """Whether the body fits its check."""

    def spooled(self, body: memoryview) -> Spooled:
        about = self.description
        return Spooled(
            message=MessageDelivered(
                epoch=about.epoch,
                number=about.number,
                first_record=about.first_record,
                record_count=about.record_count,
                runs=about.runs,
                already_delivered={(stream, partition): last for stream, partition, last in about.already},
                positions={(stream, partition): Standing(*rest) for stream, partition, *rest in about.positions},
                body=body,
                compression=Compression(about.compression),
                plain_bytes=about.plain_bytes,
                spans=tuple(about.spans),
                late=about.late,
                ahead=about.ahead,
                overtaken=about.overtaken,
                claimed={(stream, partition): tuple(ranges) for stream, partition, ranges in about.claimed},
            ),
            lost_before=about.lost_before,
            arrived_s=about.arrived_s,
        )

    def opened(self, segment: str, offset: int) -> Spooled | Damage:
        if self.intact:
            return self.spooled(self.body)
        return Damage(serials=1, segment=segment, offset=offset, known=self.spooled(memoryview(b"")))


class _Window:
    """A piece of a segment in memory, and what is in it."""

    def __init__(self, fd: int, stop: int) -> None:
        self._fd = fd
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

    def entry(self, offset: int) -> _Entry | None:
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
            description = _decode(whole[_ENTRY_HEAD.size : body_at])
        except (msgspec.DecodeError, UnicodeDecodeError):
            return None
        body = whole[body_at : body_at + body_bytes]
        intact = len(whole) == size and _CHECK.unpack(whole[-8:])[0] == xxh3_64_intdigest(body, serial)
        return _Entry(serial, description, body, size, intact)

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


def _describe(entry: Spooled) -> bytes:
    message = entry.message
    return _encode(
        _Description(
            arrived_s=entry.arrived_s,
            lost_before=entry.lost_before,
            epoch=message.epoch,
            number=message.number,
            first_record=message.first_record,
            record_count=message.record_count,
            runs=message.runs,
            already=[(*key, last) for key, last in message.already_delivered.items()],
            positions=[(*key, *standing) for key, standing in message.positions.items()],
            compression=message.compression,
            plain_bytes=message.plain_bytes,
            spans=list(message.spans),
            claimed=[(*key, list(ranges)) for key, ranges in message.claimed.items()],
            late=message.late,
            ahead=message.ahead,
            overtaken=message.overtaken,
        )
    )


def _damage(serials: int, damaged_at: tuple[str, int]) -> Damage:
    return Damage(serials=serials, segment=damaged_at[0], offset=damaged_at[1])


def _write_all(fd: int, data: bytes | bytearray, offset: int) -> int:
    view = memoryview(data)
    written = 0
    try:
        while written < len(view):
            written += os.pwrite(fd, view[written:], offset + written)
    finally:
        view.release()
    return written
