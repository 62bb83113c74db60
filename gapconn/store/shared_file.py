"""A file of a link's state that several processes have open at a time."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar, Self

from gapconn.store.database import StateFile


class SharedFile:
    """What one process leaves for another. Every error is a `LinkError` that names the file."""

    role: ClassVar[str]
    """The file is `{link}.{role}.sqlite`."""
    tables: ClassVar[Sequence[str]]
    """The SQL that makes its tables."""
    when_lost: ClassVar[str]
    """What happens without it, for the error messages."""

    def __init__(self, file: StateFile) -> None:
        self._file = file

    @classmethod
    def open(cls, directory: Path, link: str, link_id: int) -> Self:
        """Open the file of this link; the first time, make it.

        Raises:
            LinkError: it cannot be used: the message names the file and says what to do.
        """
        return cls(
            StateFile(
                directory,
                link=link,
                link_id=link_id,
                role=cls.role,
                tables=cls.tables,
                synchronous="FULL",
                when_lost=cls.when_lost,
                shared=True,
            )
        )

    def close(self) -> None:
        """Let go of the file. May be called again."""
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
