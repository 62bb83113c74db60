"""The account of the steps: what is said several times, not at all, or in the middle."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import attrs
import pytest
import trio

from gapconn.bench.egress import StepBook, StepResult
from gapconn.bench.plan import Announcement, Sent, announcements
from gapconn.egress import Egress
from gapconn.protocol.counters import ReceiverCounters
from gapconn.protocol.registry import LossCause
from gapconn.record import Records


@attrs.define
class Bench:
    """A book, and an egress whose counters are set by hand."""

    counters: ReceiverCounters = attrs.field(factory=ReceiverCounters)
    sink: dict[str, int] = attrs.field(factory=lambda: {"verified": 0, "damaged": 0, "received": 0, "bytes": 0})
    told: list[StepResult] = attrs.field(factory=list)
    book: StepBook = attrs.field(init=False)
    core: Any = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        self.book = StepBook(self.told.append)
        self.core = SimpleNamespace(counters=self.counters, datagrams_missed=0)
        egress = SimpleNamespace(
            core=self.core,
            socket=SimpleNamespace(kernel_drops=0),
            events=SimpleNamespace(refused=self.counters.dropped.__class__()),
            context=SimpleNamespace(status=self.sink),
        )
        self.book.follow(cast(Egress, egress))

    def say(self, step: int, epoch: int, *, records: int | None = None, is_last: bool = False) -> None:
        sent = (
            Sent(records=records, payload_bytes=8 * records, datagrams=1, wire_bytes=1, took_s=1.0, cpu_s=0.1)
            if records is not None
            else None
        )
        said = Announcement(step=step, steps=3, rate_bps=1_000_000, step_s=1.0, sent=sent, is_last=is_last)
        (part,) = said.batch().parts
        assert isinstance(part, Records)
        for _ in range(3):  # as an ingress does
            (heard,) = announcements(part)
            self.book.heard(heard, epoch)

    def arrive(self, records: int) -> None:
        self.counters.datagrams += records
        self.sink["verified"] += records
        self.sink["received"] += records
        self.sink["bytes"] += 8 * records


@pytest.fixture
async def bench() -> Bench:
    await trio.lowlevel.checkpoint()
    return Bench()


async def test_each_step_is_told_once_with_what_happened_in_it(bench: Bench) -> None:
    bench.say(0, epoch=10)
    bench.arrive(100)
    bench.say(0, epoch=10, records=100)
    assert not bench.book.finished.is_set()
    bench.say(1, epoch=11)
    bench.arrive(50)
    bench.core.datagrams_missed = 4
    bench.counters.messages_lost[LossCause.GAP] += 2
    bench.say(1, epoch=11, records=100, is_last=True)
    assert bench.book.finished.is_set()
    first, second = bench.told
    assert (first.step, first.held, first.arrived.verified, first.payload_bps) == (0, True, 100, 6400)
    assert (second.step, second.whole, second.arrived.verified) == (1, False, 50)
    assert (second.arrived.datagrams_missed, second.arrived.messages_lost) == (4, 2)
    assert bench.book.results == bench.told


async def test_a_step_whose_end_is_not_heard_broke_off(bench: Bench) -> None:
    bench.say(0, epoch=10)
    bench.arrive(100)
    bench.say(1, epoch=11)
    bench.arrive(10)
    bench.book.cut_off()
    bench.book.cut_off()
    assert [(result.step, result.sent, result.held) for result in bench.told] == [(0, None, False), (1, None, False)]
    assert [result.arrived.verified for result in bench.told] == [100, 10]


async def test_nothing_is_said_about_a_step_whose_beginning_was_not_heard(bench: Bench) -> None:
    bench.arrive(30)
    bench.say(0, epoch=10, records=100)
    assert bench.told == []
    bench.say(1, epoch=11)
    bench.arrive(100)
    bench.say(1, epoch=11, records=100)
    assert [(result.step, result.held) for result in bench.told] == [(1, True)]


async def test_the_end_counts_also_without_the_beginning(bench: Bench) -> None:
    bench.say(2, epoch=12, records=100, is_last=True)
    assert bench.book.finished.is_set()
    assert bench.told == []


def test_what_cannot_be_read_is_left_out() -> None:
    good = Announcement(step=0, steps=1, rate_bps=9600, step_s=1.0)
    (part,) = good.batch().parts
    assert isinstance(part, Records)
    values = [b"", None, b"{}", b'{"step": "x"}', *part.values]
    assert announcements(Records(stream=part.stream, positions=list(range(5)), values=values)) == [good]
