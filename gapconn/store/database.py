"""One SQLite file that one process holds: locked, checked when it is opened, and with errors that say what to do."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import socket
import sqlite3
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

from gapconn.errors import LinkError

_APPLICATION_ID: Final = int.from_bytes(b"gapc", "big")
_SCHEMA_VERSION: Final = 1
_OWNER_TABLE: Final = "CREATE TABLE owner(role TEXT NOT NULL, link_id TEXT NOT NULL)"

SHARED_TIMEOUT_S: Final = 30.0
"""How long a transaction of a shared file waits for that of another process."""

LOCK_TRIES: Final = 5
LOCK_PAUSE_S: Final = 0.02

_DAMAGE: Final = frozenset({sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_ERROR})
_NO_SPACE: Final = frozenset({errno.ENOSPC, errno.EDQUOT})
_BUSY: Final = frozenset({sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED})


class StateStuckError(LinkError):
    """The state cannot be used now. Nothing of it is damaged, and trying again may help."""

    no_space = False
    """Whether that is for want of space."""


class StateHeldError(StateStuckError):
    """Another process holds the state."""


class StateDiskError(StateStuckError):
    """The disk does not do what it should."""

    def __init__(self, message: str, *, no_space: bool) -> None:
        super().__init__(message)
        self.no_space = no_space


class StateFile:
    """The file `{link}.{role}.sqlite` in a state directory, and the lock file beside it.

    The lock (`flock`) is held from the constructor to `close`, so that a second end of the same link on this host is
    refused. The file comes into being whole or not at all: an empty or half-made file is damage, and never mistaken
    for "nothing stored yet".

    Calls may come from different threads, one at a time. Every error is a `LinkError` that names the file.

    Args:
        directory: Made with mode 0700 when it is missing.
        role: `"ingress"` or `"egress"`.
        tables: The SQL that makes the tables of that role.
        synchronous: SQLite's `synchronous`: `"FULL"`, a commit survives a power cut; `"NORMAL"`, it survives the end of
            the process, and a power cut may take the last ones back.
        when_lost: What happens to an end that starts without its state, for the error messages.
        shared: Any number of processes may have it open at a time; each transaction waits for those of the others.
    """

    def __init__(
        self,
        directory: Path,
        *,
        link: str,
        link_id: int,
        role: str,
        tables: Sequence[str],
        synchronous: str,
        when_lost: str,
        shared: bool = False,
    ) -> None:
        if not link or "/" in link or "\0" in link:
            raise LinkError(f"the link name {link!r} cannot be part of a file name: leave out '/' and NUL")
        self.path = directory / f"{link}.{role}.sqlite"
        self._when_lost = when_lost
        self._db: sqlite3.Connection | None = None
        self._lock_fd: int | None = None
        try:
            with self._errors("opened"):
                directory.mkdir(mode=0o700, parents=True, exist_ok=True)
                lock_path = directory / f"{link}.{role}.lock"
                self._lock_fd = _wait_for_lock(lock_path) if shared else lock_file(lock_path, link=link, role=role)
                if not self.path.exists():
                    self._create(tables, role=role, link_id=link_id)
                self._db = self._connect(self.path, synchronous, shared=shared)
                if shared:  # the lock was only for making the file
                    os.close(self._lock_fd)
                    self._lock_fd = None
                self._check_owner(role=role, link_id=link_id)
        except BaseException:
            self._release()
            raise

    @contextlib.contextmanager
    def transaction(self, doing: str) -> Iterator[sqlite3.Connection]:
        """One transaction: all of it is stored when the block ends, nothing of it when the block raises.

        Args:
            doing: For the error message: the state cannot be `doing`, such as `"saved"`.
        """
        if self._db is None:
            raise LinkError(f"{self.path}: the state is closed")
        with self._errors(doing):
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield self._db
            except BaseException:
                self._rollback(self._db)
                raise
            try:
                self._db.execute("COMMIT")
            except BaseException:
                self._rollback(self._db)
                raise

    def close(self) -> None:
        """Move everything into the one file and let go of the lock. May be called again."""
        try:
            if self._db is not None:
                with self._errors("closed"):
                    self._db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        finally:
            self._release()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def damaged(self, why: str) -> LinkError:
        """The error for contents that cannot be believed."""
        return LinkError(
            f"{self.path}: the stored state is damaged: {why}. Restore the file, or move it away (with its -wal file)"
            f" to start without it: {self._when_lost}"
        )

    @staticmethod
    def _rollback(db: sqlite3.Connection) -> None:
        with contextlib.suppress(sqlite3.Error):  # SQLite has rolled back by itself after some errors (disk full)
            db.execute("ROLLBACK")

    def _release(self) -> None:
        db, self._db = self._db, None
        lock_fd, self._lock_fd = self._lock_fd, None
        try:
            if db is not None:
                db.close()
        finally:
            if lock_fd is not None:
                os.close(lock_fd)

    def _create(self, tables: Sequence[str], *, role: str, link_id: int) -> None:
        new = self.path.with_name(self.path.name + ".new")
        for leftover in (new, _sibling(new, "-journal"), _sibling(self.path, "-wal"), _sibling(self.path, "-shm")):
            leftover.unlink(missing_ok=True)  # a -wal of a file that was moved away would be replayed into the new one
        os.close(os.open(new, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600))
        with contextlib.closing(sqlite3.connect(new, isolation_level=None)) as db:
            db.execute("BEGIN")
            for statement in (_OWNER_TABLE, *tables):
                db.execute(statement)
            db.execute("INSERT INTO owner VALUES (?, ?)", (role, str(link_id)))
            db.execute(f"PRAGMA application_id = {_APPLICATION_ID}")
            db.execute(f"PRAGMA user_version = {_SCHEMA_VERSION}")
            db.execute("COMMIT")
        new.rename(self.path)
        sync_directory(self.path.parent)

    def _connect(self, path: Path, synchronous: str, *, shared: bool) -> sqlite3.Connection:
        # mode=rw: never make a file here.
        db = sqlite3.connect(
            f"{path.absolute().as_uri()}?mode=rw",
            uri=True,
            timeout=SHARED_TIMEOUT_S if shared else 0,
            isolation_level=None,
            check_same_thread=False,
        )
        try:
            # Exclusive locking keeps out a process that does not see our lock file (somebody deleted it), and needs no
            # shared memory, which network file systems lack. It comes first: the first access decides.
            if not shared:
                db.execute("PRAGMA locking_mode = EXCLUSIVE")
            if db.execute("PRAGMA application_id").fetchone() != (_APPLICATION_ID,):
                raise self.damaged("it is not a state file of gapconn")
            (version,) = db.execute("PRAGMA user_version").fetchone()
            if version != _SCHEMA_VERSION:
                raise LinkError(
                    f"{path}: the stored state has version {version}, and this gapconn knows version {_SCHEMA_VERSION}."
                    f" Run the gapconn that wrote it, or move the file away to start without it: {self._when_lost}"
                )
            db.execute("PRAGMA journal_mode = WAL")
            db.execute(f"PRAGMA synchronous = {synchronous}")
            (found,) = db.execute("PRAGMA quick_check(1)").fetchone()
            if found != "ok":
                raise self.damaged(found)
            db.execute("BEGIN IMMEDIATE")  # shows now, and not at the first save, that the file can be written
            db.execute("COMMIT")
        except BaseException:
            db.close()
            raise
        return db

    def _check_owner(self, *, role: str, link_id: int) -> None:
        with self.transaction("read") as db:
            owner: tuple[Any, ...] | None = db.execute("SELECT role, link_id FROM owner").fetchone()
        if owner is None:
            raise self.damaged("it does not say which link it belongs to")
        if owner != (role, str(link_id)):
            raise LinkError(
                f"{self.path}: this state belongs to the {owner[0]} of link id {owner[1]}, and not to the {role} of"
                f" link id {link_id}. Give each link a name or a state directory of its own; if you changed the link's"
                " id on purpose, move the file away"
            )

    @contextlib.contextmanager
    def _errors(self, doing: str) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            code = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_ERROR) & 0xFF
            if code in _DAMAGE:
                raise self.damaged(str(error)) from error
            if code in _BUSY:
                raise StateHeldError(
                    f"{self.path}: another process has the stored state open: stop it, then start again"
                ) from error
            raise self._unusable(doing, error, no_space=code == sqlite3.SQLITE_FULL) from error
        except OSError as error:
            raise self._unusable(doing, error, no_space=error.errno in _NO_SPACE) from error

    def _unusable(self, doing: str, error: Exception, *, no_space: bool) -> LinkError:
        return StateDiskError(
            f"{self.path}: the stored state cannot be {doing}: {error}. The state directory must be on a disk with free"
            " space, and it and its files must be writable by the user that runs gapconn",
            no_space=no_space,
        )


def lock_file(path: Path, *, link: str, role: str) -> int:
    """Take the lock for this process; the open file that holds it.

    Raises:
        LinkError: another process holds it.
    """
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        try:
            _try_lock(fd)
        except BlockingIOError as error:
            holder = os.pread(fd, 256, 0).decode("ascii", "replace").strip()
            who = f" ({holder})" if holder else ""
            raise StateHeldError(
                f"{path}: another {role} of link {link!r}{who} holds this file. A link has exactly one ingress and one"
                f" egress: stop the other {role} first, or give this one a link and a state directory of its own"
            ) from error
        os.ftruncate(fd, 0)
        # The host too: two containers that share a volume are often both PID 1.
        os.pwrite(fd, f"PID {os.getpid()} on {socket.gethostname()}\n".encode("ascii", "replace"), 0)
    except BaseException:
        os.close(fd)
        raise
    return fd


def _try_lock(fd: int) -> None:
    """Take a lock, unless somebody holds it for longer than `held` does."""
    for _ in range(LOCK_TRIES):
        with contextlib.suppress(BlockingIOError):
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        time.sleep(LOCK_PAUSE_S)
    fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)


def held(directory: Path, *, link: str, role: str) -> bool:
    """Whether a process of this host has the state of this end open."""
    try:
        fd = os.open(directory / f"{link}.{role}.lock", os.O_RDWR | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(fd)
    return False


def _wait_for_lock(path: Path) -> int:
    """Take a lock that nobody holds for long."""
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
    except BaseException:
        os.close(fd)
        raise
    return fd


def _sibling(path: Path, suffix: str) -> Path:
    return path.with_name(path.name + suffix)


def sync_directory(directory: Path) -> None:
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
