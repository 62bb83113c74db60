"""Waiting between tries, for everything that is tried again for ever."""

from __future__ import annotations

import random

import attrs


@attrs.define(kw_only=True)
class Backoff:
    """Delays that double up to a limit, each shortened by a random part so that many clients do not move in step."""

    first_s: float = 0.2
    limit_s: float = 15.0
    tries: int = 0
    """Tries since the last success."""

    def failed(self) -> float:
        """Count a failed try; how long to wait before the next, in seconds."""
        delay: float = min(self.limit_s, self.first_s * 2 ** min(self.tries, 16))
        self.tries += 1
        return delay * random.uniform(0.75, 1.0)

    def succeeded(self) -> None:
        """Forget the failures: the next delay is the first one again."""
        self.tries = 0
