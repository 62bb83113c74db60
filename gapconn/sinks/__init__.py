"""Where data goes: one file each, one small class to implement (`Sink`).

A third party adds a sink by an entry point in the group `gapconn.sinks`: its name is the `type` in `[sink]`, its value
the class.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any, ClassVar, Protocol

import attrs

from gapconn.plugins import Carries, Context, PluginRegistry
from gapconn.protocol.progress import Progress
from gapconn.ranges import Range
from gapconn.record import Batch


def _nothing() -> None:
    """For deliveries that are not late."""


@attrs.frozen(kw_only=True)
class Reached:
    """Where an egress stands when a target has a delivery and all before it (spec/exactly_once.md)."""

    progress: Progress
    """Of a delivery: its positions are those that changed with it. What a sink resumes with has all of them."""
    repaired: Mapping[tuple[str, int], tuple[Range, ...]] = attrs.field(factory=dict)
    """By stream and partition: what the egress had missed, and the target has now. A sink resumes with that of its last
    transaction: all before is in the gap journal (`Inlet.note_losses`)."""
    late: tuple[tuple[int, int], ...] = ()
    """Epochs and numbers of messages that the egress had missed, and the target has now. They do not move the progress
    but for the positions. What a sink resumes with is, as above, that of its last transaction."""


@attrs.frozen(kw_only=True)
class Delivery:
    """One batch that arrived whole, without what was delivered before; in order, unless it is `late` or a `repair`."""

    epoch: int
    """The ingress session that sent it. A new one: the ingress was restarted, and streams of older epochs are over."""
    message: int
    """Its number in the session; dense."""
    lost_before: int
    """Messages lost directly before this one (0 on a clean link)."""
    batch: Batch
    repair: bool = False
    """These records were lost before, and come out of order: the source sent them again."""
    late: bool = False
    """It was reported as lost before, and comes out of order: the link has brought it after all."""
    decline: Callable[[], None] = _nothing
    """To be called in place of `accept` where nothing can be done with a late delivery any more, such as a piece of a
    byte stream that was broken off: it is done with, and what is in it stays reported as lost."""
    reached: Reached | None = None
    """What a sink stores beside the data if its target can have both or neither. None: the sink was not asked to
    resume, as in tests of a sink on its own."""
    accept: Callable[[], None]
    """To be called in Trio's thread once the target has the batch for good. Order does not matter to the caller; the
    egress stores its progress up to the first delivery that was not accepted."""


class Inlet(Protocol):
    """What a sink reads from: the rest of the egress."""

    def __aiter__(self) -> AsyncIterator[Delivery]:
        """Deliveries in order. Ends when the egress was asked to stop and everything held was handed over."""

    def lost(self, *, stream: str, partition: int | None = None, first: int, last: int, reason: str) -> None:
        """Report that positions `first` to `last` (both included) of `stream` will never reach the target.

        For what only the sink can know, such as a hole in a byte stream. It is logged, counted, and in the gap journal.
        With a `partition`, the positions are those of records, which the source can be asked to send again.
        """

    def found(self, *, stream: str, first: int, last: int) -> None:
        """Report that the target has these after all, which were reported as lost."""

    async def note_losses(self) -> None:
        """Store in the gap journal what is missing, and what is missing no more; waits as long as that cannot be done.

        A sink that stores what its target has `Reached` awaits this before (GC-RPR-1); no other sink need.
        """


class Sink(Protocol):
    """A sink of batches. It is made by `Class(config, context)`.

    `run` returns after the inlet ended and all deliveries were accepted (or counted as lost). A target that is
    away is tried again with `gapconn.backoff.Backoff`, for ever; while `run` takes no deliveries, the egress
    spools to disk, and refuses the newest, counted, when that is full. What was not accepted is delivered again
    after a restart, so every delivery has to be accepted at some time, also one of which a part was reported as
    lost. `SinkError` only when trying again cannot help. On cancellation it stops at once: the grace time was
    spent.

    A sink whose target can store how far it has come in one piece with the data may have
    `async def resume(self) -> Reached | None`: what the target has `Reached`, asked once before the egress takes
    anything, and before `run`. It goes before the egress's own state (GC-ONCE-3). None: the target says nothing.
    """

    Config: ClassVar[type[Any]]
    """attrs class of the keys of `[sink]` beside `type`; its fields are made by `gapconn.config.option`."""
    accepts: ClassVar[frozenset[Carries]]

    def __init__(self, config: Any, context: Context) -> None: ...

    async def run(self, inlet: Inlet) -> None:
        """Write deliveries to the target until the inlet ends."""


SINKS: PluginRegistry[type[Sink]] = PluginRegistry(
    group="gapconn.sinks",
    builtin={
        "kafka": "gapconn.sinks.kafka_either:EitherKafkaSink",
        "udp": "gapconn.sinks.udp:UdpSink",
        "tcp": "gapconn.sinks.tcp:TcpSink",
        "files": "gapconn.sinks.files:FilesSink",
        "stdout": "gapconn.sinks.stdout:StdoutSink",
        "discard": "gapconn.sinks.discard:DiscardSink",
    },
)
