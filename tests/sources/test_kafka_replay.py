"""Reading records of a topic again: exactly those that are wanted, and exactly what is gone of them."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import attrs
import pytest
import structlog
import trio

from gapconn.plugins import Context
from gapconn.protocol.envelope import Span
from gapconn.record import Batch, Records, TimestampType
from gapconn.sources.kafka import KafkaSourceConfig
from gapconn.sources.kafka_replay import COMPACTED, RETENTION, TOO_LARGE, KafkaReplay
from tests.kafka.cluster import Cluster, Entry

pytestmark = pytest.mark.kafka


@attrs.define
class Collecting:
    """An outlet that notes what it is given."""

    batch_bytes: int = 64 * 1024
    batch_bytes_max: int = 1 << 20
    sent: list[tuple[Batch | None, list[Span]]] = attrs.field(factory=list)
    problems: list[str] = attrs.field(factory=list)

    async def send_repair(self, batch: Batch | None, spans: Sequence[Span]) -> None:
        await trio.lowlevel.checkpoint()
        assert (batch.record_count if batch else 0) == sum(span.count for span in spans)
        self.sent.append((batch, list(spans)))

    def cannot_tell(self, problem: str) -> None:
        self.problems.append(problem)

    @property
    def parts(self) -> list[Records]:
        return [part for batch, _ in self.sent if batch for part in batch.parts if isinstance(part, Records)]

    @property
    def offsets(self) -> list[tuple[int, int]]:
        return [(part.partition, position) for part in self.parts for position in part.positions]

    @property
    def spans(self) -> list[Span]:
        return [span for _, spans in self.sent for span in spans]


def replay(kafka: Cluster, topic: str, **settings: object) -> KafkaReplay:
    config = KafkaSourceConfig(
        bootstrap_servers=kafka.address,
        topics=[topic],
        group_id=kafka.name(),
        **settings,  # type: ignore[arg-type]
    )
    return KafkaReplay(config, Context(link="orders", link_id=7, epoch=0, log=structlog.get_logger()))


async def read(
    kafka: Cluster,
    topic: str,
    *wanted: tuple[int, int, int],
    batch_bytes: int = 1 << 16,
    batch_bytes_max: int = 1 << 20,
) -> Collecting:
    outlet = Collecting(batch_bytes, batch_bytes_max)
    with trio.fail_after(120):
        await replay(kafka, topic).run([Span(topic, *each) for each in wanted], outlet)
    return outlet


def entries(count: int, *, partition: int = 0, first_ms: int = 1_000_000) -> list[Entry]:
    return [
        Entry(
            value=b"value %d" % n,
            key=b"key %d" % n,
            partition=partition,
            timestamp_ms=first_ms + n,
            headers=[("h", b"x")],
        )
        for n in range(count)
    ]


async def test_exactly_what_is_wanted_is_read_with_everything_in_it(kafka: Cluster) -> None:
    topic = kafka.create_topic(partitions=2)
    kafka.send(topic, [*entries(50), *entries(20, partition=1)])
    outlet = await read(kafka, topic, (0, 10, 19), (1, 0, 4), (0, 45, 49))
    assert outlet.offsets == [
        *((0, n) for n in range(10, 20)),
        *((1, n) for n in range(5)),
        *((0, n) for n in range(45, 50)),
    ]
    assert outlet.spans == [Span(topic, 0, 10, 19, 10), Span(topic, 1, 0, 4, 5), Span(topic, 0, 45, 49, 5)]
    first = outlet.parts[0]
    assert (first.values[0], first.keys, first.headers) == (
        b"value 10", [b"key %d" % n for n in range(10, 20)], [[("h", b"x")]] * 10
    )  # fmt: skip
    assert (first.timestamps_ms, first.timestamp_type) == (list(range(1_000_010, 1_000_020)), TimestampType.CREATE)
    assert {batch.origin for batch, _ in outlet.sent if batch} != {""}
    assert not outlet.problems


async def test_much_is_cut_into_batches_that_settle_everything_between_them(kafka: Cluster) -> None:
    topic = kafka.create_topic()
    kafka.send(topic, [Entry(value=bytes(1_000)) for _ in range(300)])
    outlet = await read(kafka, topic, (0, 5, 290), batch_bytes=20_000)
    assert len(outlet.sent) > 10
    assert [offset for _, offset in outlet.offsets] == list(range(5, 291))
    edges = [(spans[0].first, spans[-1].last) for _, spans in outlet.sent]
    assert edges[0][0] == 5
    assert edges[-1][1] == 290
    assert all(a[1] + 1 == b[0] for a, b in itertools.pairwise(edges))


@pytest.mark.req("GC-RPR-5")
async def test_what_retention_has_deleted_is_gone(kafka: Cluster) -> None:
    topic = kafka.create_topic()
    kafka.send(topic, entries(50))
    kafka.delete_before(topic, 30)
    outlet = await read(kafka, topic, (0, 5, 9), (0, 20, 34))
    assert outlet.spans == [
        Span(topic, 0, 5, 9, 0, RETENTION), Span(topic, 0, 20, 29, 0, RETENTION), Span(topic, 0, 30, 34, 5)
    ]  # fmt: skip
    assert [offset for _, offset in outlet.offsets] == list(range(30, 35))


@pytest.mark.req("GC-RPR-5")
async def test_offsets_without_a_record_are_settled(kafka: Cluster) -> None:
    """Markers, and what was aborted: the source never sent them; at the end of the topic too."""
    topic = kafka.create_topic()
    kafka.send_transaction(topic, entries(5), commit=True)  # 0-4, marker 5
    kafka.send_transaction(topic, entries(5), commit=False)  # 6-10, marker 11
    kafka.send_transaction(topic, entries(5), commit=True)  # 12-16, marker 17
    outlet = await read(kafka, topic, (0, 3, 17))
    assert [offset for _, offset in outlet.offsets] == [3, 4, *range(12, 17)]
    assert outlet.spans == [Span(topic, 0, 3, 17, 7)]
    assert list((await read(kafka, topic, (0, 5, 11))).spans) == [Span(topic, 0, 5, 11, 0)]


@pytest.mark.req("GC-RPR-5")
async def test_holes_of_a_compacted_topic_are_called_gone(kafka: Cluster) -> None:
    topic = kafka.create_topic(cleanup_policy="compact")
    kafka.send(topic, entries(3))
    kafka.send_transaction(topic, entries(3), commit=False)  # 3-5, marker 6: holes like those of compaction
    kafka.send(topic, entries(3))
    outlet = await read(kafka, topic, (0, 1, 8))
    assert outlet.spans == [Span(topic, 0, 1, 2, 2), Span(topic, 0, 3, 6, 0, COMPACTED), Span(topic, 0, 7, 8, 2)]


async def test_what_is_not_there_and_was_not_deleted_is_not_called_gone(kafka: Cluster) -> None:
    topic = kafka.create_topic()
    kafka.send(topic, entries(5))
    outlet = await read(kafka, topic, (0, 3, 9), (0, 20, 25), (7, 0, 3))
    assert outlet.spans == [Span(topic, 0, 3, 4, 2)]
    assert [problem for problem in outlet.problems if "offsets 5 to 9" in problem or "offsets 20 to 25" in problem]
    assert len(outlet.problems) == 3
    assert "has no partition 7" in outlet.problems[2]
    other = await read(kafka, kafka.name(), (0, 0, 3))
    assert (other.sent, len(other.problems)) == ([], 1)


@pytest.mark.req("GC-RPR-5")
async def test_records_that_cannot_cross_are_gone_and_their_neighbours_are_not(kafka: Cluster) -> None:
    topic = kafka.create_topic(max_message_bytes="200000")
    kafka.send(topic, [Entry(value=b"a"), Entry(value=bytes(100_000)), Entry(value=b"b")])
    outlet = await read(kafka, topic, (0, 0, 2), batch_bytes_max=50_000)
    assert outlet.spans == [Span(topic, 0, 0, 0, 1), Span(topic, 0, 1, 1, 0, TOO_LARGE), Span(topic, 0, 2, 2, 1)]
    assert [offset for _, offset in outlet.offsets] == [0, 2]


async def test_times_are_found_as_offsets(kafka: Cluster) -> None:
    topic = kafka.create_topic(partitions=3)
    kafka.send(topic, [*entries(50, first_ms=5_000), *entries(10, partition=1, first_ms=5_100)])
    with trio.fail_after(120):
        found = await replay(kafka, topic).between(topic, 5_010, 5_105)
    assert sorted((span.partition, span.first, span.last) for span in found) == [(0, 10, 49), (1, 0, 4)]


async def test_the_group_does_not_notice(kafka: Cluster) -> None:
    topic = kafka.create_topic()
    kafka.send(topic, entries(5))
    again = replay(kafka, topic)
    outlet = Collecting()
    with trio.fail_after(120):
        await again.run([Span(topic, 0, 0, 4)], outlet)
    assert len(outlet.offsets) == 5
    assert kafka.committed(again._config.group_id, topic).offset < 0


async def test_small_ranges_are_not_waited_for(kafka: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    """A read ends with the last record that is wanted: many small ranges would take half a second each."""
    topic = kafka.create_topic()
    kafka.send(topic, entries(100))
    patience_s = 30.0
    monkeypatch.setattr("gapconn.sources.kafka_replay.READ_TIMEOUT_S", patience_s)
    began_s = trio.current_time()
    outlet = await read(kafka, topic, (0, 10, 10), (0, 20, 24), (0, 99, 99))
    assert outlet.offsets == [(0, n) for n in (10, 20, 21, 22, 23, 24, 99)]
    assert trio.current_time() - began_s < patience_s
