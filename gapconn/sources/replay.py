"""Reading again what was lost on the way: what a source offers beside `run` if its origin can be asked a second time.

Kafka's topics can; a socket, a pipe, and a directory whose files were put away cannot. A third party adds a replay by
an entry point in the group `gapconn.replays` whose name is the `type` in `[source]`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from gapconn.plugins import Context, PluginRegistry
from gapconn.protocol.envelope import Span
from gapconn.record import Batch

REPLAY_SPANS_BYTES_MAX = 6_000
"""What the spans of one repair may take on the wire: an ingress keeps that room free in a message."""


class ReplayOutlet(Protocol):
    """What a replay writes to: the running ingress."""

    @property
    def batch_bytes(self) -> int:
        """As `gapconn.sources.Outlet` has it."""

    @property
    def batch_bytes_max(self) -> int:
        """As `gapconn.sources.Outlet` has it."""

    async def send_repair(self, batch: Batch | None, spans: Sequence[Span]) -> None:
        """Send `batch`, which holds all records that the source has in `spans`; None when it has none there.

        Waits while the link is busy.
        """

    def cannot_tell(self, problem: str) -> None:
        """Say that some of what was wanted was neither sent nor found to be gone, and why."""


class Replay(Protocol):
    """Reads what was read before. It is made by `Class(config, context)`, with the configuration of the source."""

    def __init__(self, config: Any, context: Context) -> None: ...

    async def between(self, stream: str, from_ms: int, to_ms: int) -> list[Span]:
        """The positions of records of `stream` of this time, in milliseconds since 1970; `to_ms` is excluded.

        Raises:
            SourceError: they cannot be told.
        """

    async def run(self, wanted: Sequence[Span], outlet: ReplayOutlet) -> None:
        """Send everything in `wanted` to the outlet, or say that it is gone. `count` and `gone` of these mean nothing.

        Raises:
            SourceError: trying again cannot help.
        """


REPLAYS: PluginRegistry[type[Replay]] = PluginRegistry(
    group="gapconn.replays", builtin={"kafka": "gapconn.sources.kafka_replay:KafkaReplay"}
)
