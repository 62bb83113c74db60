"""From topic to topic, through a source, a link in memory and a sink: what arrives is what was there."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from itertools import pairwise

import pytest
import trio

from gapconn.record import NO_POSITION, Batch, Records
from gapconn.sinks import Delivery
from gapconn.sinks.kafka import KafkaSink
from gapconn.sinks.kafka_config import KafkaSinkConfig
from gapconn.sources.kafka import KafkaSource, KafkaSourceConfig
from gapconn.testing.pipes import Pipe, make_context
from tests.kafka.cluster import Cluster, Entry

pytestmark = pytest.mark.kafka


class WatchedPipe(Pipe):
    """A link that remembers what crossed, and ends when `is_all` says so of that."""

    def __init__(self, is_all: Callable[[list[Batch]], bool]) -> None:
        super().__init__()
        self.crossed: list[Batch] = []
        self._is_all = is_all

    async def send(self, batch: Batch, on_sent: Callable[[], None] | None = None) -> None:
        await super().send(batch, on_sent)
        self.crossed.append(batch)
        if self._is_all(self.crossed):
            self.close()


def parts_of(crossed: list[Batch]) -> list[Records]:
    return [part for batch in crossed for part in batch.parts if isinstance(part, Records)]


def count(records: int) -> Callable[[list[Batch]], bool]:
    return lambda crossed: sum(batch.record_count for batch in crossed) >= records


async def copy(kafka: Cluster, topics: list[str], *, until: Callable[[list[Batch]], bool]) -> WatchedPipe:
    """Carry records to topics with `copy-` before their names."""
    pipe = WatchedPipe(until)
    source = KafkaSource(
        KafkaSourceConfig(bootstrap_servers=kafka.address, topics=topics, group_id=kafka.name()), make_context()
    )
    target = KafkaSink(KafkaSinkConfig(bootstrap_servers=kafka.address, topic="copy-{topic}"), make_context())
    with trio.fail_after(120):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(source.run, pipe)
            await target.run(pipe)  # Ends when the pipe was closed and everything is accepted.
            nursery.cancel_scope.cancel()
    assert not pipe.losses
    return pipe


def topic_pair(kafka: Cluster, *, partitions: int = 1, **config: str) -> str:
    topic = kafka.create_topic(partitions=partitions, **config)
    kafka.create_topic(name=f"copy-{topic}", partitions=partitions)
    return topic


def without_origin(entry: Entry) -> tuple[object, ...]:
    """Everything of a record but its offset, and without the headers that tell its origin."""
    own = [header for header in entry.headers or [] if not header[0].startswith("gapconn-")]
    return (entry.partition, entry.key, entry.value, own, entry.timestamp_ms)


def origins(entries: list[Entry]) -> list[tuple[int, int]]:
    """Partition and offset that the records say they had."""
    told = [(dict(entry.headers or [])["gapconn-origin"] or b"").split(b"/") for entry in entries]
    return [(int(partition), int(offset)) for _, _, partition, offset in told]


def strange_entries(count: int, *, partitions: int) -> list[Entry]:
    """Records with everything that Kafka allows and copies like to forget."""
    chance = random.Random(7)
    some_bytes: list[bytes | None] = [None, b"", b"\x00", b"\xff\xfe", b"plain", bytes(range(256))]
    names = ["", "a", "a", "trace-id", "ключ", "日本", "with space", "x" * 300]
    entries = []
    for number in range(count):
        headers = [(chance.choice(names), chance.choice(some_bytes)) for _ in range(chance.randrange(5))]
        entries.append(
            Entry(
                key=chance.choice([*some_bytes, b"%d" % number]),
                value=chance.choice([*some_bytes, b"%d" % number, chance.randbytes(chance.randrange(3000))]),
                headers=headers or None,
                timestamp_ms=chance.choice([1, 1_000, 1_600_000_000_000, 1_700_000_000_123 + number]),
                partition=chance.randrange(partitions),
            )
        )
    return entries


async def test_the_whole_record_crosses(kafka: Cluster) -> None:
    topic = topic_pair(kafka, partitions=3)
    kafka.send(topic, strange_entries(2000, partitions=3))
    await copy(kafka, [topic], until=count(2000))
    sent, arrived = kafka.read(topic), kafka.read(f"copy-{topic}")
    assert [without_origin(entry) for entry in arrived] == [without_origin(entry) for entry in sent]
    assert origins(arrived) == [(entry.partition, entry.offset) for entry in sent]


async def test_several_topics_and_a_pattern_keep_apart(kafka: Cluster) -> None:
    first, second = topic_pair(kafka), topic_pair(kafka, partitions=2)
    kafka.send(first, strange_entries(100, partitions=1))
    kafka.send(second, strange_entries(100, partitions=2))
    await copy(kafka, [first, f"^{second}$"], until=count(200))
    for topic in (first, second):
        sent, arrived = kafka.read(topic), kafka.read(f"copy-{topic}")
        assert [without_origin(entry) for entry in arrived] == [without_origin(entry) for entry in sent]


async def test_only_committed_transactions_cross_and_leave_no_hole_in_the_chain(kafka: Cluster) -> None:
    topic = topic_pair(kafka, partitions=2)
    committed = 0
    for round_number in range(6):
        commit = round_number % 3 != 1
        entries = strange_entries(30, partitions=2)
        kafka.send_transaction(topic, entries, commit=commit)
        committed += len(entries) * commit
    kafka.send(topic, strange_entries(30, partitions=2))
    pipe = await copy(kafka, [topic], until=count(committed + 30))
    sent, arrived = kafka.read(topic), kafka.read(f"copy-{topic}")
    assert len(arrived) == committed + 30
    assert [without_origin(entry) for entry in arrived] == [without_origin(entry) for entry in sent]
    assert len(kafka.read(topic, isolation_level="read_uncommitted")) > len(sent)
    assert_no_loss_claimed(pipe)


async def test_compaction_leaves_no_hole_in_the_chain(kafka: Cluster) -> None:
    topic = topic_pair(
        kafka, cleanup_policy="compact", segment_ms="50", min_cleanable_dirty_ratio="0.01", delete_retention_ms="60000"
    )
    for round_number in range(4):
        # Every third record has a key of its own and stays.
        keys = [b"%d" % (i % 10) if i % 3 else b"%d only in %d" % (i, round_number) for i in range(100)]
        kafka.send(topic, [Entry(key=key, value=b"%d" % i) for i, key in enumerate(keys)])
        await trio.sleep(0.06)  # So that the next one begins a new segment, and this one can be compacted.
    kafka.send(topic, [Entry(key=b"3", value=None), Entry(key=b"last", value=b"x")])
    deadline = time.monotonic() + 60
    while len(left := await trio.to_thread.run_sync(kafka.read, topic)) > 300:
        assert time.monotonic() < deadline

    def is_last(crossed: list[Batch]) -> bool:
        return any(part.keys is not None and part.keys[-1] == b"last" for part in parts_of(crossed))

    pipe = await copy(kafka, [topic], until=is_last)
    positions = [position for part in parts_of(pipe.crossed) for position in part.positions]
    assert positions[-1] - positions[0] >= len(positions)  # There are holes.
    assert_no_loss_claimed(pipe)
    # What was compacted away between the two looks may be missing, but nothing else, and in order.
    arrived = [without_origin(entry) for entry in kafka.read(f"copy-{topic}")]
    assert set(map(str, arrived)) <= {str(without_origin(entry)) for entry in left}
    assert arrived[-2:] == [without_origin(entry) for entry in left][-2:]


def assert_no_loss_claimed(pipe: WatchedPipe) -> None:
    """Replay the chain as an egress does: no run may say that a record before it was sent which did not arrive."""
    last: dict[tuple[str, int], int] = {}
    for part in parts_of(pipe.crossed):
        place = (part.stream, part.partition)
        assert part.previous in (NO_POSITION, last.get(place)), f"{place}: {part.previous} after {last.get(place)}"
        assert place not in last or part.previous != NO_POSITION, "the chain restarted"
        last[place] = part.positions[-1]


async def test_a_lost_message_shows_in_the_chain_as_exactly_its_records(kafka: Cluster) -> None:
    topic = kafka.create_topic()
    kafka.send(topic, [Entry(value=b"%d" % i + bytes(1000)) for i in range(300)])
    pipe = Pipe(drop=lambda number: number == 1)
    pipe.batch_bytes = 20_000
    source = KafkaSource(
        KafkaSourceConfig(bootstrap_servers=kafka.address, topics=[topic], group_id=kafka.name()), make_context()
    )
    arrived: list[Records] = []
    with trio.fail_after(120):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(source.run, pipe)
            async for delivery in pipe:
                assert isinstance(delivery, Delivery)
                arrived += [part for part in delivery.batch.parts if isinstance(part, Records)]
                if arrived[-1].positions[-1] == 299:
                    break
            nursery.cancel_scope.cancel()
    holes = [
        (before.positions[-1] + 1, after.previous)
        for before, after in pairwise(arrived)
        if after.previous != before.positions[-1]
    ]
    received = {position for part in arrived for position in part.positions}
    assert len(holes) == 1
    assert {*range(holes[0][0], holes[0][1] + 1)} == {*range(300)} - received
