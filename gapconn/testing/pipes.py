"""A source or a sink on its own: an outlet that remembers, an inlet that plays a script, and a pipe between the two."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterable

import attrs
import structlog
import trio

from gapconn.errors import SourceError
from gapconn.plugins import Context
from gapconn.protocol.positions import Standing
from gapconn.protocol.progress import Progress
from gapconn.record import Batch, Records, decode_batch, encode_batch
from gapconn.sinks import Delivery, Reached


def make_context(*, link: str = "test", link_id: int = 1, epoch: int = 1) -> Context:
    """A context as the services make it, with a plain logger."""
    return Context(link=link, link_id=link_id, epoch=epoch, log=structlog.get_logger())


def _crossed(batch: Batch, limit: int) -> Batch:
    """`batch` after encoding and decoding, as a link would carry it."""
    body = bytearray()
    encode_batch(batch, body, 0)
    if len(body) > limit:
        raise SourceError(f"a batch of {len(body)} bytes is larger than the limit of {limit} bytes")
    return decode_batch(memoryview(bytes(body)))


@attrs.define(kw_only=True)
class RecordingOutlet:
    """An outlet that keeps what it is given, as it would arrive; every batch counts as sent at once."""

    batch_bytes: int = 64 * 1024
    batch_bytes_max: int = 1 << 20
    flush_timeout_s: float = 5.0
    batches: list[Batch] = attrs.field(factory=list)
    _arrived: trio.Condition = attrs.field(factory=trio.Condition)

    async def send(self, batch: Batch, on_sent: Callable[[], None] | None = None) -> None:
        await trio.lowlevel.checkpoint()
        self.batches.append(_crossed(batch, self.batch_bytes_max))
        if on_sent is not None:
            on_sent()
        async with self._arrived:
            self._arrived.notify_all()

    async def flush(self) -> None:
        await trio.lowlevel.checkpoint()

    async def wait_until(self, condition: Callable[[list[Batch]], bool]) -> None:
        """Wait until `condition` holds for the batches so far."""
        async with self._arrived:
            while not condition(self.batches):
                await self._arrived.wait()


@attrs.define(kw_only=True)
class ScriptedInlet:
    """An inlet that plays batches (or whole deliveries) and notes what the sink accepted and reported lost."""

    script: Iterable[Batch | Delivery]
    accepted: list[int] = attrs.field(factory=list)
    """Message numbers, in the order in which the sink accepted them."""
    losses: list[tuple[str, int, int, str]] = attrs.field(factory=list)
    """stream, first, last, reason."""
    declined: list[int] = attrs.field(factory=list)
    """Message numbers of the late deliveries that the sink could not use."""
    finds: list[tuple[str, int, int]] = attrs.field(factory=list)
    """stream, first, last: reported lost before, and there after all."""
    noted: int = 0
    """How many of the losses the sink has asked to note."""

    def __aiter__(self) -> AsyncIterator[Delivery]:
        return _Player(self)

    def delivery(
        self, batch: Batch, *, message: int, epoch: int = 1, lost_before: int = 0, late: bool = False
    ) -> Delivery:
        """A delivery of `batch` whose acceptance this inlet notes."""
        crossed = _crossed(batch, 1 << 30)
        return Delivery(
            epoch=epoch,
            message=message,
            lost_before=lost_before,
            batch=crossed,
            late=late,
            reached=_reached(crossed, epoch=epoch, message=message, late=late),
            accept=lambda: self.accepted.append(message),
            decline=lambda: self.declined.append(message),
        )

    def lost(self, *, stream: str, partition: int | None = None, first: int, last: int, reason: str) -> None:
        self.losses.append((stream if partition is None else f"{stream}/{partition}", first, last, reason))

    def found(self, *, stream: str, first: int, last: int) -> None:
        self.finds.append((stream, first, last))

    async def note_losses(self) -> None:
        await trio.lowlevel.checkpoint()
        self.noted = len(self.losses)


def _reached(batch: Batch, *, epoch: int, message: int, late: bool = False) -> Reached:
    """Where an egress would stand behind this message, the records of those before it not counted."""
    positions = {
        (part.stream, part.partition): Standing(epoch, 0, part.positions[-1])
        for part in batch.parts
        if isinstance(part, Records) and part.positions
    }
    next_message = 0 if late else message + 1
    return Reached(
        progress=Progress(epoch=epoch, next_message=next_message, next_record=batch.record_count, positions=positions),
        late=((epoch, message),) if late else (),
    )


class _Player:
    """Plays a script once. Not an async generator: a sink may leave its loop at any time, and those must be closed."""

    def __init__(self, inlet: ScriptedInlet) -> None:
        self._inlet = inlet
        self._items = enumerate(inlet.script)

    def __aiter__(self) -> AsyncIterator[Delivery]:
        return self

    async def __anext__(self) -> Delivery:
        await trio.lowlevel.checkpoint()
        for number, item in self._items:
            return item if isinstance(item, Delivery) else self._inlet.delivery(item, message=number)
        raise StopAsyncIteration


class Pipe:
    """A perfect or lossy link in memory: an outlet and an inlet in one, to run a source against a sink.

    Args:
        drop: Called with each message number; True loses that message.
        buffer_batches: How many batches are held between the two.
        epoch: The session epoch of the deliveries.
    """

    def __init__(
        self, *, drop: Callable[[int], bool] = lambda number: False, buffer_batches: int = 4, epoch: int = 1
    ) -> None:
        self.batch_bytes = 64 * 1024
        self.batch_bytes_max = 1 << 20
        self.flush_timeout_s = 5.0
        self.losses: list[tuple[str, int, int, str]] = []
        self.accepted: list[int] = []
        self._drop = drop
        self._epoch = epoch
        self._sent = 0
        self._lost_before = 0
        self._send, self._receive = trio.open_memory_channel[Delivery](buffer_batches)

    async def send(self, batch: Batch, on_sent: Callable[[], None] | None = None) -> None:
        number, self._sent = self._sent, self._sent + 1
        if self._drop(number):
            self._lost_before += 1
            await trio.lowlevel.checkpoint()
        else:
            lost_before, self._lost_before = self._lost_before, 0
            await self._send.send(
                Delivery(
                    epoch=self._epoch,
                    message=number,
                    lost_before=lost_before,
                    batch=_crossed(batch, self.batch_bytes_max),
                    reached=_reached(batch, epoch=self._epoch, message=number),
                    accept=lambda: self.accepted.append(number),
                )
            )
        if on_sent is not None:
            on_sent()

    async def flush(self) -> None:
        await trio.lowlevel.checkpoint()

    def close(self) -> None:
        """No more batches: the sink's loop ends after those that are held."""
        self._send.close()

    def __aiter__(self) -> AsyncIterator[Delivery]:
        return self._receive

    def lost(self, *, stream: str, partition: int | None = None, first: int, last: int, reason: str) -> None:
        self.losses.append((stream if partition is None else f"{stream}/{partition}", first, last, reason))

    def found(self, *, stream: str, first: int, last: int) -> None:
        """Nothing comes late here."""

    async def note_losses(self) -> None:
        await trio.lowlevel.checkpoint()
