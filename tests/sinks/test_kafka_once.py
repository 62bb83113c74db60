"""The exactly-once sink on a real broker, read as `read_committed` consumers do."""

from __future__ import annotations

from typing import Any

import pytest
import trio

from gapconn.protocol.positions import Standing
from gapconn.sinks import Reached
from gapconn.sinks.kafka_config import KafkaSinkConfig
from gapconn.sinks.kafka_once import OnceKafkaSink
from gapconn.testing.pipes import ScriptedInlet, make_context
from tests.kafka.cluster import Cluster
from tests.sinks.test_kafka import batches_of

pytestmark = pytest.mark.kafka


def make_sink(kafka: Cluster, link: str, link_id: int = 1, **config: Any) -> OnceKafkaSink:
    settings = KafkaSinkConfig(bootstrap_servers=kafka.address, delivery="exactly-once", **config)
    return OnceKafkaSink(settings, make_context(link=link, link_id=link_id))


async def deliver(
    kafka: Cluster, link: str, inlet: ScriptedInlet, *, accepts: int | None = None, **config: Any
) -> OnceKafkaSink:
    """Run a sink over a script to its end."""
    sink = make_sink(kafka, link, **config)
    with trio.fail_after(120):
        await sink.run(inlet)
    if accepts is not None:
        assert inlet.accepted == list(range(accepts))
    return sink


async def resumed(kafka: Cluster, link: str, link_id: int = 1) -> Reached | None:
    """What another egress finds out when it takes over."""
    with trio.fail_after(120):
        return await make_sink(kafka, link, link_id).resume()


def values(kafka: Cluster, topic: str) -> list[bytes | None]:
    return [entry.value for entry in kafka.read(topic)]


# What arrives, and what is remembered.


@pytest.mark.req("GC-ONCE-2")
async def test_records_come_with_how_far_the_link_has_come(kafka: Cluster) -> None:
    topic, link = kafka.create_topic(partitions=2), kafka.name()
    inlet = ScriptedInlet(script=batches_of(6, partitions=2))
    await deliver(kafka, link, inlet, accepts=6, topic=topic)
    entries = kafka.read(topic)
    assert [e.value for e in entries if e.partition == 0] == [
        b"%d" % i for k in (0, 2, 4) for i in range(k * 10, k * 10 + 10)
    ]
    assert [e.value for e in entries if e.partition == 1] == [
        b"%d" % i for k in (1, 3, 5) for i in range(k * 10, k * 10 + 10)
    ]
    assert entries[0].headers == [("gapconn-origin", b"cluster/orders/0/0")]
    reached = await resumed(kafka, link)
    assert reached is not None
    assert (reached.progress.epoch, reached.progress.next_message) == (1, 6)
    assert reached.progress.positions == {("orders", 0): Standing(1, 0, 49), ("orders", 1): Standing(1, 0, 59)}


async def test_nothing_was_delivered_yet(kafka: Cluster) -> None:
    link = kafka.name()
    assert await resumed(kafka, link) is None
    assert await resumed(kafka, link) is None  # what the first one wrote says the same
