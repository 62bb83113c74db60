"""What a restart of the monitor must not forget: one small JSON file, replaced as a whole."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Final

import msgspec

from gapconn.errors import LinkError

VERSION: Final = 1


class PairMemory(msgspec.Struct):
    """What is remembered of a pair."""

    out: bool = False
    """The ingress is to be held, or was not let go."""
    times_out: int = 0
    positions: dict[str, int] | None = None
    """What its egress had delivered when it was last asked."""


class _Content(msgspec.Struct):
    version: int
    pairs: dict[str, PairMemory]


class Memory:
    """The file; without a path, nothing is remembered. Its calls block: they are made in a thread."""

    def __init__(self, path: str) -> None:
        self._path = Path(path) if path else None

    def load(self) -> dict[str, PairMemory]:
        """What was stored, by pair.

        Raises:
            LinkError: the file cannot be read, or was not written by a monitor.
        """
        if self._path is None:
            return {}
        try:
            content = msgspec.json.decode(self._path.read_bytes(), type=_Content)
        except FileNotFoundError:
            return {}
        except (OSError, msgspec.MsgspecError) as error:
            raise LinkError(
                f"{self._path}: cannot be used: {error}. Move it away to start without it: pairs that a command has"
                " taken out are then not let work again"
            ) from error
        if content.version != VERSION:
            raise LinkError(f"{self._path}: has version {content.version}, and this gapconn knows version {VERSION}")
        return content.pairs

    def save(self, pairs: dict[str, PairMemory]) -> None:
        """Store this in the place of what was stored.

        Raises:
            LinkError: it cannot be written.
        """
        if self._path is None:
            return
        temporary = ""
        try:
            descriptor, temporary = tempfile.mkstemp(prefix=f".{self._path.name}.", dir=self._path.parent)
            with open(descriptor, "wb") as file:
                file.write(msgspec.json.encode(_Content(VERSION, pairs)))
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, self._path)
        except OSError as error:
            if temporary:
                Path(temporary).unlink(missing_ok=True)
            raise LinkError(f"{self._path}: cannot be written: {error}") from error
