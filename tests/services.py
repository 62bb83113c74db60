"""An ingress or an egress in the test's own process, with a source or a sink that is one function."""

from __future__ import annotations

import signal
import socket
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, ClassVar, cast

import attrs
import structlog
import trio
from trio.testing import wait_all_tasks_blocked

from gapconn.config import Link, Pair, SinkSection, SourceSection
from gapconn.config import Spool as SpoolSection
from gapconn.egress import Egress
from gapconn.ingress import Ingress, burst_datagrams_at
from gapconn.link.udp import UdpReceiver, UdpSender
from gapconn.plugins import Carries, Context
from gapconn.protocol.envelope import Copy, Run, Span
from gapconn.protocol.receiver import LinkReceiver, ReceiverSettings
from gapconn.protocol.sender import LinkSender, SenderSettings
from gapconn.protocol.wire import Burst, Header, Slab
from gapconn.record import Batch, Records, encode_batch
from gapconn.repeats import Repeats
from gapconn.service import resumed
from gapconn.sinks import Delivery, Inlet
from gapconn.sources import Outlet
from gapconn.store.state import EgressState
from gapconn.testing.memory_gap import datagrams_of
from gapconn.units import Address, BitsPerSecond, Bytes, Seconds

SourceFunction = Callable[[Outlet], Awaitable[None]]
SinkFunction = Callable[[Inlet], Awaitable[None]]

STREAM = "numbers"

HEADER_BYTES = 28
"""IP and UDP headers."""


@attrs.frozen
class NoKeys:
    """A configuration section without keys."""


def source_of(run: SourceFunction) -> SourceSection:
    """A source that does what the function does."""

    class FunctionSource:
        Config: ClassVar[type[Any]] = NoKeys
        carries: ClassVar[Carries] = Carries.RECORDS

        def __init__(self, config: Any, context: Context) -> None: ...

        async def run(self, outlet: Outlet) -> None:
            await run(outlet)

    return SourceSection(type="function", config=NoKeys(), plugin_class=FunctionSource)


def sink_of(run: SinkFunction) -> SinkSection:
    """A sink that does what the function does."""

    class FunctionSink:
        Config: ClassVar[type[Any]] = NoKeys
        accepts: ClassVar[frozenset[Carries]] = frozenset(Carries)

        def __init__(self, config: Any, context: Context) -> None: ...

        async def run(self, inlet: Inlet) -> None:
            await run(inlet)

    return SinkSection(type="function", config=NoKeys(), plugin_class=FunctionSink)


def link(state_directory: Path, *, port: int = 7400, rate_bps: int = 1_000_000_000, **values: Any) -> Link:
    """A link with short timers. Durations and sizes are given as plain numbers."""
    kinds: dict[str, Any] = {
        "heartbeat_interval": Seconds,
        "interruption_timeout": Seconds,
        "hold": Seconds,
        "shutdown_grace": Seconds,
        "batch_bytes": Bytes,
        "message_bytes_max": Bytes,
        "reassembly_bytes_max": Bytes,
        "sink_buffer_bytes": Bytes,
        "receive_buffer_bytes": Bytes,
    }
    given: dict[str, Any] = {"heartbeat_interval": 0.1, "hold": 0.05, **values}
    return Link(
        name="orders",
        address=Address("127.0.0.1", port),
        rate=BitsPerSecond(rate_bps),
        state_directory=str(state_directory),
        **{key: kinds.get(key, lambda value: value)(value) for key, value in given.items()},
    )


def pair(
    link: Link,
    *,
    source: SourceSection | None = None,
    sink: SinkSection | None = None,
    spool: SpoolSection | None = None,
) -> Pair:
    """A pair without an admin endpoint, and without a spool unless it is given."""
    return Pair(link=link, source=source, sink=sink, spool=spool)


def numbers(first: int, count: int = 1, *, size_bytes: int = 16, previous: int | None = None) -> Batch:
    """A batch of records whose positions are numbers, and whose values begin with them."""
    if previous is None:
        previous = first - 1
    values: list[bytes | None] = [
        number.to_bytes(8, "big").ljust(size_bytes, b".") for number in range(first, first + count)
    ]
    return Batch(
        parts=[Records(stream=STREAM, previous=previous, positions=list(range(first, first + count)), values=values)]
    )


def numbers_in(batch: Batch) -> list[int]:
    """The positions in a batch, each checked against its value."""
    found = []
    for part in batch.parts:
        assert isinstance(part, Records)
        for position, value in zip(part.positions, part.values, strict=True):
            assert value is not None
            assert int.from_bytes(value[:8], "big") == position
            found.append(position)
    return found


@attrs.define
class RecordingSocket:
    """In place of a `UdpSender`: notes what it is given, and when; stalls when told to."""

    gso: bool = False
    stalls: int = 0
    refusals: Counter[str] = attrs.field(factory=Counter)
    room: int | None = None
    """Bursts that it takes before it stalls; None takes all."""
    failure: Exception | None = None
    """What it raises."""
    sent: list[tuple[float, bytes]] = attrs.field(factory=list)
    """Time and datagram."""
    _changed: trio.lowlevel.ParkingLot = attrs.field(factory=trio.lowlevel.ParkingLot)

    async def send(self, burst: Burst) -> None:
        if self.failure is not None:
            raise self.failure
        while self.room == 0:
            await self._changed.park()
        if self.room is not None:
            self.room -= 1
        self.sent += [(trio.current_time(), datagram) for datagram in datagrams_of(burst)]
        self._changed.unpark_all()

    def send_now(self, burst: Burst) -> bool:
        if self.failure is not None or self.room == 0:
            return False
        if self.room is not None:
            self.room -= 1
        self.sent += [(trio.current_time(), datagram) for datagram in datagrams_of(burst)]
        return True

    def make_room(self, bursts: int | None = None) -> None:
        """Take so many bursts more; None takes all from now on."""
        self.room = bursts
        self._changed.unpark_all()

    @property
    def datagrams(self) -> list[bytes]:
        return [datagram for _, datagram in self.sent]

    def close(self) -> None: ...


def throw(datagrams: list[bytes], to: Address) -> None:
    """Send datagrams to an address, one by one."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        for datagram in datagrams:
            sender.sendto(datagram, (to.host, to.port))


async def until(condition: Callable[[], bool]) -> None:
    """Wait until `condition` holds. Polls: what it asks for has no event."""
    while not condition():  # noqa: ASYNC110 - see above
        await trio.sleep(0.005)


async def signals_are_taken() -> None:
    """A service in this process has come so far that a signal does not end the process."""
    await until(lambda: signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL)
    await wait_all_tasks_blocked()


class TaskNames(trio.abc.Instrument):
    """The names of all tasks that ran."""

    def __init__(self) -> None:
        self.seen: set[str] = set()

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        self.seen.add(task.name)


def ingress(
    way: Link, source: SourceFunction, *, room: int | None = None, known: bool = True, repeats: Repeats | None = None
) -> Ingress:
    """An ingress on a recording socket; `known`: with stored state, so that it need not announce itself."""
    core = LinkSender(
        SenderSettings(
            link_id=way.id,
            epoch=2,
            previous_epoch=int(known),
            heartbeat_interval_s=way.heartbeat_interval_s,
            interruption_timeout_s=way.interruption_timeout_s,
            mtu_bytes=way.mtu_bytes,
            message_bytes_max=way.message_bytes_max,
            burst_datagrams_max=burst_datagrams_at(way),
        )
    )
    section = source_of(source)
    udp = cast("UdpSender", RecordingSocket(room=room))
    return Ingress(pair(way, source=section), section, core, udp, header_bytes=HEADER_BYTES, repeats=repeats)


def socket_of(end: Ingress) -> RecordingSocket:
    return cast("RecordingSocket", end.socket)


class Session:
    """What an ingress would send, kept until the test throws it at the egress."""

    def __init__(self, way: Link, epoch: int = 2, previous_epoch: int = 1) -> None:
        self._core = LinkSender(
            SenderSettings(
                link_id=way.id,
                epoch=epoch,
                previous_epoch=previous_epoch,
                heartbeat_interval_s=way.heartbeat_interval_s,
                interruption_timeout_s=way.interruption_timeout_s,
            )
        )
        self.kept: dict[int, bytes] = {}
        """By number: the messages, to be sent again."""
        self._core.keep = self._keep
        self.start = [datagram for burst in self._core.start(0.0) for datagram in datagrams_of(burst)]
        self._now_s = 0.0

    def batch(self, batch: Batch) -> list[bytes]:
        """The datagrams of the next message."""
        runs = [
            Run(part.stream, part.partition, part.previous, part.positions[0], part.positions[-1], len(part.positions))
            for part in batch.parts
            if isinstance(part, Records) and part.positions
        ]
        return self.message(runs, batch.record_count, lambda buffer, offset: encode_batch(batch, buffer, offset))

    def body(self, body: bytes, **compressed: Any) -> list[bytes]:
        """The datagrams of a message with this body, whatever it is; `compressed` is what is said of that."""

        def write(buffer: bytearray, offset: int) -> None:
            buffer[offset:] = body

        return self.message([], 1, write, **compressed)

    def message(
        self, runs: list[Run], records: int, write: Callable[[bytearray, int], None], **compressed: Any
    ) -> list[bytes]:
        self._core.compose(runs, records, write, self._now_s, **compressed)
        return self._datagrams()

    def repair(self, batch: Batch | None, *spans: Span) -> list[bytes]:
        """The datagrams of a repair with these spans."""

        def write(buffer: bytearray, offset: int) -> None:
            if batch is not None:
                encode_batch(batch, buffer, offset)

        self._core.compose_repair(list(spans), write, self._now_s)
        return self._datagrams()

    def repeat(self, datagrams: list[bytes]) -> list[bytes]:
        """The message of these datagrams again, in new ones."""
        (number,) = {Header.unpack(memoryview(datagram)).message for datagram in datagrams}
        self._core.begin_repeat(number, self.kept[number], burst_datagrams_max=len(datagrams))
        return self._datagrams(self._core.next_repeat_burst)

    def _datagrams(self, next_burst: Callable[[Slab], Burst | None] | None = None) -> list[bytes]:
        datagrams: list[bytes] = []
        while (burst := (next_burst or self._core.next_burst)(Slab())) is not None:
            datagrams += datagrams_of(burst)
        return datagrams

    def numbers(self, *spans: tuple[int, int]) -> list[bytes]:
        """A message for each span (first, count) of numbers."""
        return [datagram for span in spans for datagram in self.batch(numbers(*span))]

    def copy(self, copies: list[Copy], message: bytes = b"") -> list[bytes]:
        """A message of an earlier session, or what is gone of it."""
        self._core.compose_copy(copies, message, self._now_s)
        return self._datagrams()

    def _keep(self, number: int, message: bytearray) -> None:
        self.kept[number] = bytes(message)

    def heartbeat(self) -> list[bytes]:
        self._now_s += self._core.settings.heartbeat_interval_s
        return [datagram for burst in self._core.handle_timeout(self._now_s) for datagram in datagrams_of(burst)]

    def stop(self) -> list[bytes]:
        return [datagram for burst in self._core.stop() for datagram in datagrams_of(burst)]


@asynccontextmanager
async def opened(way: Link, sink: SinkFunction, spool_section: SpoolSection | None = None) -> AsyncIterator[Egress]:
    """An egress with what `serve_egress` would give it, not running."""
    both = pair(way, sink=sink_of(sink), spool=spool_section)
    assert both.sink is not None
    state = EgressState.open(Path(way.state_directory), way.name, way.id)
    spool, resume = resumed(both, state)
    udp = UdpReceiver(socket.AF_INET, ("127.0.0.1", 0), log=structlog.get_logger(), buffer_bytes=1 << 22)
    core = LinkReceiver(
        ReceiverSettings(
            link_id=way.id,
            interruption_timeout_s=way.interruption_timeout_s,
            hold_s=way.hold_s,
            available=way.order == "available",
            reassembly_bytes_max=way.reassembly_bytes_max,
            message_bytes_max=way.message_bytes_max,
        ),
        now_s=trio.current_time(),
        resume=resume,
    )
    try:
        yield Egress(both, both.sink, core, udp, state, resume=resume, spool=spool)
    finally:
        udp.close()
        if spool is not None:
            spool.close()
        state.close()


@asynccontextmanager
async def running(way: Link, sink: SinkFunction, spool: SpoolSection | None = None) -> AsyncIterator[Egress]:
    """An egress that runs; at the end of the block it is stopped in order."""
    async with opened(way, sink, spool) as egress:
        with trio.fail_after(60):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(egress.run)
                yield egress
                egress.stop()


@attrs.define
class Taking:
    """A sink that notes what it is given, and accepts it unless told otherwise."""

    accepting: bool = True
    deliveries: list[Delivery] = attrs.field(factory=list)
    going: trio.Event | None = None
    """It takes nothing before this is set."""

    async def __call__(self, inlet: Inlet) -> None:
        if self.going is not None:
            await self.going.wait()
        async for delivery in inlet:
            self.deliveries.append(delivery)
            if self.accepting:
                delivery.accept()

    @property
    def numbers(self) -> list[int]:
        return [number for delivery in self.deliveries for number in numbers_in(delivery.batch)]


async def feed(egress: Egress, datagrams: Iterable[bytes]) -> None:
    """Throw datagrams, and wait until the egress has dealt with them."""
    thrown = list(datagrams)
    due = egress.core.counters.datagrams + len(thrown)
    throw(thrown, egress.socket.address)
    await until(lambda: egress.core.counters.datagrams >= due)
    await wait_all_tasks_blocked()
