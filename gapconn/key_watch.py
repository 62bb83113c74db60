"""The key file of a running end: a change of it is noticed, and a file that cannot be used changes nothing."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import trio
from structlog.typing import FilteringBoundLogger

from gapconn.errors import ConfigError
from gapconn.keys import Stamp, load_keys, overview
from gapconn.protocol.security import Keys

WATCH_INTERVAL_S = 1.0


class KeyWatch:
    """Reads a key file, and again whenever it changes.

    Attributes:
        keys: What was read last and could be used.
        problem: Why the file as it is now cannot be used; empty if it can. The next start would fail for it.
    """

    def __init__(self, path: Path, *, log: FilteringBoundLogger) -> None:
        """Read the file for the first time; blocks.

        Raises:
            ConfigError: it cannot be used.
        """
        self.problem = ""
        self._path = path
        self._log = log
        self._stamp = Stamp.of(path)  # before it is read: what is written meanwhile is read again
        self.keys = load_keys(path)

    def overview(self) -> dict[str, Any]:
        """What may be shown of the keys: fingerprints by id."""
        return {str(key_id): text for key_id, text in overview(self.keys).items()}

    async def run(self, use: Callable[[Keys], None]) -> None:
        """Look at the file every `WATCH_INTERVAL_S`, and give its keys to `use` when they have changed."""
        while True:
            await trio.sleep(WATCH_INTERVAL_S)
            stamp = await trio.to_thread.run_sync(Stamp.of, self._path)
            if stamp == self._stamp:
                continue
            self._stamp = stamp
            try:
                keys = await trio.to_thread.run_sync(load_keys, self._path)
            except ConfigError as error:
                self.problem = str(error)
                self._log.error("key_file_unusable", problem=self.problem, now="the keys read before stay in use")
                continue
            self.problem = ""
            if keys != self.keys:
                self.keys = keys
                use(keys)
                self._log.info("keys_changed", keys=self.overview(), key_in_use=keys.use)
