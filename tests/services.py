"""An ingress or an egress in the test's own process, with a source or a sink that is one function."""

from __future__ import annotations

import signal
import socket
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, ClassVar

import attrs
import trio
from trio.testing import wait_all_tasks_blocked

from gapconn.config import Link, Pair, SinkSection, SourceSection
from gapconn.plugins import Carries, Context
from gapconn.protocol.wire import Burst
from gapconn.record import Batch, Records
from gapconn.sinks import Inlet
from gapconn.sources import Outlet
from gapconn.testing.memory_gap import datagrams_of
from gapconn.units import Address, BitsPerSecond, Bytes, Seconds

SourceFunction = Callable[[Outlet], Awaitable[None]]
SinkFunction = Callable[[Inlet], Awaitable[None]]

STREAM = "numbers"


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
        "reorder_timeout": Seconds,
        "shutdown_grace": Seconds,
        "batch_bytes": Bytes,
        "message_bytes_max": Bytes,
        "reassembly_bytes_max": Bytes,
        "sink_buffer_bytes": Bytes,
        "receive_buffer_bytes": Bytes,
    }
    given: dict[str, Any] = {"heartbeat_interval": 0.1, "reorder_timeout": 0.05, **values}
    return Link(
        name="orders",
        address=Address("127.0.0.1", port),
        rate=BitsPerSecond(rate_bps),
        state_directory=str(state_directory),
        **{key: kinds.get(key, lambda value: value)(value) for key, value in given.items()},
    )


def pair(link: Link, *, source: SourceSection | None = None, sink: SinkSection | None = None) -> Pair:
    """A pair without an admin endpoint."""
    return Pair(link=link, source=source, sink=sink)


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
