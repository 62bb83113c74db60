from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Literal

import attrs
import pytest
import trio
from confluent_kafka import KafkaError, Message, TopicPartition

from gapconn.errors import SourceError
from gapconn.plugins import Context
from gapconn.record import NO_POSITION, Batch, Records, TimestampType
from gapconn.sources import Outlet
from gapconn.sources import kafka as kafka_source
from gapconn.sources.kafka import KafkaSource, KafkaSourceConfig
from gapconn.sources.kafka_batches import Columns
from gapconn.sources.kafka_offsets import began_in, beginning_metadata, chain_position, commit_metadata
from gapconn.testing.kafka_broker import make_node
from gapconn.testing.pipes import RecordingOutlet, make_context
from gapconn.units import Seconds
from tests.kafka.cluster import Cluster, Entry

pytestmark = pytest.mark.kafka

QUICK = {"topic.metadata.refresh.interval.ms": 100, "heartbeat.interval.ms": 100, "session.timeout.ms": 10_000}


@attrs.define(kw_only=True)
class GatedOutlet(RecordingOutlet):
    """An outlet whose link can be stopped, and where nothing counts as sent before `take`."""

    open: bool = True
    taken: bool = False
    waiting: list[Callable[[], None]] = attrs.field(factory=list)
    _changed: trio.Event = attrs.field(factory=trio.Event)

    async def send(self, batch: Batch, on_sent: Callable[[], None] | None = None) -> None:
        while not self.open:
            await self._changed.wait()
        await super().send(batch)
        if on_sent is not None:
            self.waiting.append(on_sent)
        if self.taken:
            self.take()

    async def flush(self) -> None:
        while self.waiting:
            await self._changed.wait()

    def take(self) -> None:
        """The kernel takes everything, now and from now on."""
        self.open = self.taken = True
        for on_sent in self.waiting:
            on_sent()
        self.waiting.clear()
        self._changed.set()


@asynccontextmanager
async def running(
    kafka: Cluster, outlet: Outlet, context: Context | None = None, *, group: str, topics: list[str], **config: Any
) -> AsyncIterator[Context]:
    """A source at work; it is cancelled, and closes, at the end of the block."""
    context = context or make_context()
    config["client"] = QUICK | config.get("client", {})
    settings = KafkaSourceConfig(bootstrap_servers=kafka.address, group_id=group, topics=topics, **config)
    with trio.fail_after(150):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(KafkaSource(settings, context).run, outlet)
            yield context
            nursery.cancel_scope.cancel()


async def eventually(condition: Callable[[], bool]) -> None:
    """Wait for what no event tells."""
    with trio.fail_after(60):
        while not condition():  # noqa: ASYNC110 - these conditions are facts of other threads and of the broker
            await trio.sleep(0.01)


def records_of(batches: list[Batch]) -> list[Records]:
    return [part for batch in batches for part in batch.parts if isinstance(part, Records)]


def values_of(batches: list[Batch]) -> list[bytes | None]:
    return [value for part in records_of(batches) for value in part.values]


def has(count: int) -> Callable[[list[Batch]], bool]:
    return lambda batches: sum(batch.record_count for batch in batches) >= count


def numbered(count: int, *, first: int = 0, partition: int = 0) -> list[Entry]:
    return [Entry(value=b"%d" % number, partition=partition) for number in range(first, first + count)]


def chains_hold(batches: list[Batch]) -> bool:
    """Every run says as `previous` what the run before it, of the same partition, ended with."""
    last: dict[tuple[str, int], int] = {}
    for part in records_of(batches):
        if part.previous != last.get((part.stream, part.partition), part.previous):
            return False
        last[part.stream, part.partition] = part.positions[-1]
    return True


# What is committed, and when.


@pytest.mark.req("GC-DLV-1")
async def test_offsets_are_committed_only_after_the_records_were_taken(kafka: Cluster) -> None:
    topic, group = kafka.create_topic(), kafka.name()
    kafka.send(topic, numbered(5))

    crashing = GatedOutlet(flush_timeout_s=0.2)
    async with running(kafka, crashing, group=group, topics=[topic], commit_interval=Seconds(0.05)):
        await crashing.wait_until(has(5))
        await trio.sleep(0.3)  # Several commit intervals in which nothing may be committed.
    committed = kafka.committed(group, topic)
    assert (committed.offset, committed.metadata) == (0, beginning_metadata(1, 1))  # where it began, and nothing more

    outlet = GatedOutlet()
    async with running(kafka, outlet, group=group, topics=[topic], commit_interval=Seconds(0.05)):
        await outlet.wait_until(has(5))
        assert values_of(outlet.batches) == [b"0", b"1", b"2", b"3", b"4"]  # sent again
        outlet.take()
        await eventually(lambda: kafka.committed(group, topic).offset == 5)
    assert kafka.committed(group, topic).metadata == commit_metadata(1, 4)


async def test_when_stopped_everything_read_is_sent_and_committed(kafka: Cluster) -> None:
    topic, group = kafka.create_topic(), kafka.name()
    kafka.send(topic, numbered(100))
    outlet = GatedOutlet()
    async with running(kafka, outlet, group=group, topics=[topic], commit_interval=Seconds(1000)):
        await outlet.wait_until(has(1))
        outlet.take()
    sent = len(values_of(outlet.batches))
    assert kafka.committed(group, topic).offset == sent


@pytest.mark.req("GC-DLV-16")
async def test_the_chain_goes_on_for_the_same_link_only(kafka: Cluster) -> None:
    topic, group = kafka.create_topic(), kafka.name()
    previous = []
    for run, link_id in enumerate([7, 7, 8, 7]):
        kafka.send(topic, numbered(3, first=3 * run))
        outlet = RecordingOutlet()
        async with running(kafka, outlet, make_context(link_id=link_id), group=group, topics=[topic]):
            await outlet.wait_until(has(3))
        assert values_of(outlet.batches) == [b"%d" % (3 * run + i) for i in range(3)]
        assert chains_hold(outlet.batches)
        previous.append(records_of(outlet.batches)[0].previous)
    assert previous == [NO_POSITION, 2, NO_POSITION, NO_POSITION]


@pytest.mark.req("GC-ONCE-1", "GC-DLV-16")
@pytest.mark.parametrize("given", [None, 2])
async def test_who_crashed_before_its_first_commit_has_said_where_it_began(kafka: Cluster, given: int | None) -> None:
    """`given`: an offset that an operator has set, so that the chain restarts there."""
    topic, group = kafka.create_topic(), kafka.name()
    kafka.send(topic, numbered(5))
    if given is not None:
        kafka.commit(group, topic, given)
    chains = []
    for epoch in (7, 8, 9):
        crashing = GatedOutlet(flush_timeout_s=0.2)
        async with running(kafka, crashing, make_context(epoch=epoch), group=group, topics=[topic]):
            await crashing.wait_until(has(5 - (given or 0)))
            committed = kafka.committed(group, topic)
        run = records_of(crashing.batches)[0]
        chains.append((run.positions[0], run.previous, run.since))
        assert (committed.offset, committed.metadata) == (given or 0, beginning_metadata(1, 7))
    assert chains == [(given or 0, NO_POSITION, since) for since in (0, 7, 7)]


@pytest.mark.req("GC-ONCE-1")
async def test_the_beginning_of_another_link_is_not_ones_own(kafka: Cluster) -> None:
    topic, group = kafka.create_topic(), kafka.name()
    kafka.send(topic, numbered(2))
    for link_id in (1, 2):
        crashing = GatedOutlet(flush_timeout_s=0.2)
        context = make_context(link_id=link_id, epoch=5)
        async with running(kafka, crashing, context, group=group, topics=[topic]):
            await crashing.wait_until(has(2))
        assert records_of(crashing.batches)[0].since == 0
        assert kafka.committed(group, topic).metadata == beginning_metadata(link_id, 5)


@pytest.mark.req("GC-DLV-16")
async def test_an_operators_reset_restarts_the_chain(kafka: Cluster) -> None:
    topic, group = kafka.create_topic(), kafka.name()
    kafka.send(topic, numbered(6))
    outlet = RecordingOutlet()
    async with running(kafka, outlet, group=group, topics=[topic]):
        await outlet.wait_until(has(6))
    kafka.commit(group, topic, 3)
    again = RecordingOutlet()
    async with running(kafka, again, group=group, topics=[topic]):
        await again.wait_until(has(3))
    assert records_of(again.batches)[0].positions[0] == 3
    assert records_of(again.batches)[0].previous == NO_POSITION


@pytest.mark.parametrize(
    ("offset", "metadata", "position"),
    [
        (5, commit_metadata(1, 4), 4),
        (5, commit_metadata(1, NO_POSITION), NO_POSITION),
        (5, commit_metadata(2, 4), NO_POSITION),
        (5, commit_metadata(1, 5), NO_POSITION),  # says that it sent what is to be read
        (5, "gapconn link=1", NO_POSITION),
        (5, "", NO_POSITION),
        (-1001, "", NO_POSITION),
    ],
)
def test_whose_commit_it_was_is_read_from_its_metadata(offset: int, metadata: str | None, position: int) -> None:
    assert chain_position(TopicPartition("t", 0, offset, metadata=metadata), 1) == position


async def test_latest_begins_at_the_end_and_a_crash_does_not_move_the_beginning(kafka: Cluster) -> None:
    topic, group = kafka.create_topic(), kafka.name()
    kafka.send(topic, numbered(4))
    crashing = GatedOutlet(flush_timeout_s=0.2)
    async with running(kafka, crashing, group=group, topics=[topic], start="latest"):
        await eventually(lambda: kafka.committed(group, topic).offset == 4)
        await trio.to_thread.run_sync(kafka.send, topic, numbered(2, first=4))
        await crashing.wait_until(has(2))
    outlet = RecordingOutlet()
    async with running(kafka, outlet, group=group, topics=[topic], start="latest"):
        await outlet.wait_until(has(2))
    assert values_of(outlet.batches) == [b"4", b"5"]
    assert records_of(outlet.batches)[0].previous == NO_POSITION


# Holes that are not loss, and losses before the link.


async def test_markers_and_aborted_records_leave_holes_that_the_chain_explains(kafka: Cluster) -> None:
    topic, group = kafka.create_topic(), kafka.name()
    kafka.send_transaction(topic, numbered(3), commit=True)  # 0-2, marker 3
    kafka.send_transaction(topic, numbered(3, first=100), commit=False)  # 4-6, marker 7
    kafka.send(topic, numbered(2, first=3))  # 8-9
    outlet = RecordingOutlet(batch_bytes=1100)  # A record or two per batch.
    async with running(kafka, outlet, group=group, topics=[topic]):
        await outlet.wait_until(has(5))
    assert values_of(outlet.batches) == [b"0", b"1", b"2", b"3", b"4"]
    assert [p for part in records_of(outlet.batches) for p in part.positions] == [0, 1, 2, 8, 9]
    assert chains_hold(outlet.batches)
    assert len(outlet.batches) > 1


async def test_read_uncommitted_carries_aborted_records_too(kafka: Cluster) -> None:
    topic, group = kafka.create_topic(), kafka.name()
    kafka.send_transaction(topic, numbered(3), commit=False)
    outlet = RecordingOutlet()
    async with running(kafka, outlet, group=group, topics=[topic], isolation_level="read_uncommitted"):
        await outlet.wait_until(has(3))
    assert values_of(outlet.batches) == [b"0", b"1", b"2"]


async def test_what_the_source_deleted_before_it_was_read_is_counted(kafka: Cluster) -> None:
    topic, group = kafka.create_topic(), kafka.name()
    kafka.send(topic, numbered(2))
    outlet = RecordingOutlet()
    async with running(kafka, outlet, group=group, topics=[topic]):
        await outlet.wait_until(has(2))
    kafka.send(topic, numbered(8, first=2))
    kafka.delete_before(topic, 7)
    later = RecordingOutlet()
    async with running(kafka, later, group=group, topics=[topic]) as context:
        await later.wait_until(has(3))
    assert values_of(later.batches) == [b"7", b"8", b"9"]
    assert context.counters["records_expired"] == 5
    assert records_of(later.batches)[0].previous == 1


async def test_a_topic_made_anew_restarts_the_chain(kafka: Cluster) -> None:
    topic, group = kafka.create_topic(), kafka.name()
    kafka.send(topic, numbered(5))
    outlet = RecordingOutlet()
    async with running(kafka, outlet, group=group, topics=[topic]):
        await outlet.wait_until(has(5))
    kafka.delete_topic(topic)
    kafka.create_topic(name=topic)
    kafka.commit(group, topic, 5)  # Deleting the topic deleted the offset; an older broker would have kept it.
    kafka.send(topic, numbered(2, first=50))
    later = RecordingOutlet()
    async with running(kafka, later, group=group, topics=[topic]) as context:
        await later.wait_until(has(2))
    assert values_of(later.batches) == [b"50", b"51"]
    assert context.counters["offsets_went_back"] == 1
    assert records_of(later.batches)[0].previous == NO_POSITION


# Batches.


async def test_batches_are_about_as_large_as_asked_and_name_their_cluster(kafka: Cluster) -> None:
    topic, group = kafka.create_topic(partitions=3), kafka.name()
    kafka.send(topic, [Entry(value=bytes(1000), partition=i % 3) for i in range(300)])
    outlet = RecordingOutlet(batch_bytes=20_000)
    async with running(kafka, outlet, group=group, topics=[topic]) as context:
        await outlet.wait_until(has(300))
    sizes = [sum(len(v or b"") for part in records_of([batch]) for v in part.values) for batch in outlet.batches]
    assert max(sizes) <= 20_000
    assert len(outlet.batches) < 60
    assert {batch.origin for batch in outlet.batches} == {context.status["cluster"]} != {""}
    assert chains_hold(outlet.batches)


async def test_a_record_larger_than_a_batch_goes_alone(kafka: Cluster) -> None:
    topic, group = kafka.create_topic(), kafka.name()
    sizes = [10, 50_000, 10, 99_000, 10]
    kafka.send(topic, [Entry(value=bytes(size)) for size in sizes])
    outlet = RecordingOutlet(batch_bytes=10_000, batch_bytes_max=99_300)
    async with running(kafka, outlet, group=group, topics=[topic]):
        await outlet.wait_until(has(5))
    assert [len(value or b"") for value in values_of(outlet.batches)] == sizes
    assert chains_hold(outlet.batches)


async def test_a_record_too_large_for_the_link_stops_the_source_after_those_before_it(kafka: Cluster) -> None:
    topic, group = kafka.create_topic(), kafka.name()
    kafka.send(topic, [Entry(value=b"a"), Entry(value=b"b"), Entry(value=bytes(50_000)), Entry(value=b"c")])
    outlet, context = RecordingOutlet(batch_bytes=10_000, batch_bytes_max=20_000), make_context()
    config = KafkaSourceConfig(bootstrap_servers=kafka.address, group_id=group, topics=[topic])
    with trio.fail_after(60), pytest.raises(SourceError, match=r"offset 2 of partition 0 .* message_bytes_max"):
        await KafkaSource(config, context).run(outlet)
    assert values_of(outlet.batches) == [b"a", b"b"]
    assert kafka.committed(group, topic).offset == 2
    assert context.counters["record_unfit"] == 1


async def test_a_record_too_large_for_the_link_can_be_left_out_and_the_chain_shows_it(kafka: Cluster) -> None:
    topic, group = kafka.create_topic(), kafka.name()
    kafka.send(topic, [Entry(value=b"a"), Entry(value=bytes(50_000)), Entry(value=b"b"), Entry(value=b"c")])
    outlet = RecordingOutlet(batch_bytes=10_000, batch_bytes_max=20_000)
    async with running(kafka, outlet, group=group, topics=[topic], unfit="skip") as context:
        await outlet.wait_until(has(3))
    assert values_of(outlet.batches) == [b"a", b"b", b"c"]
    assert [part.previous for part in records_of(outlet.batches)] == [NO_POSITION, 1]
    assert context.counters["record_unfit"] == 1


class UnreadableMessage(Message):
    """Other clients can write header names that are not UTF-8; confluent-kafka then fails like this, and only once."""

    asked = False

    def headers(self) -> Any:
        if not self.asked:
            self.asked = True
            raise SystemError("headers() returned a result with an exception set")
        return None


def message(offset: int, *, kind: type[Message] = Message) -> Message:
    return kind("t", 0, offset, b"k", b"%d" % offset, [("a", b"1")], None, (1, 1000))


@pytest.mark.parametrize("unfit", ["stop", "skip"])
async def test_a_header_name_that_cannot_be_read_is_not_dropped_silently(
    kafka: Cluster, monkeypatch: pytest.MonkeyPatch, unfit: Literal["stop", "skip"]
) -> None:
    topic, group, context = kafka.create_topic(), kafka.name(), make_context()
    kafka.send(topic, numbered(1))
    config = KafkaSourceConfig(bootstrap_servers=kafka.address, group_id=group, topics=[topic], unfit=unfit)
    read_columns = Columns.of

    def columns_of(messages: list[Message], **limits: int) -> Any:
        """What is read is three messages, the middle one unreadable."""
        if messages[0].offset() == 0 and messages[0].topic() == topic:
            messages[:] = [message(0), message(1, kind=UnreadableMessage), message(2)]
        return read_columns(messages, **limits)

    monkeypatch.setattr(Columns, "of", columns_of)
    outlet = RecordingOutlet()
    source = KafkaSource(config, context)
    if unfit == "stop":
        with trio.fail_after(60), pytest.raises(SourceError, match=r"offset 1 of partition 0 .* not UTF-8"):
            await source.run(outlet)
        assert values_of(outlet.batches) == [b"0"]
        assert kafka.committed(group, topic).offset == 1
    else:
        with trio.fail_after(60):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(source.run, outlet)
                await outlet.wait_until(has(2))
                nursery.cancel_scope.cancel()
        assert values_of(outlet.batches) == [b"0", b"2"]
        assert [part.previous for part in records_of(outlet.batches)] == [NO_POSITION, 1]
    assert context.counters["record_unfit"] == 1


async def test_a_topics_change_of_timestamp_type_is_carried(kafka: Cluster) -> None:
    topic, group = kafka.create_topic(), kafka.name()
    kafka.send(topic, [Entry(value=b"a", timestamp_ms=1000)])
    kafka.configure_topic(topic, message_timestamp_type="LogAppendTime")
    for number in range(3):  # The change takes a moment.
        kafka.send(topic, [Entry(value=b"%d" % number, timestamp_ms=1000)])
    outlet = RecordingOutlet()
    async with running(kafka, outlet, group=group, topics=[topic]):
        await outlet.wait_until(has(4))
    parts = records_of(outlet.batches)
    assert (parts[0].timestamp_type, parts[0].timestamps_ms) == (TimestampType.CREATE, [1000])
    assert parts[-1].timestamp_type == TimestampType.APPEND
    assert chains_hold(outlet.batches)


async def test_while_the_link_is_busy_no_more_is_read_and_nothing_is_lost_or_doubled(
    kafka: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kafka_source, "KEEP_ALIVE_S", 0.05)
    topic, group = kafka.create_topic(partitions=2), kafka.name()
    kafka.send(topic, [Entry(value=b"%0100d" % i, partition=i % 2) for i in range(4000)])
    outlet = GatedOutlet(batch_bytes=4000, open=False)
    client = {"fetch.message.max.bytes": 10_000, "queued.max.messages.kbytes": 50}
    async with running(kafka, outlet, group=group, topics=[topic], client=client):
        await trio.sleep(0.5)  # Several times, the member is kept alive.
        outlet.take()
        await outlet.wait_until(has(4000))
    assert sorted(values_of(outlet.batches), key=lambda value: value or b"") == [b"%0100d" % i for i in range(4000)]
    assert chains_hold(outlet.batches)


# The group and the brokers.


async def test_partitions_move_between_pairs_with_everything_sent_once(kafka: Cluster) -> None:
    topic, group = kafka.create_topic(partitions=4), kafka.name()
    kafka.send(topic, [Entry(value=b"first %d" % i, partition=i % 4) for i in range(400)])
    one, two = GatedOutlet(batch_bytes=3000), RecordingOutlet()
    async with running(kafka, one, make_context(link_id=1), group=group, topics=[topic]) as first:
        await one.wait_until(has(1))
        async with running(kafka, two, make_context(link_id=2), group=group, topics=[topic]) as second:
            await trio.sleep(0.5)  # The first one holds its partitions until what it read was taken.
            assert not second.status.get("partitions")
            one.take()
            await eventually(lambda: len(second.status.get("partitions", [])) == 2)
            moved = set(second.status["partitions"])
            await eventually(lambda: len(first.status["partitions"]) == 2)
            entries = [Entry(value=b"second %d" % i, partition=i % 4) for i in range(400)]
            await trio.to_thread.run_sync(kafka.send, topic, entries)
            await eventually(lambda: has(800)(one.batches + two.batches))
        for place in moved:
            committed = kafka.committed(group, topic, partition=int(place[-1]))
            assert committed.offset == 200
            # The second one's, unless the first one has it back by now and has said where it begins again.
            assert chain_position(committed, 2) != NO_POSITION or began_in(committed, 1)
    carried = values_of(one.batches) + values_of(two.batches)
    assert len(carried) == len(set(carried)) == 800
    assert chains_hold(one.batches)
    assert chains_hold(two.batches)
    assert {part.previous for part in records_of(two.batches)[:1]} == {NO_POSITION}


async def test_a_topic_that_is_not_there_yet_is_waited_for(kafka: Cluster) -> None:
    topic, group = kafka.name(), kafka.name()
    outlet = RecordingOutlet()
    async with running(kafka, outlet, group=group, topics=[topic]) as context:
        await eventually(lambda: context.counters["topic_missing"] > 0)
        await trio.to_thread.run_sync(lambda: kafka.create_topic(name=topic))
        await trio.to_thread.run_sync(kafka.send, topic, numbered(1))
        await outlet.wait_until(has(1))
    assert values_of(outlet.batches) == [b"0"]


async def test_a_regular_expression_finds_topics_also_later_ones(kafka: Cluster) -> None:
    prefix, group = kafka.name(), kafka.name()
    kafka.create_topic(name=f"{prefix}-a")
    kafka.send(f"{prefix}-a", numbered(1))
    outlet = RecordingOutlet()
    async with running(kafka, outlet, group=group, topics=[f"^{prefix}-.*"]):
        await outlet.wait_until(has(1))
        await trio.to_thread.run_sync(lambda: kafka.create_topic(name=f"{prefix}-b"))
        await trio.to_thread.run_sync(kafka.send, f"{prefix}-b", numbered(1))
        await outlet.wait_until(has(2))
    assert {part.stream for part in records_of(outlet.batches)} == {f"{prefix}-a", f"{prefix}-b"}


async def test_a_broker_that_is_away_is_waited_for(tmp_path: Path) -> None:
    node = make_node(tmp_path / "kafka")
    kafka, outlet = Cluster(node.address), RecordingOutlet()
    client = {"reconnect.backoff.max.ms": 200}
    async with running(kafka, outlet, group="g", topics=["t"], client=client, commit_interval=Seconds(0.1)) as context:
        await eventually(lambda: context.counters["broker_unreachable"] > 0)
        assert context.status["broker"] == "unreachable"
        await trio.to_thread.run_sync(node.start)
        try:
            await trio.to_thread.run_sync(lambda: kafka.create_topic(name="t"))
            await trio.to_thread.run_sync(kafka.send, "t", numbered(10))
            await outlet.wait_until(has(10))
            assert context.status["broker"] == "connected"
            # Else the records would be sent again, and the chain would begin again at what was committed.
            await eventually(lambda: kafka.committed("g", "t").offset == 10)

            unreachable = context.counters["broker_unreachable"]
            await trio.to_thread.run_sync(node.kill)
            await eventually(lambda: context.counters["broker_unreachable"] > unreachable)
            await trio.to_thread.run_sync(node.start)
            await eventually(lambda: context.status["broker"] == "connected")
            await trio.to_thread.run_sync(kafka.send, "t", numbered(10, first=10))
            await outlet.wait_until(lambda batches: values_of(batches)[-1] == b"19")
            await eventually(lambda: kafka.committed("g", "t").offset == 20)
        finally:
            await trio.to_thread.run_sync(node.stop)
    assert values_of(outlet.batches) == [b"%d" % i for i in range(20)]
    assert chains_hold(outlet.batches)


async def test_partitions_that_are_lost_are_dropped_and_read_again_from_what_was_committed(
    kafka: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A member that hung too long finds its partitions given away: what it holds is not its own to send."""
    monkeypatch.setattr(kafka_source, "KEEP_ALIVE_S", 2.0)  # It hangs: the group hears nothing for longer than allowed.
    topic, group = kafka.create_topic(), kafka.name()
    kafka.send(topic, numbered(200))
    outlet = GatedOutlet(batch_bytes=1100, open=False)
    client = {"session.timeout.ms": 1000, "heartbeat.interval.ms": 100, "max.poll.interval.ms": 1000}
    async with running(kafka, outlet, group=group, topics=[topic], client=client) as context:
        await eventually(lambda: context.status.get("partitions") == [f"{topic}/0"])
        await eventually(lambda: context.counters["partitions_lost"] > 0)
        assert kafka.committed(group, topic).offset == 0  # where it began
        outlet.take()
        await outlet.wait_until(lambda batches: b"199" in values_of(batches))
        await eventually(lambda: kafka.committed(group, topic).offset == 200)
    assert set(values_of(outlet.batches)) == {b"%d" % i for i in range(200)}


async def test_a_client_that_failed_for_good_is_replaced(kafka: Cluster) -> None:
    topic, group = kafka.create_topic(), kafka.name()
    kafka.send(topic, numbered(3))
    outlet, sessions = RecordingOutlet(), []
    opened = kafka_source._Session._open

    def open_and_note(session: Any) -> Any:
        sessions.append(session)
        return opened(session)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kafka_source._Session, "_open", open_and_note)
        async with running(kafka, outlet, group=group, topics=[topic]) as context:
            await outlet.wait_until(has(3))
            sessions[0]._on_error(KafkaError(KafkaError.FENCED_INSTANCE_ID, "fenced", fatal=True))
            await eventually(lambda: len(sessions) == 2)
            await trio.to_thread.run_sync(kafka.send, topic, numbered(3, first=3))
            await outlet.wait_until(has(6))
    assert context.counters["client_failed"] == 1
    assert values_of(outlet.batches) == [b"%d" % i for i in range(6)]
    assert chains_hold(outlet.batches)


async def test_a_broker_that_refuses_is_tried_again_and_no_secret_is_logged(
    kafka: Cluster, capfd: pytest.CaptureFixture[str]
) -> None:
    sasl = {"security.protocol": "SASL_PLAINTEXT", "sasl.mechanism": "PLAIN", "sasl.username": "someone"}
    client = sasl | {"sasl.password": "hunter2", "reconnect.backoff.max.ms": 100}
    async with running(kafka, RecordingOutlet(), group=kafka.name(), topics=["t"], client=client) as context:
        await eventually(lambda: context.counters["broker_refused"] > 1)
        assert context.status["broker"] == "refused"
    printed = capfd.readouterr()
    assert "broker_refused" in printed.out
    assert "hunter2" not in printed.out
    assert printed.err == ""  # Nothing past the log.


async def test_closing_with_no_broker_takes_no_longer_than_allowed(kafka: Cluster) -> None:
    outlet = RecordingOutlet(flush_timeout_s=1.0)
    context = make_context()
    config = KafkaSourceConfig(bootstrap_servers="127.0.0.1:1", group_id="g", topics=["t"])
    with trio.fail_after(30):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(KafkaSource(config, context).run, outlet)
            await eventually(lambda: context.counters["broker_unreachable"] > 0)
            stopped_at = trio.current_time()
            nursery.cancel_scope.cancel()
    assert trio.current_time() - stopped_at < 4


# Configuration.


@pytest.mark.parametrize(
    ("wrong", "match"),
    [
        ({"topics": []}, "at least one topic"),
        ({"topics": [""]}, "no empty one"),
        ({"group_id": ""}, "must not be empty"),
        ({"bootstrap_servers": ""}, "must not be empty"),
        ({"commit_interval": Seconds(0)}, "more than 0 s"),
        ({"client": {"group.id": "x"}}, "group.id has its own key, group_id"),
        ({"client": {"enable.auto.commit": True}}, "offsets are committed after"),
    ],
)
def test_a_wrong_configuration_is_refused(wrong: dict[str, Any], match: str) -> None:
    right = {"bootstrap_servers": "127.0.0.1:9092", "topics": ["t"], "group_id": "g"}
    with pytest.raises(ValueError, match=match):
        KafkaSourceConfig(**(right | wrong))


@pytest.mark.parametrize(
    ("wrong", "match"),
    [
        ({"client": {"no.such.setting": 1}}, "No such configuration property"),
        ({"client": {"security.protocol": "ssl", "ssl.ca.location": "/nowhere"}}, "ssl.ca.location"),
        ({"topics": ["^*("]}, "refused"),
    ],
)
async def test_settings_that_librdkafka_refuses_end_the_source(wrong: dict[str, Any], match: str) -> None:
    right = {"bootstrap_servers": "127.0.0.1:1", "topics": ["t"], "group_id": "g"}
    with trio.fail_after(30), pytest.raises(SourceError, match=match):
        await KafkaSource(KafkaSourceConfig(**(right | wrong)), make_context()).run(RecordingOutlet())
