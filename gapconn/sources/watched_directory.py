"""The directory that the files source watches: what is in it, what was sent, and what becomes of that."""

from __future__ import annotations

import fnmatch
import os
import re
import sqlite3
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Literal

import attrs

from gapconn.backoff import Backoff
from gapconn.errors import SourceError
from gapconn.filetree import NAME_BYTES_MAX, UnsafePathError, open_directory

_WAITING_MAX = 50_000
"""Files that are watched for whether they settled; a larger backlog is taken in turns of this many."""

_LEFT_ALONE_MAX = 10_000
"""Symbolic links and special files that are told apart from those already reported."""

_FORGET_GONE_S = 7 * 86_400
_FORGET_EVERY_S = 86_400


@attrs.frozen
class Version:
    """What must not change while a file is read, and what tells a sent file from a new one of the same name."""

    size_bytes: int
    mtime_ns: int
    inode: int

    @classmethod
    def of(cls, status: os.stat_result) -> Version:
        return cls(status.st_size, status.st_mtime_ns, status.st_ino)


@attrs.define(eq=False)
class WatchedFile:
    """A file that was found."""

    path: bytes
    """Relative to the directory."""
    version: Version
    since: float
    """When this version was first seen."""
    not_before: float = 0.0
    """After failures: when to try again."""
    backoff: Backoff = attrs.field(factory=Backoff)
    sent_as: str | None = None
    """The stream with which it was sent."""
    put_away: bool = False

    @property
    def in_flight(self) -> bool:
        """It was sent and must not be sent again, but is not put away yet."""
        return self.sent_as is not None and not self.put_away


@attrs.frozen(kw_only=True)
class Found:
    """What one look through the directory found."""

    ready: list[WatchedFile]
    waiting: int
    """Files that have not settled, or wait for another try."""
    excluded: int
    left_alone: dict[bytes, str]
    """New ones only: path and why, of symbolic links, special files and unreadable directories."""
    more: bool
    """There are more files than can be watched at a time."""


class WatchedDirectory:
    """Finds files and puts them away. Works in worker threads."""

    def __init__(
        self,
        directory: str,
        *,
        pattern: str,
        exclude: Sequence[str],
        settle_s: float,
        after: Literal["move", "delete", "keep"],
        sent_directory: str | None,
        state_file: str | None,
    ) -> None:
        self._directory = directory
        self._wanted = re.compile(fnmatch.translate(pattern))
        self._unwanted = re.compile("|".join(map(fnmatch.translate, exclude)) or "(?!)")
        self._settle_s = settle_s
        self._after = after
        self._sent_directory = sent_directory or os.path.join(directory, ".sent")
        self._state_file = state_file or os.path.join(directory, ".gapconn-sent.sqlite")
        self._own_paths: frozenset[bytes] = frozenset()
        """The sent directory and the state file, relative to the directory."""
        self._files: dict[bytes, WatchedFile] = {}
        """What was found and is not done with."""
        self._excluded = 0
        self._left_alone: dict[bytes, str] = {}
        self._ledger: SentLedger | None = None

    def scan(self, now: float) -> Found:
        """Look through all directories.

        Raises:
            OSError, sqlite3.Error: it cannot be done now.
            SourceError: it cannot be done with this configuration.
        """
        self._prepare()
        self._excluded = 0
        files = {path: file for path, file in self._files.items() if file.in_flight}
        left_alone: dict[bytes, str] = {}
        more = False
        for entry, path in self._walk(left_alone):
            known = self._files.get(path)
            if known is not None and known.in_flight:
                continue
            if known is None and len(files) >= _WAITING_MAX:
                more = True
                continue
            try:
                version = Version.of(entry.stat(follow_symlinks=False))
            except FileNotFoundError:
                continue
            except OSError as error:
                left_alone[path] = str(error)
                continue
            if self._ledger is None or not self._ledger.has(path, version):
                same = known is not None and known.version == version and known.sent_as is None
                files[path] = known if known is not None and same else WatchedFile(path, version, now)
        new = {path: reason for path, reason in left_alone.items() if path not in self._left_alone}
        self._files, self._left_alone = files, left_alone
        idle = [file for file in files.values() if file.sent_as is None]
        ready = [file for file in idle if now - file.since >= self._settle_s and now >= file.not_before]
        ready.sort(key=lambda file: (file.version.mtime_ns, file.path))
        return Found(ready=ready, waiting=len(idle) - len(ready), excluded=self._excluded, left_alone=new, more=more)

    def put_away(self, files: list[WatchedFile]) -> list[tuple[WatchedFile, str]]:
        """Move, delete or remember `files`, which were sent; those for which it failed, and why."""
        if self._ledger is not None:
            try:
                self._ledger.record(files)
            except sqlite3.Error as error:
                return [(file, str(error)) for file in files]
        failed = []
        for file in files:
            try:
                if self._after != "keep":
                    self._remove(file)
                file.put_away = True
            except (OSError, UnsafePathError) as error:
                failed.append((file, str(error)))
        return failed

    def close(self) -> None:
        """Forget what was found and not put away: the next scan finds it again."""
        self._files = {}
        if self._ledger is not None:
            self._ledger.close()
            self._ledger = None

    def _prepare(self) -> None:
        root = os.path.realpath(self._directory)
        device = os.stat(root).st_dev
        if self._after == "move":
            os.makedirs(self._sent_directory, exist_ok=True)
            sent = os.path.realpath(self._sent_directory)
            if sent == root:
                raise SourceError(f"sent_directory must not be the watched directory: {sent}")
            if os.stat(sent).st_dev != device:
                raise SourceError(f"sent_directory must be on the same file system as {root}: {sent}")
        if self._after == "keep":
            if self._ledger is None:
                self._ledger = SentLedger(self._state_file)
            self._ledger.forget_gone(root)
        own = [self._sent_directory, *(self._state_file + suffix for suffix in ("", "-wal", "-shm", "-journal"))]
        self._own_paths = frozenset(os.fsencode(os.path.relpath(os.path.realpath(path), root)) for path in own)

    def _walk(self, left_alone: dict[bytes, str]) -> Iterator[tuple[os.DirEntry[bytes], bytes]]:
        """All regular files that are wanted, with their relative paths."""
        root = os.fsencode(self._directory)
        directories = [b""]
        while directories:
            directory = directories.pop()
            try:
                with os.scandir(os.path.join(root, directory)) as entries:
                    for entry in entries:
                        path = os.path.join(directory, entry.name)
                        name = os.fsdecode(entry.name)
                        if path in self._own_paths:
                            continue
                        if self._unwanted.match(name):
                            self._excluded += 1
                        elif entry.is_dir(follow_symlinks=False):
                            directories.append(path)
                        elif not entry.is_file(follow_symlinks=False):
                            if len(left_alone) < _LEFT_ALONE_MAX:
                                left_alone[path] = "a symbolic link" if entry.is_symlink() else "a special file"
                        elif self._wanted.match(name):
                            yield entry, path
                        else:
                            self._excluded += 1
            except OSError as error:
                if not directory:
                    raise
                if not isinstance(error, FileNotFoundError):
                    left_alone[directory] = str(error)

    def _remove(self, file: WatchedFile) -> None:
        try:
            with parent_of(self._directory, file.path) as (parent, name):
                if Version.of(os.stat(name, dir_fd=parent, follow_symlinks=False)) != file.version:
                    return  # another file has the name by now, and will be sent
                if self._after == "delete":
                    os.unlink(name, dir_fd=parent)
                else:
                    self._move(file, parent, name)
        except FileNotFoundError:
            pass  # somebody else has removed it

    def _move(self, file: WatchedFile, parent: int, name: bytes) -> None:
        root = os.open(self._sent_directory, os.O_RDONLY | os.O_DIRECTORY)
        try:
            target = open_directory(root, file.path.split(b"/")[:-1], create=True)
        finally:
            os.close(root)
        try:
            new_name = name
            with suppress(FileNotFoundError):
                os.stat(name, dir_fd=target, follow_symlinks=False)
                suffix = b".%b" % (file.sent_as or "").encode()
                new_name = name[: NAME_BYTES_MAX - len(suffix)] + suffix
            os.rename(name, new_name, src_dir_fd=parent, dst_dir_fd=target)
        finally:
            os.close(target)


class SentLedger:
    """Remembers which versions of kept files were sent."""

    def __init__(self, path: str) -> None:
        self._lock = threading.Lock()
        self._database = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
        try:
            self._database.execute("PRAGMA journal_mode = WAL")
            self._database.execute(
                "CREATE TABLE IF NOT EXISTS sent (path BLOB PRIMARY KEY, size_bytes INTEGER, mtime_ns INTEGER, "
                "inode TEXT, gone_since REAL) WITHOUT ROWID"
            )
        except sqlite3.Error:
            self._database.close()
            raise
        self._next_forget_at = 0.0

    def has(self, path: bytes, version: Version) -> bool:
        """Whether this version was sent."""
        query = "SELECT 1 FROM sent WHERE path = ? AND size_bytes = ? AND mtime_ns = ? AND inode = ?"
        with self._lock:
            return self._database.execute(query, (path, *_columns(version))).fetchone() is not None

    def record(self, files: list[WatchedFile]) -> None:
        """Remember `files` as sent, durably, or none of them."""
        rows = [(file.path, *_columns(file.version)) for file in files]
        with self._lock, self._transaction():
            self._database.executemany("INSERT OR REPLACE INTO sent VALUES (?, ?, ?, ?, NULL)", rows)

    def forget_gone(self, root: str) -> None:
        """Once a day: drop what has been gone for a week. Not at once, because a mount may just be away."""
        now = time.time()
        if now < self._next_forget_at:
            return
        self._next_forget_at = now + _FORGET_EVERY_S
        gone: list[tuple[float, bytes]] = []
        back: list[tuple[bytes]] = []
        with self._lock, self._transaction():
            for path, gone_since in self._database.execute("SELECT path, gone_since FROM sent"):
                if os.path.lexists(os.path.join(os.fsencode(root), path)):
                    if gone_since is not None:
                        back.append((path,))
                elif gone_since is None:
                    gone.append((now, path))
            self._database.executemany("UPDATE sent SET gone_since = NULL WHERE path = ?", back)
            self._database.executemany("UPDATE sent SET gone_since = ? WHERE path = ?", gone)
            self._database.execute("DELETE FROM sent WHERE gone_since < ?", (now - _FORGET_GONE_S,))

    def close(self) -> None:
        self._database.close()

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        self._database.execute("BEGIN IMMEDIATE")
        try:
            yield
        except BaseException:
            self._database.execute("ROLLBACK")
            raise
        self._database.execute("COMMIT")


def _columns(version: Version) -> tuple[int, int, str]:
    return version.size_bytes, version.mtime_ns, str(version.inode)  # an inode number may need all 64 bits


@contextmanager
def parent_of(directory: str, path: bytes) -> Iterator[tuple[int, bytes]]:
    """A descriptor of the directory that holds `path` below `directory`, and the last name of `path`."""
    *components, name = path.split(b"/")
    root = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        parent = open_directory(root, components)
    finally:
        os.close(root)
    try:
        yield parent, name
    finally:
        os.close(parent)
