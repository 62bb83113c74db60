"""Files with a secret in them: read only where nobody else can read or change them."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import Final

from gapconn.errors import ConfigError

FILE_BYTES_MAX: Final = 64 * 1024


def read_private(path: Path, what: str, *, remedy: str) -> str:
    """The text of a file that only its owner may read; `what` it is, and the `remedy` where it is missing, for errors.

    Raises:
        ConfigError: it cannot be read, or others can read it. Nothing of its content is in the message.
    """
    try:
        with path.open("rb") as file:
            found = os.fstat(file.fileno())  # of what is read, not of what stands there a moment later
            if not stat.S_ISREG(found.st_mode):
                raise ConfigError([f"{path}: not a regular file"])
            _check_private(path, what, found)
            content = file.read(FILE_BYTES_MAX + 1)
    except FileNotFoundError:
        raise ConfigError([f"{path}: there is no such {what}; {remedy}"]) from None
    except IsADirectoryError:
        raise ConfigError([f"{path}: a directory, not a {what}"]) from None
    except PermissionError:
        raise ConfigError(
            [f"{path}: user {os.geteuid()} may not read the {what}: chown {os.geteuid()} {path}"]
        ) from None
    except OSError as error:
        raise ConfigError([f"{path}: the {what} cannot be read: {error.strerror}"]) from error
    if len(content) > FILE_BYTES_MAX:
        raise ConfigError([f"{path}: longer than {FILE_BYTES_MAX} bytes: not a {what}"])
    try:
        return content.decode()
    except UnicodeDecodeError:
        raise ConfigError([f"{path}: not text: not a {what}"]) from None


def _check_private(path: Path, what: str, found: os.stat_result) -> None:
    """Only the owner may have access, or, where that is another user, who may read the file by their group.

    The last is how a container gets a secret: owned by root, and read by a group of its own.
    """
    ours = os.geteuid() in (0, found.st_uid)
    if found.st_mode & (stat.S_IRWXO | (stat.S_IRWXG if ours else stat.S_IWGRP)):
        mode, private = stat.S_IMODE(found.st_mode), "600" if ours else "640"
        raise ConfigError([f"{path}: others may read or change this {what} (mode {mode:04o}): chmod {private} {path}"])
