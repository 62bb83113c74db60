"""The disk spool of an egress: what arrived and the sink has not taken, in order, in append-only segment files.

    {link}.spool/
      lock                          one process at a time
      cursor                        the place before which the sink has everything
      00000000000000000001.segment  a head, then entries, each with its length, a dense serial number and checks
      00000000000000000002.segment

How segments are written, and what is made of damaged ones, is in `gapconn.store.segments`. Calls block for the disk.
They may come from three threads at a time: one appends, one reads, one commits.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Final, Self

import attrs
import msgspec
from xxhash import xxh3_64_intdigest

from gapconn.errors import LinkError
from gapconn.protocol.envelope import Run, Span
from gapconn.protocol.events import MessageDelivered
from gapconn.protocol.positions import Standing
from gapconn.protocol.registry import Compression
from gapconn.store.database import lock_file
from gapconn.store.segments import Appended, Entry, LogKind, Missing, Place, SegmentLog, Trouble, write_all

__all__ = ["Appended", "Damage", "Place", "Read", "Spool", "Spooled", "Trouble"]

_VERSION: Final = 1
_CURSOR = struct.Struct(">8sIIQQQQ")
"""Magic, version, link id, segment, offset, serial, check."""
_CHECK = struct.Struct(">Q")
_SEGMENT_MAGIC: Final = b"gcspool\n"
_CURSOR_MAGIC: Final = b"gccursor"


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
        self.cursor = Place(1, 0, 0)
        """Before it the sink has everything, as it is noted on disk."""
        self._link_id = link_id
        kind = LogKind(magic=_SEGMENT_MAGIC, version=_VERSION, decode=_decode, refuse_foreign=self._refuse_foreign)
        self._log = SegmentLog(self.path, kind, link_id=link_id, max_bytes=max_bytes, keep_free_bytes=keep_free_bytes)
        self._cursor_fd: int | None = None
        self._lock_fd: int | None = None
        try:
            self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._lock_fd = lock_file(self.path / "lock", link=link, role="egress")
            self._cursor_fd = os.open(self.path / "cursor", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            self.cursor = self._log.recover(self._load_cursor())
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
        return self._log.disk_bytes

    @property
    def end(self) -> Place:
        """Behind the last entry that is on disk."""
        return self._log.end

    @property
    def cut_bytes(self) -> int:
        """What was found at the end when it was opened, and was no whole entry."""
        return self._log.cut_bytes

    @property
    def cut(self) -> list[MessageDelivered]:
        """The messages in that, as far as their descriptions are intact, without their bodies."""
        return [_spooled(about, memoryview(b"")).message for about in self._log.cut]

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

    def append(self, entries: Sequence[Spooled]) -> Appended:
        """Write as many of `entries` as there is room for, in order, and wait until they are on disk."""
        return self._log.append((_describe(entry), entry.message.body) for entry in entries)

    def read(self, place: Place, bytes_max: int) -> Read:
        """Read what is on disk from `place` on: at least one entry, and about `bytes_max` at most.

        Raises:
            OSError: a segment cannot be opened; trying again may help.
        """
        items, behind = self._log.read(place, bytes_max)
        return Read(items=[(_opened(item, end), end) for item, end in items], place=behind)

    def described_since(self, epoch: int, next_message: int) -> Iterator[MessageDelivered]:
        """The messages in the spool from this one on, without their bodies."""
        begin = next(iter(self._log.sizes), 0)
        for number in reversed(self._log.sizes):
            entries = (entry.description for entry, _ in self._log.entries(number, 0, self._log.sizes[number]))
            first = next((entry for entry in entries if not (entry.late or entry.ahead)), None)
            if first is not None and (first.epoch, first.number) <= (epoch, next_message):
                begin = number
                break
        for number in [number for number in self._log.sizes if number >= begin]:
            for entry, _ in self._log.entries(number, 0, self._log.sizes[number]):
                about = entry.description
                if (about.epoch, about.number) >= (epoch, next_message) or (about.late and about.epoch >= epoch):
                    yield _spooled(about, memoryview(b"")).message

    def described_mending(self) -> Iterator[MessageDelivered]:
        """The messages that the sink has not accepted and that bring what was lost, without their bodies."""
        cursor = self.cursor
        with self._log.changing:
            sizes = {number: size for number, size in self._log.sizes.items() if number >= cursor.segment}
        for number, size in sizes.items():
            for entry, place in self._log.entries(number, 0, size):
                about = entry.description
                if (about.late or about.claimed) and place.serial >= cursor.serial:
                    yield _spooled(about, memoryview(b"")).message

    # -- forgetting ------------------------------------------------------------------------------------------

    def commit(self, cursor: Place) -> None:
        """Note that the sink has everything before `cursor`; delete what holds nothing else.

        Raises:
            OSError: it cannot be noted or deleted now; trying again may help.
        """
        assert self._cursor_fd is not None
        finished, cursor = self._log.retire(cursor)
        if cursor != self.cursor:
            head = _CURSOR.pack(_CURSOR_MAGIC, _VERSION, self._link_id, *cursor, 0)[:-8]
            write_all(self._cursor_fd, head + _CHECK.pack(xxh3_64_intdigest(head)), 0)
            self.cursor = cursor
        if finished:
            os.fdatasync(self._cursor_fd)  # a cursor that a power cut took back must not point to what is deleted
        for number in finished:
            self._log.delete(number)

    def close(self) -> None:
        """Let go of the files and the lock. May be called again."""
        self._log.close_segment()
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


def _spooled(about: _Description, body: memoryview) -> Spooled:
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


def _opened(item: Entry[_Description] | Missing, end: Place) -> Spooled | Damage:
    if isinstance(item, Missing):
        return Damage(serials=item.serials, segment=item.segment, offset=item.offset)
    if item.intact:
        return _spooled(item.description, item.body)
    known = _spooled(item.description, memoryview(b""))
    return Damage(serials=1, segment=SegmentLog.name(end.segment), offset=end.offset - item.size, known=known)


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
