"""Leaving a consumer group on purpose: going back in it first, and staying a member of it."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import attrs
import pytest
import trio
from confluent_kafka import KafkaError, TopicPartition
from confluent_kafka.admin import AdminClient

from gapconn.backoff import Backoff
from gapconn.plugins import Context
from gapconn.protocol.envelope import Span
from gapconn.record import NO_POSITION, Records
from gapconn.sources.kafka import KafkaSource, KafkaSourceConfig
from gapconn.sources.kafka_offsets import began_in, chain_position
from gapconn.testing.kafka_broker import make_node
from gapconn.testing.pipes import RecordingOutlet, make_context
from tests.kafka.cluster import Cluster, Entry
from tests.services import until

pytestmark = pytest.mark.kafka


@attrs.define
class Member:
    source: KafkaSource
    context: Context
    outlet: RecordingOutlet
    cancel: trio.CancelScope = attrs.field(factory=trio.CancelScope)
    ended: trio.Event = attrs.field(factory=trio.Event)

    async def run(self) -> None:
        with self.cancel:
            await self.source.run(self.outlet)
        self.ended.set()

    @property
    def runs(self) -> list[Records]:
        return [part for batch in self.outlet.batches for part in batch.parts if isinstance(part, Records)]

    async def has_sent(self, count: int) -> None:
        await self.outlet.wait_until(lambda batches: sum(batch.record_count for batch in batches) >= count)


@asynccontextmanager
async def running(source: Member) -> AsyncIterator[Member]:
    """It is at work until the end of the block."""
    source.cancel, source.ended = trio.CancelScope(), trio.Event()
    with trio.fail_after(150):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(source.run)
            yield source
            source.cancel.cancel()


@asynccontextmanager
async def member(
    kafka: Cluster, topic: str, link_id: int = 7, flush_timeout_s: float = 5.0, **config: Any
) -> AsyncIterator[Member]:
    """A source at work, as a member of the group that is called like the topic."""
    context, outlet = make_context(link_id=link_id), RecordingOutlet(flush_timeout_s=flush_timeout_s)
    # Long, so that a busy machine does not make a member look dead.
    client = {"heartbeat.interval.ms": 100, "session.timeout.ms": 60_000}
    settings = KafkaSourceConfig(
        bootstrap_servers=kafka.address, group_id=topic, topics=[topic], client=client, **config
    )
    async with running(Member(KafkaSource(settings, context), context, outlet)) as source:
        yield source


def members_of(kafka: Cluster, group: str) -> list[str | None]:
    """The static names of a group's members."""
    admin = AdminClient({"bootstrap.servers": kafka.address})
    [future] = admin.describe_consumer_groups([group]).values()
    return [each.group_instance_id for each in future.result(60).members]


def wait_left(kafka: Cluster, group: str) -> None:
    """Wait until a group has no members."""
    deadline = time.monotonic() + 90
    while members_of(kafka, group):
        assert time.monotonic() < deadline
        time.sleep(0.1)


async def committed(kafka: Cluster, topic: str, partition: int = 0) -> TopicPartition:
    return await trio.to_thread.run_sync(lambda: kafka.committed(topic, topic, partition=partition))


@pytest.mark.req("GC-DLV-24", "GC-DLV-16")
async def test_it_goes_back_to_where_the_egress_stands_before_it_leaves(kafka: Cluster) -> None:
    topic = await trio.to_thread.run_sync(lambda: kafka.create_topic(partitions=3))
    entries = [Entry(value=b"%d" % n, partition=p) for n in range(100) for p in range(3)]
    await trio.to_thread.run_sync(kafka.send, topic, entries)
    async with member(kafka, topic) as first:
        await first.has_sent(300)
        cluster = first.context.status["cluster"]
        # Of partition 2 nothing was delivered, as far as is known; and of other topics nobody asked.
        first.source.rewind_to({f"{cluster}/{topic}/0": 40, f"{cluster}/{topic}/1": 100, f"{cluster}/other/2": 7})
    assert first.context.status["rewound"] == {f"{topic}/0": 40, f"{topic}/2": 0}
    zero, one, two = [await committed(kafka, topic, partition) for partition in range(3)]
    assert (zero.offset, one.offset, two.offset) == (40, 100, 0)
    assert chain_position(zero, 7) == 39, "to this link's egress, the chain goes on"
    assert chain_position(zero, 8) == NO_POSITION, "to another one, a chain begins: nothing is lost before it"

    async with member(kafka, topic, link_id=8) as second:
        await second.has_sent(160)
    begun = {run.partition: (run.previous, run.positions[0]) for run in reversed(second.runs)}
    assert begun == {0: (NO_POSITION, 40), 2: (NO_POSITION, 0)}
    assert sum(len(run.positions) for run in second.runs) == 160


async def test_a_static_member_stays_one_while_it_is_away(kafka: Cluster) -> None:
    topic = await trio.to_thread.run_sync(kafka.create_topic)
    await trio.to_thread.run_sync(kafka.send, topic, [Entry(value=b"0")])
    async with member(kafka, topic, group_instance_id="orders-1") as first:
        await first.has_sent(1)
    assert await trio.to_thread.run_sync(members_of, kafka, topic) == ["orders-1"]
    await trio.to_thread.run_sync(kafka.send, topic, [Entry(value=b"1")])
    async with member(kafka, topic, group_instance_id="orders-1") as again:
        await again.has_sent(1)
        assert [run.previous for run in again.runs] == [0]


def spans_told(of: Member) -> list[Span]:
    """What it says that it could not move back."""
    return [
        Span(each["topic"], each["partition"], each["first_offset"], each["last_offset"])
        for each in of.context.status.get("rewind_failed", [])
    ]


async def has(of: Member, count: int) -> list[str]:
    """Wait until the member has so many partitions; which ones."""
    await until(lambda: len(of.context.status.get("partitions", [])) == count)
    partitions: list[str] = of.context.status["partitions"]
    return partitions


@pytest.mark.req("GC-DLV-24")
async def test_a_partition_that_moves_while_the_pause_begins_goes_back_too(kafka: Cluster) -> None:
    """The group had taken it away before the source had stopped."""
    topic = await trio.to_thread.run_sync(lambda: kafka.create_topic(partitions=2))
    entries = [Entry(value=b"%d" % n, partition=p) for n in range(50) for p in range(2)]
    await trio.to_thread.run_sync(kafka.send, topic, entries)
    async with member(kafka, topic) as first:
        await first.has_sent(100)
        cluster = first.context.status["cluster"]
        first.source.rewind_to({f"{cluster}/{topic}/{number}": 20 for number in range(2)})
        async with member(kafka, topic, link_id=8) as second:
            await has(first, 1)
            await second.has_sent(30)
            [run, *_] = second.runs
            assert (run.previous, run.positions[0]) == (NO_POSITION, 20)
    assert not first.source.take_missed()


@pytest.mark.req("GC-DLV-39")
async def test_what_moved_before_the_pause_is_asked_for(kafka: Cluster) -> None:
    topic = await trio.to_thread.run_sync(lambda: kafka.create_topic(partitions=2))
    entries = [Entry(value=b"%d" % n, partition=p) for n in range(50) for p in range(2)]
    await trio.to_thread.run_sync(kafka.send, topic, entries)
    async with member(kafka, topic) as first:
        await first.has_sent(100)
        cluster = first.context.status["cluster"]
        async with member(kafka, topic, link_id=8):
            [kept] = await has(first, 1)
            moved = 1 - int(kept[-1])
            first.source.rewind_to({f"{cluster}/{topic}/{number}": 20 for number in range(2)})
            first.cancel.cancel()
            await first.ended.wait()
            assert first.context.status["rewound"] == {kept: 20}
            assert first.source.take_missed() == [Span(topic, moved, 20, 49)]
            [told] = first.context.status["rewind_missed"]
            assert f"--topic {topic} --partition {moved} --offsets 20-49 --again" in told["command"]


@pytest.mark.req("GC-DLV-39")
async def test_a_pause_between_two_clients_says_what_was_sent_in_vain(
    kafka: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The client failed for good, and the next one is not made yet: there is no group to go back in."""
    monkeypatch.setattr(Backoff, "failed", lambda self: 600.0)
    topic = await trio.to_thread.run_sync(kafka.create_topic)
    await trio.to_thread.run_sync(kafka.send, topic, [Entry(value=b"%d" % n) for n in range(10)])
    async with member(kafka, topic) as first:
        await first.has_sent(10)
        session = first.source._session
        assert session is not None
        session._on_error(KafkaError(KafkaError.FENCED_INSTANCE_ID, "fenced", fatal=True))
        await until(lambda: first.context.counters["client_failed"] > 0)
        first.source.rewind_to({f"{first.context.status['cluster']}/{topic}/0": 4})
        first.cancel.cancel()
        await first.ended.wait()
        assert spans_told(first) == [Span(topic, 0, 4, 9)]
        assert (first.context.status["rewound"], first.source.take_missed()) == ({}, [])
    async with running(first):  # nobody else has had it
        await first.has_sent(16)
    assert first.context.status["rewound"] == {f"{topic}/0": 4}
    assert (first.runs[-1].previous, first.runs[-1].positions) == (3, [4, 5, 6, 7, 8, 9])


@pytest.mark.req("GC-DLV-39")
@pytest.mark.parametrize("late", [False, True])
async def test_a_broker_that_hangs_while_offsets_are_moved_back_holds_nobody_up(tmp_path: Path, late: bool) -> None:
    """What could not be moved is told; and the group is left, when the broker answers again.

    `late`: where the egress stands is said when the source has stopped already.
    """
    with make_node(tmp_path / "kafka") as node:
        kafka = Cluster(node.address)
        topic = await trio.to_thread.run_sync(kafka.create_topic)
        await trio.to_thread.run_sync(kafka.send, topic, [Entry(value=b"%d" % n) for n in range(10)])
        async with member(kafka, topic, flush_timeout_s=2.0) as first:
            await first.has_sent(10)
            node.pause()
            try:
                positions = {f"{first.context.status['cluster']}/{topic}/0": 4}
                if not late:
                    first.source.rewind_to(positions)
                first.cancel.cancel()
                with trio.fail_after(20):
                    await first.ended.wait()
                if late:
                    first.source.rewind_to(positions)
                assert spans_told(first) == [Span(topic, 0, 4, 9)]
                assert first.context.counters["rewind_failed"] == 1
            finally:
                node.resume()
            await trio.to_thread.run_sync(wait_left, kafka, topic)


@pytest.mark.req("GC-DLV-37")
@pytest.mark.parametrize("kept", [False, True])
async def test_a_topic_that_was_made_again_is_read_again_from_its_beginning(kafka: Cluster, kept: bool) -> None:
    """`kept`: as with brokers that do not delete a group's offset with its topic."""
    topic = await trio.to_thread.run_sync(kafka.create_topic)
    await trio.to_thread.run_sync(kafka.send, topic, [Entry(value=b"old %d" % n) for n in range(10)])
    async with member(kafka, topic) as first:
        await first.has_sent(10)
    old = await committed(kafka, topic)
    await trio.to_thread.run_sync(kafka.delete_topic, topic)
    await trio.to_thread.run_sync(lambda: kafka.create_topic(name=topic))
    if kept:
        await trio.to_thread.run_sync(kafka.commit, topic, topic, old.offset, old.metadata or "")
    await trio.to_thread.run_sync(kafka.send, topic, [Entry(value=b"new %d" % n) for n in range(8)])
    async with running(first):
        await first.has_sent(18)
        # The egress stood here in the old topic, and has nothing of the new one.
        first.source.rewind_to({f"{first.context.status['cluster']}/{topic}/0": 5})
    assert first.context.status["rewound"] == {f"{topic}/0": 0}
    again = await committed(kafka, topic)
    assert (again.offset, chain_position(again, 7), began_in(again, 7)) == (0, NO_POSITION, 0)
