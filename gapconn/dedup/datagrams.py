"""Inputs and output as datagrams: what two egresses send to this address becomes one stream. State is in memory."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable, Mapping

import attrs
import trio
from structlog.typing import FilteringBoundLogger

from gapconn.dedup.config import DedupFile
from gapconn.dedup.deduplicator import Run, UnidentifiedError, WindowDeduplicator
from gapconn.dedup.repeats import only_rows
from gapconn.errors import DedupError
from gapconn.plugins import Context
from gapconn.record import Batch, Records
from gapconn.sinks import Delivery
from gapconn.sinks.udp import UdpSink, UdpSinkConfig
from gapconn.sources.udp import UdpSource, UdpSourceConfig

BATCHES_WAITING = 16
"""Batches that wait for the output; beyond it the kernel's buffers fill, and what it drops is counted."""
FLUSH_TIMEOUT_S = 2.0


@attrs.define
class _Outlet:
    """What a source of one link writes to."""

    link: str
    deduplicator: WindowDeduplicator[int]
    channel: trio.MemorySendChannel[Delivery]
    batch_bytes: int = 256 * 1024
    batch_bytes_max: int = 1024 * 1024
    flush_timeout_s: float = FLUSH_TIMEOUT_S

    async def send(self, batch: Batch, on_sent: Callable[[], None] | None = None) -> None:
        for part in batch.parts:
            if isinstance(part, Records):
                passing = self._passing(part)
                if any(passing):
                    kept = Batch(origin=batch.origin, parts=[only_rows(part, passing)])
                    await self.channel.send(
                        Delivery(epoch=0, message=0, lost_before=0, batch=kept, accept=lambda: None)
                    )
        if on_sent is not None:
            on_sent()

    async def flush(self) -> None:
        await trio.lowlevel.checkpoint()

    def _passing(self, records: Records) -> list[bool]:
        rows = range(len(records.values))
        nothing = [None] * len(rows)
        # All links are mirrors of one stream: the target is the same for all, and so are the ids.
        run = Run(link=self.link, target="", items=rows, keys=nothing, values=records.values, headers=nothing)
        try:
            outgoing = self.deduplicator.take(run, time.monotonic())
        except UnidentifiedError as error:
            raise DedupError(
                f"a datagram of link {self.link} has no id (dedup.identity), and dedup.unidentified is fail"
            ) from error
        self.deduplicator.window.close_chunk(time.time())
        passing = [False] * len(rows)
        for each in outgoing:
            passing[each.item] = True
        return passing


@attrs.define
class _Inlet:
    """What the sink reads from."""

    channel: trio.MemoryReceiveChannel[Delivery]
    contexts: Mapping[str, Context]
    log: FilteringBoundLogger
    records: int = 0

    def __aiter__(self) -> AsyncIterator[Delivery]:
        return self

    async def __anext__(self) -> Delivery:
        try:
            delivery = await self.channel.receive()
        except trio.EndOfChannel:
            raise StopAsyncIteration from None
        self.records += delivery.batch.record_count
        return delivery

    def lost(self, *, stream: str, partition: int | None = None, first: int, last: int, reason: str) -> None:
        self.log.warning("datagrams_lost", stream=stream, datagrams=last - first + 1, reason=reason)


class DatagramDedup:
    """Receives on the addresses of all inputs, and sends what is new."""

    def __init__(self, file: DedupFile, context: Context, deduplicator: WindowDeduplicator[int]) -> None:
        self._file = file
        self._context = context
        self._deduplicator = deduplicator
        to_sink, self._from_sources = trio.open_memory_channel[Delivery](BATCHES_WAITING)
        self._to_sink = to_sink
        self._sources = trio.CancelScope()
        self.inlet = _Inlet(self._from_sources, {}, context.log)

    def stop(self) -> None:
        """Receive no more; what was received is sent."""
        self._sources.cancel()

    async def run(self) -> None:
        """Work until `stop`.

        Raises:
            DedupError: a datagram has no id, and that is not to be.
            SourceError: an address cannot be listened on.
        """
        assert isinstance(self._file.output, UdpSinkConfig)
        sink = UdpSink(self._file.output, self._context)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(sink.run, self.inlet)
            with self._sources:
                async with self._to_sink, trio.open_nursery() as sources:
                    for number, each in enumerate(self._file.inputs):
                        assert isinstance(each.config, UdpSourceConfig)
                        status: dict[str, object] = {}
                        context = attrs.evolve(
                            self._context, log=self._context.log.bind(input=each.link), status=status, epoch=number
                        )
                        self._context.status[f"input {number}"] = status
                        outlet = _Outlet(each.link, self._deduplicator, self._to_sink)
                        sources.start_soon(UdpSource(each.config, context).run, outlet)
