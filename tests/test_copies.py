"""An egress and messages of an earlier session that are sent again: what its journal has open, once."""

from __future__ import annotations

from pathlib import Path

import pytest
import trio

from gapconn.config import Link, Spool
from gapconn.protocol.envelope import Copy
from gapconn.units import Seconds
from tests.services import STREAM, Session, Taking, feed, link, numbers, opened, running, until
from tests.test_egress_repair import missing, stored


@pytest.fixture
def way(tmp_path: Path) -> Link:
    return link(tmp_path, heartbeat_interval=5)


@pytest.mark.req("GC-RPR-9")
async def test_a_message_of_an_earlier_session_is_delivered_if_it_is_missing(way: Link) -> None:
    """It was never said which records were in the messages: the session was cut off."""
    sink, old, new = Taking(), Session(way), Session(way, epoch=3, previous_epoch=2)
    async with running(way, sink) as egress:
        messages = [old.batch(numbers(each, 10, size_bytes=400)) for each in (0, 10, 20, 30)]
        await feed(egress, old.start + messages[0] + messages[3][:1])
        await feed(egress, new.start + new.batch(numbers(500, 10, previous=-1)))
        await until(lambda: egress.journal.wants(2, 3))
        assert not missing(egress.journal)
        for number in (0, 1, 1, 2, 3, 3):
            await feed(egress, new.copy([Copy(2, number, number)], old.kept[number]))
        await until(lambda: not egress.journal.open_entries)
        await feed(egress, new.copy([Copy(2, 1, 1)], old.kept[1]) + new.numbers((510, 10)))
        await until(lambda: 519 in sink.numbers)
    assert sink.numbers == [*range(10), *range(500, 510), *range(10, 40), *range(510, 520)]
    assert [delivery.late for delivery in sink.deliveries] == [False, False, True, True, True, False]
    [entry] = stored(way)
    assert (entry.outcome, list(entry.late)) == ("repaired", [(1, 3)])


@pytest.mark.req("GC-RPR-9")
async def test_of_records_with_positions_those_are_taken_that_are_open(way: Link) -> None:
    sink, old, new = Taking(), Session(way), Session(way, epoch=3, previous_epoch=2)
    async with running(way, sink) as egress:
        messages = [old.numbers(each) for each in ((0, 10), (10, 10), (20, 10), (30, 10))]
        await feed(egress, old.start + messages[0] + messages[2])
        await until(lambda: missing(egress.journal) == {(STREAM, 0): [(10, 19)]})
        await feed(egress, old.heartbeat())
        await until(lambda: egress.journal.wants(2, 3))
        await feed(egress, new.start + new.numbers((40, 10)))
        await feed(egress, new.copy([Copy(2, 1, 1)], old.kept[1]) + new.copy([Copy(2, 3, 3)], old.kept[3]))
        await until(lambda: not egress.journal.open_entries)
        await feed(egress, new.numbers((50, 10)))
        await until(lambda: 59 in sink.numbers)
    assert sink.numbers == [*range(10), *range(20, 30), *range(40, 50), *range(10, 20), *range(30, 40), *range(50, 60)]
    assert not missing(egress.journal)


@pytest.mark.req("GC-RPR-10")
@pytest.mark.parametrize("gone_first", [True, False])
async def test_what_is_gone_is_noted_and_closes_with_the_last(way: Link, gone_first: bool) -> None:
    sink, old, new = Taking(), Session(way), Session(way, epoch=3, previous_epoch=2)
    async with running(way, sink) as egress:
        messages = [old.numbers(each) for each in ((0, 10), (10, 10), (20, 10), (30, 10))]
        await feed(egress, old.start + messages[0] + messages[3])
        await until(lambda: missing(egress.journal) == {(STREAM, 0): [(10, 29)]})
        await feed(egress, new.start)
        told = [new.copy([Copy(2, 0, 1, "too old"), Copy(2, 7, 9, "x")]), new.copy([Copy(2, 2, 2)], old.kept[2])]
        await feed(egress, told[not gone_first])
        assert egress.journal.open_entries or not gone_first
        await feed(egress, told[gone_first])
        await until(lambda: not egress.journal.open_entries)
    assert sink.numbers == [*range(10), *range(30, 40), *range(20, 30)]
    [entry] = stored(way)
    assert (entry.outcome, entry.reason) == ("unrecoverable", "too old")
    assert (list(entry.late), list(entry.messages_gone)) == ([(2, 2)], [(1, 1)])
    assert (list(entry.gone[STREAM, 0]), list(entry.repaired[STREAM, 0])) == ([(10, 19)], [(20, 29)])


@pytest.mark.req("GC-RPR-9")
@pytest.mark.parametrize("located", [True, False])
async def test_a_copy_that_comes_twice_before_the_sink_has_it_is_delivered_once(way: Link, located: bool) -> None:
    """An operator who sees the entry still open asks once more."""
    sink, old, new = Taking(going=trio.Event()), Session(way), Session(way, epoch=3, previous_epoch=2)
    async with running(way, sink) as egress:
        messages = [old.numbers((0, 10)), old.numbers((10, 10)), old.numbers((20, 10))]
        await feed(egress, old.start + messages[0] + (messages[2] if located else messages[2][:0]))
        if not located:
            await feed(egress, old.heartbeat()[-1:])
        await until(lambda: egress.journal.wants(2, 1))
        await feed(egress, new.start)
        for _ in range(3):
            await feed(egress, new.copy([Copy(2, 1, 1)], old.kept[1]))
        assert sink.going is not None
        sink.going.set()
        await feed(egress, new.batch(numbers(500, 1, previous=-1)))
        await until(lambda: 500 in sink.numbers)
    assert sink.numbers == [*range(10), *(range(20, 30) if located else ()), *range(10, 20), 500]


@pytest.mark.req("GC-RPR-9", "GC-DLV-33")
async def test_what_was_located_closes_no_entry_of_which_the_rest_was_not(way: Link) -> None:
    """The last message of a session is lost with one before it, and only of that it was said where its records were."""
    sink, old, new = Taking(), Session(way), Session(way, epoch=3, previous_epoch=2)
    async with running(way, sink) as egress:
        messages = [old.numbers(each) for each in ((0, 10), (10, 10), (20, 10), (30, 10))]
        await feed(egress, old.start + messages[0] + messages[2] + old.heartbeat()[-1:])
        await until(lambda: egress.journal.wants(2, 3))
        assert missing(egress.journal) == {(STREAM, 0): [(10, 19)]}
        await feed(egress, new.start + new.batch(numbers(500, 10, previous=-1)))
        await feed(egress, new.copy([Copy(2, 1, 1)], old.kept[1]))
        await until(lambda: 19 in sink.numbers)
        await until(lambda: not egress.journal.missing())
        assert [list(entry.messages_missing) for entry in egress.journal.open_entries] == [[(3, 4)]]
        for number in (3, 4):  # the last one told positions
            await feed(egress, new.copy([Copy(2, number, number)], old.kept[number]))
        await until(lambda: not egress.journal.open_entries)
    assert sink.numbers == [*range(10), *range(20, 30), *range(500, 510), *range(10, 20), *range(30, 40)]


@pytest.mark.req("GC-RPR-9")
async def test_a_copy_in_the_spool_is_on_its_way_from_the_start(tmp_path: Path) -> None:
    way = link(tmp_path / "state", heartbeat_interval=5, shutdown_grace=0)
    spool = Spool(directory=str(tmp_path), after=Seconds(0.01))
    old, new, away, sink = Session(way), Session(way, epoch=3, previous_epoch=2), Taking(going=trio.Event()), Taking()
    async with opened(way, away, spool) as egress, trio.open_nursery() as nursery:
        nursery.start_soon(egress.run)
        messages = [old.batch(numbers(each, 10)) for each in (0, 10)]
        assert messages
        await feed(egress, old.start + old.heartbeat())
        await until(lambda: egress.journal.wants(2, 1))
        await feed(egress, new.start + new.copy([Copy(2, 1, 1)], old.kept[1]))
        await until(lambda: egress.queue.spooled == 1)
        nursery.cancel_scope.cancel()
    async with opened(way, sink, spool) as egress:
        assert not egress.journal.wants(2, 1)
        assert egress.journal.wants(2, 0)
