"""Leaving a consumer group on purpose: going back in it first, and staying a member of it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import attrs
import pytest
import trio
from confluent_kafka import TopicPartition
from confluent_kafka.admin import AdminClient

from gapconn.plugins import Context
from gapconn.record import NO_POSITION, Records
from gapconn.sources.kafka import KafkaSource, KafkaSourceConfig
from gapconn.sources.kafka_offsets import chain_position
from gapconn.testing.pipes import RecordingOutlet, make_context
from tests.kafka.cluster import Cluster, Entry

pytestmark = pytest.mark.kafka


@attrs.define
class Member:
    source: KafkaSource
    context: Context
    outlet: RecordingOutlet

    @property
    def runs(self) -> list[Records]:
        return [part for batch in self.outlet.batches for part in batch.parts if isinstance(part, Records)]

    async def has_sent(self, count: int) -> None:
        await self.outlet.wait_until(lambda batches: sum(batch.record_count for batch in batches) >= count)


@asynccontextmanager
async def member(kafka: Cluster, topic: str, link_id: int = 7, **config: Any) -> AsyncIterator[Member]:
    """A source at work, as a member of the group that is called like the topic."""
    context, outlet = make_context(link_id=link_id), RecordingOutlet()
    # Long, so that a busy machine does not make a member look dead.
    client = {"heartbeat.interval.ms": 100, "session.timeout.ms": 60_000}
    settings = KafkaSourceConfig(
        bootstrap_servers=kafka.address, group_id=topic, topics=[topic], client=client, **config
    )
    with trio.fail_after(150):
        async with trio.open_nursery() as nursery:
            source = KafkaSource(settings, context)
            nursery.start_soon(source.run, outlet)
            yield Member(source, context, outlet)
            nursery.cancel_scope.cancel()


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
    admin = AdminClient({"bootstrap.servers": kafka.address})

    def members() -> list[str | None]:
        [future] = admin.describe_consumer_groups([topic]).values()
        return [each.group_instance_id for each in future.result(60).members]

    async with member(kafka, topic, group_instance_id="orders-1") as first:
        await first.has_sent(1)
    assert await trio.to_thread.run_sync(members) == ["orders-1"]
    await trio.to_thread.run_sync(kafka.send, topic, [Entry(value=b"1")])
    async with member(kafka, topic, group_instance_id="orders-1") as again:
        await again.has_sent(1)
        assert [run.previous for run in again.runs] == [0]
