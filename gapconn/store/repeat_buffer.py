"""The repeat buffer of an ingress: what it sent, on disk for as long as there is room, to be sent again.

    {link}.repeats/
      lock                          one process at a time
      needed                        from which message on something is still to be repeated
      00000000000000000001.segment  see `gapconn.store.segments`
      00000000000000000002.segment

It is a ring: when it is full, the oldest segment goes. It survives the end of the process, so that messages of earlier
sessions can still be asked for; a power cut may take the last seconds, since nothing waits for the disk here.

Calls block for the disk. They may come from two threads at a time: one appends, one reads.
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
from gapconn.store.database import lock_file
from gapconn.store.segments import Entry, LogKind, Place, SegmentLog, Trouble, write_all

_VERSION: Final = 1
_SEGMENT_MAGIC: Final = b"gcrepeat"
_NEEDED = struct.Struct(">IIQQ")
"""Version, link id, serial, check."""
NOTHING_NEEDED: Final = 2**64 - 1
"""A serial that no message has."""


class Sent(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """When a message was sent for the first time."""

    epoch: int
    number: int
    at_s: float
    """Wall-clock time, in seconds since 1970."""
    clock_s: float
    """The same by the monotonic clock of the process that sent it."""


@attrs.frozen
class Kept:
    """A message in the buffer."""

    sent: Sent
    message: memoryview
    """All of it, with its check."""
    serial: int
    """Its place in the order of the buffer."""


@attrs.frozen(kw_only=True)
class Stored:
    """What became of an `append`."""

    kept: int
    """How many of the messages are in the buffer: the first ones."""
    dropped: int
    """Messages that made room for them."""
    dropped_needed: int
    """Of these, those that were still to be repeated."""
    error: str = ""
    """Why the others are not; empty if all are."""


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(Sent).decode


class RepeatBuffer:
    """The buffer of one link's ingress. Made by the constructor, holds the directory's lock until `close`.

    Args:
        directory: Where the link's own directory is, or is made.
        link: Name of the link.
        link_id: A buffer of another id is refused.
        max_bytes: What all segments may take together.
        keep_free_bytes: What others find free on the file system in any case.

    Raises:
        LinkError: the directory cannot be used, another process has it, or it belongs to another link.
    """

    def __init__(self, directory: Path, *, link: str, link_id: int, max_bytes: int, keep_free_bytes: int = 0) -> None:
        self.path = directory / f"{link}.repeats"
        self.max_bytes = max_bytes
        self.left_before = 0
        """Messages in it that the process before was still to repeat when it ended."""
        self._link_id = link_id
        self._needed_fd: int | None = None
        kind = LogKind(
            magic=_SEGMENT_MAGIC,
            version=_VERSION,
            decode=_decode,
            refuse_foreign=self._refuse_foreign,
            durable=False,
        )
        self._log = SegmentLog(self.path, kind, link_id=link_id, max_bytes=max_bytes, keep_free_bytes=keep_free_bytes)
        self._lock_fd: int | None = None
        try:
            self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._lock_fd = lock_file(self.path / "lock", link=link, role="ingress")
            self._needed_fd = os.open(self.path / "needed", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            self._log.recover(None)
            self._shrink()
            self.left_before = min(self.messages, max(0, self.end.serial - self._load_needed()))
        except OSError as error:
            self.close()
            raise LinkError(
                f"{self.path}: the repeat buffer cannot be used: {error}. repeat_buffer.directory must be writable by"
                " the user that runs gapconn"
            ) from error
        except BaseException:
            self.close()
            raise

    def _refuse_foreign(self, path: Path, *, version: int, link_id: int) -> None:
        if version != _VERSION:
            raise LinkError(
                f"{path}: the repeat buffer has version {version}, and this gapconn knows version {_VERSION}. Move the"
                " directory away: what is in it cannot be sent again then"
            )
        if link_id != self._link_id:
            raise LinkError(
                f"{path}: this repeat buffer belongs to the ingress of link id {link_id}, and not to link id"
                f" {self._link_id}. Give each link a name or a buffer directory of its own; if you changed the link's"
                " id on purpose, move the directory away: what is in it cannot be sent again then"
            )

    def _load_needed(self) -> int:
        assert self._needed_fd is not None
        raw = os.pread(self._needed_fd, _NEEDED.size, 0)
        if len(raw) < _NEEDED.size:
            return NOTHING_NEEDED  # this buffer was never used
        version, link_id, serial, check = _NEEDED.unpack(raw)
        ours = (version, link_id, check) == (_VERSION, self._link_id, xxh3_64_intdigest(raw[:-8]))
        return int(serial) if ours else NOTHING_NEEDED

    def note_needed(self, serial: int) -> None:
        """Note for the next process from which message on something is still to be repeated.

        Survives the end of this process. May be called beside everything else.

        Raises:
            OSError: it cannot be noted now; what was noted before stands.
        """
        assert self._needed_fd is not None
        raw = _NEEDED.pack(_VERSION, self._link_id, serial, 0)[:-8]
        write_all(self._needed_fd, raw + xxh3_64_intdigest(raw).to_bytes(8, "big"), 0)

    @property
    def disk_bytes(self) -> int:
        """What all segments take."""
        return self._log.disk_bytes

    @property
    def end(self) -> Place:
        """Behind the last message."""
        return self._log.end

    @property
    def messages(self) -> int:
        """Messages in it, damaged ones included."""
        return self.end.serial - min(self._log.first_serials.values(), default=self.end.serial)

    # -- keeping ---------------------------------------------------------------------------------------------

    def append(self, messages: Sequence[tuple[Sent, bytes]], *, needed_from: int) -> Stored:
        """Keep these; the oldest go where there is no room.

        Args:
            messages: When each was sent, and all of it.
            needed_from: What has this serial or a higher one is still to be repeated.
        """
        kept = dropped = dropped_needed = 0
        error = ""
        while kept < len(messages) and not error:
            result = self._log.append((_encode(sent), message) for sent, message in messages[kept:])
            kept += len(result.ends)
            if result.trouble is Trouble.FAILED:
                error = result.error
            elif result.trouble is not None:
                try:
                    count, needed = self._drop_oldest(needed_from)
                except OSError as failure:
                    error = str(failure)
                else:
                    error = "" if count else result.error or _WHY_NOT[result.trouble]
                    dropped += count
                    dropped_needed += needed
        return Stored(kept=kept, dropped=dropped, dropped_needed=dropped_needed, error=error)

    def _shrink(self) -> None:
        """Drop the oldest if there is more than may be: `max_bytes` was lowered."""
        while self.disk_bytes > self.max_bytes and self._drop_oldest(self.end.serial)[0]:
            pass

    def _drop_oldest(self, needed_from: int) -> tuple[int, int]:
        """Delete the oldest segment; how many messages that was, and how many of them were still needed."""
        with self._log.changing:
            numbers, end = list(self._log.sizes), self._log.end
            firsts = dict(self._log.first_serials)
        if not numbers or numbers[0] == end.segment:
            return 0, 0  # the last one is being written
        first = firsts.get(numbers[0], end.serial)
        behind = min((serial for number, serial in firsts.items() if number > numbers[0]), default=end.serial)
        self._log.delete(numbers[0])
        return max(behind - first, 1), max(0, behind - max(first, needed_from))

    # -- sending again ---------------------------------------------------------------------------------------

    def read(self, place: Place, bytes_max: int) -> tuple[list[Kept], Place]:
        """What is there from `place` on, at least one message and about `bytes_max`; and where to read on.

        What was dropped meanwhile, and what is damaged, is left out.

        Raises:
            OSError: a segment cannot be opened; trying again may help.
        """
        items, behind = self._log.read(place, bytes_max)
        return [_kept(item) for item, _ in items if isinstance(item, Entry) and item.intact], behind

    def find(self, epoch: int, first: int, last: int) -> Iterator[Kept]:
        """The messages of a session with these numbers, as far as they are there, in order."""
        for number, stop in self._segments_with(epoch, first, last):
            for entry, _ in self._log.entries(number, 0, stop):
                sent = entry.description
                if entry.intact and sent.epoch == epoch and first <= sent.number <= last:
                    yield _kept(entry)

    def _bounds(self) -> list[tuple[int, int | None]]:
        """The segments, each with where it ends if it is being written."""
        with self._log.changing:
            return [
                (number, self._log.end.offset if number == self._log.end.segment else None)
                for number in self._log.sizes
            ]

    def _segments_with(self, epoch: int, first: int, last: int) -> list[tuple[int, int | None]]:
        """The segments that may hold these: numbers rise in a session, and epochs from one to the next."""
        wanted: list[tuple[int, int | None]] = []
        for number, stop in self._bounds():
            begins = next(self._log.entries(number, 0, stop, most=1), None)
            if begins is None:
                continue
            sent = begins[0].description
            if (sent.epoch, sent.number) > (epoch, last):
                break
            if (sent.epoch, sent.number) <= (epoch, first):
                wanted.clear()
            wanted.append((number, stop))
        return wanted

    def close(self) -> None:
        """Let go of the files and the lock. May be called again."""
        self._log.close_segment()
        for fd in (self._needed_fd, self._lock_fd):
            if fd is not None:
                os.close(fd)
        self._needed_fd = self._lock_fd = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _kept(entry: Entry[Sent]) -> Kept:
    return Kept(entry.description, entry.body, entry.serial)


_WHY_NOT = {
    Trouble.FULL: "repeat_buffer.max_bytes is less than a message",
    Trouble.NO_SPACE: "no space is left on its file system (repeat_buffer.keep_free_bytes stay free)",
}
