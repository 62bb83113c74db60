"""An ingress that is asked to send again: beside fresh data, with progress, once more after a stop."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, cast

import attrs
import pytest
import structlog
import trio
from structlog.testing import capture_logs

from gapconn.admin.ingress_view import IngressView
from gapconn.config import Link, SourceSection
from gapconn.errors import LinkError, SourceError
from gapconn.ingress import Ingress
from gapconn.plugins import Carries, Context
from gapconn.protocol.compression import inflate
from gapconn.protocol.envelope import Span
from gapconn.protocol.events import MessageDelivered
from gapconn.protocol.receiver import LinkReceiver, ReceiverSettings
from gapconn.protocol.registry import Compression
from gapconn.record import Batch, decode_batch
from gapconn.resend import Resends
from gapconn.sources import Outlet, Source
from gapconn.sources.replay import REPLAYS, ReplayOutlet
from gapconn.store.database import StateDiskError
from gapconn.store.resends import Between, ResendFile, ResendProgress, Wanted
from gapconn.testing.memory_gap import bursts_of
from tests.services import STREAM, NoKeys, SourceFunction, ingress, link, numbers, numbers_in, socket_of, until


class NumbersAgain:
    """The replay of the numbers: those below 10 are gone, those above 1000 never were."""

    waits: ClassVar[trio.Event | None] = None
    """It does not go on behind its first span before this is set."""

    def __init__(self, config: Any, context: Context) -> None: ...

    async def between(self, stream: str, from_ms: int, to_ms: int) -> list[Span]:
        return [Span(stream, 0, from_ms, to_ms - 1)]

    async def run(self, wanted: Sequence[Span], outlet: ReplayOutlet) -> None:
        for span in wanted:
            count = span.last - span.first + 1
            if span.partition == 99:
                raise SourceError("there is no such partition")
            if span.first >= 1000:
                outlet.cannot_tell(f"{span.first} never was")
            elif span.last < 10:
                await outlet.send_repair(None, [Span(STREAM, 0, span.first, span.last, 0, "too small")])
            else:
                await outlet.send_repair(numbers(span.first, count), [Span(STREAM, 0, span.first, span.last, count)])
            if self.waits is not None:
                await self.waits.wait()


@pytest.fixture
def way(tmp_path: Path) -> Link:
    return link(tmp_path, heartbeat_interval=5)


@attrs.frozen
class Requests:
    """The same file, opened by an operator and by the ingress: each is another process, or at least another thread."""

    operator: ResendFile
    ingress: ResendFile

    def add(self, wanted: Wanted) -> int:
        return self.operator.add(wanted)

    def progress(self, number: int) -> ResendProgress:
        return self.operator.progress(number)


@pytest.fixture
def requests(way: Link, monkeypatch: pytest.MonkeyPatch) -> Iterator[Requests]:
    monkeypatch.setattr(REPLAYS, "_builtin", {"function": "tests.test_resend:NumbersAgain"})
    where = (Path(way.state_directory), way.name, way.id)
    with ResendFile.open(*where) as operator, ResendFile.open(*where) as ingress:
        yield Requests(operator, ingress)


def resending(way: Link, requests: Requests, source: SourceFunction, *, type_: str = "function") -> Ingress:
    end = ingress(way, source)
    section = SourceSection(type=type_, config=NoKeys(), plugin_class=type(end._source))
    end.resends = Resends(requests.ingress, section, link=way, log=structlog.get_logger())
    return end


async def forever(outlet: Outlet) -> None:
    await outlet.send(numbers(2_000, 5))
    await trio.sleep_forever()


def spans(*ranges: tuple[int, int], partition: int = 0) -> list[Span]:
    return [Span(STREAM, partition, first, last) for first, last in ranges]


def messages_of(end: Ingress) -> list[MessageDelivered]:
    """What the ingress has sent."""
    core = LinkReceiver(ReceiverSettings(link_id=end.pair.link.id), now_s=0.0)
    for burst in bursts_of(socket_of(end).datagrams):
        core.receive(burst, 0.0)
    core.close(0.0)
    return [event for event in core.take_events() if isinstance(event, MessageDelivered)]


def batch_in(message: MessageDelivered) -> Batch | None:
    if not message.body:
        return None
    return decode_batch(inflate(message.body, message.compression, message.plain_bytes, plain_bytes_max=1 << 20))


def arrived(end: Ingress) -> list[tuple[list[Span], list[int]]]:
    """Of each message: its spans, and the numbers in it."""
    messages = messages_of(end)
    batches = [batch_in(message) for message in messages]
    return [(list(m.spans), numbers_in(b) if b else []) for m, b in zip(messages, batches, strict=True) if m.spans or b]


@pytest.mark.req("GC-RPR-5")
async def test_what_is_asked_for_is_sent_beside_fresh_data(way: Link, requests: Requests) -> None:
    number = requests.add(Wanted(spans=spans((3, 5), (20, 24))))
    end = resending(way, requests, forever)
    with capture_logs() as logs, trio.fail_after(60):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(end.run)
            await until(lambda: requests.progress(number).finished)
            later = requests.add(Wanted(between=Between(stream=STREAM, from_ms=30, to_ms=40), again=True))
            await until(lambda: requests.progress(later).finished)
            end.stop()
    assert (2_000, 2_001) in [tuple(found[:2]) for _, found in arrived(end)]
    assert [message for message in arrived(end) if message[0]] == [
        ([Span(STREAM, 0, 3, 5, 0, "too small")], []),
        ([Span(STREAM, 0, 20, 24, 5)], list(range(20, 25))),
        ([Span(STREAM, 0, 30, 39, 10, "", True)], list(range(30, 40))),
    ]
    progress = requests.progress(number)
    assert (progress.state, progress.records, progress.messages) == ("done", 5, 2)
    assert (progress.positions, progress.positions_wanted) == (8, 8)
    assert progress.gone == [(STREAM, 0, 3, 5, "too small")]
    assert [each["event"] for each in logs if each["event"].startswith("resend")] == [
        "resend_started",
        "resend_finished",
    ] * 2
    assert IngressView(end).status()["resent"] == {"request": None, "records": 15, "positions_gone": 3, "messages": 0}
    assert end.core.counters.records == 5, "of fresh data"


@pytest.mark.req("GC-COMP-1", "GC-RPR-5")
async def test_repairs_are_compressed_as_other_messages_are(way: Link, requests: Requests) -> None:
    number = requests.add(Wanted(spans=spans((3, 5), (20, 1_019), (100, 100))))
    end = resending(attrs.evolve(way, compression="zstd"), requests, forever)
    with trio.fail_after(60):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(end.run)
            await until(lambda: requests.progress(number).finished)
            end.stop()
    assert [message for message in arrived(end) if message[0]] == [
        ([Span(STREAM, 0, 3, 5, 0, "too small")], []),
        ([Span(STREAM, 0, 20, 1_019, 1_000)], list(range(20, 1_020))),
        ([Span(STREAM, 0, 100, 100, 1)], [100]),
    ]
    assert [(bool(m.body), m.compression) for m in messages_of(end) if m.spans] == [
        (False, Compression.NONE),
        (True, Compression.ZSTD),
        (True, Compression.NONE),  # it would not get smaller
    ]


async def test_what_fails_is_told_and_the_ingress_goes_on(way: Link, requests: Requests) -> None:
    failing = requests.add(Wanted(spans=spans((20, 21), partition=99)))
    unknown = requests.add(Wanted(spans=spans((1_000, 1_001), (20, 21))))
    end = resending(way, requests, forever)
    with capture_logs() as logs, trio.fail_after(60):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(end.run)
            await until(lambda: requests.progress(unknown).finished)
            end.stop()
    assert (requests.progress(failing).state, requests.progress(failing).problems) == (
        "failed", ["there is no such partition"]
    )  # fmt: skip
    assert requests.progress(unknown).problems == ["1000 never was"]
    assert [found for _, found in arrived(end) if found[0] < 1_000] == [[20, 21]], "the rest is sent"
    assert sum(each["event"] == "resend_incomplete" for each in logs) == 2


async def test_a_source_that_cannot_be_read_again_fails_the_request(way: Link, requests: Requests) -> None:
    number = requests.add(Wanted(spans=spans((20, 21))))
    end = resending(way, requests, forever, type_="stdin")
    with trio.fail_after(60):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(end.run)
            await until(lambda: requests.progress(number).finished)
            end.stop()
    assert "'stdin' cannot be read a second time" in requests.progress(number).problems[0]


async def test_what_a_stop_interrupts_is_done_by_the_next_ingress(
    way: Link, requests: Requests, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(NumbersAgain, "waits", trio.Event())
    number = requests.add(Wanted(spans=spans((20, 21), (30, 31))))
    first = resending(way, requests, forever)
    with trio.fail_after(60):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(first.run)
            await until(lambda: any(message[0] for message in arrived(first)))
            first.stop()
    assert requests.progress(number).state == "running"
    monkeypatch.setattr(NumbersAgain, "waits", None)

    second = resending(way, requests, forever)
    assert second.resends is not None
    only = second.resends.as_source()
    second._source = only.plugin_class(only.config, second.context)
    with trio.fail_after(60):
        await second.run()  # nothing of the real source: it ends by itself
    assert requests.progress(number).state == "done"
    assert [found for _, found in arrived(second)] == [[20, 21], [30, 31]]


@attrs.define
class Rewinding:
    """A source that goes back where it can, and says what it could not."""

    Config: ClassVar[type[Any]] = NoKeys
    carries: ClassVar[Carries] = Carries.RECORDS
    missed: list[Span] = attrs.field(factory=list)
    told: list[Mapping[str, int]] = attrs.field(factory=list)
    stops: trio.Event = attrs.field(factory=trio.Event)
    """It has stopped when this is set."""

    async def run(self, outlet: Outlet) -> None:
        try:
            await trio.sleep_forever()
        finally:
            with trio.CancelScope(shield=True):
                await self.stops.wait()

    def rewind_to(self, positions: Mapping[str, int]) -> None:
        self.told.append(positions)

    def take_missed(self) -> list[Span]:
        missed, self.missed = self.missed, []
        return missed


@pytest.mark.req("GC-DLV-39")
async def test_what_a_source_could_not_go_back_to_is_sent_again_when_no_monitor_holds_it(
    way: Link, requests: Requests, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gapconn.resend.LOOK_INTERVAL_S", 0.01)
    end = resending(way, requests, forever)
    source = Rewinding()
    end._source = cast("Source", source)  # that is made in another way
    with capture_logs() as logs, trio.fail_after(60):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(end.run)
            await until(lambda: any(each["event"] == "source_started" for each in logs))
            end.hold("monitor:one", "dead")
            end.hold("operator", "disk", {"c/t/0": 5})
            source.missed = spans((20, 24))
            source.stops.set()
            await until(lambda: any(each["event"] == "resend_asked" for each in logs))
            end.pauses.release("operator")
            await trio.sleep(0.1)  # several times it would have looked
            assert requests.progress(1).state == "waiting", "its egress would not hear it"

            end.hold("monitor:two", "dead", {"c/t/0": 6})
            assert source.told == [{"c/t/0": 5}, {"c/t/0": 6}], "who knows where the egress stands may come second"
            source.missed = spans((30, 31))
            end.pauses.release("monitor:one")
            end.pauses.release("monitor:two")
            await until(lambda: sum(each["event"] == "resend_finished" for each in logs) == 2)
            end.stop()
    assert [message for message in arrived(end) if message[0]] == [
        ([Span(STREAM, 0, 20, 24, 5, "", True)], list(range(20, 25))),
        ([Span(STREAM, 0, 30, 31, 2, "", True)], [30, 31]),
    ]


async def test_what_cannot_be_asked_for_is_told(way: Link, requests: Requests, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(wanted: Wanted) -> int:
        raise LinkError("no space left on device")

    end = resending(way, requests, forever)
    assert end.resends is not None
    monkeypatch.setattr(end.resends._file, "add", full)
    with capture_logs() as logs:
        await end.resends._ask(spans((20, 24)))
    assert [(each["event"], each["error"]) for each in logs] == [("resend_not_asked", "no space left on device")]


async def test_a_disk_that_takes_no_requests_does_not_end_the_ingress(
    way: Link, requests: Requests, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is done, and noted when that can be done, and done only once."""
    number = requests.add(Wanted(spans=spans((20, 24))))
    stuck, refused = True, Counter[str]()
    next_request, note = requests.ingress.next, requests.ingress.note

    def stubborn_next() -> Any:
        if refused["next"] < 2:
            refused["next"] += 1
            raise StateDiskError("the disk is full", no_space=True)
        return next_request()

    def stubborn_note(*what: Any) -> None:
        if stuck:
            refused["note"] += 1
            raise StateDiskError("the disk is full", no_space=True)
        note(*what)

    monkeypatch.setattr(requests.ingress, "next", stubborn_next)
    monkeypatch.setattr(requests.ingress, "note", stubborn_note)
    monkeypatch.setattr("gapconn.resend.LOOK_INTERVAL_S", 0.01)
    end = resending(way, requests, forever)
    with capture_logs() as logs, trio.fail_after(60):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(end.run)
            await until(lambda: end.resends is not None and end.resends.records == 5)
            before = refused["note"]
            await until(lambda: refused["note"] > before + 5)
            assert requests.progress(number).state == "waiting"
            stuck = False
            await until(lambda: requests.progress(number).state == "done")
            await until(lambda: end.resends is not None and end.resends.current is None)
            end.stop()
    assert [entry["event"] for entry in logs].count("resend_file_stuck") == 1
    assert len([each for each in arrived(end) if each[0]]) == 1
