"""Where data comes from: one file each, one small class to implement (`Source`).

A third party adds a source by an entry point in the group `gapconn.sources`: its name is the `type` in `[source]`, its
value the class.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Protocol

from gapconn.plugins import Carries, Context, PluginRegistry
from gapconn.protocol.envelope import Span
from gapconn.record import Batch


class Outlet(Protocol):
    """What a source writes to: the rest of the ingress."""

    @property
    def batch_bytes(self) -> int:
        """Aim for batches of about this many bytes of keys, values and data; smaller when data is scarce."""

    @property
    def batch_bytes_max(self) -> int:
        """A batch that encodes to more than this cannot cross. A source splits before, or reports the record."""

    @property
    def flush_timeout_s(self) -> float:
        """After a cancellation: how long a source may take to flush, acknowledge and close."""

    async def send(self, batch: Batch, on_sent: Callable[[], None] | None = None) -> None:
        """Hand over `batch`; waits while the link is busy (this is the back-pressure).

        `on_sent` is called in Trio's thread, in the order of the batches, when the kernel has taken every datagram of
        the batch. Only then may a source acknowledge the data to its origin (GC-DLV-1).

        Raises:
            SourceError: the batch is larger than `batch_bytes_max`.
        """

    async def flush(self) -> None:
        """Wait until the kernel has taken every datagram of every batch handed over so far."""


class Source(Protocol):
    """A source of batches. It is made by `Class(config, context)`.

    `run` reads until the data ends (it returns) or until it is cancelled: cancellation means "stop reading". A source
    that owes its origin an acknowledgement then flushes, acknowledges and closes in a shielded `finally`, within
    `outlet.flush_timeout_s`; what it does not acknowledge is read again by its successor.

    A source whose origin is away tries again with `gapconn.backoff.Backoff`, for ever, and logs and counts each try. It
    raises `SourceError` only when trying again cannot help; any other exception is a bug and ends the process.

    An ingress that is paused cancels `run`, and calls it again on the same object when it is resumed: positions and
    names of streams must not come a second time in a session. Nor in two sessions: a source whose data has no positions
    of its own counts from `context.first_position` (GC-DLV-42), with `context.origin` as the origin of its batches.
    """

    Config: ClassVar[type[Any]]
    """attrs class of the keys of `[source]` beside `type`; its fields are made by `gapconn.config.option`."""
    carries: ClassVar[Carries]
    """Where it depends on the configuration, the class also has `carries_with`: see `carried`."""

    def __init__(self, config: Any, context: Context) -> None: ...

    async def run(self, outlet: Outlet) -> None:
        """Read and send until the data ends or the task is cancelled."""


class RewindingSource(Source, Protocol):
    """A source that can go back in what it has acknowledged (GC-DLV-24)."""

    def rewind_to(self, positions: Mapping[str, int]) -> None:
        """Called directly before `run` is cancelled for a pause; later if somebody else had paused it before.

        Args:
            positions: By `cluster/stream/partition`, the next position that the egress misses; the cluster may be
                empty. What is not in it was never delivered.
        """

    def take_missed(self) -> list[Span]:
        """What was sent in vain and cannot be gone back to, as others have it now, since this was asked last."""


def carried(source: type[Source], config: Any) -> Carries:
    """What `source` carries with `config`: by its classmethod `carries_with(config)` if it has one, else `carries`."""
    carries_with: Callable[[Any], Carries] | None = getattr(source, "carries_with", None)
    return source.carries if carries_with is None else carries_with(config)


SOURCES: PluginRegistry[type[Source]] = PluginRegistry(
    group="gapconn.sources",
    builtin={
        "kafka": "gapconn.sources.kafka:KafkaSource",
        "udp": "gapconn.sources.udp:UdpSource",
        "tcp": "gapconn.sources.tcp:TcpSource",
        "files": "gapconn.sources.files:FilesSource",
        "stdin": "gapconn.sources.stdin:StdinSource",
        "generate": "gapconn.sources.generate:GenerateSource",
    },
)
