"""The directory of a files sink on disk, and the one in it for what has not arrived whole.

Every name is looked up from an open directory, so that nobody can lead a file elsewhere by moving directories or by
symbolic links in the middle of it.
"""

from __future__ import annotations

import errno
import itertools
import os
from collections.abc import Callable
from contextlib import suppress

from gapconn.errors import SinkError
from gapconn.filetree import Components, UnsafePathError, open_directory, printable
from gapconn.sinks.files_config import FilesSinkConfig

INCOMING = b".incoming"
"""Directory below the sink's directory that holds files until they are whole."""


class FilesDirectory:
    """Makes temporary files, and gives those that are whole their names. Blocks for the disk.

    Args:
        config: Of the sink.
        link_id: Another link may have the same directory.
        note: Called with an event, the counter that it counts in, and facts.
    """

    def __init__(self, config: FilesSinkConfig, link_id: int, note: Callable[..., None]) -> None:
        self.path = config.directory
        self._durable = config.fsync
        self._overwrite = config.overwrite
        self._note = note
        self._prefix = b"%x-" % link_id
        self._temporaries = 0
        self._cleaned = False
        self._root: int | None = None
        self._incoming = -1
        self._target: tuple[Components, int] | None = None
        """Directory into which the last file was renamed; not synced yet."""

    def open(self) -> None:
        """Have both directories open; what an earlier run left in the second one is removed.

        Raises:
            OSError: that cannot be done now.
            SinkError: the name of the second one is taken by something else.
        """
        if self._root is not None:
            with suppress(FileNotFoundError):
                if os.path.samestat(os.stat(self.path), os.fstat(self._root)):
                    return
            self.close()  # it was moved away, or removed
        os.makedirs(self.path, exist_ok=True)
        root = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY)
        try:
            with suppress(FileExistsError):
                os.mkdir(INCOMING, mode=0o700, dir_fd=root)
            self._incoming = open_directory(root, [INCOMING])
        except UnsafePathError as error:
            os.close(root)
            raise SinkError(f"{self.path}: {error}; remove it") from error
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

    def close(self) -> None:
        """Close both; the next `open` opens them anew."""
        if self._root is not None:
            os.close(self._incoming)
            os.close(self._root)
            self._root, self._incoming = None, -1

    def _enter(self, directory: Components) -> int:
        """The directory for a file; it stays open for the next ones, so that many files cost one sync."""
        if self._target is not None and self._target[0] == directory:
            return self._target[1]
        self.leave()
        assert self._root is not None
        fd = open_directory(self._root, directory, create=True, durable=self._durable)
        self._target = directory, fd
        return fd

    def leave(self) -> None:
        """Have the names on disk that were given last."""
        if self._target is None:
            return
        directory, fd = self._target
        self._target = None
        try:
            if self._durable:
                os.fsync(fd)
        except OSError as error:
            self._note("directory_sync_failed", "directory_syncs_failed", path=printable(directory), error=str(error))
        finally:
            os.close(fd)

    def create(self) -> tuple[bytes, int]:
        """A new temporary file: its name, and open for writing.

        Raises:
            OSError: it cannot be made now.
        """
        self._temporaries += 1
        temporary = self._prefix + b"%d.part" % self._temporaries
        return temporary, os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode=0o666, dir_fd=self._incoming)

    def has(self, temporary: bytes) -> bool:
        """Whether this temporary file is there."""
        return _exists(temporary, self._incoming)

    def remove(self, temporary: bytes) -> None:
        """Remove a temporary file; what cannot be removed is a leftover."""
        with suppress(OSError):
            os.unlink(temporary, dir_fd=self._incoming)

    def place(self, temporary: bytes, path: Components) -> bool:
        """Give a file that is whole its name; False if the existing one is kept.

        Raises:
            UnsafePathError: the path does not stay below the directory.
            OSError: it cannot have that name, or not now.
        """
        *directory, name = path
        target = self._enter(tuple(directory))
        if self._overwrite == "replace":
            os.rename(temporary, name, src_dir_fd=self._incoming, dst_dir_fd=target)
            return True
        if self._overwrite == "number":
            names = (name if n == 0 else b"%b.%d" % (name, n) for n in itertools.count())
            return any(self._place_new(temporary, numbered, target) for numbered in names)
        if self._place_new(temporary, name, target):
            return True
        os.unlink(temporary, dir_fd=self._incoming)
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


def _exists(name: bytes, directory: int) -> bool:
    try:
        os.stat(name, dir_fd=directory, follow_symlinks=False)
    except FileNotFoundError:
        return False
    return True
