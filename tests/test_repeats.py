"""Messages that are sent again: when, from where, and in nobody's way. In logical time, with a real buffer on disk."""

from __future__ import annotations

import time
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any, TypeVar

import pytest
import structlog
import trio
from structlog.testing import capture_logs
from trio.testing import MockClock

from gapconn.admin.ingress_view import IngressView
from gapconn.config import Link
from gapconn.ingress import Ingress
from gapconn.protocol.events import MessageDelivered
from gapconn.protocol.receiver import LinkReceiver, ReceiverSettings
from gapconn.protocol.registry import DatagramType, DropReason
from gapconn.protocol.states import SenderState
from gapconn.protocol.wire import Header
from gapconn.record import decode_batch
from gapconn.repeats import Repeats, Wish
from gapconn.sources import Outlet
from gapconn.store.repeat_buffer import RepeatBuffer
from gapconn.testing.memory_gap import bursts_of
from tests.services import SourceFunction, ingress, link, numbers, numbers_in, socket_of

MIB = 1 << 20


T = TypeVar("T")


@pytest.fixture(autouse=True)
def time_stands_still_while_the_disk_works(monkeypatch: pytest.MonkeyPatch) -> None:
    """The logical clock does not see threads: it would run while one of them writes."""

    async def run_sync(work: Callable[..., T], *arguments: Any) -> T:
        await trio.lowlevel.checkpoint()
        return work(*arguments)

    monkeypatch.setattr(trio.to_thread, "run_sync", run_sync)


@asynccontextmanager
async def repeating(way: Link, source: SourceFunction, *, max_bytes: int = 64 * MIB) -> AsyncIterator[Ingress]:
    """An ingress with a repeat buffer that runs until the end of the block, or of its source."""
    with RepeatBuffer(Path(way.state_directory), link=way.name, link_id=way.id, max_bytes=max_bytes) as buffer:
        repeats = Repeats(buffer, way, epoch=2, log=structlog.get_logger())
        end = ingress(way, source, repeats=repeats)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(end.run)
            yield end
            nursery.cancel_scope.cancel()


def data(end: Ingress) -> list[tuple[float, Header]]:
    """When each datagram with data was sent, and its header."""
    headers = [(at_s, Header.unpack(datagram)) for at_s, datagram in socket_of(end).sent]
    return [(at_s, header) for at_s, header in headers if header.type == DatagramType.DATA]


def begun(end: Ingress) -> dict[int, list[float]]:
    """By message: when each sending of it began."""
    times: dict[int, list[float]] = defaultdict(list)
    for at_s, header in data(end):
        if header.symbol == 0:
            times[header.message].append(at_s)
    return times


async def eventually(condition: Callable[[], object]) -> None:
    """Wait until it holds."""
    with trio.fail_after(10_000):
        while not condition():  # noqa: ASYNC110 - what it asks for has no event
            await trio.sleep(0.1)


async def until_repeated(end: Ingress, messages: int) -> None:
    """Wait until so many messages were sent again."""
    await eventually(lambda: end.core.counters.messages_repeated >= messages)


def some(count: int, *, size_bytes: int = 5_000, pause_s: float = 0.0) -> SourceFunction:
    """Sends so many batches and waits."""

    async def run(outlet: Outlet) -> None:
        for number in range(count):
            await outlet.send(numbers(number, size_bytes=size_bytes))
            await trio.sleep(pause_s)
        await trio.sleep_forever()

    return run


@pytest.mark.req("GC-RPT-1", "GC-RPT-2")
async def test_every_message_is_sent_again_after_each_delay(tmp_path: Path, autojump_clock: MockClock) -> None:
    way = link(tmp_path, repeat=[3.0, 20.0], heartbeat_interval=1.0)
    async with repeating(way, some(30, pause_s=0.3)) as end:
        await until_repeated(end, 60)
        await trio.sleep(30)
        socket = socket_of(end)
    for number, (first, second, third) in list(begun(end).items())[:30]:
        assert second >= first + 3.0, number
        assert third >= first + 20.0, number
    bodies = defaultdict(set)
    for datagram in socket.datagrams:
        header = Header.unpack(datagram)
        if header.type == DatagramType.DATA:
            bodies[header.message, header.symbol].add(datagram[48:-8])
    assert {len(different) for different in bodies.values()} == {1}, "byte for byte the same"
    core = LinkReceiver(ReceiverSettings(link_id=way.id), now_s=0.0)
    for burst in bursts_of(socket.datagrams):
        core.receive(burst, 0.0)
    events = core.take_events()
    arrived = [
        n for e in events if isinstance(e, MessageDelivered) and e.body for n in numbers_in(decode_batch(e.body))
    ]
    assert arrived == list(range(30)), "an egress that missed nothing delivers each once"
    assert core.datagrams_missed == 0
    assert set(core.counters.dropped) == {DropReason.NOT_NEEDED}
    assert end.core.counters.messages_repeated >= 60


@pytest.mark.req("GC-RPT-3")
@pytest.mark.parametrize("rate_bps", [2_000_000, 100_000_000, 0])
async def test_what_is_new_waits_for_one_burst_of_a_repeat_at_the_most(
    tmp_path: Path, rate_bps: int, autojump_clock: MockClock
) -> None:
    """While thousands of repeats are due, bursts of new data come now and then: they go first."""
    way = link(tmp_path, rate_bps=rate_bps, repeat=[0.5], heartbeat_interval=60.0)
    handed: list[tuple[float, int, int, int]] = []
    """When, which number, and how many datagrams were sent before and until it was sent."""
    size = 20 * way.mtu_bytes
    backlog = 30 if rate_bps == 2_000_000 else 200

    async def source(outlet: Outlet) -> None:
        for number in range(backlog):  # what is to be repeated
            await outlet.send(numbers(number, size_bytes=size))
        await outlet.flush()
        await trio.sleep(0.5)
        for number in range(backlog, backlog + 30):
            already = len(socket_of(end).sent)
            at_s = trio.current_time()
            await outlet.send(numbers(number, size_bytes=size))
            await outlet.flush()
            handed.append((at_s, number, already, len(socket_of(end).sent)))
            await trio.sleep(0.013)
        await trio.sleep_forever()

    async with repeating(way, source) as end:
        await until_repeated(end, backlog)
    most = end._pacer.spare_count(44, way.mtu_bytes - 28)
    sent = [(at_s, Header.unpack(datagram)) for at_s, datagram in socket_of(end).sent]
    message_s = 8 * 21 * way.mtu_bytes / rate_bps if rate_bps else 0.0
    for handed_at, number, already, done in handed:
        meanwhile = [(at_s, h) for at_s, h in sent[already:done] if h.type == DatagramType.DATA]
        own = [i for i, (_, header) in enumerate(meanwhile) if header.message == number]
        assert own[0] <= most, "one burst that was built just before"
        assert own == list(range(own[0], own[-1] + 1)), "nothing comes between"
        assert meanwhile[own[-1]][0] - handed_at <= 1.3 * message_s + 0.012
    old = Counter(header.message < backlog for _, header in sent[handed[0][2] : handed[-1][3]])
    assert old[True] > 40, "there were repeats all the time"


async def test_repeats_that_cannot_keep_up_are_dropped_and_told(tmp_path: Path, autojump_clock: MockClock) -> None:
    way = link(tmp_path, rate_bps=20_000_000, repeat=[30.0])

    async def source(outlet: Outlet) -> None:
        for number in range(400):
            await outlet.send(numbers(number, size_bytes=10_000))
            await outlet.flush()
        await trio.sleep_forever()

    with capture_logs() as log:
        async with repeating(way, source, max_bytes=MIB) as end:
            assert end.repeats is not None
            repeats = end.repeats
            await eventually(lambda: repeats.alarms)
            assert "cannot keep up" in IngressView(end).status()["repeats"]["alarms"][0]
            await until_repeated(end, 50)
            await trio.sleep(40)
            status = IngressView(end).status()["repeats"]
            await eventually(lambda: not repeats.alarms)
    assert status["dropped"] > 250
    assert status["dropped"] + len([1 for sent in begun(end).values() if len(sent) == 2]) >= 400
    assert status["disk_bytes"] <= MIB
    assert sum(entry["event"] == "repeats_dropped" for entry in log) >= 1


async def test_a_disk_that_is_too_slow_costs_repeats_and_no_time(
    tmp_path: Path, autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What does not fit into memory while the disk is written to, is not kept, and counted."""
    monkeypatch.setattr("gapconn.repeats.PENDING_BYTES_MAX", 0)
    way = link(tmp_path, repeat=[30.0], message_bytes_max=100_000, batch_bytes=50_000)
    going = trio.Event()

    async def source(outlet: Outlet) -> None:
        for number in range(20):
            await outlet.send(numbers(number, size_bytes=50_000))
        going.set()
        await trio.sleep_forever()

    with capture_logs() as log:
        async with repeating(way, source) as end:
            assert end.repeats is not None
            counters = end.repeats.counters
            await going.wait()
            await eventually(lambda: counters.kept + counters.not_kept >= 20)
            assert counters.not_kept > 0
            assert "too slow" in end.repeats.alarms[0]
    assert len(begun(end)) >= 20
    assert "not_repeatable" in [entry["event"] for entry in log]


@pytest.mark.parametrize(("repeat", "earliest_s", "times"), [([20.0, 100.0], 2.0, 3), ([], 1.0, 2)])
async def test_an_idle_link_repeats_sooner(
    tmp_path: Path, repeat: list[float], earliest_s: float, times: int, autojump_clock: MockClock
) -> None:
    way = link(tmp_path, repeat=repeat, repair_when_idle=True)
    async with repeating(way, some(10)) as end:
        await until_repeated(end, 10 * (times - 1))
        await trio.sleep(100)
    sent = [times for number, times in begun(end).items() if number < 10]
    assert Counter(map(len, sent)) == {times: 10}
    for first, second, *_ in sent:
        assert first + earliest_s <= second < first + earliest_s + 1.0
    if times == 3:
        assert all(10.0 <= last - first < 11.0 for first, _, last in sent), "a tenth of the delay"


async def test_an_orderly_end_does_not_wait_for_repeats(tmp_path: Path, autojump_clock: MockClock) -> None:
    way = link(tmp_path, repeat=[600.0])

    async def source(outlet: Outlet) -> None:
        for number in range(10):
            await outlet.send(numbers(number))

    with capture_logs() as log, trio.fail_after(100):
        async with repeating(way, source) as end:
            await eventually(lambda: end.core.state is SenderState.CLOSED)
            await trio.sleep(1)
            assert end.repeats is not None
            assert end.repeats.buffer.messages >= 10
            left = next(entry for entry in log if entry["event"] == "repeats_left")
            assert left["messages"] == end.repeats.buffer.messages
        async with repeating(way, some(0)) as end:
            await trio.sleep(1)
    assert ended(log) == [left["messages"]]


def ended(log: list[Any]) -> list[int]:
    """What starts said of the sessions before: the messages that were not repeated."""
    return [entry["messages_at_most"] for entry in log if entry["event"] == "repeats_ended"]


@pytest.mark.parametrize("repeat", [[5.0], [5.0, 30.0], []])
async def test_what_was_repeated_before_a_kill_is_not_called_missing(
    tmp_path: Path, repeat: list[float], autojump_clock: MockClock
) -> None:
    """However little time has passed, and also where nothing was to be repeated."""
    way = link(tmp_path, repeat=repeat)
    with capture_logs() as log:
        async with repeating(way, some(10)) as end:
            await until_repeated(end, 10 * len(repeat))
            await trio.sleep(3)
            assert end.repeats is not None
            assert end.repeats.buffer.messages >= 10
        async with repeating(link(tmp_path, repeat=[5.0]), some(0)):
            await trio.sleep(1)
    assert ended(log) == []


async def test_what_a_kill_kept_from_being_repeated_is_told_once_however_late_the_next_start(
    tmp_path: Path, autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    way = link(tmp_path, repeat=[5.0])
    began_s = time.time()
    with capture_logs() as log:
        async with repeating(way, some(20, pause_s=1.0)) as end:
            await until_repeated(end, 5)
            await trio.sleep(2)
            assert end.repeats is not None
            left = end.repeats.left
        assert left >= 4
        for start in range(1, 4):
            monkeypatch.setattr(time, "time", lambda start=start: began_s + start * 86_400)
            async with repeating(way, some(0)):
                await trio.sleep(3)
    (told,) = ended(log)
    assert left <= told <= left + 2, "at most a second of repeats was not noted"


async def test_a_session_repeats_only_its_own_messages(tmp_path: Path, autojump_clock: MockClock) -> None:
    way = link(tmp_path, repeat=[5.0])
    async with repeating(way, some(10)) as end:
        await trio.sleep(1)
    async with repeating(way, some(3)) as end:
        await until_repeated(end, 3)
        await trio.sleep(20)
    assert set(begun(end)) <= {0, 1, 2, 3}
    assert begun(end)[0] == sorted(begun(end)[0])
    assert all(later > earlier for earlier, later in pairwise(begun(end)[0]))


async def test_what_is_wished_during_a_look_at_the_disk_does_not_wait_for_the_next_one(
    tmp_path: Path, autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def slow(work: Callable[..., T], *arguments: Any) -> T:
        result = work(*arguments)
        await trio.sleep(1)
        return result

    monkeypatch.setattr(trio.to_thread, "run_sync", slow)
    way = link(tmp_path, repeat=[60])
    with RepeatBuffer(tmp_path, link=way.name, link_id=way.id, max_bytes=MIB) as buffer:
        repeats = Repeats(buffer, way, epoch=2, log=structlog.get_logger())
        async with trio.open_nursery() as nursery:
            nursery.start_soon(repeats.keeper)

            async def wish() -> None:
                await trio.sleep(60.5)
                await repeats.send_again(7, memoryview(b"seven"))

            nursery.start_soon(wish)
            with trio.fail_after(63):
                assert isinstance(await repeats.next(), Wish)
            nursery.cancel_scope.cancel()
