"""The ingress: what it sends and when, what it tells its source, and how it ends. Mostly in logical time."""

from __future__ import annotations

import random
import signal
import socket
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path

import pytest
import trio
from structlog.testing import capture_logs
from trio.testing import MockClock, wait_all_tasks_blocked

from gapconn.admin.ingress_view import IngressView
from gapconn.config import Link
from gapconn.errors import ConfigError, GapconnError, LinkError, SourceError
from gapconn.ingress import Ingress, batch_bytes_at, burst_datagrams_at
from gapconn.link.pacing import CREDIT_S, WINDOW_S
from gapconn.link.udp import UdpSender
from gapconn.protocol.envelope import MESSAGE_OVERHEAD_BYTES
from gapconn.protocol.events import Event, MessageDelivered, MessagesLost, RecordsMissing, SessionEnded
from gapconn.protocol.receiver import LinkReceiver, ReceiverSettings
from gapconn.protocol.registry import DatagramType, Phase
from gapconn.protocol.wire import Announcement, Header
from gapconn.record import decode_batch
from gapconn.service import serve_ingress
from gapconn.sources import Outlet
from gapconn.store.state import IngressState
from gapconn.testing.memory_gap import bursts_of
from gapconn.units import Address
from tests.services import (
    HEADER_BYTES,
    SourceFunction,
    TaskNames,
    ingress,
    link,
    numbers,
    numbers_in,
    pair,
    signals_are_taken,
    socket_of,
    source_of,
)


@pytest.fixture
def way(tmp_path: Path) -> Link:
    return link(tmp_path)


def headers(end: Ingress) -> list[tuple[float, Header]]:
    """When each datagram was sent, and its header."""
    return [(sent_at, Header.unpack(datagram)) for sent_at, datagram in socket_of(end).sent]


def types(end: Ingress) -> list[DatagramType]:
    return [DatagramType(header.type) for _, header in headers(end)]


def received(end: Ingress) -> list[Event]:
    """What an egress makes of it: checks that nothing was dropped or is missing on the way."""
    core = LinkReceiver(ReceiverSettings(link_id=end.pair.link.id), now_s=0.0)
    for burst in bursts_of(socket_of(end).datagrams):
        core.receive(burst, 0.0)
    core.close(0.0)
    assert not core.counters.dropped
    assert core.datagrams_missed == 0
    events = core.take_events()
    assert not [event for event in events if isinstance(event, MessagesLost | RecordsMissing)]
    return events


def delivered(end: Ingress) -> list[int]:
    """The numbers that arrived."""
    return [
        number
        for event in received(end)
        if isinstance(event, MessageDelivered) and event.body
        for number in numbers_in(decode_batch(event.body))
    ]


async def nothing(outlet: Outlet) -> None:
    await trio.sleep_forever()


def endless(end_of: Callable[[Outlet], int], said: list[int] | None = None) -> SourceFunction:
    """Sends numbers without end, in batches of `end_of(outlet)` bytes; notes those that were sent in `said`."""

    async def run(outlet: Outlet) -> None:
        number = 0
        while True:
            count = max(1, end_of(outlet) // 1000)
            batch = numbers(number, count, size_bytes=1000)
            sent = range(number, number + count)
            await outlet.send(batch, None if said is None else lambda sent=sent: said.extend(sent))  # type: ignore[misc]  # bound now
            number += count

    return run


# Acknowledgement


@pytest.mark.req("GC-DLV-1")
async def test_a_batch_counts_as_sent_when_the_kernel_took_its_last_datagram(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    sent: list[int] = []

    async def source(outlet: Outlet) -> None:
        for i in range(3):
            await outlet.send(numbers(i, size_bytes=150_000), lambda i=i: sent.append(i))  # type: ignore[misc]  # bound now
        await trio.sleep_forever()

    end = ingress(link(tmp_path, rate_bps=0), source, room=0)
    with trio.fail_after(1000):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(end.run)
            seen = []
            for _ in range(20):  # 3 bursts of StartUp, and 3 for each batch; HeartBeats later
                await wait_all_tasks_blocked()
                whole = {number for number, count in symbols_of(end).items() if count == 0}
                assert set(sent) <= whole, "no batch is acknowledged before it was sent as a whole"
                seen.append(len(sent))
                socket_of(end).make_room(1)
            assert sent == [0, 1, 2]
            assert sorted(set(seen)) == [0, 1, 2, 3], "each is acknowledged as soon as it was sent"
            nursery.cancel_scope.cancel()


def symbols_of(end: Ingress) -> dict[int, int]:
    """How many symbols of each message were not sent yet."""
    left: dict[int, int] = {}
    for _, header in headers(end):
        if header.type == DatagramType.DATA:
            left.setdefault(header.message, -(-header.message_bytes // header.symbol_bytes))
            left[header.message] -= 1
    return left


async def test_flush_waits_for_everything_handed_over(way: Link, autojump_clock: MockClock) -> None:
    told: list[str] = []

    async def source(outlet: Outlet) -> None:
        await outlet.flush()
        told.append("nothing to flush")
        for i in range(4):
            await outlet.send(numbers(i), lambda i=i: told.append(f"sent {i}"))  # type: ignore[misc]  # bound now
        await outlet.flush()
        told.append("flushed")

    end = ingress(way, source, room=3)  # the StartUps
    with trio.fail_after(1000):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(end.run)
            await wait_all_tasks_blocked()
            assert told == ["nothing to flush"]
            socket_of(end).make_room()
    assert told == ["nothing to flush", "sent 0", "sent 1", "sent 2", "sent 3", "flushed"]


async def test_flush_does_not_wait_for_a_batch_whose_sending_was_cancelled(
    way: Link, autojump_clock: MockClock
) -> None:
    """Told to stop while the link is busy, a source takes back the batch that it was just handing over."""
    told: list[str] = []

    async def source(outlet: Outlet) -> None:
        number = 0
        try:
            while True:
                await outlet.send(numbers(number))
                number += 1
        finally:
            with trio.CancelScope(shield=True):
                await outlet.flush()
                told.append(f"flushed {number}")

    end = ingress(way, source, room=0)
    with trio.fail_after(1000):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(end.run)
            await wait_all_tasks_blocked()
            end.stop()
            await wait_all_tasks_blocked()
            assert not told
            socket_of(end).make_room()
    sent = delivered(end)
    assert told == [f"flushed {len(sent)}"]
    assert sent == list(range(len(sent)))


async def test_a_task_that_flushes_waits_for_its_own_batch(way: Link, autojump_clock: MockClock) -> None:
    """Several tasks of a source hand over at the same time; some of them give up."""
    sent: set[int] = set()
    flushed: set[int] = set()

    async def one(outlet: Outlet, number: int) -> None:
        with trio.move_on_after(0.5 if number % 3 == 0 else 1000):
            await outlet.send(numbers(number), lambda: sent.add(number))
            await outlet.flush()
            assert number in sent
            flushed.add(number)

    async def source(outlet: Outlet) -> None:
        async with trio.open_nursery() as nursery:
            for number in range(30):
                nursery.start_soon(one, outlet, number)

    end = ingress(way, source, room=5)
    with trio.fail_after(1000):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(end.run)
            await trio.sleep(1)
            socket_of(end).make_room()
    assert {number for number in range(30) if number % 3} <= flushed


# Latency


async def test_a_small_batch_that_finds_all_idle_is_sent_when_it_is_handed_over(
    way: Link, autojump_clock: MockClock
) -> None:
    told: list[int] = []

    async def source(outlet: Outlet) -> None:
        await wait_all_tasks_blocked()
        for number in range(20):
            before = len(socket_of(end).sent)
            await outlet.send(numbers(number, size_bytes=200), lambda number=number: told.append(number))  # type: ignore[misc]
            assert told == list(range(number + 1))
            assert len(socket_of(end).sent) == before + 1

    end = ingress(way, source)
    with trio.fail_after(1000):
        await end.run()
    assert delivered(end) == list(range(20))


@pytest.mark.parametrize("rate_bps", [10_000_000, 1_000_000_000, 0])
@pytest.mark.parametrize("seed", range(4))
async def test_whatever_is_idle_or_busy_the_order_stays(
    tmp_path: Path, rate_bps: int, seed: int, autojump_clock: MockClock
) -> None:
    """Small and large batches, pauses, a kernel that has no room now and then, heartbeats between all."""
    generator = random.Random(seed)
    told: list[int] = []

    async def source(outlet: Outlet) -> None:
        for number in range(300):
            size_bytes = generator.choice([16, 16, 16, 1400, 5000, 9000, 100_000])
            await outlet.send(numbers(number, size_bytes=size_bytes), lambda number=number: told.append(number))  # type: ignore[misc]
            if generator.random() < 0.3:
                await trio.sleep(generator.choice([0.0, 0.0001, 0.01, 0.3]))

    async def kernel() -> None:
        while True:
            socket_of(end).make_room(generator.choice([0, 1, 5, None]))
            await trio.sleep(generator.choice([0.0002, 0.01]))

    end = ingress(link(tmp_path, rate_bps=rate_bps), source)
    with trio.fail_after(10_000):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(kernel)
            await end.run()
            nursery.cancel_scope.cancel()
    assert delivered(end) == told == list(range(300))
    sequences = [header.sequence for _, header in headers(end)]
    assert sequences == list(range(len(sequences)))


async def test_a_source_that_always_has_something_lets_others_have_their_turn(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    turns = 0

    async def source(outlet: Outlet) -> None:
        for number in range(100):
            await outlet.send(numbers(number))

    async def other() -> None:
        nonlocal turns
        while True:
            await trio.lowlevel.checkpoint()
            turns += 1

    end = ingress(link(tmp_path, rate_bps=0), source)
    with trio.fail_after(1000):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(other)
            await end.run()
            nursery.cancel_scope.cancel()
    assert turns >= 100


# The end


async def test_the_order_of_the_end(way: Link, autojump_clock: MockClock) -> None:
    """The source is stopped and says its last, what is held is sent, the positions are summed up, Shutdown is last."""
    told: list[str] = []

    async def source(outlet: Outlet) -> None:
        number = 0
        try:
            while True:
                await outlet.send(numbers(number))
                number += 1
        finally:
            told.append("stopped")
            with trio.CancelScope(shield=True):
                await outlet.send(numbers(number, 5), lambda: told.append("last sent"))
                await outlet.flush()
            told.append("flushed")

    end = ingress(way, source, room=0)
    with trio.fail_after(1000), capture_logs() as logs:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(end.run)
            await wait_all_tasks_blocked()
            assert IngressView(end).ready() == []
            end.stop()
            await wait_all_tasks_blocked()
            assert told == ["stopped"]
            assert IngressView(end).ready() == ["it was asked to stop"]
            socket_of(end).make_room()
    assert told == ["stopped", "last sent", "flushed"]
    events = received(end)
    sent = delivered(end)
    assert sent == list(range(len(sent)))
    assert len(sent) >= 5
    *_, summary, ended = events
    assert isinstance(summary, MessageDelivered)
    assert len(summary.body) == 0
    assert [run.last for run in summary.runs] == [sent[-1]]
    assert isinstance(ended, SessionEnded)
    assert ended.records_sent == len(sent)
    assert types(end)[-3:] == [DatagramType.SHUTDOWN] * 3
    assert Counter(types(end))[DatagramType.SHUTDOWN] == 3
    assert [entry["event"] for entry in logs] == ["source_started", "source_stopped", "session_closed"]


async def test_a_source_that_ends_by_itself_ends_the_session(way: Link, autojump_clock: MockClock) -> None:
    async def source(outlet: Outlet) -> None:
        await outlet.send(numbers(0, 7))

    end = ingress(way, source)
    with trio.fail_after(1000), capture_logs() as logs:
        await end.run()
    assert delivered(end) == list(range(7))
    assert types(end)[-1] is DatagramType.SHUTDOWN
    assert {"event": "source_ended", "batches": 1}.items() <= logs[1].items()


@pytest.mark.req("GC-SESS-4")
@pytest.mark.parametrize("known", [True, False])
@pytest.mark.parametrize("rate_bps", [9_600, 1_000_000, 0])
@pytest.mark.parametrize("after_s", [None, 0.0, 0.0501, 0.3, 0.3001, 5.0])
async def test_told_to_stop_at_any_moment_everything_handed_over_is_sent(
    tmp_path: Path, known: bool, rate_bps: int, after_s: float | None, autojump_clock: MockClock
) -> None:
    """Before it runs, while it announces itself, while the pacer sleeps, while all channels are full."""
    way = link(tmp_path, rate_bps=rate_bps)
    said: list[int] = []
    end = ingress(way, endless(lambda outlet: 1500, said), known=known, room=None if rate_bps else 200)

    async def stop() -> None:
        await trio.sleep(after_s or 0.0)
        end.stop()
        socket_of(end).make_room()

    if after_s is None:
        end.stop()
        socket_of(end).make_room()
    with trio.fail_after(10_000):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(end.run)
            if after_s is not None:
                nursery.start_soon(stop)
    assert delivered(end) == said
    assert types(end)[-3:] == [DatagramType.SHUTDOWN] * 3
    if after_s is None or (not known and after_s < way.interruption_timeout_s):
        assert said == []


# Time


@pytest.mark.req("GC-TIME-1")
@pytest.mark.parametrize(
    ("rate_bps", "interval_s"), [(100_000, 2.0), (1_000_000, 1.0), (1_000_000, 0.2), (100_000_000, 0.05)]
)
async def test_heartbeats_come_in_time_under_full_load(
    tmp_path: Path, rate_bps: int, interval_s: float, autojump_clock: MockClock
) -> None:
    """Where the link is full all the time, a heartbeat must not wait behind seconds of data."""
    way = link(tmp_path, rate_bps=rate_bps, heartbeat_interval=interval_s)
    end = ingress(way, endless(lambda outlet: outlet.batch_bytes))
    with trio.move_on_after(25 * interval_s):
        await end.run()
    beats = [
        sent_at for sent_at, header in headers(end) if header.type in (DatagramType.STARTUP, DatagramType.HEARTBEAT)
    ]
    assert len(beats) > 20
    assert max(later - earlier for earlier, later in pairwise(beats)) < 1.5 * interval_s
    assert Counter(types(end))[DatagramType.DATA] > 20, "there is data between them"


@pytest.mark.req("GC-PACE-1", "GC-PACE-2")
@pytest.mark.parametrize("rate_bps", [1_000_000, 200_000_000])
async def test_the_configured_rate_is_held_and_reached(
    tmp_path: Path, rate_bps: int, autojump_clock: MockClock
) -> None:
    way = link(tmp_path, rate_bps=rate_bps)
    end = ingress(way, endless(lambda outlet: outlet.batch_bytes))
    duration_s = 8_000_000 / rate_bps
    with trio.move_on_after(duration_s):
        await end.run()
    sent = [(sent_at, 8 * (len(datagram) + HEADER_BYTES)) for sent_at, datagram in socket_of(end).sent]
    allowed = max(CREDIT_S * rate_bps, 8 * way.mtu_bytes) + 1
    window = WINDOW_S * rate_bps + (8 * way.mtu_bytes if rate_bps < 38_400_000 else 0)
    for start in range(0, len(sent), 37):
        begin_s, bits = sent[start][0], 0
        for sent_at, size in sent[start:]:
            bits += size
            assert bits <= rate_bps * (sent_at - begin_s) + allowed
            assert bits <= window or sent_at >= begin_s + WINDOW_S
    assert sum(size for _, size in sent) >= 0.97 * rate_bps * duration_s


@pytest.mark.req("GC-PACE-1")
def test_pacing_is_on_by_default(tmp_path: Path) -> None:
    assert Link(name="orders", address=Address("127.0.0.1", 7400), state_directory=str(tmp_path)).rate_bps > 0


def test_batches_and_bursts_are_smaller_on_a_slow_link(tmp_path: Path) -> None:
    slow, fast = link(tmp_path, rate_bps=1_000_000, heartbeat_interval=1), link(tmp_path, rate_bps=0)
    assert batch_bytes_at(slow) == 1_000_000 / 8 / 4
    assert batch_bytes_at(link(tmp_path, rate_bps=9_600)) == 1024
    assert batch_bytes_at(fast) == fast.batch_bytes
    assert burst_datagrams_at(slow) == 5
    assert burst_datagrams_at(link(tmp_path, rate_bps=9_600)) == 1
    assert burst_datagrams_at(fast) == 64


@pytest.mark.req("GC-SESS-2", "GC-SESS-3")
@pytest.mark.parametrize("known", [True, False])
async def test_without_stored_state_it_announces_itself_before_it_sends_data(
    tmp_path: Path, known: bool, autojump_clock: MockClock
) -> None:
    way = link(tmp_path, rate_bps=10_000_000)
    end = ingress(way, endless(lambda outlet: 1000), known=known)
    with trio.move_on_after(1.0):
        await end.run()
    first_data_s = min(sent_at for sent_at, header in headers(end) if header.type == DatagramType.DATA)
    assert first_data_s == pytest.approx(0.0 if known else way.interruption_timeout_s)
    before = [(sent_at, DatagramType(header.type)) for sent_at, header in headers(end) if sent_at < first_data_s]
    if not known:
        assert Counter(kind for _, kind in before) == {DatagramType.STARTUP: 5}, "three, and one for each interval"
        phases = {Announcement.unpack(datagram[48:112]).phase for at, datagram in socket_of(end).sent[:5]}
        assert phases == {Phase.ANNOUNCING}


# Failures


async def test_what_the_source_cannot_do_ends_the_ingress_with_its_reason(way: Link, autojump_clock: MockClock) -> None:
    async def source(outlet: Outlet) -> None:
        await outlet.send(numbers(0))
        raise SourceError("the disk is gone")

    with trio.fail_after(1000), pytest.RaisesGroup(pytest.RaisesExc(SourceError, match="^the disk is gone$")):
        await ingress(way, source).run()


@pytest.mark.parametrize("when", ["reading", "sent"])
async def test_a_bug_in_a_source_is_not_swallowed(way: Link, when: str, autojump_clock: MockClock) -> None:
    async def source(outlet: Outlet) -> None:
        if when == "reading":
            raise ZeroDivisionError
        await outlet.send(numbers(0), lambda: 1 / 0)  # type: ignore[arg-type]  # a source with a bug
        await trio.sleep_forever()

    with trio.fail_after(1000), pytest.RaisesGroup(ZeroDivisionError):
        await ingress(way, source).run()


async def test_a_batch_that_is_too_large_ends_the_ingress_and_says_what_to_do(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    way = link(tmp_path, message_bytes_max=65_536)

    async def source(outlet: Outlet) -> None:
        await outlet.send(numbers(0, size_bytes=outlet.batch_bytes_max + 10_000))

    with (
        trio.fail_after(1000),
        pytest.RaisesGroup(pytest.RaisesExc(SourceError, match=r"longer than the limit .*raise link\.message_bytes")),
    ):
        await ingress(way, source).run()


async def test_the_largest_batch_that_is_allowed_crosses(tmp_path: Path, autojump_clock: MockClock) -> None:
    way = link(tmp_path, message_bytes_max=65_536, rate_bps=0)

    async def source(outlet: Outlet) -> None:
        assert outlet.batch_bytes_max < 65_536 - MESSAGE_OVERHEAD_BYTES
        batch = numbers(0, size_bytes=outlet.batch_bytes_max - 50)
        await outlet.send(batch)

    end = ingress(way, source)
    with trio.fail_after(1000):
        await end.run()
    assert delivered(end) == [0]


async def test_a_link_that_fails_ends_the_ingress(way: Link, autojump_clock: MockClock) -> None:
    end = ingress(way, endless(lambda outlet: 1000))
    socket_of(end).failure = LinkError("lower link.mtu_bytes")
    with trio.fail_after(1000), pytest.RaisesGroup(pytest.RaisesExc(LinkError, match=r"lower link\.mtu_bytes")):
        await end.run()


# Tasks


async def test_tasks_have_names(way: Link, autojump_clock: MockClock) -> None:
    names = TaskNames()
    trio.lowlevel.add_instrument(names)
    with trio.move_on_after(1):
        await ingress(way, nothing).run()
    trio.lowlevel.remove_instrument(names)
    assert {"ingress.source", "ingress.fragmenter", "ingress.sender", "ingress.heartbeat"} <= names.seen


# The service, on real sockets


@contextmanager
def listening() -> Iterator[tuple[socket.socket, int]]:
    """A socket in place of an egress, and its port."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind(("127.0.0.1", 0))
        sock.setblocking(False)
        yield sock, sock.getsockname()[1]


def heard(sock: socket.socket) -> list[Header]:
    found = []
    while True:
        try:
            found.append(Header.unpack(sock.recv(65_536)))
        except BlockingIOError:
            return found


@pytest.mark.req("GC-SESS-1")
async def test_each_start_has_a_higher_epoch_that_is_stored_before_anything_is_sent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stored: list[int] = []
    clock = iter([2_000_000_000, 1_000_000_000, 3_000_000_000])  # it steps back once
    begin_session = IngressState.begin_session

    async def source(outlet: Outlet) -> None:
        await outlet.send(numbers(0))

    with trio.fail_after(60), listening() as (sock, port):

        def begin(self: IngressState, clock_epoch: int) -> tuple[int, int]:
            assert heard(sock) == [], "nothing is sent before"
            epoch, previous = begin_session(self, clock_epoch)
            stored.append(epoch)
            return epoch, previous

        monkeypatch.setattr(IngressState, "begin_session", begin)
        monkeypatch.setattr("gapconn.service.time.time_ns", lambda: next(clock))
        way = link(tmp_path, port=port, heartbeat_interval=0.01)
        for _ in range(3):
            await serve_ingress(pair(way, source=source_of(source)))
            assert {header.epoch for header in heard(sock)} == {stored[-1]}
    assert stored == [2_000_000, 2_000_001, 3_000_000]


async def test_one_ingress_of_a_link_at_a_time(tmp_path: Path) -> None:
    with trio.fail_after(60), listening() as (_, port):
        both = pair(link(tmp_path, port=port), source=source_of(nothing))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(serve_ingress, both)
            await signals_are_taken()
            with pytest.raises(LinkError, match="another ingress"):
                await serve_ingress(both)
            nursery.cancel_scope.cancel()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_signals_end_it_in_order_however_often_they_come(tmp_path: Path, number: signal.Signals) -> None:
    with trio.fail_after(60), listening() as (sock, port), capture_logs() as logs:
        way = link(tmp_path, port=port, heartbeat_interval=0.01)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(serve_ingress, pair(way, source=source_of(nothing)))
            await signals_are_taken()
            for _ in range(3):
                signal.raise_signal(number)
        assert heard(sock)[-1].type == DatagramType.SHUTDOWN
    assert ("stopping", number.name) in [(entry["event"], entry.get("signal")) for entry in logs]


async def test_the_grace_is_not_exceeded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A link that takes nothing must not keep the process: the orchestrator would kill it, and not say why."""

    async def send(self: UdpSender, burst: object) -> None:
        await trio.sleep_forever()

    monkeypatch.setattr(UdpSender, "send", send)
    monkeypatch.setattr(UdpSender, "send_now", lambda self, burst: False)
    with trio.fail_after(60), listening() as (_, port):
        way = link(tmp_path, port=port, heartbeat_interval=0.01, shutdown_grace=0.05)
        reason = pytest.RaisesExc(LinkError, match=r"link\.shutdown_grace \(0\.05 s\) is over")
        with pytest.RaisesGroup(reason, flatten_subgroups=True):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(serve_ingress, pair(way, source=source_of(nothing)))
                await signals_are_taken()
                signal.raise_signal(signal.SIGTERM)


async def test_without_a_source_it_does_not_start(way: Link) -> None:
    with pytest.raises(ConfigError, match=r"\[source\]: the section is missing"):
        await serve_ingress(pair(way))


async def test_it_does_not_start_where_the_state_cannot_be_kept(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(GapconnError, match="file"):
        await serve_ingress(pair(link(tmp_path / "file"), source=source_of(nothing)))
