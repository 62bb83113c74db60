"""The egress: what reaches the sink, what is stored, what is told of the rest, and how it ends. On real sockets."""

from __future__ import annotations

import random
import signal
import socket
from pathlib import Path
from typing import Any

import attrs
import msgspec
import pytest
import structlog
import trio
from structlog.testing import capture_logs

from gapconn.admin.egress_view import EgressView
from gapconn.config import Link, Spool
from gapconn.egress import Egress
from gapconn.errors import ConfigError, LinkError, RemoteProtocolError, SinkError
from gapconn.events_log import EventLog
from gapconn.ingress import Ingress
from gapconn.link.udp import UdpSender
from gapconn.protocol.events import MessageDelivered
from gapconn.protocol.positions import Standing
from gapconn.protocol.progress import Progress
from gapconn.protocol.registry import DropReason
from gapconn.protocol.sender import LinkSender, SenderSettings
from gapconn.record import Batch, Chunk, ChunkKind, Records, decode_batch, encode_batch
from gapconn.service import serve_egress
from gapconn.sink_queue import SinkQueue
from gapconn.sinks import Inlet
from gapconn.sources import Outlet
from gapconn.store.database import StateDiskError
from gapconn.store.journal import GapFile
from gapconn.store.state import EgressState
from gapconn.units import Address, Seconds
from tests.services import (
    STREAM,
    Session,
    Taking,
    TaskNames,
    feed,
    link,
    numbers,
    numbers_in,
    opened,
    pair,
    running,
    signals_are_taken,
    sink_of,
    source_of,
    throw,
    until,
)

log = structlog.get_logger()


@pytest.fixture
def way(tmp_path: Path) -> Link:
    return link(tmp_path, heartbeat_interval=5)  # nobody is called silent here, however slow this machine is


def stored(egress: Egress) -> Progress | None:
    """What the next life would resume with."""
    return egress._state.load()


# Delivery


@pytest.mark.req("GC-MOD-2", "GC-MOD-3")
async def test_what_is_sent_reaches_the_sink_in_order(way: Link) -> None:
    sink, session = Taking(), Session(way)
    async with running(way, sink) as egress:
        await feed(egress, session.start)
        for i in range(20):
            await feed(egress, session.numbers((i * 100, 100)))
        await feed(egress, session.stop())
    assert sink.numbers == list(range(2000))
    assert [(d.epoch, d.message, d.lost_before) for d in sink.deliveries] == [(2, i, 0) for i in range(20)]
    assert egress.events.alarms == {}


async def test_a_real_ingress_and_a_real_egress(way: Link, tmp_path: Path) -> None:
    """Both ends in one process: large and small batches, with everything the kernel does to them."""
    sink, sent = Taking(), list[int]()

    async def source(outlet: Outlet) -> None:
        first = 0
        for count in (1, 3000, 1, 1, 700, 2, 5000):
            span = range(first, first + count)
            await outlet.send(numbers(first, count, size_bytes=100), lambda span=span: sent.extend(span))  # type: ignore[misc]  # bound now
            first += count

    async with running(way, sink) as egress:
        other = link(tmp_path, rate_bps=200_000_000)
        core = LinkSender(SenderSettings(link_id=way.id, epoch=2, previous_epoch=1))
        address = egress.socket.address
        udp = UdpSender(socket.AF_INET, (address.host, address.port), log=log)
        section = source_of(source)
        await Ingress(pair(other, source=section), section, core, udp, header_bytes=28).run()
        udp.close()
        await until(lambda: egress.core.state.value == "closed")
    assert sent == list(range(8705))
    assert sink.numbers == sent
    assert egress.core.datagrams_missed == 0
    assert egress.core.counters.datagrams == core.counters.datagrams


async def test_a_sink_may_leave_its_loop_and_come_back(way: Link) -> None:
    taken: list[int] = []

    async def sink(inlet: Inlet) -> None:
        while True:
            async for delivery in inlet:
                taken.extend(numbers_in(delivery.batch))
                delivery.accept()
                break
            else:
                return

    session = Session(way)
    async with running(way, sink) as egress:
        await feed(egress, session.start + session.numbers((0, 2), (2, 1), (3, 4)))
    assert taken == list(range(7))


async def test_a_sink_may_have_several_tasks(way: Link) -> None:
    taken: list[int] = []

    async def sink(inlet: Inlet) -> None:
        async def work() -> None:
            async for delivery in inlet:
                await trio.lowlevel.checkpoint()
                taken.extend(numbers_in(delivery.batch))
                delivery.accept()

        async with trio.open_nursery() as nursery:
            for _ in range(3):
                nursery.start_soon(work)

    session = Session(way)
    async with running(way, sink) as egress:
        await feed(egress, session.start + session.numbers(*((i, 1) for i in range(20))))
    assert sorted(taken) == list(range(20))


# A sink that is slow


async def test_when_the_sink_is_slow_the_newest_is_refused_and_told(tmp_path: Path) -> None:
    way = link(
        tmp_path,
        heartbeat_interval=5,
        message_bytes_max=65_536,
        sink_buffer_bytes=65_536,
        reassembly_bytes_max=131_072,
    )
    sink = Taking(going=trio.Event())
    session = Session(way)
    with capture_logs() as logs:
        async with running(way, sink) as egress:
            await feed(egress, session.start)
            for i in range(40):
                await feed(egress, session.batch(numbers(10 * i, 10, size_bytes=1000)))
            held = len(egress.queue)
            assert 10 < held < 20
            assert egress.queue.bytes <= 65_536 + 131_072
            assert egress.core.counters.messages == 40, "it keeps receiving"
            assert egress.events.refused == {"refused": 40 - held}
            assert egress.events.refused_records == 10 * (40 - held)
            status = EgressView(egress).status()
            assert status["missed"]["refused_messages"] == {"refused": 40 - held}
            assert sink.going is not None
            sink.going.set()
            await until(lambda: len(sink.deliveries) == held)
            assert egress.queue.bytes == 0
            await feed(egress, session.numbers((400, 1)))
    assert sink.numbers == [*range(10 * held), 400]
    assert [delivery.lost_before for delivery in sink.deliveries] == [0] * held + [40 - held]
    refused = [entry for entry in logs if entry["event"] == "messages_refused"]
    assert [(entry["log_level"], entry["cause"]) for entry in refused] == [("error", "refused")] * len(refused)
    assert joined(refused) == [[held, 39]]
    places = [entry for entry in logs if entry["event"] == "records_refused"]
    assert {(entry["stream"], entry["partition"]) for entry in places} == {(STREAM, 0)}
    assert joined(places) == [[10 * held, 399]]
    assert sum(entry["count"] for entry in places) == 10 * (40 - held)
    after = await resumed(way)
    assert after.next_message == 41, "what was refused was reported: it is not reported again"


def joined(entries: list[Any]) -> list[list[int]]:
    """The ranges of log entries, those that continue each other as one."""
    ranges: list[list[int]] = []
    for first, last in sorted(each for entry in entries for each in entry["ranges"]):
        if ranges and first == ranges[-1][1] + 1:
            ranges[-1][1] = last
        else:
            ranges.append([first, last])
    return ranges


async def resumed(way: Link) -> Progress:
    """What was stored, once the egress has ended."""
    with EgressState.open(Path(way.state_directory), way.name, way.id) as state:
        progress = state.load()
    assert progress is not None
    return progress


def whole_message(body: bytes) -> MessageDelivered:
    return MessageDelivered(
        epoch=1,
        number=0,
        first_record=0,
        record_count=1,
        runs=[],
        already_delivered={},
        positions={},
        body=memoryview(body),
    )


def encoded(*parts: Records | Chunk) -> bytes:
    whole = bytearray()
    encode_batch(Batch(parts=list(parts)), whole, 0)
    return bytes(whole)


@pytest.mark.req("GC-LIM-1")
async def test_tiny_messages_count_for_what_they_take(tmp_path: Path) -> None:
    queue = SinkQueue(100_000, EventLog(log))
    taken = 0
    while queue.offer(whole_message(b"."), lambda: None, 0):
        taken += 1
    assert taken < 100


async def test_a_message_larger_than_the_queue_is_taken_when_nothing_else_waits() -> None:
    queue = SinkQueue(10, EventLog(log))
    message = whole_message(encoded(*numbers(0).parts))
    assert queue.offer(message, lambda: None, 3)
    assert not queue.offer(message, lambda: None, 0)
    queue.close()
    assert [delivery.lost_before async for delivery in queue] == [3]
    assert queue.drained


# A sink that is away, and a spool


@pytest.mark.req("GC-DLV-15", "GC-DLV-19", "GC-DLV-20")
@pytest.mark.parametrize("state_is_lost", [False, True])
async def test_what_is_in_the_spool_counts_as_delivered(tmp_path: Path, state_is_lost: bool) -> None:
    """A restarted ingress sends again what is in the spool, and the stored state may not even know of that."""
    way, spool = link(tmp_path / "state", heartbeat_interval=5, shutdown_grace=0), Spool(directory=str(tmp_path))
    first, second = Session(way), Session(way, epoch=3, previous_epoch=2)
    away = Taking(going=trio.Event())
    async with opened(way, away, attrs.evolve(spool, after=Seconds(0.01))) as egress:
        with trio.fail_after(60):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(egress.run)
                await feed(egress, first.start + first.numbers((0, 10), (10, 10)))
                await until(lambda: egress.queue.spooled == 2)
                await until(lambda: (stored(egress) or NOTHING).next_message == 2)
                status = EgressView(egress).status()
                assert status["spool"].items() >= {"messages": 2, "trouble": None}.items()
                assert status["held"]["unaccepted_messages"] == 2
                nursery.cancel_scope.cancel()
    if state_is_lost:
        way = link(tmp_path / "other", heartbeat_interval=5)
    sink = Taking()
    async with running(way, sink, spool) as egress:
        await until(lambda: sink.numbers == list(range(20)))
        await feed(egress, second.start + second.batch(numbers(10, 15, previous=9)))
        assert egress.events.duplicates == 10
    assert sink.numbers == list(range(25))
    assert [(d.epoch, d.message) for d in sink.deliveries] == [(2, 0), (2, 1), (3, 0)]
    assert egress.core.counters.messages_lost == {}
    assert (await resumed(way)).positions == {(STREAM, 0): Standing(3, 0, 24)}


NOTHING = Progress(epoch=0, next_message=0, next_record=0, positions={})


@pytest.mark.req("GC-DLV-19")
async def test_a_sink_that_fails_leaves_what_it_did_not_take_in_the_spool(tmp_path: Path) -> None:
    async def sink(inlet: Inlet) -> None:
        async for delivery in inlet:
            if delivery.message == 2:
                raise SinkError("the target is full")
            delivery.accept()

    way, spool = link(tmp_path, heartbeat_interval=5), Spool()
    session = Session(way)
    reason = pytest.RaisesExc(SinkError, match="^the target is full$")
    with pytest.RaisesGroup(reason, flatten_subgroups=True):
        async with running(way, sink, spool) as egress:
            throw(session.start + session.numbers((0, 1), (1, 1), (2, 1), (3, 1)), egress.socket.address)
            await trio.sleep_forever()
    again = Taking()
    async with running(way, again, spool) as egress:
        await until(lambda: len(again.deliveries) >= 1)
        assert egress.core.counters.records_lost == 0
    assert again.numbers[0] == 2


# What cannot be handed over


MALFORMED = {
    "nothing": b"",
    "nothing like it": b"\xff" * 50,
    "cut off": encoded(Records(stream="s", positions=[1], values=[b"x"]))[:-1],
    "nested without end": b"\x93\xa0\x90" + b"\x91" * 50_000,
    "fewer values than positions": encoded(Records(stream="s", positions=[1, 2], values=[b"x"])),
    "more keys than positions": encoded(Records(stream="s", positions=[1], values=[b"x"], keys=[b"a", b"b"])),
    "fewer headers than positions": encoded(Records(stream="s", positions=[1], values=[b"x"], headers=[])),
    "no timestamps": encoded(Records(stream="s", positions=[1], values=[b"x"], timestamps_ms=[])),
    "not a part": msgspec.msgpack.encode(["", [[3, "s"]]]),
    "a chunk of a strange kind": msgspec.msgpack.encode(["", [[2, "s", 99, 0]]]),
    "not text": msgspec.msgpack.encode(["", []]).replace(b"\xa0", b"\xa1\xff"),
    "a list that claims to be endless": b"\x92\xa0\xdd\xff\xff\xff\xff",
}


@pytest.mark.parametrize("body", MALFORMED.values(), ids=MALFORMED)
def test_a_malformed_batch_is_noticed(body: bytes) -> None:
    with pytest.raises(RemoteProtocolError, match="not a batch") as raised:
        decode_batch(memoryview(body))
    assert raised.value.reason == "malformed_batch"


@pytest.mark.req("GC-MOD-6")
async def test_malformed_batches_are_counted_and_do_no_harm(way: Link) -> None:
    sink, session = Taking(), Session(way)
    with capture_logs() as logs:
        async with running(way, sink) as egress:
            await feed(egress, session.start + session.numbers((0, 1)))
            for body in MALFORMED.values():
                await feed(egress, session.body(body))
            await feed(egress, session.numbers((1, 1)))
            assert egress.events.refused == {"damaged": len(MALFORMED)}
    assert sink.numbers == [0, 1]
    assert [delivery.lost_before for delivery in sink.deliveries] == [0, len(MALFORMED)]
    told = [entry for entry in logs if entry["event"] == "messages_refused"]
    assert {entry["cause"] for entry in told} == {"damaged"}
    assert all("not a batch" in entry["why"] for entry in told)
    assert joined(told) == [[1, len(MALFORMED)]]
    assert (await resumed(way)).next_message == len(MALFORMED) + 2


@pytest.mark.req("GC-DLV-15")
async def test_records_that_are_sent_again_are_dropped_and_counted(way: Link) -> None:
    """An ingress that was killed before it could commit sends again what its successor reads again."""
    sink, first, second = Taking(), Session(way), Session(way, epoch=3, previous_epoch=2)
    with capture_logs() as logs:
        async with running(way, sink) as egress:
            await feed(egress, first.start + first.numbers((0, 10), (10, 10)))
            await feed(egress, second.start)
            await feed(egress, second.batch(numbers(5, 5, previous=4)))  # all of it
            await feed(egress, second.batch(numbers(10, 15)))  # a part of it
            await feed(egress, second.batch(numbers(25, 5)))
            assert egress.events.duplicates == 15
            assert EgressView(egress).status()["duplicate_records"] == 15
    assert sink.numbers == list(range(30))
    assert [(d.epoch, d.message, d.lost_before) for d in sink.deliveries] == [
        (2, 0, 0),
        (2, 1, 0),
        (3, 1, 0),
        (3, 2, 0),
    ]
    dropped = [entry for entry in logs if entry["event"] == "duplicates_dropped"]
    assert sum(entry["count"] for entry in dropped) == 15
    assert await resumed(way) == Progress(
        epoch=3,
        next_message=3,
        next_record=25,
        positions={(STREAM, 0): Standing(3, 0, 29)},
        messages_known=3,
        records_known=25,
    )


@pytest.mark.req("GC-DLV-15", "GC-DLV-18")
async def test_records_that_are_sent_again_are_also_dropped_after_a_restart(way: Link) -> None:
    """The egress stops while records are sent again: what it stores must not step back to them."""
    session = Session(way, epoch=3, previous_epoch=2)
    again = session.start + session.batch(numbers(5, 5, previous=4)), session.batch(numbers(10, 20))
    lives: tuple[tuple[list[bytes] | None, list[int], int], ...] = (
        (None, list(range(20)), 2),
        (again[0], [], 3),
        (again[1], list(range(20, 30)), 3),
    )
    for datagrams, expected, epoch in lives:
        sink = Taking()
        async with running(way, sink) as egress:
            if datagrams is None:
                first = Session(way)
                await feed(egress, first.start + first.numbers((0, 20)))
            else:
                await feed(egress, datagrams)
        assert sink.numbers == expected
        assert (await resumed(way)).positions == {(STREAM, 0): Standing(epoch, 0, max([19, *expected]))}


async def test_chunks_pass_beside_records_that_are_dropped(way: Link) -> None:
    sink, first, second = Taking(), Session(way), Session(way, epoch=3, previous_epoch=2)
    chunk = Chunk(stream="file", kind=ChunkKind.DATA, position=0, data=memoryview(b"data"))
    async with running(way, sink) as egress:
        await feed(egress, first.start + first.numbers((0, 10)))
        await feed(egress, second.start + second.batch(Batch(parts=[*numbers(5, 5, previous=4).parts, chunk])))
    (part,) = sink.deliveries[-1].batch.parts
    assert isinstance(part, Chunk)
    assert bytes(part.data) == b"data"


# Progress


@pytest.mark.req("GC-DLV-18")
async def test_progress_is_stored_when_the_sink_has_accepted_and_not_before(way: Link) -> None:
    sink, session = Taking(accepting=False), Session(way)
    async with running(way, sink) as egress:
        await feed(egress, session.start + session.numbers((0, 10), (10, 10), (20, 10)))
        await until(lambda: len(sink.deliveries) == 3)
        await egress._save()
        nothing = Progress(epoch=2, next_message=0, next_record=0, positions={}, messages_known=3, records_known=30)
        assert stored(egress) == nothing
        sink.deliveries[2].accept()
        sink.deliveries[1].accept()
        await egress._save()
        assert stored(egress) == nothing
        sink.deliveries[0].accept()
        await until(lambda: stored(egress) != nothing)
        assert stored(egress) == attrs.evolve(
            nothing, next_message=3, next_record=30, positions={(STREAM, 0): Standing(2, 0, 29)}
        )


@pytest.mark.req("GC-DLV-11", "GC-SESS-9")
async def test_a_restarted_egress_resumes_and_says_exactly_what_it_missed(way: Link) -> None:
    session = Session(way)
    sink = Taking()
    async with running(way, sink) as egress:
        await feed(egress, session.start + session.numbers((0, 10), (10, 10)))
    missed = session.numbers((20, 10), (30, 5))
    assert missed
    for expected in (
        {"messages": {"while_away": 2}, "records": 15},  # what was sent while it was away
        {"messages": {}, "records": 0},  # and nothing of it again
    ):
        sink = Taking()
        with capture_logs() as logs:
            async with running(way, sink) as egress:
                # Now and then the first thing that is heard says only how much was sent.
                await feed(egress, session.heartbeat())
                assert EgressView(egress).status()["missed"].items() >= expected.items()
                assert egress.core.state.value == "following"
        followed = [entry for entry in logs if entry["event"] == "session_followed"]
        assert [entry["reason"] for entry in followed] == ["resumed from stored state"]
        lost = [entry for entry in logs if entry["event"] == "messages_lost"]
        assert joined(lost) == ([[2, 3]] if expected["records"] else [])
    sink = Taking()
    async with running(way, sink) as egress:
        await feed(egress, session.numbers((35, 10)))
        assert egress.core.counters.records_lost == 0
    assert sink.numbers == list(range(35, 45))


@pytest.mark.req("GC-SESS-5", "GC-SESS-9")
async def test_a_session_that_was_followed_without_data_is_remembered(way: Link) -> None:
    old, new = Session(way), Session(way, epoch=3, previous_epoch=2)
    async with running(way, Taking()) as egress:
        await feed(egress, old.start + old.numbers((0, 1)) + new.start)
    sink = Taking()
    async with running(way, sink) as egress:
        await feed(egress, old.numbers((1, 1)))
        assert egress.core.counters.dropped[DropReason.STALE_SESSION] == 1
        assert egress.core.epoch == 3
    assert sink.numbers == []


async def test_a_state_that_is_damaged_ends_the_egress_and_what_was_gathered_is_told(
    way: Link, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gapconn.egress.WATCH_INTERVAL_S", 3600.0)  # so it is not told before
    session = Session(way)
    reason = pytest.RaisesExc(LinkError, match="the state is damaged")
    with capture_logs() as logs, pytest.RaisesGroup(reason, flatten_subgroups=True):
        async with running(way, Taking()) as egress:
            await feed(egress, session.start + session.numbers((0, 1)))
            session.numbers((1, 1))
            throw(session.numbers((2, 1)), egress.socket.address)
            await until(lambda: egress.core.counters.datagrams == len(session.start) + 2)
            egress.core.handle_timeout(trio.current_time() + way.hold_s + 1)
            egress._handle_events()

            def save(self: EgressState, *arguments: object) -> None:
                raise LinkError("the state is damaged")

            monkeypatch.setattr(EgressState, "save", save)
            await trio.sleep_forever()
    assert "messages_lost" in [entry["event"] for entry in logs]


@attrs.define
class StuckDisk:
    """A state directory that takes nothing while it is told so."""

    stuck: bool = False
    refused: int = 0

    def under(self, egress: Egress, monkeypatch: pytest.MonkeyPatch) -> None:
        save = egress._state.save

        def stubborn(*what: Any) -> None:
            if self.stuck:
                self.refused += 1
                raise StateDiskError("the disk is full", no_space=True)
            save(*what)

        monkeypatch.setattr(egress._state, "save", stubborn)


@pytest.mark.req("GC-DLV-41", "GC-DLV-18")
async def test_an_egress_whose_state_cannot_be_stored_goes_on(way: Link, monkeypatch: pytest.MonkeyPatch) -> None:
    """It says so, calls nothing stored that is not, and stores all of it as soon as it can."""
    monkeypatch.setattr("gapconn.egress.CALM_S", 0.0)
    sink, session, disk = Taking(), Session(way), StuckDisk()
    with capture_logs() as logs:
        async with opened(way, sink) as egress:
            disk.under(egress, monkeypatch)
            with trio.fail_after(60):
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(egress.run)
                    await feed(egress, session.start + session.numbers((0, 10)))
                    await until(lambda: egress.delivered.next_positions() == {(STREAM, 0): 10})
                    disk.stuck = True
                    session.numbers((10, 10))
                    await feed(egress, session.numbers((20, 10)))
                    await until(lambda: disk.refused > 2)
                    await feed(egress, session.numbers((30, 10)))
                    await until(lambda: 39 in sink.numbers)
                    before = disk.refused
                    await until(lambda: disk.refused > before + 1)
                    view = EgressView(egress)
                    assert "the disk is full" in view.status()["alarms"]["state_disk_full"]
                    assert view.health()
                    assert not view.live(), "no restart mends it"
                    [stuck] = [m.samples[0].value for m in view.metrics() if m.name == "gapconn_state_stuck"]
                    assert stuck == 1
                    assert egress.delivered.next_positions() == {(STREAM, 0): 10}
                    known = stored(egress)
                    assert known is not None
                    assert (known.next_message, known.positions) == (1, {(STREAM, 0): Standing(2, 0, 9)})
                    disk.stuck = False
                    await until(lambda: not egress.events.alarms)
                    assert egress.delivered.next_positions() == {(STREAM, 0): 40}
                    egress.stop()
    events = [entry["event"] for entry in logs]
    assert (events.count("state_disk_full"), events.count("state_restored")) == (1, 1)
    async with opened(way, Taking()) as egress:
        assert list(egress.journal.missing()[STREAM, 0]) == [(10, 19)]
        known = stored(egress)
        assert known is not None
        assert (known.next_message, known.positions) == (4, {(STREAM, 0): Standing(2, 0, 39)})


@pytest.mark.req("GC-DLV-41")
async def test_an_egress_that_ends_without_having_stored_its_state_says_so(
    way: Link, monkeypatch: pytest.MonkeyPatch
) -> None:
    session, disk = Session(way), StuckDisk(stuck=True)
    reason = pytest.RaisesExc(StateDiskError, match="the disk is full")
    with pytest.RaisesGroup(reason, flatten_subgroups=True):
        async with opened(way, Taking()) as egress:
            disk.under(egress, monkeypatch)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(egress.run)
                await feed(egress, session.start + session.numbers((0, 10)))
                egress.stop()


@pytest.mark.req("GC-DLV-41", "GC-DLV-20")
async def test_what_is_in_the_spool_is_kept_until_it_is_stored_that_the_sink_has_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    way, spool = link(tmp_path / "state", heartbeat_interval=5, shutdown_grace=0), Spool(after=Seconds(0.01))
    spool = attrs.evolve(spool, directory=str(tmp_path))
    sink, session, disk = Taking(accepting=False), Session(way), StuckDisk()
    async with opened(way, sink, spool) as egress:
        disk.under(egress, monkeypatch)
        with trio.fail_after(60):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(egress.run)
                await feed(egress, session.start + session.numbers((0, 10)))
                await until(lambda: egress.queue.spooled == 1 and not egress.progress._changed)
                disk.stuck = True
                session.numbers((10, 10))
                await feed(egress, session.numbers((20, 10)))
                await until(lambda: disk.refused > 2)
                for delivery in sink.deliveries:
                    delivery.accept()
                refused = disk.refused
                await until(lambda: disk.refused > refused + 2)
                assert egress.queue.spool is not None
                assert egress.queue.spool.cursor.serial == 0
                disk.stuck = False
                await until(lambda: not egress.queue.committable)
                nursery.cancel_scope.cancel()


async def test_what_an_operator_wants_closed_waits_for_the_disk(way: Link, monkeypatch: pytest.MonkeyPatch) -> None:
    session, disk = Session(way), StuckDisk()
    async with running(way, Taking()) as egress:
        disk.under(egress, monkeypatch)
        await feed(egress, session.start + session.numbers((0, 10)))
        session.numbers((10, 10))
        await feed(egress, session.numbers((20, 10)))
        await until(lambda: bool(egress.journal.missing()))
        with GapFile.open(Path(way.state_directory), way.name, way.id) as gaps:
            disk.stuck = True
            gaps.wish([1], "sent by mail")
            await until(lambda: not egress.journal.open_entries)
            await until(lambda: disk.refused > 12)
            assert gaps.wishes()
            assert len(egress._fulfilled) == 1, "however often it was looked"
            disk.stuck = False
            await until(lambda: not gaps.wishes())
            assert not gaps.load().open_entries


# The end


async def test_told_to_stop_it_hands_over_what_had_arrived(way: Link) -> None:
    """Also what nobody has read from the socket yet, and what the sink has not taken yet."""
    sink, session = Taking(going=trio.Event()), Session(way)
    async with opened(way, sink) as egress:
        with trio.fail_after(60), capture_logs() as logs:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(egress.run)
                await feed(egress, session.start + session.numbers((0, 10)))
                throw(session.numbers(*((i, 10) for i in range(10, 1500, 10))), egress.socket.address)
                egress.stop()
                assert EgressView(egress).ready() == ["it was asked to stop"]
                await until(lambda: len(egress.queue) >= 149)
                assert sink.going is not None
                sink.going.set()
    assert sink.numbers == list(range(1500))
    assert [entry["event"] for entry in logs][-1] == "sink_drained"
    assert (await resumed(way)).next_message == 150


async def test_told_to_stop_before_it_runs(way: Link) -> None:
    sink, session = Taking(), Session(way)
    async with opened(way, sink) as egress:
        throw(session.start + session.numbers((0, 10)), egress.socket.address)
        egress.stop()
        with trio.fail_after(60):
            await egress.run()
    assert sink.numbers == list(range(10))


async def test_told_to_stop_under_a_flood_it_stops(way: Link, monkeypatch: pytest.MonkeyPatch) -> None:
    """A sender that goes on and on must not keep it from ending."""
    monkeypatch.setattr("gapconn.egress.LAST_RECEIVE_S", 0.1)
    sink = Taking()

    async def flood(to: Address) -> None:
        while True:
            throw([b"flood"] * 100, to)
            await trio.lowlevel.checkpoint()

    async with opened(way, sink) as egress:
        with trio.fail_after(60):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(flood, egress.socket.address)
                nursery.start_soon(egress.run)
                await until(lambda: egress.core.counters.datagrams > 0)
                egress.stop()
                await until(lambda: egress.queue.drained)
                nursery.cancel_scope.cancel()
    assert egress.core.counters.dropped[DropReason.TOO_SHORT] == egress.core.counters.datagrams


async def test_a_gap_at_the_stop_does_not_keep_what_is_complete(way: Link) -> None:
    sink, session = Taking(), Session(way)
    async with running(way, sink) as egress:
        await feed(egress, session.start + session.numbers((0, 10)))
        session.numbers((10, 10))  # lost
        await feed(egress, session.numbers((20, 10)))
        egress.stop()
    assert sink.numbers == [*range(10), *range(20, 30)]


async def test_what_the_sink_cannot_do_ends_the_egress_with_its_reason(way: Link) -> None:
    """What was delivered before is stored, and what was known is told."""

    async def sink(inlet: Inlet) -> None:
        async for delivery in inlet:
            if delivery.message == 5:
                raise SinkError("the target is full")
            delivery.accept()

    session = Session(way)
    reason = pytest.RaisesExc(SinkError, match="^the target is full$")
    with capture_logs() as logs, pytest.RaisesGroup(reason, flatten_subgroups=True):
        async with running(way, sink) as egress:
            await feed(egress, session.start + session.numbers((0, 1), (1, 1), (2, 1)))
            session.numbers((3, 1))
            throw(session.numbers((4, 1), (5, 1)), egress.socket.address)
            await trio.sleep_forever()
    assert (await resumed(way)).next_message == 5
    assert "messages_lost" in [entry["event"] for entry in logs]


async def test_a_bug_in_a_sink_is_not_swallowed(way: Link) -> None:
    async def sink(inlet: Inlet) -> None:
        raise ZeroDivisionError

    with pytest.RaisesGroup(ZeroDivisionError, flatten_subgroups=True):
        async with running(way, sink):
            await trio.sleep_forever()


async def test_a_sink_that_ends_by_itself_is_a_failure(way: Link) -> None:
    async def sink(inlet: Inlet) -> None: ...

    reason = pytest.RaisesExc(SinkError, match="the function sink ended by itself")
    with pytest.RaisesGroup(reason, flatten_subgroups=True):
        async with running(way, sink):
            await trio.sleep_forever()


async def test_a_sink_that_does_not_accept_everything_may_still_end(way: Link) -> None:
    """It reports what it could not deliver; the progress stays before it."""

    async def sink(inlet: Inlet) -> None:
        async for delivery in inlet:
            if delivery.message == 1:
                inlet.lost(stream=STREAM, first=10, last=19, reason="too large")
            else:
                delivery.accept()

    session = Session(way)
    with capture_logs() as logs:
        async with running(way, sink) as egress:
            await feed(egress, session.start + session.numbers((0, 10), (10, 10), (20, 10)))
    assert (await resumed(way)).next_message == 1
    assert egress.events.sink_losses == {"too large": 1}
    (told,) = [entry for entry in logs if entry["event"] == "sink_lost"]
    assert {"stream": STREAM, "reason": "too large", "count": 1, "ranges": [[10, 19]]}.items() <= told.items()


# Liveness


@pytest.mark.req("GC-SESS-13", "GC-TIME-2")
async def test_silence_is_an_alarm_until_it_ends(tmp_path: Path) -> None:
    way = link(tmp_path, heartbeat_interval=0.1)
    session = Session(way)
    with capture_logs() as logs:
        async with running(way, Taking()) as egress:
            view = EgressView(egress)
            assert view.health() == []
            assert view.ready() == ["the link is waiting"]
            await until(lambda: bool(view.health()))  # nothing was heard since the start
            assert view.ready() == ["the link is interrupted"]
            throw(session.start, egress.socket.address)
            await until(lambda: not view.health())
            await until(lambda: bool(view.health()))
            throw(session.heartbeat(), egress.socket.address)
            await until(lambda: not view.health())
            throw(session.stop(), egress.socket.address)
            await until(lambda: view.ready() == ["the link is closed"])
            await trio.sleep(3 * way.interruption_timeout_s)
            assert view.health() == [], "a session that said Shutdown may be silent"
    told = [(e["event"], e["log_level"]) for e in logs if e["event"].startswith("link_")]
    assert told == [("link_interrupted", "error"), ("link_restored", "info")] * 2


async def test_tasks_have_names(way: Link) -> None:
    names = TaskNames()
    trio.lowlevel.add_instrument(names)
    session = Session(way)
    async with running(way, Taking()) as egress:
        await feed(egress, session.start)
    trio.lowlevel.remove_instrument(names)
    assert {"egress.receiver", "egress.reassembler", "egress.sink", "egress.watchdog"} <= names.seen


# Whatever arrives


@pytest.mark.req("GC-MOD-5", "GC-MOD-6")
async def test_whatever_arrives_it_goes_on_and_counts_it(way: Link) -> None:
    """Random bytes; valid datagrams that were cut, changed, doubled; messages of any content with a right check."""
    generator = random.Random(11)
    sink, session, strange = Taking(), Session(way), Session(way, epoch=9, previous_epoch=8)
    foreign = Session(attrs.evolve(way, id=way.id ^ 1))
    strangers = strange.start + strange.numbers((0, 500)) + foreign.start + foreign.numbers((0, 9))

    def hostile(good: list[bytes]) -> bytes:
        kind = generator.randrange(6)
        if kind == 0:
            return generator.randbytes(generator.choice([0, 1, 20, 55, 56, 60, 120, 1472]))
        datagram = bytearray(generator.choice(good))
        if kind == 1:
            del datagram[generator.randrange(len(datagram)) :]
        elif kind == 2:
            datagram[generator.randrange(len(datagram))] ^= 1 << generator.randrange(8)
        elif kind == 3:
            datagram += b"more"
        elif kind == 4:
            return bytes(generator.choice(strangers))
        return bytes(datagram)

    async with running(way, sink) as egress:
        await feed(egress, session.start)
        sent = len(session.start)
        for i in range(60):
            good = session.numbers((i * 50, 50)) if i % 7 else session.body(generator.randbytes(i))
            sent += len(good)
            bad = [hostile(good) for _ in range(40)]
            await feed(egress, good + bad)
        await feed(egress, session.numbers((3000, 1)))
        sent += 1
        counters = egress.core.counters
        assert egress.core.datagrams_missed == 0
        assert egress.core.epoch == 2
        assert counters.datagrams - sum(counters.dropped.values()) == sent
        strange_to_it = {
            DropReason.TOO_SHORT,
            DropReason.BAD_MAGIC,
            DropReason.BAD_CHECK,
            DropReason.FOREIGN_LINK,
            DropReason.CONFLICT,
            DropReason.DUPLICATE,
        }
        assert strange_to_it <= counters.dropped.keys()
    assert sink.numbers == [n for i in range(60) if i % 7 for n in range(i * 50, i * 50 + 50)] + [3000]


# The service


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_signals_end_it_in_order_however_often_they_come(tmp_path: Path, number: signal.Signals) -> None:
    sink = Taking()
    with trio.fail_after(60), capture_logs() as logs, socket.socket(type=socket.SOCK_DGRAM) as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
        free.close()
        async with trio.open_nursery() as nursery:
            way = link(tmp_path, port=port)
            nursery.start_soon(serve_egress, pair(way, sink=sink_of(sink)))
            await signals_are_taken()
            session = Session(way)
            throw(session.start + session.numbers((0, 100)), Address("127.0.0.1", port))
            for _ in range(3):
                signal.raise_signal(number)
    assert sink.numbers == list(range(100))
    told = [(entry["event"], entry.get("signal")) for entry in logs]
    assert ("stopping", number.name) in told
    assert ("sink_drained", None) in told


async def test_a_sink_that_is_stuck_does_not_keep_it_longer_than_the_grace(tmp_path: Path) -> None:
    async def sink(inlet: Inlet) -> None:
        async for delivery in inlet:
            if delivery.message == 3:
                await trio.sleep_forever()
            delivery.accept()

    with socket.socket(type=socket.SOCK_DGRAM) as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    way = link(tmp_path, port=port, shutdown_grace=0.1)
    session = Session(way)
    reason = pytest.RaisesExc(
        LinkError, match=r"link\.shutdown_grace \(0\.1 s\) is over: the sink did not accept 7 messages"
    )
    with trio.fail_after(60), pytest.RaisesGroup(reason, flatten_subgroups=True):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(serve_egress, pair(way, sink=sink_of(sink)))
            await signals_are_taken()
            throw(session.start + session.numbers(*((i, 1) for i in range(10))), Address("127.0.0.1", port))
            signal.raise_signal(signal.SIGTERM)
    assert (await resumed(way)).next_message == 3


async def test_one_egress_of_a_link_at_a_time(tmp_path: Path) -> None:
    way = link(tmp_path, port=1)
    with EgressState.open(tmp_path, way.name, way.id), pytest.raises(LinkError, match="another egress"):
        await serve_egress(pair(way, sink=sink_of(Taking())))


async def test_without_a_sink_it_does_not_start(way: Link) -> None:
    with pytest.raises(ConfigError, match=r"\[sink\]: the section is missing"):
        await serve_egress(pair(way))


@pytest.mark.parametrize("key", ["address", "bind"])
async def test_an_address_that_cannot_be_resolved_is_named_by_its_key(tmp_path: Path, key: str) -> None:
    nowhere = Address("no.such.host.invalid", 7400)
    way = link(tmp_path)
    way = attrs.evolve(way, bind=nowhere) if key == "bind" else attrs.evolve(way, address=nowhere)
    with (
        trio.fail_after(60),
        pytest.raises(LinkError, match=rf"^link\.{key}: cannot resolve 'no\.such\.host\.invalid'"),
    ):
        await serve_egress(pair(way, sink=sink_of(Taking())))


async def test_a_sink_that_accepts_nothing_makes_it_not_ready(way: Link, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gapconn.admin.egress_view.SINK_STALLED_S", 0.05)
    sink, session = Taking(accepting=False), Session(way)
    async with running(way, sink) as egress:
        view = EgressView(egress)
        await feed(egress, session.start + session.numbers((0, 10), (10, 10)))
        await until(lambda: bool(view.ready()))
        assert "2 messages wait" in view.ready()[0]
        assert view.status()["held"]["unaccepted_messages"] == 2
        assert view.status()["held"]["sink_stalled_s"] >= 0.05  # rounded
        for delivery in sink.deliveries:
            delivery.accept()
        assert view.ready() == []
        assert (view.status()["accepted_messages"], view.status()["held"]["sink_stalled_s"]) == (2, 0)


@pytest.mark.req("GC-SESS-15")
async def test_what_the_sink_never_accepted_is_reported_when_the_next_session_follows(way: Link) -> None:
    first, second = Session(way), Session(way, epoch=3, previous_epoch=2)
    async with running(way, Taking(accepting=False)) as egress:
        await feed(egress, first.start + first.numbers((0, 10), (10, 10)) + first.stop())
    with capture_logs() as logs:
        async with running(way, Taking()) as egress:
            await feed(egress, second.start)
    told = {entry["event"]: entry for entry in logs}
    assert told["records_lost"]["count"] == 20
    assert (told["messages_lost"]["epoch"], told["messages_lost"]["cause"]) == (2, "while_away")
    assert "session_cut_off" not in told, "it had said how much it sent"


async def test_told_to_stop_with_a_socket_that_is_kept_it_cuts_no_message_in_two(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However far the reassembler is with what was received last."""
    monkeypatch.setattr("gapconn.link.udp.RECEIVE_DATAGRAMS_MAX", 1)
    for attempt in range(8):
        way = link(tmp_path / str(attempt))
        sink, session = Taking(), Session(way)
        async with opened(way, sink) as egress:
            egress.socket.passed = True
            with trio.fail_after(60):
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(egress.run)
                    await feed(egress, session.start)
                    first, *rest = session.numbers((0, 500))
                    throw([first], egress.socket.address)
                    egress.stop()
                    await trio.sleep(0.05)
                    throw(rest, egress.socket.address)
        assert sink.numbers == list(range(500))
