"""An egress and its journal: what it misses is noted durably, and what is sent again is delivered once and closed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
import structlog
import trio
from structlog.testing import capture_logs

from gapconn.admin.egress_view import EgressView
from gapconn.config import Link, Spool
from gapconn.egress import Egress
from gapconn.events_log import EventLog
from gapconn.journal import Journal, Place
from gapconn.protocol.envelope import Span
from gapconn.protocol.events import MessageDelivered, RecordsMissing
from gapconn.protocol.positions import Standing
from gapconn.protocol.progress import Progress
from gapconn.record import Batch, Records, encode_batch
from gapconn.service import go_on_from_target
from gapconn.sink_queue import SinkQueue
from gapconn.sinks import Delivery, Inlet, Reached
from gapconn.store.journal import GapFile
from gapconn.store.spool import Appended, Spooled
from gapconn.store.spool import Spool as SpoolOnDisk
from gapconn.store.state import EgressState
from gapconn.units import Seconds
from tests.services import STREAM, Session, Taking, feed, link, numbers, numbers_in, opened, running, until


@pytest.fixture
def way(tmp_path: Path) -> Link:
    return link(tmp_path, heartbeat_interval=5)  # nobody is called silent here, however slow this machine is


def stored(way: Link) -> Journal:
    with GapFile.open(Path(way.state_directory), way.name, way.id) as gaps:
        return gaps.load()


def missing(journal: Journal) -> dict[Place, list[tuple[int, int]]]:
    return {place: list(ranges) for place, ranges in journal.missing().items()}


def span(first: int, last: int, count: int | None = None, gone: str = "", *, again: bool = False) -> Span:
    return Span(STREAM, 0, first, last, (last - first + 1 if count is None else count), gone, again)


async def lose(egress: Egress, session: Session, way: Link, count: int = 10) -> None:
    """The session's next numbers are lost, and those behind them arrive."""
    first = session.numbers((10, count))
    await feed(egress, session.numbers((10 + count, 10)))
    assert first
    await until(lambda: bool(egress.journal.missing()))


@pytest.mark.req("GC-RPR-1", "GC-RPR-6", "GC-RPR-7", "GC-RPR-4")
async def test_what_was_lost_is_noted_sent_again_delivered_and_closed(way: Link) -> None:
    sink, session = Taking(), Session(way)
    with capture_logs() as logs:
        async with running(way, sink) as egress:
            await feed(egress, session.start + session.numbers((0, 10)))
            await lose(egress, session, way)
            await until(lambda: missing(stored(way)) == {(STREAM, 0): [(10, 19)]})
            view = EgressView(egress).status()["journal"]
            assert (view["open_entries"], view["positions_missing"]) == (1, 10)
            # Half of it, with what the egress has anyway on both sides.
            await feed(egress, session.repair(numbers(5, 10), span(5, 14)))
            await until(lambda: missing(egress.journal) == {(STREAM, 0): [(15, 19)]})
            await feed(egress, session.repair(numbers(12, 13), span(12, 24)))
            await until(lambda: not egress.journal.open_entries)
            await feed(egress, session.repair(numbers(10, 10), span(10, 19)))  # sent a third time
            await feed(egress, session.numbers((30, 5)))
            await until(lambda: 34 in sink.numbers)
            assert egress.events.repaired == 10
            assert egress.core.counters.records_lost == 10, "the repairs are not counted as sent records"
            status = EgressView(egress).status()
            assert (status["journal"]["open_entries"], status["journal"]["records_repaired"]) == (0, 10)
    assert sink.numbers == [*range(10), *range(20, 30), *range(10, 20), *range(30, 35)]
    assert [d.repair for d in sink.deliveries] == [False, False, True, True, False]
    [entry] = stored(way)
    assert (entry.cause, entry.outcome, entry.records) == ("gap", "repaired", 10)
    assert {place: list(ranges) for place, ranges in entry.repaired.items()} == {(STREAM, 0): [(10, 19)]}
    assert [each["outcome"] for each in logs if each["event"] == "gap_closed"] == ["repaired"]
    assert sum(each["count"] for each in logs if each["event"] == "records_repaired") == 10
    async with opened(way, Taking()) as egress:
        resumed = egress._state.load()
    assert resumed is not None
    assert resumed.positions == {(STREAM, 0): Standing(2, 0, 34)}


@pytest.mark.req("GC-RPR-7", "GC-RPR-5")
async def test_what_the_source_has_no_more_is_closed_with_its_reason(way: Link) -> None:
    session = Session(way)
    with capture_logs() as logs:
        async with running(way, Taking()) as egress:
            await feed(egress, session.start + session.numbers((0, 10)))
            await lose(egress, session, way)
            await feed(egress, session.repair(None, span(10, 14, 0, "deleted by retention")))
            await until(lambda: missing(egress.journal) == {(STREAM, 0): [(15, 19)]})
            await feed(egress, session.repair(None, span(15, 19, 0)))  # these positions never held a record
            await until(lambda: not egress.journal.open_entries)
    [entry] = stored(way)
    assert (entry.outcome, entry.reason) == ("unrecoverable", "deleted by retention")
    assert {place: list(ranges) for place, ranges in entry.gone.items()} == {(STREAM, 0): [(10, 14)]}
    [gone] = [each for each in logs if each["event"] == "records_gone"]
    assert (gone["reason"], gone["ranges"]) == ("deleted by retention", [[10, 14]])


@pytest.mark.req("GC-RPR-6")
async def test_what_is_asked_for_again_is_delivered_although_nothing_is_missing(way: Link) -> None:
    sink, session = Taking(), Session(way)
    async with running(way, sink) as egress:
        await feed(egress, session.start + session.numbers((0, 10)))
        await feed(egress, session.repair(numbers(0, 5), span(0, 4)))
        await feed(egress, session.repair(numbers(3, 5), span(3, 7, again=True)))
        await feed(egress, session.numbers((10, 1)))
        await until(lambda: 10 in sink.numbers)
        assert egress.events.duplicates == 0
    assert sink.numbers == [*range(10), *range(3, 8), 10]
    assert [d.repair for d in sink.deliveries] == [False, True, False]


async def test_a_repair_that_is_lost_leaves_no_entry_of_its_own(way: Link) -> None:
    session = Session(way)
    async with running(way, Taking()) as egress:
        await feed(egress, session.start + session.numbers((0, 10)))
        await lose(egress, session, way)
        session.repair(numbers(10, 10), span(10, 19))  # the gap swallows it
        await feed(egress, session.numbers((30, 5)))
        await until(lambda: egress.core.counters.messages_lost.total() == 2)
        await until(lambda: len(egress.journal) == 1)
        assert missing(egress.journal) == {(STREAM, 0): [(10, 19)]}
        await feed(egress, session.repair(numbers(10, 10), span(10, 19)))
        await until(lambda: not egress.journal.open_entries)


async def test_nothing_with_records_was_lost_at_the_end(way: Link) -> None:
    """The announcement says so: no later message is needed to know it."""
    session = Session(way)
    async with running(way, Taking()) as egress:
        await feed(egress, session.start + session.numbers((0, 10)))
        session.repair(numbers(10, 10), span(10, 19))  # the gap swallows it, and the positions behind it
        await feed(egress, session.heartbeat()[-1:])
        await until(lambda: egress.core.counters.messages_lost.total() == 2)
        await until(lambda: not list(egress.journal))
    assert not list(stored(way))


@pytest.mark.req("GC-DLV-15")
async def test_what_a_restarted_ingress_sends_again_is_not_mixed_with_later_records(way: Link) -> None:
    """Records of a hole would come behind later ones, and not be marked: they stay open, for a repair."""
    sink, first, second = Taking(), Session(way), Session(way, epoch=3, previous_epoch=2)
    async with running(way, sink) as egress:
        await feed(egress, first.start + first.numbers((0, 10)))
        await lose(egress, first, way)
        await feed(egress, second.start + second.batch(numbers(5, 30)))
        await until(lambda: 34 in sink.numbers)
        assert missing(egress.journal) == {(STREAM, 0): [(10, 19)]}
        await feed(egress, second.repair(numbers(10, 10), span(10, 19)))
        await until(lambda: not egress.journal.open_entries)
    assert sink.numbers == [*range(10), *range(20, 35), *range(10, 20)]


@pytest.mark.req("GC-RPR-1")
async def test_an_entry_is_stored_before_the_progress_behind_it(way: Link, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whenever progress is stored that has passed a loss, the loss is in the journal's file already."""
    seen: list[bool] = []
    async with opened(way, Taking()) as egress:
        state = egress._state
        save = state._save_progress

        def look_and_save(progress: object) -> None:
            if progress.positions.get((STREAM, 0), Standing(0, 0, 0)).position >= 29:  # type: ignore[attr-defined]
                seen.append(missing(stored(way)) == {(STREAM, 0): [(10, 19)]})
            save(progress)  # type: ignore[arg-type]

        monkeypatch.setattr(state, "_save_progress", look_and_save)
        session = Session(way)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(egress.run)
            await feed(egress, session.start + session.numbers((0, 10)))
            await lose(egress, session, way)
            await until(lambda: bool(seen))
            egress.stop()
    assert seen
    assert all(seen)


@pytest.mark.req("GC-RPR-1", "GC-DLV-19")
async def test_an_entry_is_stored_before_the_spool_has_what_came_behind_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A restarted egress goes on behind what is in the spool: what was lost before that must be known by then."""
    monkeypatch.setattr("gapconn.egress.CHECKPOINT_INTERVAL_S", 3600.0)
    way = link(tmp_path / "state", heartbeat_interval=5, shutdown_grace=0)
    session = Session(way)
    seen: dict[int, dict[Place, list[tuple[int, int]]]] = {}
    async with opened(way, Taking(going=trio.Event()), Spool(directory=str(tmp_path), after=Seconds(0.01))) as egress:
        spool = egress.queue.spool
        assert spool is not None
        append = spool.append

        def look_and_append(entries: Sequence[Spooled]) -> Appended:
            seen.update({entry.message.number: missing(stored(way)) for entry in entries})
            return append(entries)

        monkeypatch.setattr(spool, "append", look_and_append)
        with trio.fail_after(60):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(egress.run)
                await feed(egress, session.start + session.numbers((0, 10)))
                await until(lambda: egress.queue.spooled == 1)
                await lose(egress, session, way)
                await until(lambda: egress.queue.spooled == 2)
                nursery.cancel_scope.cancel()
    assert seen == {0: {}, 2: {(STREAM, 0): [(10, 19)]}}


@pytest.mark.req("GC-RPR-7")
async def test_an_entry_stays_open_until_the_sink_has_the_records(way: Link) -> None:
    """An egress that ends between a repair and its acceptance still misses them."""
    held: list[Delivery] = []

    async def sink(inlet: Inlet) -> None:
        async for delivery in inlet:
            if delivery.repair:
                held.append(delivery)
            else:
                delivery.accept()

    session = Session(way)
    async with running(way, sink) as egress:
        await feed(egress, session.start + session.numbers((0, 10)))
        await lose(egress, session, way)
        await feed(egress, session.repair(numbers(10, 10), span(10, 19)))
        await until(lambda: bool(held))
        assert numbers_in(held[0].batch) == list(range(10, 20))
        await feed(egress, session.repair(numbers(10, 10), span(10, 19)))  # while the first is on its way
        assert missing(egress.journal) == {(STREAM, 0): [(10, 19)]}
    assert missing(stored(way)) == {(STREAM, 0): [(10, 19)]}
    second = Taking()
    async with running(way, second) as egress:
        await feed(egress, session.repair(numbers(10, 10), span(10, 19)))
        await until(lambda: not egress.journal.open_entries)
    assert second.numbers == list(range(10, 20))


@pytest.mark.req("GC-RPR-6", "GC-RPR-7", "GC-DLV-19")
async def test_a_repair_in_the_spool_is_delivered_and_closed_by_the_next_egress(tmp_path: Path) -> None:
    way = link(tmp_path / "state", heartbeat_interval=5, shutdown_grace=0)
    spool = Spool(directory=str(tmp_path), after=Seconds(0.01))
    session = Session(way)
    async with opened(way, Taking(going=trio.Event()), spool) as egress:  # the target is away
        with trio.fail_after(60):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(egress.run)
                await feed(egress, session.start + session.numbers((0, 10)))
                await lose(egress, session, way)
                await feed(egress, session.repair(numbers(8, 12), span(8, 19)))
                await until(lambda: egress.queue.spooled == 3)
                nursery.cancel_scope.cancel()
    assert missing(stored(way)) == {(STREAM, 0): [(10, 19)]}, "the spool is not the target"
    sink = Taking()
    async with running(way, sink, spool) as egress:
        await until(lambda: not egress.journal.open_entries)
        await feed(egress, session.repair(numbers(10, 10), span(10, 19)) + session.numbers((30, 1)))
        await until(lambda: 30 in sink.numbers)
    assert sink.numbers == [*range(10), *range(20, 30), *range(10, 20), 30]
    assert [delivery.repair for delivery in sink.deliveries] == [False, False, True, False]
    assert [entry.outcome for entry in stored(way)] == ["repaired"]


@pytest.mark.req("GC-RPR-1", "GC-RPR-7")
async def test_what_the_sink_gives_up_is_open_also_of_a_repair(way: Link) -> None:
    """Record 3 is always given up: as it comes, and when it is sent again."""

    async def sink(inlet: Inlet) -> None:
        async for delivery in inlet:
            if 3 in numbers_in(delivery.batch):
                inlet.lost(stream=STREAM, partition=0, first=3, last=3, reason="rejected: too large")
            delivery.accept()

    session = Session(way)
    async with running(way, sink) as egress:
        await feed(egress, session.start + session.numbers((0, 10)))
        await until(lambda: missing(egress.journal) == {(STREAM, 0): [(3, 3)]})
        await feed(egress, session.repair(numbers(3, 1), span(3, 3)))
        await until(lambda: egress.queue.accepted == 2)
        assert missing(egress.journal) == {(STREAM, 0): [(3, 3)]}
    assert [(entry.cause, entry.outcome) for entry in stored(way)] == [("rejected: too large", "open")]


async def test_a_repair_with_a_body_that_is_no_batch_does_no_harm(way: Link) -> None:
    sink, session = Taking(), Session(way)
    wrong = Batch(parts=[Records(stream=STREAM, positions=[10], values=[])])
    async with running(way, sink) as egress:
        await feed(egress, session.start + session.numbers((0, 10)))
        await lose(egress, session, way)
        await feed(egress, session.repair(wrong, span(10, 19, 1)))
        await until(lambda: egress.events.refused["damaged"] == 1)
        assert missing(egress.journal) == {(STREAM, 0): [(10, 19)]}
        await feed(egress, session.repair(numbers(10, 10), span(10, 19)))
        await until(lambda: not egress.journal.open_entries)
    assert sink.numbers == [*range(10), *range(20, 30), *range(10, 20)]


async def test_an_entry_is_closed_by_an_operator_while_the_egress_runs(way: Link) -> None:
    session = Session(way)
    with capture_logs() as logs:
        async with running(way, Taking()) as egress:
            await feed(egress, session.start + session.numbers((0, 10)))
            await lose(egress, session, way)
            [entry] = egress.journal
            with GapFile.open(Path(way.state_directory), way.name, way.id) as gaps:
                gaps.wish([entry.number], "sent by mail")
                await until(lambda: not gaps.wishes())
            assert not egress.journal.open_entries
    [entry] = stored(way)
    assert (entry.outcome, entry.reason) == ("by_hand", "sent by mail")
    assert [each["reason"] for each in logs if each["event"] == "gap_closed"] == ["sent by mail"]


@pytest.mark.req("GC-ONCE-4", "GC-ONCE-3")
async def test_what_the_target_says_was_repaired_is_closed_and_what_the_spool_has_is_not_claimed_twice(
    way: Link,
) -> None:
    """As if it had been killed after the target had the one repair, and before it had the other."""
    state = EgressState.open(Path(way.state_directory), way.name, way.id)
    spool = SpoolOnDisk(Path(way.state_directory), link=way.name, link_id=way.id, max_bytes=1 << 20)
    with state, spool:
        place = (STREAM, 0)
        state.journal.happened(RecordsMissing(epoch=2, stream=STREAM, partition=0, first=10, last=29), 0)
        body = bytearray()
        encode_batch(numbers(20, 5), body, 0)
        waiting = MessageDelivered(
            epoch=2,
            number=8,
            first_record=70,
            record_count=0,
            runs=[],
            already_delivered={},
            positions={},
            body=memoryview(bytes(body)),
            spans=(span(20, 24),),
            claimed={place: ((20, 24),)},
        )
        spool.append([Spooled(message=waiting, lost_before=0, arrived_s=0.0)])
        target = Progress(epoch=2, next_message=8, next_record=70, positions={place: Standing(2, 0, 79)})
        reached = Reached(progress=target, repaired={place: ((10, 19),)})
        resume = await trio.to_thread.run_sync(go_on_from_target, reached, None, spool, state)
        assert resume == target
        assert state.load() == target
        assert missing(stored(way)) == {place: [(20, 29)]}
        assert state.journal.claim(STREAM, 0, 10, 29) == ((25, 29),)


@pytest.mark.req("GC-RPR-6", "GC-DLV-20")
async def test_a_repair_in_the_spool_is_on_its_way_from_the_start(tmp_path: Path) -> None:
    """However long it takes until it is read: what is asked for again meanwhile does not bring the same twice."""
    way = link(tmp_path / "state", heartbeat_interval=5, shutdown_grace=0)
    spool = Spool(directory=str(tmp_path), after=Seconds(0.01))
    session, away = Session(way), Taking(going=trio.Event())
    async with opened(way, away, spool) as egress, trio.open_nursery() as nursery:
        nursery.start_soon(egress.run)
        await feed(egress, session.start + session.numbers((0, 10)))
        await lose(egress, session, way)
        await feed(egress, session.repair(numbers(10, 10), span(10, 19)))
        await until(lambda: egress.queue.spooled == 3)
        nursery.cancel_scope.cancel()
    async with opened(way, Taking(), spool) as egress:  # and nothing of the spool was read yet
        assert missing(egress.journal) == {(STREAM, 0): [(10, 19)]}
        assert egress.journal.claim(STREAM, 0, 10, 19) == ()


@pytest.mark.req("GC-ONCE-4", "GC-RPR-6")
async def test_what_the_target_can_never_take_of_a_repair_may_be_asked_for_again(tmp_path: Path) -> None:
    events = EventLog(structlog.get_logger())
    events.journal.happened(RecordsMissing(epoch=2, stream=STREAM, partition=0, first=14, last=14), 0)
    mended = MessageDelivered(
        epoch=2,
        number=8,
        first_record=70,
        record_count=0,
        runs=[],
        already_delivered={},
        positions={},
        body=memoryview(b""),
        spans=(span(10, 19),),
        claimed={(STREAM, 0): ((10, 19),)},
    )
    events.repair_waits(mended)
    with SpoolOnDisk(tmp_path, link="orders", link_id=7, max_bytes=1 << 20) as spool:
        spool.append([Spooled(message=mended, lost_before=0, arrived_s=0.0)])
        queue = SinkQueue(1 << 20, events, spool, delivered=(2, 9))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(queue.work)
            nursery.start_soon(anext, queue)
            await until(lambda: not queue.unaccepted)
            nursery.cancel_scope.cancel()
    assert events.journal.claim(STREAM, 0, 10, 19) == ((14, 14),)
