from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from typing import Any

import attrs
import pytest
import trio
from confluent_kafka import Message, murmur2

from gapconn.errors import SinkError
from gapconn.record import NO_POSITION, Batch, Header, Records, TimestampType
from gapconn.sinks import Delivery
from gapconn.sinks.kafka import KafkaSink, KafkaSinkConfig, _Run
from gapconn.testing.kafka_broker import KafkaNode
from gapconn.testing.pipes import ScriptedInlet, make_context
from tests.kafka.cluster import Cluster

pytestmark = pytest.mark.kafka


@attrs.define(kw_only=True)
class PacedInlet(ScriptedInlet):
    """An inlet that hands over a first part of its script, and the rest when told."""

    script: Iterable[Batch | Delivery] = ()
    rest: list[Batch] = attrs.field(factory=list)
    go_on: trio.Event = attrs.field(factory=trio.Event)

    async def __aiter__(self) -> AsyncIterator[Delivery]:
        number = 0
        async for delivery in ScriptedInlet.__aiter__(self):
            number += 1
            yield delivery
        await self.go_on.wait()
        for batch in self.rest:
            await trio.lowlevel.checkpoint()
            yield self.delivery(batch, message=number)
            number += 1


def run_of(values: list[bytes | None], *, stream: str = "orders", first: int = 0, **columns: Any) -> Records:
    return Records(stream=stream, positions=list(range(first, first + len(values))), values=values, **columns)


def batches_of(count: int, *, each: int = 10, partitions: int = 1, size: int = 0) -> list[Batch]:
    """Batches of numbered records, in turn for each partition."""
    return [
        Batch(
            origin="cluster",
            parts=[
                run_of(
                    [b"%d" % (number * each + i) + bytes(size) for i in range(each)],
                    first=number * each,
                    partition=number % partitions,
                    previous=NO_POSITION,
                )
            ],
        )
        for number in range(count)
    ]


def make_sink(kafka: Cluster, **config: Any) -> KafkaSink:
    return KafkaSink(KafkaSinkConfig(bootstrap_servers=kafka.address, **config), make_context())


async def deliver(kafka: Cluster, batches: list[Batch], **config: Any) -> ScriptedInlet:
    """Run a sink over batches to its end."""
    inlet = ScriptedInlet(script=batches)
    with trio.fail_after(120):
        await make_sink(kafka, **config).run(inlet)
    assert sorted(inlet.accepted) == list(range(len(batches)))
    return inlet


async def eventually(condition: Callable[[], bool]) -> None:
    """Wait for what no event tells."""
    with trio.fail_after(120):
        while not condition():  # noqa: ASYNC110 - these conditions are facts of other threads and of the broker
            await trio.sleep(0.01)


# What arrives.


async def test_records_keep_their_partition_order_and_timestamps(kafka: Cluster) -> None:
    topic = kafka.create_topic(partitions=3)
    parts: list[Any] = [
        run_of([b"a", None], partition=2, keys=[b"k", b"l"], timestamps_ms=[1000, 2000], timestamp_type=1),
        run_of([b"b"], partition=0),
        run_of([b"c"], partition=2, first=2, previous=1, timestamps_ms=[1500], timestamp_type=TimestampType.APPEND),
    ]
    await deliver(kafka, [Batch(origin="from", parts=parts)], topic=topic, origin_headers=False)
    entries = kafka.read(topic)
    assert [(e.partition, e.key, e.value) for e in entries] == [
        (0, None, b"b"),
        (2, b"k", b"a"),
        (2, b"l", None),
        (2, None, b"c"),
    ]
    assert [e.timestamp_ms for e in entries if e.partition == 2] == [1000, 2000, 1500]
    assert all(e.headers is None for e in entries)


async def test_the_origin_is_added_after_the_records_own_headers(kafka: Cluster) -> None:
    topic = kafka.create_topic(partitions=2)
    own: list[list[Header] | None] = [[("a", b"1"), ("a", None)], None]
    batch = Batch(origin="from", parts=[run_of([b"x", b"y"], first=40, partition=1, headers=own)])
    await deliver(kafka, [batch], topic=topic)
    assert [e.headers for e in kafka.read(topic)] == [
        [("a", b"1"), ("a", None), ("gapconn-origin", b"from/orders/1/40")],
        [("gapconn-origin", b"from/orders/1/41")],
    ]


@pytest.mark.parametrize("origin_headers", [True, False])
@pytest.mark.parametrize("what", ["repair", "late"])
async def test_records_that_come_out_of_order_are_marked_behind_their_origin(
    kafka: Cluster, what: str, origin_headers: bool
) -> None:
    topic = kafka.create_topic(partitions=1)
    own: list[list[Header] | None] = [[("a", b"1")], None]
    batch = Batch(origin="from", parts=[run_of([b"x", b"y"], first=40, headers=own)])
    inlet = ScriptedInlet(script=[batch])
    marked = inlet.delivery(batch, message=1)
    inlet.script = [batch, attrs.evolve(marked, repair=what == "repair", late=what == "late")]
    with trio.fail_after(120):
        await make_sink(kafka, topic=topic, origin_headers=origin_headers).run(inlet)
    found = [entry.headers for entry in kafka.read(topic)]
    if origin_headers:
        first, second = ("gapconn-origin", b"from/orders/0/40"), ("gapconn-origin", b"from/orders/0/41")
        mark = (f"gapconn-{what}", b"1")
        assert found == [[("a", b"1"), first], [second], [("a", b"1"), first, mark], [second, mark]]
    else:
        assert found == [[("a", b"1")], None] * 2


async def test_topics_are_named_by_the_map_else_by_the_template(kafka: Cluster) -> None:
    prefix, mapped = kafka.name(), kafka.create_topic()
    kafka.create_topic(name=f"{prefix}-plain")
    parts: list[Any] = [run_of([b"1"], stream="plain"), run_of([b"2"], stream="special")]
    await deliver(kafka, [Batch(parts=parts)], topic=f"{prefix}-{{topic}}", topic_map={"special": mapped})
    assert [e.value for e in kafka.read(f"{prefix}-plain")] == [b"1"]
    assert [e.value for e in kafka.read(mapped)] == [b"2"]


async def test_by_key_records_go_where_java_clients_put_them(kafka: Cluster) -> None:
    topic = kafka.create_topic(partitions=4)
    keys = [b"key %d" % i for i in range(50)]
    batch = Batch(parts=[run_of([b"%d" % i for i in range(50)], partition=9, keys=list(keys))])
    await deliver(kafka, [batch], topic=topic, partition="key")
    entries = kafka.read(topic)
    assert {e.key: e.partition for e in entries} == {key: murmur2(key, 4) for key in keys}
    assert len(entries) == 50


async def test_records_of_other_sources_need_no_time_and_no_key(kafka: Cluster) -> None:
    topic = kafka.create_topic()
    await deliver(kafka, [Batch(parts=[run_of([b"reading"], stream="[::1]:514")])], topic=topic)
    [entry] = kafka.read(topic)
    assert entry.value == b"reading"
    assert entry.headers == [("gapconn-origin", b"/[::1]:514/0/0")]
    assert (entry.timestamp_ms or 0) > 1_500_000_000_000


async def test_the_first_millisecond_of_1970_becomes_the_second_and_is_counted(kafka: Cluster) -> None:
    topic = kafka.create_topic()
    inlet = ScriptedInlet(script=[Batch(parts=[run_of([b"x"], timestamps_ms=[0], timestamp_type=1)])])
    context = make_context()
    with trio.fail_after(120):
        await KafkaSink(KafkaSinkConfig(bootstrap_servers=kafka.address, topic=topic), context).run(inlet)
    assert [e.timestamp_ms for e in kafka.read(topic)] == [1]
    assert context.counters["timestamp_changed"] == 1


async def test_a_batch_without_records_is_accepted(kafka: Cluster) -> None:
    inlet = await deliver(kafka, [Batch(parts=[]), Batch(parts=[run_of([])])], topic=kafka.create_topic())
    assert inlet.accepted == [0, 1]


async def test_cancelled_with_a_full_queue_of_the_client_it_stops_at_once(kafka_node: KafkaNode) -> None:
    kafka = Cluster(kafka_node.address)
    topic, inlet = kafka.create_topic(), PacedInlet(script=batches_of(1), rest=batches_of(5))
    sink = make_sink(kafka, topic=topic, client={"queue.buffering.max.messages": 10})
    with trio.fail_after(120):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(sink.run, inlet)
            await eventually(lambda: inlet.accepted == [0])
            kafka_node.pause()
            inlet.go_on.set()
            await trio.sleep(0.3)
            accepted = list(inlet.accepted)  # the broker may have answered one more before it hung
            stopped_at = trio.current_time()
            nursery.cancel_scope.cancel()
    assert trio.current_time() - stopped_at < 10
    assert inlet.accepted == accepted
    assert len(accepted) < 6


async def test_no_more_is_taken_than_may_be_in_flight(kafka: Cluster) -> None:
    taken = 0

    def script() -> Iterator[Batch]:
        nonlocal taken
        for batch in batches_of(100, size=1000):
            taken += 1
            yield batch

    topic = kafka.name()  # Not there: nothing can leave.
    sink = make_sink(kafka, topic=topic, in_flight_bytes=30_000)
    inlet = ScriptedInlet(script=script())
    with trio.fail_after(120):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(sink.run, inlet)
            await eventually(lambda: taken >= 3)
            await trio.sleep(0.2)
            assert taken <= 5
            assert not inlet.accepted
            await trio.to_thread.run_sync(lambda: kafka.create_topic(name=topic))
    assert [e.value for e in kafka.read(topic)] == [b"%d" % i + bytes(1000) for i in range(1000)]


# What stands in the way.


async def test_a_missing_topic_and_missing_partitions_are_waited_for(kafka: Cluster) -> None:
    topic, context = kafka.name(), make_context()
    inlet = ScriptedInlet(script=batches_of(4, partitions=2))
    sink = KafkaSink(KafkaSinkConfig(bootstrap_servers=kafka.address, topic=topic), context)
    with trio.fail_after(120):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(sink.run, inlet)
            await eventually(lambda: context.counters["topic_missing"] > 0)
            await trio.to_thread.run_sync(lambda: kafka.create_topic(name=topic))
            await eventually(lambda: context.counters["partition_missing"] > 0)
            await trio.to_thread.run_sync(kafka.add_partitions, topic, 2)
    assert sorted(inlet.accepted) == [0, 1, 2, 3]
    assert len(kafka.read(topic)) == 40


@pytest.mark.parametrize("partition", ["same", "key"])
async def test_one_record_that_a_broker_rejects_is_given_up_and_no_other(kafka: Cluster, partition: str) -> None:
    """A compacted topic takes no record without a key, and a request with one in it is rejected whole."""
    topic = kafka.create_topic(cleanup_policy="compact")
    values = [b"%d" % i for i in range(300)]
    keys = [None if i in (0, 137, 138) else b"k%d" % i for i in range(300)]
    batches = [
        Batch(parts=[run_of(list(values[i : i + 50]), first=i, keys=keys[i : i + 50])]) for i in range(0, 300, 50)
    ]
    inlet = await deliver(kafka, batches, topic=topic, partition=partition)
    assert [(stream, first, last) for stream, first, last, _ in inlet.losses] == [
        ("orders/0", position, position) for position in (0, 137, 138)
    ]
    arrived = [e.value for e in kafka.read(topic)]
    wanted = [value for value, key in zip(values, keys, strict=True) if key is not None]
    if partition == "same":
        assert arrived == wanted
    else:  # With several partitions it cannot be told which ones were acknowledged: some may be there twice.
        assert list(dict.fromkeys(arrived)) == wanted


async def test_when_all_went_well_before_a_rejected_record_costs_no_other_and_no_order(kafka: Cluster) -> None:
    """By then one report per run is asked for, so it is not known which record of the run was rejected."""
    topic, context = kafka.create_topic(cleanup_policy="compact"), make_context()
    values = [b"%d" % i for i in range(400)]
    keys = [None if i in (250, 333, 399) else b"k%d" % i for i in range(400)]
    batches = [
        Batch(parts=[run_of(list(values[i : i + 50]), first=i, keys=keys[i : i + 50])]) for i in range(0, 400, 50)
    ]
    inlet = PacedInlet(script=batches[:2], rest=batches[2:])
    sink = KafkaSink(KafkaSinkConfig(bootstrap_servers=kafka.address, topic=topic), context)
    with trio.fail_after(120):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(sink.run, inlet)
            await eventually(lambda: len(inlet.accepted) == 2)
            assert sink._ends == {(topic, 0): 99}
            inlet.go_on.set()
    assert sorted(inlet.accepted) == list(range(8))
    assert [loss[:3] for loss in inlet.losses] == [("orders/0", position, position) for position in (250, 333, 399)]
    wanted = [value for value, key in zip(values, keys, strict=True) if key is not None]
    arrived = [e.value for e in kafka.read(topic)]
    assert list(dict.fromkeys(arrived)) == wanted
    # What was in the same run, and acknowledged, is there twice; but only until the topic is known to reject records.
    assert len(arrived) - len(wanted) <= 300


async def test_a_report_that_leaves_no_room_for_the_records_before_it_is_not_believed(kafka: Cluster) -> None:
    topic = kafka.create_topic()
    sink = make_sink(kafka, topic=topic)
    run = _Run(records=run_of([b"a", b"b", b"c"]), topic=topic, partition=0, origin=None, in_order=True, watched=False)
    ends = {(topic, 0): 10}
    sink._report_last(run, ends, 3, None, Message(topic, 0, 12))  # One of 11, 12 and 13 is missing.
    assert (run.done, run.settled) == (0, False)
    assert sink._failure is not None
    again = run.again()
    assert again.watched
    sink._report_last(again, {(topic, 0): 10}, 3, None, Message(topic, 0, 13))
    assert again.settled


async def test_a_record_too_large_for_the_target_is_given_up_and_no_other(kafka: Cluster) -> None:
    topic = kafka.create_topic(max_message_bytes="3000")
    values: list[bytes | None] = [b"%d" % i + bytes(8000 if i == 7 else 1000) for i in range(20)]
    inlet = await deliver(kafka, [Batch(parts=[run_of(values)])], topic=topic)
    assert [loss[:3] for loss in inlet.losses] == [("orders/0", 7, 7)]
    assert [e.value for e in kafka.read(topic)] == values[:7] + values[8:]


async def test_a_record_too_large_for_the_client_is_given_up_and_no_other(kafka: Cluster) -> None:
    topic = kafka.create_topic()
    values: list[bytes | None] = [b"%d" % i + bytes(8000 if i == 7 else 100) for i in range(20)]
    inlet = await deliver(kafka, [Batch(parts=[run_of(values)])], topic=topic, client={"message.max.bytes": 5000})
    assert [loss[:3] for loss in inlet.losses] == [("orders/0", 7, 7)]
    assert [e.value for e in kafka.read(topic)] == values[:7] + values[8:]


async def test_a_topic_deleted_and_made_again_gets_what_follows(kafka: Cluster) -> None:
    topic, context = kafka.create_topic(), make_context()
    client = {"topic.metadata.refresh.interval.ms": 100, "topic.metadata.propagation.max.ms": 500}
    sink = KafkaSink(KafkaSinkConfig(bootstrap_servers=kafka.address, topic=topic, client=client), context)
    first, second = batches_of(4)[:2], batches_of(4)[2:]
    inlet = PacedInlet(script=first, rest=second)
    with trio.fail_after(120):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(sink.run, inlet)
            await eventually(lambda: len(inlet.accepted) == 2)
            await trio.to_thread.run_sync(kafka.delete_topic, topic)
            inlet.go_on.set()
            await eventually(lambda: context.counters["topic_missing"] + context.counters["producer_failed"] > 0)
            await trio.to_thread.run_sync(lambda: kafka.create_topic(name=topic))
    assert sorted(inlet.accepted) == [0, 1, 2, 3]
    assert [e.value for e in kafka.read(topic)] == [b"%d" % i for i in range(20, 40)]


async def test_a_broker_that_hangs_or_goes_away_costs_neither_records_nor_order(kafka_node: KafkaNode) -> None:
    kafka = Cluster(kafka_node.address)
    topic, context = kafka.create_topic(partitions=2), make_context()
    client = {"reconnect.backoff.max.ms": 200}
    sink = KafkaSink(KafkaSinkConfig(bootstrap_servers=kafka.address, topic=topic, client=client), context)
    batches = batches_of(60, partitions=2)
    inlet = PacedInlet(script=batches[:20], rest=batches[20:])
    with trio.fail_after(120):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(sink.run, inlet)
            await eventually(lambda: len(inlet.accepted) == 20)
            kafka_node.pause()
            inlet.go_on.set()
            await trio.sleep(0.3)
            assert len(inlet.accepted) == 20  # Accepted is what was acknowledged, not what was sent.
            await trio.to_thread.run_sync(kafka_node.kill)
            await eventually(lambda: context.counters["broker_unreachable"] > 0)
            await trio.to_thread.run_sync(kafka_node.start)
    assert sorted(inlet.accepted) == list(range(60))
    assert context.status["broker"] == "connected"
    for partition in (0, 1):
        numbers = [int(e.value or b"") for e in kafka.read(topic) if e.partition == partition]
        assert numbers == [n for n in range(600) if n // 10 % 2 == partition]


async def test_a_small_queue_of_the_client_is_waited_for(kafka: Cluster) -> None:
    topic = kafka.create_topic()
    await deliver(kafka, batches_of(20, each=50), topic=topic, client={"queue.buffering.max.messages": 10})
    assert [e.value for e in kafka.read(topic)] == [b"%d" % i for i in range(1000)]


async def test_cancelled_with_no_broker_it_stops_at_once() -> None:
    inlet, context = ScriptedInlet(script=batches_of(3)), make_context()
    sink = KafkaSink(KafkaSinkConfig(bootstrap_servers="127.0.0.1:1"), context)
    with trio.fail_after(120):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(sink.run, inlet)
            await eventually(lambda: context.counters["broker_unreachable"] > 0)
            stopped_at = trio.current_time()
            nursery.cancel_scope.cancel()
    assert trio.current_time() - stopped_at < 10
    assert not inlet.accepted


# Configuration.


async def test_a_stream_whose_name_is_no_topic_ends_the_sink_after_what_came_before(kafka: Cluster) -> None:
    topic = kafka.create_topic()
    good, bad = Batch(parts=[run_of([b"1"], stream=topic)]), Batch(parts=[run_of([b"2"], stream="127.0.0.1:514")])
    inlet = ScriptedInlet(script=[good, bad])
    with trio.fail_after(120), pytest.raises(SinkError, match=r"127\.0\.0\.1:514.* topic_map"):
        await make_sink(kafka).run(inlet)
    assert inlet.accepted == [0]


@pytest.mark.parametrize(
    ("wrong", "match"),
    [
        ({"bootstrap_servers": ""}, "must not be empty"),
        ({"topic": "a b"}, "letters, digits"),
        ({"topic": "{stream}"}, "letters, digits"),
        ({"topic": ""}, "letters, digits"),
        ({"topic_map": {"a": "b/c"}}, "not so: b/c"),
        ({"in_flight_bytes": 0}, "more than 0"),
        ({"client": {"acks": 1}}, "acks is all"),
        ({"client": {"message.timeout.ms": 1}}, "tried for ever"),
    ],
)
def test_a_wrong_configuration_is_refused(wrong: dict[str, Any], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        KafkaSinkConfig(**({"bootstrap_servers": "127.0.0.1:9092"} | wrong))


async def test_settings_that_librdkafka_refuses_end_the_sink() -> None:
    sink = KafkaSink(KafkaSinkConfig(bootstrap_servers="127.0.0.1:1", client={"no.such": 1}), make_context())
    with trio.fail_after(120), pytest.raises(SinkError, match="No such configuration property"):
        await sink.run(ScriptedInlet(script=[]))


@pytest.mark.parametrize("what", ["repair", "late"])
async def test_records_that_come_out_of_order_may_have_a_topic_of_their_own(kafka: Cluster, what: str) -> None:
    topic, aside = kafka.create_topic(partitions=1), kafka.create_topic(partitions=1)
    batch = Batch(origin="from", parts=[run_of([b"x"], first=40)])
    inlet = ScriptedInlet(script=[])
    marked = inlet.delivery(batch, message=1)
    inlet.script = [batch, attrs.evolve(marked, repair=what == "repair", late=what == "late")]
    with trio.fail_after(120):
        await make_sink(kafka, topic=topic, late_topic=aside).run(inlet)
    origin = ("gapconn-origin", b"from/orders/0/40")
    assert [entry.headers for entry in kafka.read(topic)] == [[origin]]
    assert [entry.headers for entry in kafka.read(aside)] == [[origin, (f"gapconn-{what}", b"1")]]
