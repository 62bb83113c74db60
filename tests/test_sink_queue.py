"""What waits for the sink: through memory while that is enough, else through the disk, in order in any case."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import attrs
import pytest
import structlog
import trio

from gapconn import sink_queue
from gapconn.events_log import EventLog
from gapconn.progress import ProgressTracker, continued
from gapconn.protocol.envelope import Run, Span
from gapconn.protocol.events import MessageDelivered, MessagesLost, RecordsMissing
from gapconn.protocol.positions import Standing
from gapconn.protocol.progress import Progress
from gapconn.protocol.registry import LossCause
from gapconn.record import encode_batch
from gapconn.sink_queue import SinkQueue
from gapconn.sinks import Delivery
from gapconn.store.database import StateDiskError
from gapconn.store.spool import Appended, Spool, Spooled, Trouble
from tests.services import STREAM, numbers, numbers_in, until

log = structlog.get_logger()


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sink_queue, "SYNC_INTERVAL_S", 0.001)
    monkeypatch.setattr(sink_queue, "RETRY_S", 0.005)


def message(number: int, *, size_bytes: int = 1000, epoch: int = 7) -> MessageDelivered:
    """A message with one record, whose position is its number."""
    body = bytearray()
    encode_batch(numbers(number, size_bytes=size_bytes), body, 0)
    return MessageDelivered(
        epoch=epoch,
        number=number,
        first_record=number,
        record_count=1,
        runs=[Run(STREAM, 0, number - 1, number, number, 1, 0, False, 0)],
        already_delivered={},
        positions={(STREAM, 0): Standing(epoch, 0, number)},
        body=memoryview(bytes(body)),
    )


@attrs.define
class Sides:
    """A queue with its spool, and what is known of both sides of it."""

    queue: SinkQueue
    spool: Spool | None
    events: EventLog
    tracker: ProgressTracker = attrs.field(factory=ProgressTracker)
    deliveries: list[Delivery] = attrs.field(factory=list)

    def offer(self, number: int, *, lost_before: int = 0, size_bytes: int = 1000) -> bool:
        whole = message(number, size_bytes=size_bytes)
        return self.queue.offer(whole, self.tracker.expect(whole), lost_before)

    async def take(self, count: int, *, accepting: bool = True) -> list[int]:
        """Take so many deliveries; their numbers."""
        taken: list[int] = []
        while len(taken) < count:
            delivery = await anext(self.queue)
            self.deliveries.append(delivery)
            taken += numbers_in(delivery.batch)
            if accepting:
                delivery.accept()
        return taken

    @property
    def settled(self) -> int:
        """What the progress says: everything before this message."""
        progress = self.tracker.take()
        self.tracker.known(7, 0, 0, ended=False)
        self.tracker._changed = True
        return progress.next_message if progress is not None else 0


@asynccontextmanager
async def opened(
    directory: Path, *, max_bytes: int = 64 << 20, bytes_max: int = 60_000, head_bytes_max: int = 20_000, **values: Any
) -> AsyncIterator[Sides]:
    """A queue whose disk works; at the end the process is as good as killed."""
    events = EventLog(log)
    with Spool(directory, link="orders", link_id=7, max_bytes=max_bytes) as spool, trio.fail_after(120):
        queue = SinkQueue(bytes_max, events, spool, head_bytes_max=head_bytes_max, **{"after_s": 1000, **values})
        async with trio.open_nursery() as nursery:
            nursery.start_soon(queue.work)
            yield Sides(queue, spool, events)
            queue.finish()


def segment_count(sides: Sides) -> int:
    assert sides.spool is not None
    return len(list(sides.spool.path.glob("*.segment")))


# The two ways


@pytest.mark.req("GC-DLV-23")
async def test_while_the_sink_keeps_up_the_disk_is_not_touched(tmp_path: Path) -> None:
    async with opened(tmp_path) as sides:
        assert sides.spool is not None
        for number in range(500):
            assert sides.offer(number)
            if number % 10 == 9:
                assert await sides.take(10) == list(range(number - 9, number + 1))
        assert sides.settled == 500
        assert sides.spool.end.serial == 0
        assert sides.spool.disk_bytes == 0
        assert segment_count(sides) == 0


@pytest.mark.req("GC-DLV-19", "GC-DLV-20")
async def test_what_the_sink_does_not_take_goes_through_the_disk_in_order(tmp_path: Path) -> None:
    async with opened(tmp_path) as sides:
        for number in range(300):
            await until(lambda: sides.queue.bytes < 50_000)
            assert sides.offer(number, lost_before=number % 3)
        await until(lambda: sides.queue.spooled == 300)
        assert sides.settled == 300, "on disk is as good as accepted"
        assert sides.queue.unaccepted == 300
        assert await sides.take(300) == list(range(300))
        assert [delivery.lost_before for delivery in sides.deliveries] == [number % 3 for number in range(300)]
        assert (sides.queue.unaccepted, sides.queue.spooled, sides.queue.accepted) == (0, 0, 300)
        sides.queue.commit()
        assert sides.queue.disk_bytes == 0
        assert not sides.queue.committable
        for number in range(300, 310):  # and then through memory again
            assert sides.offer(number)
            assert await sides.take(1) == [number]
        assert segment_count(sides) == 0


@pytest.mark.req("GC-DLV-19", "GC-DLV-23")
async def test_what_was_not_accepted_for_a_while_is_on_disk_too(tmp_path: Path) -> None:
    """Also what the sink has in its hands. It is not read back: it is still in memory."""
    async with opened(tmp_path, after_s=0.01) as sides:
        for number in range(8):
            sides.offer(number)
        assert await sides.take(3, accepting=False) == [0, 1, 2]
        sides.deliveries[1].accept()
        await until(lambda: sides.settled == 8)
        assert sides.queue.spooled in (7, 8), "1 need not be written if it was accepted in time"
        assert len(sides.queue) == 5
        sides.deliveries[0].accept()
        sides.deliveries[2].accept()
        assert await sides.take(5) == [3, 4, 5, 6, 7]
        assert (sides.queue.spooled, sides.queue.unaccepted) == (0, 0)
    async with opened(tmp_path) as again:
        assert again.queue.spooled > 0, "it was killed before it could note that"
        assert again.queue.spooled == again.queue.unaccepted


@pytest.mark.req("GC-DLV-20")
async def test_a_restart_goes_on_with_the_spool(tmp_path: Path) -> None:
    async with opened(tmp_path) as sides:
        for number in range(50):
            await until(lambda: sides.queue.bytes < 50_000)
            sides.offer(number, lost_before=number % 4)
        await until(lambda: sides.queue.spooled == 50)
        await sides.take(20)
        sides.queue.commit()
    async with opened(tmp_path) as sides:
        assert (sides.queue.spooled, sides.queue.unaccepted) == (30, 30)
        assert sides.offer(50)
        assert await sides.take(31) == list(range(20, 51))
        assert [delivery.lost_before for delivery in sides.deliveries] == [*(n % 4 for n in range(20, 50)), 0]
        assert sides.queue.unaccepted == 0


@pytest.mark.req("GC-DLV-19")
async def test_the_end_keeps_what_was_not_accepted(tmp_path: Path) -> None:
    async with opened(tmp_path) as sides:
        for number in range(9):
            sides.offer(number)
        await sides.take(4, accepting=False)
        sides.deliveries[0].accept()
        sides.queue.close(trio.current_time() - 1)
        assert sides.queue.drained
        with pytest.raises(StopAsyncIteration):
            await anext(sides.queue)
    assert sides.spool is not None
    with Spool(tmp_path, link="orders", link_id=7, max_bytes=64 << 20) as spool:
        sides.queue.spool = spool
        assert await sides.queue.keep() == 0
        assert sides.settled == 9
    async with opened(tmp_path) as again:
        assert await again.take(8) == list(range(1, 9))


async def test_closed_the_loop_ends_behind_what_waits_on_disk(tmp_path: Path) -> None:
    async with opened(tmp_path) as sides:
        for number in range(100):
            await until(lambda: sides.queue.bytes < 50_000)
            sides.offer(number)
        sides.queue.close()
        taken = []
        async for delivery in sides.queue:
            taken += numbers_in(delivery.batch)
            delivery.accept()
        assert taken == list(range(100))
        assert sides.queue.drained


async def test_a_message_larger_than_the_head_passes(tmp_path: Path) -> None:
    async with opened(tmp_path, bytes_max=300_000) as sides:
        for number, size_bytes in enumerate([100, 90_000, 100, 100_000, 70_000]):
            assert sides.offer(number, size_bytes=size_bytes)
        await until(lambda: sides.queue.spooled > 0)
        assert await sides.take(5) == [0, 1, 2, 3, 4]


# Trouble


class Stubborn(Spool):
    """A spool that takes nothing while it is told so."""

    trouble: Trouble | None = None

    def append(self, entries: Sequence[Spooled]) -> Appended:
        if self.trouble is not None:
            return Appended(ends=[], trouble=self.trouble, error="because")
        return super().append(entries)


@pytest.mark.req("GC-DLV-22")
@pytest.mark.parametrize(
    ("trouble", "alarm"),
    [(Trouble.FULL, "spool_full"), (Trouble.NO_SPACE, "spool_disk_full"), (Trouble.FAILED, "spool_failed")],
)
async def test_when_the_disk_takes_nothing_the_newest_is_refused_until_it_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, trouble: Trouble, alarm: str
) -> None:
    monkeypatch.setattr("tests.test_sink_queue.Spool", Stubborn)
    monkeypatch.setattr(sink_queue, "CALM_S", 1_000.0)
    async with opened(tmp_path) as sides:
        assert isinstance(sides.spool, Stubborn)
        sides.spool.trouble = trouble
        taken = 0
        while sides.offer(taken):
            taken += 1
        assert 20 < taken < 30, "memory is used up first"
        await until(lambda: bool(sides.queue.trouble))
        assert "because" in sides.queue.refusal
        assert trouble.value in sides.events.alarms[alarm]
        sides.queue.watch()
        assert alarm in sides.events.alarms
        sides.spool.trouble = None
        await until(lambda: sides.queue.bytes < 30_000)
        assert sides.offer(taken + 5, lost_before=5)
        sides.spool.trouble = trouble  # what is in memory passes without the disk
        assert await sides.take(taken + 1) == [*range(taken), taken + 5]
        assert sides.deliveries[-1].lost_before == 5
        sides.spool.trouble = None

        monkeypatch.setattr(sink_queue, "CALM_S", 0.0)

        def calm() -> bool:
            sides.queue.watch()
            return not sides.events.alarms

        await until(calm)
        assert [entry["event"] for entry in sides.events.recent] in (
            [alarm, "spool_restored"],
            [alarm, "spool_restored"] * 2,
        )


@pytest.mark.req("GC-DLV-22")
async def test_a_full_spool(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sink_queue, "CALM_S", 1_000.0)
    async with opened(tmp_path, max_bytes=1 << 20) as sides:
        number = 0
        offered: list[int] = []
        while not sides.queue.trouble or len(offered) < 30:
            if sides.offer(number, size_bytes=10_000):
                offered.append(number)
            number += 1
            sides.queue.watch()
            await trio.sleep(0.001)
        assert "spool_filling" in sides.events.alarms
        assert "spool_full" in sides.events.alarms
        assert len(offered) > 80
        assert sides.queue.disk_bytes <= 1 << 20
        while not sides.offer(number, size_bytes=10_000):
            taken = await sides.take(1)
            sides.queue.commit()
            await trio.sleep(0.001)
            offered.remove(taken[0])
        offered.append(number)
        assert await sides.take(len(offered)) == offered
        sides.queue.commit()

        monkeypatch.setattr(sink_queue, "CALM_S", 0.0)

        def calm() -> bool:
            sides.queue.watch()
            return not sides.events.alarms

        await until(calm)
        assert sides.queue.disk_bytes == 0


@pytest.mark.req("GC-DLV-21")
async def test_damage_is_told_in_its_place(tmp_path: Path) -> None:
    async with opened(tmp_path) as sides:
        for number in range(40):
            await until(lambda: sides.queue.bytes < 50_000)
            sides.offer(number, lost_before=1)
        await until(lambda: sides.queue.spooled == 40)
        assert sides.spool is not None
        (path,) = sides.spool.path.glob("*.segment")
    data = bytearray(path.read_bytes())
    entry_bytes = (len(data) - 40) // 40
    data[40 + 10 * entry_bytes + entry_bytes - 100] ^= 1  # in the body of one
    data[40 + 20 * entry_bytes + 3] ^= 1  # in the head of another one
    path.write_bytes(data)
    missed: list[tuple[int, int]] = []
    async with opened(tmp_path, missed=lambda *which: missed.append(which)) as sides:
        assert await sides.take(38) == [number for number in range(40) if number not in (10, 20)]
        assert {d.message: d.lost_before for d in sides.deliveries if d.lost_before != 1} == {11: 3, 21: 2}
        assert (sides.queue.unaccepted, sides.queue.spooled) == (0, 0)
        assert sides.events.refused == {"damaged": 2}
        sides.events.tell_all()
        told = {entry["event"]: entry for entry in sides.events.recent}
        assert told["records_refused"].items() >= {"stream": STREAM, "partition": 0, "ranges": [[10, 10]]}.items()
        assert told["spool_damaged"].items() >= {"messages": 1, "segment": path.name}.items()
        assert missed == [(7, 10)], "a repeat of it is whole"
        assert [(e.epoch, e.cause, list(e.messages), e.messages_unidentified) for e in sides.events.journal] == [
            (7, "damaged", [(10, 10)], 0),
            (7, "damaged", [], 1),
        ]


@pytest.mark.req("GC-RPR-1", "GC-DLV-21")
@pytest.mark.parametrize(("damaged", "epoch"), [(0, 0), (1, 7), (2, 0), (3, 0), (4, 8)])
async def test_the_session_of_messages_of_which_nothing_is_known(tmp_path: Path, damaged: int, epoch: int) -> None:
    """It is that of the messages on both sides, if they agree."""
    whole = [message(number, epoch=session) for number, session in enumerate([7, 7, 7, 8, 8, 8])]
    with Spool(tmp_path, link="orders", link_id=7, max_bytes=64 << 20) as spool:
        ends = spool.append([Spooled(message=each, lost_before=0, arrived_s=0.0) for each in whole]).ends
        (path,) = spool.path.glob("*.segment")
    starts = [40, *(end.offset for end in ends)]
    data = bytearray(path.read_bytes())
    data[starts[damaged] + 3] ^= 1
    path.write_bytes(data)
    async with opened(tmp_path) as sides:
        assert await sides.take(5) == [number for number in range(6) if number != damaged]
        [entry] = sides.events.journal
        assert (entry.messages_unidentified, entry.epoch) == (1, epoch)


@pytest.mark.req("GC-ONCE-3", "GC-DLV-20")
async def test_what_the_target_has_is_not_handed_over_again_out_of_the_spool(tmp_path: Path) -> None:
    async with opened(tmp_path) as sides:
        for number in range(50):
            await until(lambda: sides.queue.bytes < 50_000)
            sides.offer(number)
        await until(lambda: sides.queue.spooled == 50)
        await sides.take(20)  # and the process ends before it has noted that
    async with opened(tmp_path, delivered=(7, 24)) as sides:
        assert sides.queue.spooled == 50
        assert sides.offer(50)
        assert await sides.take(27) == list(range(24, 51))
        assert sides.queue.unaccepted == 0
        sides.queue.commit()
        reached = [delivery.reached for delivery in sides.deliveries]
        assert all(each is not None for each in reached)
        assert [each.progress.next_message for each in reached if each] == list(range(25, 52))
        assert reached[0] is not None
        assert reached[0].progress.positions == {(STREAM, 0): Standing(7, 0, 24)}
    async with opened(tmp_path) as sides:
        assert sides.queue.spooled == 0


# Repairs


def repair(number: int, first: int, count: int, *claimed: tuple[int, int]) -> MessageDelivered:
    """A repair of `count` records, of which the egress misses the `claimed` ones."""
    body = bytearray()
    encode_batch(numbers(first, count), body, 0)
    return attrs.evolve(
        message(number),
        record_count=0,
        runs=[],
        positions={},
        body=memoryview(bytes(body)),
        spans=(Span(STREAM, 0, first, first + count - 1, count),),
        claimed={(STREAM, 0): claimed},
    )


def miss(events: EventLog, first: int, last: int) -> None:
    events.journal.happened(RecordsMissing(epoch=7, stream=STREAM, partition=0, first=first, last=last), 0)


@pytest.mark.req("GC-RPR-6", "GC-RPR-7", "GC-DLV-19")
async def test_a_repair_survives_in_the_spool_and_closes_when_the_sink_has_it(tmp_path: Path) -> None:
    """Also in another life of the egress, which only knows from its journal that the records are still missing."""
    async with opened(tmp_path, after_s=0.0) as sides:
        miss(sides.events, 100, 105)
        assert sides.events.journal.claim(STREAM, 0, 100, 102) == ((100, 102),)
        whole = repair(0, 98, 5, (100, 102))
        assert sides.queue.offer(whole, sides.tracker.expect(whole), 0)
        await until(lambda: sides.queue.spooled == 1)
        assert sides.settled == 1
        assert sides.events.journal.positions_missing == 6, "on disk is not delivered"
    async with opened(tmp_path) as sides:
        miss(sides.events, 100, 105)
        assert await sides.take(3, accepting=False) == [100, 101, 102]
        [delivery] = sides.deliveries
        assert delivery.repair
        assert sides.events.repaired == 3
        assert sides.events.journal.claim(STREAM, 0, 100, 105) == ((103, 105),), "the others are on their way"
        assert sides.events.journal.positions_missing == 6
        delivery.accept()
        assert list(sides.events.journal.missing()[STREAM, 0]) == [(103, 105)]


@pytest.mark.req("GC-RPR-7")
@pytest.mark.parametrize("where", ["head", "body"])
async def test_a_repair_that_is_damaged_in_the_spool_can_be_asked_for_again(tmp_path: Path, where: str) -> None:
    async with opened(tmp_path, after_s=0.0) as sides:
        miss(sides.events, 100, 104)
        assert sides.events.journal.claim(STREAM, 0, 100, 104)
        whole = repair(0, 100, 5, (100, 104))
        assert sides.queue.offer(whole, sides.tracker.expect(whole), 0)
        await until(lambda: sides.queue.spooled == 1)
        assert sides.offer(1)
        await until(lambda: sides.queue.spooled == 2)
        assert sides.spool is not None
        (path,) = sides.spool.path.glob("*.segment")
        journal = sides.events.journal
    data = bytearray(path.read_bytes())
    data[43 if where == "head" else bytes(data).index(whole.body.tobytes()) + 5] ^= 1
    path.write_bytes(data)
    async with opened(tmp_path) as sides:
        sides.events.journal = journal
        assert await sides.take(1) == [1]
        assert sides.events.refused == {"damaged": 1}
        assert list(journal.missing()[STREAM, 0]) == [(100, 104)]
        assert journal.claim(STREAM, 0, 100, 104) == ((100, 104),)


@pytest.mark.req("GC-DLV-21", "GC-RPR-6", "GC-RPR-7", "GC-DLV-40")
async def test_when_it_is_not_known_what_was_damaged_only_what_is_nowhere_can_be_asked_for_again(
    tmp_path: Path,
) -> None:
    """One repair is with the sink, one waits on disk, one late message waits in memory; two others are damaged."""
    missed: list[tuple[int, int]] = []
    async with opened(tmp_path, head_bytes_max=3_000, missed=lambda *which: missed.append(which)) as sides:
        journal = sides.events.journal
        journal.happened(MessagesLost(epoch=7, first=50, last=51, cause=LossCause.GAP), 0)
        miss(sides.events, 100, 149)

        def comes(whole: MessageDelivered) -> None:
            ((first, last),) = whole.claimed[STREAM, 0]
            assert journal.claim(STREAM, 0, first, last) == ((first, last),)
            journal.comes(whole)
            assert sides.queue.offer(whole, sides.tracker.expect(whole), 0)

        def again(number: int, first: int) -> MessageDelivered:
            runs = [Run(STREAM, 0, first - 1, first, first + 9, 10, 0, True, 0)]
            already = {(STREAM, 0): first + 9}
            whole = repair(number, first, 10, (first, first + 9))
            return attrs.evolve(whole, spans=(), runs=runs, already_delivered=already, late=True)

        comes(repair(1, 100, 10, (100, 109)))
        in_flight = await sides.take(10, accepting=False)
        assert in_flight == list(range(100, 110))
        for number in range(2, 8):
            assert sides.offer(number)
        comes(repair(8, 110, 10, (110, 119)))  # is damaged
        comes(again(50, 120))  # is damaged
        comes(repair(9, 130, 10, (130, 139)))
        await until(lambda: sides.queue.spooled >= 9 and not sides.queue._tail)
        comes(again(51, 140))
        assert sides.spool is not None
        (path,) = sides.spool.path.glob("*.segment")
        data = bytearray(path.read_bytes())
        for number in (110, 120):
            value = number.to_bytes(8, "big").ljust(16, b".")
            data[data.rindex(b"\x97gce", 0, data.index(value)) + 3] ^= 1
        path.write_bytes(data)
        assert await sides.take(6) == list(range(2, 8))
        assert await sides.take(20) == [*range(130, 140), *range(140, 150)]
        assert [entry.messages_unidentified for entry in journal if entry.messages_unidentified] == [2]
        assert missed == [(7, 50)]
        assert (journal.wants(7, 50), journal.wants(7, 51)) == (True, False)
        assert journal.claim(STREAM, 0, 100, 149) == ((110, 129),), "the rest is on its way, or there"
        sides.deliveries[0].accept()
        assert list(journal.missing()[STREAM, 0]) == [(110, 129)]


@pytest.mark.req("GC-ONCE-3", "GC-DLV-21")
async def test_what_was_damaged_in_the_spool_is_not_lost_if_the_target_has_it(tmp_path: Path) -> None:
    with Spool(tmp_path, link="orders", link_id=7, max_bytes=64 << 20) as spool:
        spool.append([Spooled(message=message(number), lost_before=0, arrived_s=0.0) for number in range(4)])
        (path,) = spool.path.glob("*.segment")
    data = bytearray(path.read_bytes())
    for number in (1, 2):
        data[data.index(message(number).body.tobytes()) + 500] ^= 1
    path.write_bytes(data)
    missed: list[tuple[int, int]] = []
    async with opened(tmp_path, delivered=(7, 2), missed=lambda *which: missed.append(which)) as sides:
        assert await sides.take(1) == [3]
        assert [list(entry.messages) for entry in sides.events.journal] == [[(2, 2)]]
        assert missed == [(7, 2)]
        assert sides.deliveries[0].lost_before == 1


@pytest.mark.parametrize("how", ["damaged on disk", "cannot be decoded"])
async def test_a_late_message_that_is_lost_again_was_counted_when_it_was_lost(tmp_path: Path, how: str) -> None:
    body = memoryview(b"\xff\xff no batch") if how == "cannot be decoded" else message(0).body
    late = attrs.evolve(message(0), late=True, body=body)
    with Spool(tmp_path, link="orders", link_id=7, max_bytes=64 << 20) as spool:
        spool.append([Spooled(message=each, lost_before=n, arrived_s=0.0) for n, each in ((1, late), (0, message(2)))])
        (path,) = spool.path.glob("*.segment")
    if how == "damaged on disk":
        data = bytearray(path.read_bytes())
        data[data.index(body.tobytes()) + len(body) - 1] ^= 1
        path.write_bytes(data)
    async with opened(tmp_path) as sides:
        await sides.take(1)
        assert [(delivery.message, delivery.lost_before) for delivery in sides.deliveries] == [(2, 1)]


class Notes:
    """A state that takes nothing while it is told so."""

    def __init__(self) -> None:
        self.stuck = True
        self.asked = 0

    async def __call__(self) -> None:
        self.asked += 1
        await trio.lowlevel.checkpoint()
        if self.stuck:
            raise StateDiskError("no space for the journal", no_space=True)


@pytest.mark.req("GC-DLV-41", "GC-RPR-1")
async def test_while_losses_cannot_be_noted_nothing_goes_to_the_disk(tmp_path: Path) -> None:
    notes = Notes()
    async with opened(tmp_path, after_s=0.0, note_losses=notes) as sides:
        assert sides.offer(0)
        await until(lambda: notes.asked > 2)
        assert "no space for the journal" in sides.events.alarms["spool_failed"]
        assert sides.queue.spooled == 0
        assert sides.settled == 0
        assert await sides.take(1, accepting=False) == [0], "it goes on"
        notes.stuck = False
        await until(lambda: sides.queue.spooled == 1)
        assert sides.settled == 1


@pytest.mark.req("GC-DLV-41", "GC-ONCE-4")
async def test_a_sink_that_needs_losses_to_be_noted_waits_until_they_are(tmp_path: Path) -> None:
    notes = Notes()
    async with opened(tmp_path, note_losses=notes) as sides, trio.open_nursery() as nursery:
        nursery.start_soon(sides.queue.note_losses)
        await until(lambda: sides.queue.waits_to_note > 2)
        notes.stuck = False
    assert notes.asked == sides.queue.waits_to_note + 1


@pytest.mark.req("GC-RPR-1")
async def test_the_cursor_is_noted_no_further_than_the_journal_was_stored(tmp_path: Path) -> None:
    async with opened(tmp_path, after_s=0.0) as sides:
        for number in range(3):
            assert sides.offer(number)
        await until(lambda: sides.queue.spooled == 3)
        await sides.take(1)
        cursor = sides.queue.cursor
        await sides.take(2)
        sides.queue.commit(cursor)
    async with opened(tmp_path) as sides:
        assert await sides.take(2) == [1, 2]


@pytest.mark.req("GC-RPR-1", "GC-DLV-31")
async def test_what_cannot_be_decoded_is_lost_and_did_not_come_late(tmp_path: Path) -> None:
    """It has no positions: only its number tells that it is missing."""
    async with opened(tmp_path) as sides:
        wrong = attrs.evolve(message(0), runs=[], positions={}, body=memoryview(b"\xff\xff no batch"))
        assert sides.queue.offer(wrong, sides.tracker.expect(wrong), 0)
        assert sides.offer(1)
        assert await sides.take(1) == [1]
        assert sides.settled == 2
        assert sides.queue.unaccepted == 0
        [entry] = sides.events.journal
        assert (entry.cause, entry.outcome, list(entry.late)) == ("damaged", "open", [])


# Any order of things


@attrs.define
class Ledger:
    """What became of each message, over all lives."""

    chance: random.Random
    stored: Progress | None = None
    next_number: int = 0
    refused: set[int] = attrs.field(factory=set)
    accepted: set[int] = attrs.field(factory=set)
    noted: set[int] = attrs.field(factory=set)
    """Accepted, and the egress had the time to note it."""
    told: set[int] = attrs.field(factory=set)
    """They were only in memory when the process was killed: the next life reports them."""
    expected: list[int] = attrs.field(factory=list)
    """What the sink is to get in this life, in order."""
    handed: list[int] = attrs.field(factory=list)
    held: list[Delivery] = attrs.field(factory=list)

    def resumed(self, spool: Spool) -> int:
        """Where a life begins that finds this spool: everything before is settled."""
        since = (self.stored.epoch, self.stored.next_message) if self.stored else (0, 0)
        self.stored = continued(self.stored, spool.described_since(*since))
        return self.stored.next_message if self.stored else 0

    async def step(self, sides: Sides) -> None:
        """Something happens."""
        assert isinstance(sides.spool, Stubborn)
        what = self.chance.random()
        if what < 0.5:
            if sides.offer(self.next_number, size_bytes=self.chance.choice([10, 1_000, 9_000])):
                self.expected.append(self.next_number)
            else:
                self.refused.add(self.next_number)
                sides.tracker.settle(7, self.next_number + 1)
            self.next_number += 1
        elif what < 0.7 and len(sides.queue):
            with trio.move_on_after(0.05):  # it may have to accept something first
                self.held.append(await anext(sides.queue))
                self.handed += numbers_in(self.held[-1].batch)
        elif what < 0.85 and self.held:
            self.accept(self.held.pop(self.chance.randrange(min(3, len(self.held)))))
        elif what < 0.9:
            self.note(sides)
        elif what < 0.92:
            sides.spool.trouble = self.chance.choice([None, None, Trouble.FAILED])
        else:
            await trio.sleep(self.chance.choice([0, 0.001, 0.005]))

    def accept(self, delivery: Delivery) -> None:
        delivery.accept()
        self.accepted.update(numbers_in(delivery.batch))

    def note(self, sides: Sides) -> None:
        """What a checkpoint does."""
        progress = sides.tracker.take()
        if progress is not None:
            known = self.stored.positions if self.stored else {}
            self.stored = attrs.evolve(progress, positions={**known, **progress.positions})
        sides.queue.commit()
        if not sides.queue._being_written:  # what is accepted while it is written can be noted when it is written
            self.noted = set(self.accepted)

    def killed(self, directory: Path) -> None:
        """Look at what a kill has left."""
        stored = self.stored.next_message if self.stored else 0
        with Spool(directory, link="orders", link_id=7, max_bytes=16 << 20) as spool:
            settled = self.resumed(spool)
            items = spool.read(spool.cursor, 1 << 30).items
        left = [item.message.number for item, _ in items if isinstance(item, Spooled)]
        assert len(left) == len(items)
        assert left == sorted(set(left))
        assert stored <= settled
        assert not left or left[-1] < settled
        assert set(range(settled)) <= {*self.accepted, *self.refused, *self.told, *left}, "nothing is lost silently"
        owed = [number for number in left if number not in self.noted]
        assert not owed or owed[0] == left[0], "what was noted does not come again, unless something before it does"
        self.told |= set(range(settled, self.next_number)) - self.accepted - self.refused
        self.accepted -= set(left)  # they come once more
        self.noted -= set(left)
        self.expected, self.handed, self.held = left, [], []


@pytest.mark.req("GC-DLV-19", "GC-DLV-20", "GC-DLV-22")
@pytest.mark.parametrize("seed", range(12))
async def test_whatever_happens_everything_is_delivered_in_order_or_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    """Several lives: a sink that takes and accepts at random, a disk that refuses at random, and kills at random."""
    monkeypatch.setattr("tests.test_sink_queue.Spool", Stubborn)
    chance = random.Random(seed)
    ledger = Ledger(chance)
    for _ in range(4):
        sizes: dict[str, Any] = {"max_bytes": chance.choice([1 << 20, 16 << 20])}
        async with opened(tmp_path, after_s=chance.choice([0, 0.002, 1000]), **sizes) as sides:
            assert sides.spool is not None
            ledger.resumed(sides.spool)
            sides.tracker = ProgressTracker(ledger.stored)
            sides.tracker.settle(7, ledger.next_number)
            for _ in range(chance.randrange(50, 300)):
                await ledger.step(sides)
            assert ledger.handed == ledger.expected[: len(ledger.handed)], "in order, and nothing twice"
        ledger.killed(tmp_path)
    async with opened(tmp_path) as sides:
        sides.queue.close()
        async for delivery in sides.queue:
            ledger.handed += numbers_in(delivery.batch)
            ledger.accept(delivery)
        assert ledger.handed == ledger.expected
        assert (sides.queue.unaccepted, sides.queue.spooled) == (0, 0)
    everything = [ledger.accepted, ledger.refused, ledger.told]
    assert set.union(*everything) == set(range(ledger.next_number))
    assert sum(map(len, everything)) == ledger.next_number, "delivered or told, and never both"
