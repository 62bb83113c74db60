"""Paths below one directory, walked so that nothing outside it is ever reached, whatever a path says.

Each component is opened relative to the one before and never through a symbolic link. So there is no moment between a
check and its use in which somebody could swap a link in.

On the wire a path is relative, with slashes, and the exact bytes of the file system: the attribute `path` where they
are UTF-8, else `path_hex`.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import TypeAlias

from gapconn.errors import GapconnError

Components: TypeAlias = tuple[bytes, ...]
"""A relative path, cut at its slashes."""

Attributes: TypeAlias = Mapping[str, str | int | bool | None]

PATH_BYTES_MAX = 4096
NAME_BYTES_MAX = 255


class UnsafePathError(GapconnError):
    """A path that is refused; the text says why."""


def path_attributes(path: bytes) -> dict[str, str | int | bool | None]:
    """How `path` crosses the link."""
    try:
        return {"path": path.decode()}
    except UnicodeDecodeError:
        return {"path_hex": path.hex()}


def path_of(attributes: Attributes) -> Components:
    """The path that crossed in `attributes`.

    Raises:
        UnsafePathError: there is none, or it is not a plain relative path.
    """
    text, digits = attributes.get("path"), attributes.get("path_hex")
    try:
        path = bytes.fromhex(digits) if isinstance(digits, str) else text.encode() if isinstance(text, str) else b""
    except ValueError as error:
        raise UnsafePathError("not an encoded path") from error
    if not path:
        raise UnsafePathError("no path")
    if len(path) > PATH_BYTES_MAX:
        raise UnsafePathError(f"longer than {PATH_BYTES_MAX} bytes")
    if b"\0" in path:
        raise UnsafePathError("contains a null byte")
    components = tuple(path.split(b"/"))
    if path.startswith(b"/"):
        raise UnsafePathError("absolute")
    for name in components:
        if name in {b"", b".", b".."}:
            raise UnsafePathError(f"has the component {name.decode()!r}")
        if len(name) > NAME_BYTES_MAX:
            raise UnsafePathError(f"has a name longer than {NAME_BYTES_MAX} bytes")
    return components


def printable(path: bytes | Components) -> str:
    """`path` for logs: undecodable bytes as escapes."""
    joined = path if isinstance(path, bytes) else b"/".join(path)
    return joined.decode(errors="backslashreplace")


def open_directory(root: int, components: Sequence[bytes], *, create: bool = False, durable: bool = False) -> int:
    """A descriptor of the directory at `components` below the directory `root`.

    Args:
        root: Descriptor of the directory that is not left.
        components: As `path_of` checks them.
        create: Make what is missing.
        durable: Sync each directory in which one was made.

    Raises:
        UnsafePathError: a component is a symbolic link, or not a directory.
        OSError: from the operating system.
    """
    directory = os.dup(root)
    try:
        for name in components:
            try:
                inner = _open_inner(directory, name)
            except FileNotFoundError:
                if not create:
                    raise
                with suppress(FileExistsError):
                    os.mkdir(name, dir_fd=directory)
                if durable:
                    os.fsync(directory)
                inner = _open_inner(directory, name)
            os.close(directory)
            directory = inner
    except BaseException:
        os.close(directory)
        raise
    return directory


def _open_inner(directory: int, name: bytes) -> int:
    try:
        return os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=directory)
    except OSError as error:
        if error.errno in (errno.ENOTDIR, errno.ELOOP):
            raise UnsafePathError(f"{printable(name)!r} is a symbolic link, or not a directory") from error
        raise
