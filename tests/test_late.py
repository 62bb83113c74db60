"""An egress and messages that are repeated: they mend what was lost, once, and close its journal."""

from __future__ import annotations

from pathlib import Path

import attrs
import pytest
import trio

from gapconn.admin.egress_view import EgressView
from gapconn.config import Link, Spool
from gapconn.protocol.progress import Progress
from gapconn.record import Batch, Chunk, ChunkKind
from gapconn.service import go_on_from_target, resumed
from gapconn.sinks import Inlet, Reached
from gapconn.store.state import EgressState
from gapconn.testing.memory_gap import bursts_of
from gapconn.units import Seconds
from tests.services import STREAM, Session, Taking, feed, link, numbers, opened, pair, running, sink_of, until
from tests.test_egress_repair import missing, span, stored


@pytest.fixture
def way(tmp_path: Path) -> Link:
    return link(tmp_path, heartbeat_interval=5)  # nobody is called silent here, however slow this machine is


@pytest.mark.req("GC-DLV-31", "GC-DLV-33", "GC-RPR-1")
async def test_a_repeat_brings_what_was_lost_and_closes_its_entry(way: Link) -> None:
    sink, session = Taking(), Session(way)
    async with running(way, sink) as egress:
        messages = [session.numbers(each) for each in ((0, 10), (10, 10), (20, 10))]
        await feed(egress, session.start + messages[0] + messages[2])
        await until(lambda: missing(egress.journal) == {(STREAM, 0): [(10, 19)]})
        for message in messages * 2:
            await feed(egress, session.repeat(message))
        await until(lambda: not egress.journal.open_entries)
        await feed(egress, session.repair(numbers(10, 10), span(10, 19)))  # it was asked for by hand too
        await feed(egress, session.numbers((30, 5)))
        await until(lambda: 34 in sink.numbers)
        status = EgressView(egress).status()
        assert (status["journal"]["messages_late"], status["journal"]["records_late"]) == (1, 10)
        assert (status["received"]["messages_late"], status["received"]["repeats_not_needed"]) == (1, 5)
        metrics = {metric.name for metric in EgressView(egress).metrics()}
        assert {"gapconn_records_late", "gapconn_repeats_not_needed"} <= metrics
    assert sink.numbers == [*range(10), *range(20, 30), *range(10, 20), *range(30, 35)]
    assert [delivery.late for delivery in sink.deliveries] == [False, False, True, False]
    [entry] = stored(way)
    assert (entry.outcome, entry.reason, list(entry.late)) == ("repaired", "late", [(1, 1)])


@pytest.mark.req("GC-DLV-33")
async def test_what_was_repaired_by_hand_is_not_delivered_again(way: Link) -> None:
    sink, session = Taking(), Session(way)
    async with running(way, sink) as egress:
        messages = [session.numbers(each) for each in ((0, 10), (10, 10), (20, 10))]
        await feed(egress, session.start + messages[0] + messages[2])
        await until(lambda: missing(egress.journal) == {(STREAM, 0): [(10, 19)]})
        await feed(egress, session.repair(numbers(12, 3), span(12, 14)))
        await until(lambda: missing(egress.journal) == {(STREAM, 0): [(10, 11), (15, 19)]})
        await feed(egress, session.repeat(messages[1]))
        await until(lambda: not egress.journal.open_entries)
    assert sorted(sink.numbers) == list(range(30))
    assert len(sink.numbers) == 30


@pytest.mark.req("GC-DLV-34")
async def test_what_was_lost_while_the_egress_was_away_is_mended_by_repeats(way: Link) -> None:
    sink, session = Taking(), Session(way)
    messages = [session.numbers((first, 10)) for first in range(0, 50, 10)]
    async with running(way, sink) as egress:
        await feed(egress, session.start + messages[0] + messages[2])
        await until(lambda: missing(egress.journal) == {(STREAM, 0): [(10, 19)]})
    async with running(way, sink) as egress:
        await feed(egress, messages[4])
        await until(lambda: missing(egress.journal) == {(STREAM, 0): [(10, 19), (30, 39)]})
        assert {entry.cause for entry in egress.journal} == {"gap", "while_away"}
        for message in messages:
            await feed(egress, session.repeat(message))
        await until(lambda: not egress.journal.open_entries)
    assert sorted(sink.numbers) == list(range(50))
    async with running(way, sink) as egress:
        for message in messages:
            await feed(egress, session.repeat(message))
        await feed(egress, session.numbers((50, 1)))
        await until(lambda: 50 in sink.numbers)
    assert sorted(sink.numbers) == list(range(51))


@pytest.mark.req("GC-DLV-34", "GC-DLV-20")
async def test_a_late_message_in_the_spool_is_not_taken_a_second_time(tmp_path: Path) -> None:
    """Its entry is open until the sink has it: the restarted egress knows that it has it all the same."""
    way = link(tmp_path / "state", heartbeat_interval=5, shutdown_grace=0)
    spool = Spool(directory=str(tmp_path), after=Seconds(0.01))
    session, away, sink = Session(way), Taking(going=trio.Event()), Taking()
    messages = [session.numbers((first, 10)) for first in range(0, 30, 10)]
    async with opened(way, away, spool) as egress, trio.open_nursery() as nursery:
        nursery.start_soon(egress.run)
        await feed(egress, session.start + messages[0] + messages[2])
        await until(lambda: missing(egress.journal) == {(STREAM, 0): [(10, 19)]})
        await feed(egress, session.repeat(messages[1]))
        await until(lambda: egress.queue.spooled == 3)
        nursery.cancel_scope.cancel()
    async with running(way, sink, spool) as egress:
        await feed(egress, session.repeat(messages[1]) + session.numbers((30, 1)))
        await until(lambda: 30 in sink.numbers)
        assert not egress.journal.open_entries
    assert sink.numbers == [*range(10), *range(20, 30), *range(10, 20), 30]
    assert [delivery.late for delivery in sink.deliveries] == [False, False, True, False]


@pytest.mark.req("GC-DLV-31")
async def test_a_message_that_was_refused_is_taken_when_it_is_repeated(tmp_path: Path) -> None:
    way = link(
        tmp_path,
        heartbeat_interval=5,
        message_bytes_max=65_536,
        batch_bytes=65_536,
        sink_buffer_bytes=65_536,
        reassembly_bytes_max=131_072,
    )
    sink, session = Taking(going=trio.Event()), Session(way)
    messages = [session.batch(numbers(first, 10, size_bytes=5_000)) for first in range(0, 80, 10)]
    async with running(way, sink) as egress:
        assert sink.going is not None
        await feed(egress, session.start)
        for message in messages:
            await feed(egress, message)
        await until(lambda: egress.events.refused_records > 0)
        assert egress.core.messages_mendable == egress.events.refused["refused"]
        sink.going.set()
        await until(lambda: not egress.queue.unaccepted)
        for message in messages:
            await feed(egress, session.repeat(message))
            await until(lambda: not egress.queue.unaccepted)
        await until(lambda: not egress.journal.open_entries)
    assert sorted(sink.numbers) == list(range(80))


@pytest.mark.req("GC-DLV-33")
async def test_data_without_positions_is_delivered_by_the_number_of_its_message(way: Link) -> None:
    sink, session = Taking(), Session(way)

    def piece(number: int) -> list[bytes]:
        return session.batch(
            Batch(parts=[Chunk(stream="s", kind=ChunkKind.DATA, position=number, data=memoryview(b"x"))])
        )

    async with running(way, sink) as egress:
        pieces = [piece(number) for number in range(3)]
        await feed(egress, session.start + pieces[0] + pieces[2])
        await until(lambda: bool(egress.journal.open_entries))
        for each in pieces:
            await feed(egress, session.repeat(each))
        await until(lambda: not egress.journal.open_entries)
    taken = [(delivery.late, part.position) for delivery in sink.deliveries for part in delivery.batch.parts
             if isinstance(part, Chunk)]  # fmt: skip
    assert taken == [(False, 0), (False, 2), (True, 1)]


@attrs.define
class DecliningLate:
    """A sink that can do nothing with what comes late."""

    declined: list[int] = attrs.field(factory=list)

    async def __call__(self, inlet: Inlet) -> None:
        async for delivery in inlet:
            if delivery.late:
                self.declined.append(delivery.message)
                delivery.decline()
            else:
                delivery.accept()


async def test_what_the_sink_cannot_use_stays_lost(way: Link) -> None:
    session = Session(way)
    sink = DecliningLate()
    async with running(way, sink) as egress:
        bodies = [session.batch(Batch(parts=[Chunk(stream="s", kind=ChunkKind.DATA, position=n)])) for n in range(3)]
        await feed(egress, session.start + bodies[0] + bodies[2])
        await until(lambda: bool(egress.journal.open_entries))
        await feed(egress, session.repeat(bodies[1]))
        await until(lambda: egress.events.late_unusable == 1)
        assert egress.queue.unaccepted == 0
    assert sink.declined == [1]
    assert len(stored(way).open_entries) == 1


@pytest.mark.req("GC-DLV-35", "GC-DLV-36")
async def test_with_order_available_nothing_waits_and_what_comes_behind_is_marked(tmp_path: Path) -> None:
    way = link(tmp_path, heartbeat_interval=5, order="available", hold=3_000)
    sink, session = Taking(), Session(way)
    messages = [session.numbers((first, 10)) for first in range(0, 60, 10)]
    async with running(way, sink) as egress:
        await feed(egress, session.start + messages[0] + messages[2] + messages[3])
        await until(lambda: 39 in sink.numbers)
        assert not list(egress.journal)
        await feed(egress, session.repeat(messages[1]))
        await until(lambda: 19 in sink.numbers)
        await feed(egress, messages[5])
        await until(lambda: 59 in sink.numbers)
    assert [delivery.late for delivery in sink.deliveries] == [False, False, False, True, False]
    assert not list(stored(way))
    async with running(way, sink) as egress:  # it knows what it delivered ahead
        await feed(egress, session.repeat(messages[5]))
        await until(lambda: egress.core.repeats_not_needed > 0)
        await until(lambda: missing(egress.journal) == {(STREAM, 0): [(40, 49)]})
        await feed(egress, session.repeat(messages[4]))
        await until(lambda: not egress.journal.open_entries)
        assert egress.core.counters.records_lost == 10
    assert sorted(sink.numbers) == list(range(60))
    assert [delivery.late for delivery in sink.deliveries][5:] == [True]


@pytest.mark.req("GC-DLV-36", "GC-DLV-20")
async def test_what_is_in_the_spool_ahead_is_delivered_once_after_a_kill(tmp_path: Path) -> None:
    way = link(tmp_path / "state", heartbeat_interval=5, shutdown_grace=0, order="available", hold=3_000)
    spool = Spool(directory=str(tmp_path), after=Seconds(0.01))
    session, away, sink = Session(way), Taking(going=trio.Event()), Taking()
    messages = [session.numbers((first, 10)) for first in range(0, 40, 10)]
    async with opened(way, away, spool) as egress, trio.open_nursery() as nursery:
        nursery.start_soon(egress.run)
        await feed(egress, session.start + messages[0] + messages[2])
        await until(lambda: egress.queue.spooled == 2)
        nursery.cancel_scope.cancel()
    async with running(way, sink, spool) as egress:
        await feed(egress, session.repeat(messages[1]) + session.repeat(messages[2]) + messages[3])
        await until(lambda: 39 in sink.numbers)
        assert not egress.journal.open_entries
    assert sink.numbers == [*range(10), *range(20, 30), *range(10, 20), *range(30, 40)]


def damage(spool: Path, number: int) -> None:
    """Damage the body of the message in which this number is the first."""
    (path,) = spool.glob("*.spool/*.segment")
    data = bytearray(path.read_bytes())
    data[data.index(number.to_bytes(8, "big").ljust(16, b".")) + 12] ^= 1
    path.write_bytes(data)


@pytest.mark.req("GC-DLV-40", "GC-DLV-21")
@pytest.mark.parametrize("heard_first", [False, True], ids=["read before the link is heard", "and after"])
async def test_what_was_damaged_in_the_spool_is_taken_when_it_is_repeated(tmp_path: Path, heard_first: bool) -> None:
    """A message that came in order, and one that had come late."""
    way = link(tmp_path / "state", heartbeat_interval=5, shutdown_grace=0)
    spool = Spool(directory=str(tmp_path), after=Seconds(0.01))
    session, away, sink = Session(way), Taking(going=trio.Event()), Taking()
    messages = [session.numbers((first, 10)) for first in range(0, 40, 10)]
    async with opened(way, away, spool) as egress, trio.open_nursery() as nursery:
        nursery.start_soon(egress.run)
        await feed(egress, session.start + messages[0] + messages[2])
        await until(lambda: missing(egress.journal) == {(STREAM, 0): [(10, 19)]})
        await feed(egress, session.repeat(messages[1]) + messages[3])
        await until(lambda: egress.queue.spooled == 4)
        nursery.cancel_scope.cancel()
    damage(tmp_path, 10)
    damage(tmp_path, 20)
    async with opened(way, sink, spool) as egress:
        with trio.fail_after(60):
            if heard_first:
                for burst in bursts_of(session.heartbeat()[-1:]):
                    egress.core.receive(burst, trio.current_time())
                assert egress.core.epoch == 2
            async with trio.open_nursery() as nursery:
                nursery.start_soon(egress.run)
                await until(lambda: not egress.queue.unaccepted)
                assert missing(egress.journal) == {(STREAM, 0): [(10, 29)]}
                for message in messages:
                    await feed(egress, session.repeat(message))
                await until(lambda: not egress.journal.open_entries)
                egress.stop()
    assert sink.numbers == [*range(10), *range(30, 40), *range(10, 30)]
    assert [(delivery.late, delivery.lost_before) for delivery in sink.deliveries] == [
        (False, 0), (False, 2), (True, 0), (True, 0)
    ]  # fmt: skip


@pytest.mark.req("GC-DLV-40")
async def test_a_late_message_that_is_refused_is_taken_again_and_lost_once(
    way: Link, monkeypatch: pytest.MonkeyPatch
) -> None:
    sink, session = Taking(), Session(way)
    messages = [session.numbers((first, 10)) for first in range(0, 40, 10)]
    async with running(way, sink) as egress:
        await feed(egress, session.start + messages[0] + messages[2])
        await until(lambda: missing(egress.journal) == {(STREAM, 0): [(10, 19)]})
        with monkeypatch.context() as full:
            full.setattr(egress.queue, "offer", lambda *what: False)
            await feed(egress, session.repeat(messages[1]))
        await feed(egress, messages[3])
        await until(lambda: 39 in sink.numbers)
        await feed(egress, session.repeat(messages[1]))
        await until(lambda: not egress.journal.open_entries)
    assert sink.numbers == [*range(10), *range(20, 40), *range(10, 20)]
    assert [delivery.lost_before for delivery in sink.deliveries] == [0, 1, 0, 0]


async def test_what_the_sink_declined_is_not_taken_again(way: Link) -> None:
    """It may have used some of it, and would use that twice."""
    session = Session(way)
    sink = DecliningLate()
    async with running(way, sink) as egress:
        bodies = [session.batch(Batch(parts=[Chunk(stream="s", kind=ChunkKind.DATA, position=n)])) for n in range(3)]
        await feed(egress, session.start + bodies[0] + bodies[2])
        await until(lambda: bool(egress.journal.open_entries))
        for _ in range(2):
            await feed(egress, session.repeat(bodies[1]))
            await until(lambda: egress.events.late_unusable == 1)
    assert sink.declined == [1]


@pytest.mark.req("GC-DLV-21", "GC-RPR-1", "GC-DLV-40")
async def test_a_damaged_message_at_the_end_of_the_spool_is_none_that_was_never_finished(tmp_path: Path) -> None:
    """It counts as delivered in the stored state: nobody else would miss it."""
    way = link(tmp_path / "state", heartbeat_interval=5, shutdown_grace=0)
    spool = Spool(directory=str(tmp_path), after=Seconds(0.01))
    session, away, sink = Session(way), Taking(going=trio.Event()), Taking()
    messages = [session.numbers((first, 10)) for first in range(0, 20, 10)]
    async with opened(way, away, spool) as egress, trio.open_nursery() as nursery:
        nursery.start_soon(egress.run)
        await feed(egress, session.start + messages[0] + messages[1])
        await until(lambda: egress.queue.spooled == 2)
        await until(lambda: egress.delivered.next_positions() == {(STREAM, 0): 20})
        nursery.cancel_scope.cancel()
    damage(tmp_path, 10)
    async with opened(way, sink, spool) as egress:
        assert missing(egress.journal) == {(STREAM, 0): [(10, 19)]}
    async with running(way, sink, spool) as egress:
        [entry] = stored(way)
        assert (entry.cause, list(entry.messages)) == ("damaged", [(1, 1)])
        await feed(egress, session.repeat(messages[1]) + session.numbers((20, 10)))
        await until(lambda: not egress.journal.open_entries)
        await until(lambda: 29 in sink.numbers)
    assert sorted(sink.numbers) == list(range(30))


@pytest.mark.req("GC-ONCE-3", "GC-DLV-21")
async def test_what_was_cut_off_the_spool_is_not_lost_if_the_target_has_it(tmp_path: Path) -> None:
    way = link(tmp_path / "state", heartbeat_interval=5, shutdown_grace=0)
    spool = Spool(directory=str(tmp_path), after=Seconds(0.01))
    session, away = Session(way), Taking(going=trio.Event())
    async with opened(way, away, spool) as egress, trio.open_nursery() as nursery:
        nursery.start_soon(egress.run)
        await feed(egress, session.start + session.numbers((0, 10)) + session.numbers((10, 10)))
        await until(lambda: egress.queue.spooled == 2)
        await until(lambda: egress.delivered.next_positions() == {(STREAM, 0): 20})
        nursery.cancel_scope.cancel()
    damage(tmp_path, 10)
    both = pair(way, sink=sink_of(away), spool=spool)
    with EgressState.open(Path(way.state_directory), way.name, way.id) as state:
        opened_spool, resume = await trio.to_thread.run_sync(resumed, both, state)
        assert opened_spool is not None
        with opened_spool:
            assert missing(state.journal) == {(STREAM, 0): [(10, 19)]}
            target = Progress(epoch=2, next_message=2, next_record=20, positions={})
            await trio.to_thread.run_sync(go_on_from_target, Reached(progress=target), resume, opened_spool, state)
            assert not state.journal.open_entries


@pytest.mark.req("GC-DLV-21", "GC-DLV-36", "GC-DLV-40")
async def test_a_damaged_message_at_the_end_of_the_spool_that_was_ahead_is_missed_too(tmp_path: Path) -> None:
    way = link(tmp_path / "state", heartbeat_interval=5, shutdown_grace=0, order="available", hold=3_000)
    spool = Spool(directory=str(tmp_path), after=Seconds(0.01))
    session, away, sink = Session(way), Taking(going=trio.Event()), Taking()
    messages = [session.numbers((first, 10)) for first in range(0, 30, 10)]
    async with opened(way, away, spool) as egress, trio.open_nursery() as nursery:
        nursery.start_soon(egress.run)
        await feed(egress, session.start + messages[0] + messages[2])
        await until(lambda: egress.queue.spooled == 2)
        await trio.sleep(0.3)  # it is stored ten times a second
        nursery.cancel_scope.cancel()
    damage(tmp_path, 20)
    async with running(way, sink, spool) as egress:
        await feed(egress, session.repeat(messages[1]))
        await until(lambda: egress.core.next_message == 3)
        [entry] = stored(way)
        assert (entry.cause, list(entry.messages)) == ("damaged", [(2, 2)])
        assert missing(egress.journal) == {(STREAM, 0): [(20, 29)]}
        await feed(egress, session.repeat(messages[2]))
        await until(lambda: not egress.journal.open_entries)
    assert sink.numbers == list(range(30))
