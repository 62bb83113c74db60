"""The exactly-once sink on a real broker, read as `read_committed` consumers do."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import attrs
import pytest
import trio
from confluent_kafka import KafkaError

from gapconn.errors import SinkError
from gapconn.protocol.positions import Standing
from gapconn.record import Batch
from gapconn.sinks import Delivery, Reached
from gapconn.sinks.kafka_config import KafkaSinkConfig
from gapconn.sinks.kafka_either import EitherKafkaSink
from gapconn.sinks.kafka_once import OnceKafkaSink
from gapconn.sinks.kafka_transactions import ProducerLostError
from gapconn.testing.kafka_broker import KafkaNode
from gapconn.testing.pipes import ScriptedInlet, make_context
from tests.kafka.cluster import Cluster, Entry
from tests.sinks.test_kafka import PacedInlet, batches_of, eventually, run_of

pytestmark = pytest.mark.kafka


def make_sink(kafka: Cluster, link: str, link_id: int = 1, **config: Any) -> OnceKafkaSink:
    settings = KafkaSinkConfig(bootstrap_servers=kafka.address, delivery="exactly-once", **config)
    return OnceKafkaSink(settings, make_context(link=link, link_id=link_id))


async def run(sink: OnceKafkaSink, inlet: ScriptedInlet) -> None:
    with trio.fail_after(120):
        await sink.run(inlet)


async def resumed(kafka: Cluster, link: str, link_id: int = 1, **config: Any) -> Reached | None:
    """What another egress finds out when it takes over."""
    with trio.fail_after(120):
        return await make_sink(kafka, link, link_id, **config).resume()


def values(kafka: Cluster, topic: str, partition: int = 0) -> list[bytes | None]:
    return [entry.value for entry in kafka.read(topic) if entry.partition == partition]


def numbers(count: int, first: int = 0) -> list[bytes | None]:
    return [b"%d" % number for number in range(first, first + count)]


# What arrives, and what is remembered.


@pytest.mark.req("GC-ONCE-2", "GC-ONCE-3")
async def test_records_come_with_how_far_the_link_has_come(kafka: Cluster) -> None:
    topic, link = kafka.create_topic(partitions=2), kafka.name()
    assert await resumed(kafka, link) is None
    assert await resumed(kafka, link) is None  # what the first one wrote says the same
    sink, inlet = make_sink(kafka, link, topic=topic), ScriptedInlet(script=batches_of(6, partitions=2))
    assert await sink.resume() is None
    await run(sink, inlet)
    assert inlet.accepted == list(range(6))
    assert values(kafka, topic, 0) == numbers(10) + numbers(10, 20) + numbers(10, 40)
    assert values(kafka, topic, 1) == numbers(10, 10) + numbers(10, 30) + numbers(10, 50)
    assert kafka.read(topic)[0].headers == [("gapconn-origin", b"cluster/orders/0/0")]
    reached = await resumed(kafka, link)
    assert reached is not None
    assert (reached.progress.epoch, reached.progress.next_message) == (1, 6)
    assert reached.progress.positions == {("orders", 0): Standing(1, 0, 49), ("orders", 1): Standing(1, 0, 59)}


@pytest.mark.req("GC-ONCE-2")
async def test_of_all_transactions_compaction_leaves_one_record_for_each_partition(kafka: Cluster) -> None:
    topic, link = kafka.create_topic(partitions=2), kafka.name()
    for epoch in (1, 2, 3):
        inlet = ScriptedInlet(script=[])
        script = batches_of(4, partitions=2)
        inlet.script = [inlet.delivery(batch, message=n, epoch=epoch) for n, batch in enumerate(script)]
        await run(make_sink(kafka, link, topic=topic), inlet)
    entries = kafka.read(f"__gapconn-{link}")
    assert {entry.key for entry in entries} == {
        b'["progress"]', b'["position","orders",0]', b'["position","orders",1]',
    }  # fmt: skip
    last = {entry.key: json.loads(entry.value or b"") for entry in entries}
    assert last[b'["position","orders",1]'] == {"epoch": 3, "chain": 0, "position": 39}
    assert (last[b'["progress"]']["epoch"], last[b'["progress"]']["next_message"]) == (3, 4)


@attrs.define(kw_only=True)
class NotingInlet(ScriptedInlet):
    """Looks at the target when it is asked to note losses."""

    look: Callable[[], object]
    seen: list[object] = attrs.field(factory=list)

    async def note_losses(self) -> None:
        await ScriptedInlet.note_losses(self)
        self.seen.append(await trio.to_thread.run_sync(self.look))


def repair(inlet: ScriptedInlet, batch: Batch, message: int, first: int, last: int) -> Delivery:
    delivery = inlet.delivery(batch, message=message)
    assert delivery.reached is not None
    reached = attrs.evolve(delivery.reached, repaired={("orders", 0): ((first, last),)})
    return attrs.evolve(delivery, repair=True, reached=reached)


@pytest.mark.req("GC-ONCE-4", "GC-RPR-1")
async def test_what_was_repaired_is_remembered_until_the_journal_has_it(kafka: Cluster) -> None:
    topic, link = kafka.create_topic(), kafka.name()
    inlet = NotingInlet(script=[], look=lambda: len(kafka.read(topic)))
    missed, later = batches_of(2)
    inlet.script = [repair(inlet, missed, 0, 0, 9)]
    await run(make_sink(kafka, link, topic=topic), inlet)
    assert inlet.seen == [0]  # the journal is stored before anything of the transaction counts
    assert kafka.read(topic)[0].headers == [("gapconn-origin", b"cluster/orders/0/0"), ("gapconn-repair", b"1")]
    for _ in range(2):  # who takes over does not forget it, if it dies before it has stored that
        reached = await resumed(kafka, link)
        assert reached is not None
        assert reached.repaired == {("orders", 0): ((0, 9),)}
    second = ScriptedInlet(script=[])
    second.script = [second.delivery(later, message=1)]
    await run(make_sink(kafka, link, topic=topic), second)
    reached = await resumed(kafka, link)
    assert reached is not None
    assert reached.repaired == {}


# Who has the link.


@pytest.mark.req("GC-ONCE-5")
async def test_an_egress_that_wakes_up_when_another_has_taken_over_ends(kafka: Cluster) -> None:
    topic, link = kafka.create_topic(), kafka.name()
    all_batches = batches_of(3)
    asleep = PacedInlet(script=all_batches[:1], rest=all_batches[1:])
    zombie = make_sink(kafka, link, topic=topic)
    with trio.fail_after(120):
        async with trio.open_nursery() as nursery:

            async def sleep() -> None:
                with pytest.raises(SinkError, match="another egress of this link has taken over"):
                    await zombie.run(asleep)

            nursery.start_soon(sleep)
            await eventually(lambda: asleep.accepted == [0])
            successor, inlet = make_sink(kafka, link, topic=topic), ScriptedInlet(script=[])
            reached = await successor.resume()
            assert reached is not None
            assert reached.progress.next_message == 1
            inlet.script = [inlet.delivery(batch, message=n) for n, batch in enumerate(all_batches) if n >= 1]
            asleep.go_on.set()
            await eventually(lambda: not nursery.child_tasks)
    assert asleep.accepted == [0]
    await run(successor, inlet)  # nobody has kept it out meanwhile
    assert inlet.accepted == [1, 2]
    assert values(kafka, topic) == numbers(30)


@pytest.mark.req("GC-ONCE-2")
async def test_a_commit_of_which_nobody_heard_is_looked_up(kafka: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    """The answers of a commit are lost: once it was done, once it was not."""
    topic, link = kafka.create_topic(), kafka.name()
    sink, inlet = make_sink(kafka, link, topic=topic), PacedInlet(script=batches_of(1), rest=batches_of(3)[1:])
    transactions = sink._transactions
    commit, asked = transactions.commit, 0

    async def commit_unheard() -> None:
        nonlocal asked
        asked += 1
        if asked != 2:
            await commit()
        if asked <= 2:
            raise ProducerLostError(KafkaError(KafkaError._FAIL, "the line was cut"))

    monkeypatch.setattr(transactions, "commit", commit_unheard)
    inlet.go_on.set()
    await run(sink, inlet)
    assert inlet.accepted == [0, 1, 2]
    assert values(kafka, topic) == numbers(30)
    assert sink._counters["producer_failed"] >= 1


@pytest.mark.timeout(300)
@pytest.mark.req("GC-ONCE-2")
async def test_a_broker_that_is_killed_and_comes_back_leaves_nothing_twice_and_nothing_out(
    kafka_node: KafkaNode,
) -> None:
    kafka = Cluster(kafka_node.address)
    topic, link = kafka.create_topic(), "orders"
    batches = batches_of(80)
    inlet = PacedInlet(script=batches[:40], rest=batches[40:])
    inlet.go_on.set()
    sink = make_sink(kafka, link, topic=topic, in_flight_bytes=40_000, client={"reconnect.backoff.max.ms": 200})
    with trio.fail_after(200):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(sink.run, inlet)
            await eventually(lambda: len(inlet.accepted) >= 5)
            await trio.to_thread.run_sync(kafka_node.kill)
            await trio.to_thread.run_sync(kafka_node.start)
    assert inlet.accepted == list(range(80))
    assert values(Cluster(kafka_node.address), topic) == numbers(800)
    reached = await resumed(Cluster(kafka_node.address), link)
    assert reached is not None
    assert reached.progress.next_message == 80


# What stands in the way.


@pytest.mark.req("GC-ONCE-2")
async def test_a_record_that_the_topic_refuses_is_left_out_and_reported_before_the_rest_is_committed(
    kafka: Cluster,
) -> None:
    topic, link = kafka.create_topic(max_message_bytes="2000"), kafka.name()
    script = batches_of(3, each=4)
    bad: list[bytes | None] = [b"4", b"5", bytes(5000), b"7"]
    script[1] = Batch(origin="cluster", parts=[run_of(bad, first=4)])
    inlet = ScriptedInlet(script=[])
    inlet.script = [script[0], repair(inlet, script[1], 1, 4, 7), script[2]]
    sink = make_sink(kafka, link, topic=topic, origin_headers=False)
    await run(sink, inlet)
    assert inlet.accepted == [0, 1, 2]
    assert values(kafka, topic) == [*numbers(6), *numbers(5, 7)]
    [(place, first, last, reason)] = inlet.losses
    assert (place, first, last) == ("orders/0", 6, 6)
    assert "rejected" in reason
    assert inlet.noted == 1
    assert sink._counters["record_rejected"] == 1


async def test_a_topic_that_is_missing_is_waited_for_and_holds_nobody_else_up(kafka: Cluster) -> None:
    link, there, made_later = kafka.name(), kafka.create_topic(), kafka.name()
    parts: list[Any] = [[run_of([b"a"], stream="x")], [run_of([b"b"], stream="y")]]
    inlet = ScriptedInlet(script=[Batch(parts=part) for part in parts])
    sink = make_sink(kafka, link, topic_map={"x": there, "y": made_later})
    with trio.fail_after(120):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(sink.run, inlet)
            await eventually(lambda: inlet.accepted == [0] and sink._counters["topic_missing"] > 0)
            assert values(kafka, there) == [b"a"]  # no transaction is open that hides it
            await trio.to_thread.run_sync(lambda: kafka.create_topic(name=made_later))
    assert values(kafka, made_later) == [b"b"]


@pytest.mark.req("GC-ONCE-5")
async def test_a_topic_of_another_link_is_refused(kafka: Cluster) -> None:
    link = kafka.name()
    await resumed(kafka, link, link_id=1)
    with pytest.raises(SinkError, match="how far the link with id 1 has come, and this one has id 2"):
        await resumed(kafka, link, link_id=2)
    assert await resumed(kafka, link, link_id=1) is None


def deleted_by_time(kafka: Cluster, name: str) -> None:
    kafka.create_topic(name=name, cleanup_policy="delete")


def with_foreign_records(kafka: Cluster, name: str) -> None:
    kafka.create_topic(name=name, cleanup_policy="compact")
    kafka.send(name, [Entry(key=b"k", value=b"v")])


@pytest.mark.parametrize(
    ("made", "match"),
    [
        (deleted_by_time, "set cleanup.policy=compact"),
        (with_foreign_records, "no egress of this version of gapconn wrote that"),
    ],
)
async def test_a_topic_that_cannot_be_trusted_is_refused(
    kafka: Cluster, made: Callable[[Cluster, str], None], match: str
) -> None:
    name = kafka.name()
    made(kafka, name)
    with pytest.raises(SinkError, match=match):
        await resumed(kafka, kafka.name(), progress_topic=name)


async def test_asked_while_the_broker_is_away_it_waits_and_can_be_cancelled() -> None:
    sink = make_sink(Cluster("127.0.0.1:9"), "orders")
    with trio.fail_after(60), trio.move_on_after(1.0) as scope:
        await sink.resume()
    assert scope.cancelled_caught


async def test_which_of_the_two_it_is_says_the_configuration(kafka: Cluster) -> None:
    at_least = EitherKafkaSink(KafkaSinkConfig(bootstrap_servers=kafka.address), make_context())
    assert await at_least.resume() is None
    link, topic = kafka.name(), kafka.create_topic()
    settings = KafkaSinkConfig(bootstrap_servers=kafka.address, topic=topic, delivery="exactly-once")
    exactly, inlet = EitherKafkaSink(settings, make_context(link=link)), ScriptedInlet(script=batches_of(1))
    with trio.fail_after(120):
        assert await exactly.resume() is None
        await exactly.run(inlet)
    assert inlet.accepted == [0]
    assert await resumed(kafka, link) is not None


@pytest.mark.parametrize(
    ("wrong", "match"),
    [
        ({"client": {"transactional.id": "x"}}, "transactional.id is gapconn- and the name of the link"),
        ({"client": {"isolation.level": "read_uncommitted"}}, "isolation.level is read_committed"),
        ({"client": {"acks": 1}}, "acks is all"),
        ({"client": {"transaction.timeout.ms": 500}}, "must be 10000 to 900000"),
        ({"client": {"transaction.timeout.ms": "soon"}}, "must be 10000 to 900000"),
        ({"progress_topic": "what ever"}, "letters, digits"),
        ({"delivery": "at-least-once", "client": {"transaction.timeout.ms": 20_000}}, 'delivery = "exactly-once"'),
        ({"delivery": "at-least-once", "client": {"transactional.id": "x"}}, 'delivery = "exactly-once"'),
    ],
)
def test_settings_that_contradict_are_refused(wrong: dict[str, Any], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        KafkaSinkConfig(**{"bootstrap_servers": "b:1", "delivery": "exactly-once", **wrong})
