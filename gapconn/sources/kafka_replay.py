"""Reading records of Kafka topics again by their offsets, beside a running source and without its group's knowledge.

The consumer is assigned by hand and commits nothing. Each stretch of offsets is read from its beginning to its end, so
that it is known which offsets hold no record (any more):

    deleted by retention        the topic begins behind them: gone
    between others              transaction markers, aborted records: never a record for us; if the topic is
                                compacted, gone, since nobody can tell the two apart
    behind the end of the topic neither: it was made again, or this is another cluster, so nothing is claimed
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from itertools import groupby
from typing import Any, Final, TypeVar

import attrs
import trio
from confluent_kafka import Consumer, KafkaError, KafkaException, Message, TopicPartition
from confluent_kafka.admin import AdminClient, ConfigResource  # type: ignore[attr-defined]  # exported without saying so

from gapconn.backoff import Backoff
from gapconn.errors import SourceError
from gapconn.kafka_client import BrokerWatch, library_settings
from gapconn.plugins import Context
from gapconn.protocol.envelope import Span
from gapconn.record import Batch, Chunk, Header, Records, TimestampType
from gapconn.sources.replay import REPLAY_SPANS_BYTES_MAX, ReplayOutlet

T = TypeVar("T")

REQUEST_TIMEOUT_S: Final = 5.0
READ_TIMEOUT_S: Final = 0.5
READ_COUNT: Final = 2_000
RECORD_OVERHEAD_BYTES: Final = 64
HEADER_OVERHEAD_BYTES: Final = 16
BATCH_OVERHEAD_BYTES: Final = 2_048
SPAN_OVERHEAD_BYTES: Final = 48

RETENTION: Final = "deleted by retention"
COMPACTED: Final = "compacted, or never a record"
UNREADABLE: Final = "has a header whose name is not UTF-8"
TOO_LARGE: Final = "larger than message_bytes_max of the link allows"

_NOT_THERE = frozenset({KafkaError.UNKNOWN_TOPIC_OR_PART, KafkaError._UNKNOWN_TOPIC, KafkaError._UNKNOWN_PARTITION})


@attrs.define
class _Pack:
    """A repair in the making: records from `first` on, and what is known of the offsets before `next`."""

    place: tuple[str, int]
    next: int
    compacted: bool
    rows: list[tuple[Message, list[Header] | None]] = attrs.field(factory=list)
    spans: list[Span] = attrs.field(factory=list)
    size_bytes: int = 0
    spans_bytes: int = 0

    def add(self, message: Message, headers: list[Header] | None, size_bytes: int) -> None:
        """A record that is to be sent."""
        offset = message.offset() or 0
        self.reach(offset - 1)
        self._span(offset, 1)
        self.rows.append((message, headers))
        self.size_bytes += size_bytes

    def reach(self, offset: int) -> None:
        """There is no record between `next` and this offset, included."""
        if offset >= self.next:
            self._span(offset, 0, COMPACTED if self.compacted else "")

    def gone(self, offset: int, why: str) -> None:
        """There is something at this offset, or was up to it, that cannot be sent."""
        self._span(offset, 0, why)

    def _span(self, last: int, count: int, gone: str = "") -> None:
        before = self.spans[-1] if self.spans else None
        if before is not None and before.gone == gone:
            self.spans[-1] = Span(*self.place, before.first, last, before.count + count, gone)
        else:
            self.spans.append(Span(*self.place, self.next, last, count, gone))
            self.spans_bytes += SPAN_OVERHEAD_BYTES + len(self.place[0].encode()) + len(gone.encode())
        self.next = last + 1

    def rest(self) -> _Pack:
        """An empty one that goes on behind this one."""
        return _Pack(self.place, self.next, self.compacted)

    def batch(self, origin: str) -> Batch | None:
        """The records; None if there are none."""
        parts: list[Records | Chunk] = [
            _records(self.place, TimestampType(kind), list(rows))
            for kind, rows in groupby(self.rows, key=lambda row: row[0].timestamp()[0])
        ]
        return Batch(origin=origin, parts=parts) if parts else None


class KafkaReplay:
    """Reads records again; `config` is a `KafkaSourceConfig`."""

    def __init__(self, config: Any, context: Context) -> None:
        self._config = config
        self._context = context
        self._watch = BrokerWatch(context)

    async def between(self, stream: str, from_ms: int, to_ms: int) -> list[Span]:
        consumer = await _in_thread(self._open)
        try:
            found = await self._ask(lambda: self._offsets_between(consumer, stream, from_ms, to_ms))
        finally:
            await _in_thread(consumer.close)
        return [Span(stream, partition, first, end - 1) for partition, first, end in found if first < end]

    async def run(self, wanted: Sequence[Span], outlet: ReplayOutlet) -> None:
        consumer = await _in_thread(self._open)
        try:
            origin = await self._ask(lambda: self._cluster(consumer))
            for topic, spans in groupby(sorted(wanted, key=lambda span: span.stream), key=lambda span: span.stream):
                partitions = await self._ask(lambda: _partitions_of(consumer, topic))  # noqa: B023 - awaited right here
                compacted = await _in_thread(lambda: self._compacted(topic))  # noqa: B023
                for span in spans:
                    if span.partition not in partitions:
                        outlet.cannot_tell(f"topic {topic!r} has no partition {span.partition} at this source")
                        continue
                    await self._replay(consumer, span, origin, compacted, outlet)
        finally:
            await _in_thread(consumer.close)

    async def _replay(
        self, consumer: Consumer, wanted: Span, origin: str, compacted: bool, outlet: ReplayOutlet
    ) -> None:
        place, last = (wanted.stream, wanted.partition), wanted.last
        begin, end = await self._ask(lambda: _ends(consumer, place))
        pack = _Pack(place, wanted.first, compacted)
        if wanted.first < begin:
            pack.gone(min(last, begin - 1), RETENTION)
        if pack.next <= last and pack.next < end:
            await _in_thread(lambda: consumer.assign([TopicPartition(*place, pack.next)]))
        limit_bytes = min(outlet.batch_bytes, outlet.batch_bytes_max - BATCH_OVERHEAD_BYTES)
        while pack.next <= last and pack.next < end:
            # No more than is wanted: it returns only with so many, or when the time is over.
            count = min(READ_COUNT, last - pack.next + 1)
            messages = await _in_thread(lambda: consumer.consume(count, READ_TIMEOUT_S))  # noqa: B023 - awaited here
            for message in messages:
                if pack.next > last:
                    break
                size_bytes = self._look_at(pack, message, last, outlet.batch_bytes_max - BATCH_OVERHEAD_BYTES)
                if pack.size_bytes + size_bytes > limit_bytes or pack.spans_bytes > REPLAY_SPANS_BYTES_MAX - 512:
                    await outlet.send_repair(pack.batch(origin), pack.spans)
                    pack = pack.rest()
            await trio.lowlevel.checkpoint()
        if pack.spans:
            await outlet.send_repair(pack.batch(origin), pack.spans)
        if pack.next <= last:
            outlet.cannot_tell(
                f"{place[0]}/{place[1]}: offsets {pack.next} to {last} are behind the end of the topic, {end}: was it "
                "made again, or is this another cluster?"
            )

    def _look_at(self, pack: _Pack, message: Message, last: int, size_bytes_max: int) -> int:
        """Take in a message or an end of the partition; about how many bytes another such record takes."""
        error, offset = message.error(), message.offset()
        if error is not None:
            if error.code() == KafkaError._PARTITION_EOF and offset is not None:
                pack.reach(min(offset - 1, last))
            elif error.code() == KafkaError._AUTO_OFFSET_RESET:
                raise SourceError(f"the offset wanted was deleted meanwhile ({error.str()}): resend once more")
            else:
                self._watch.on_error(error)
            return 0
        offset = offset or 0
        if offset < pack.next:
            return 0
        if offset > last:
            pack.reach(last)
            return 0
        try:
            headers: Any = message.headers()
        except SystemError:  # raised for a name that is not UTF-8
            pack.reach(offset - 1)
            pack.gone(offset, UNREADABLE)
            return 0
        size_bytes = RECORD_OVERHEAD_BYTES + len(message.value() or b"") + len(message.key() or b"")
        size_bytes += sum(
            HEADER_OVERHEAD_BYTES + len(name.encode()) + len(value or b"") for name, value in headers or ()
        )
        if size_bytes > size_bytes_max:
            pack.reach(offset - 1)
            pack.gone(offset, TOO_LARGE)
            return 0
        pack.add(message, headers, size_bytes)
        return size_bytes

    # In a worker thread.

    def _open(self) -> Consumer:
        fixed: dict[str, Any] = {
            "bootstrap.servers": self._config.bootstrap_servers,
            # Needed by the library; there is no group, since nothing is subscribed and nothing is committed.
            "group.id": self._config.group_id,
            "isolation.level": self._config.isolation_level,
            "auto.offset.reset": "error",
            "enable.auto.commit": False,
            "enable.auto.offset.store": False,
            "enable.partition.eof": True,
        }
        defaults = {
            "client.id": f"gapconn-{self._context.link}-resend",
            # A fetch of the range before may still wait for records behind the end of its partition, and the next one
            # would wait for that (the default is 500).
            "fetch.wait.max.ms": 10,
        }
        settings = library_settings(defaults, self._config.client, fixed)
        for of_group in ("group.protocol", "group.instance.id", "partition.assignment.strategy"):
            settings.pop(of_group, None)
        try:
            return Consumer({**settings, "error_cb": self._watch.on_error, "logger": self._watch})
        except KafkaException as error:
            raise SourceError(f"the Kafka client refused its settings: {error.args[0].str()}") from error

    def _cluster(self, consumer: Consumer) -> str:
        cluster: str | None = consumer.cluster_id(REQUEST_TIMEOUT_S)
        if not cluster:
            raise KafkaException(KafkaError(KafkaError._TIMED_OUT))
        self._watch.answered()
        return cluster

    def _offsets_between(self, consumer: Consumer, topic: str, from_ms: int, to_ms: int) -> list[tuple[int, int, int]]:
        """Partition, first offset, and the offset behind the last one."""
        partitions = _partitions_of(consumer, topic)
        if not partitions:
            raise SourceError(f"there is no topic {topic!r} at this source")
        found = []
        starts = consumer.offsets_for_times([TopicPartition(topic, p, from_ms) for p in partitions], REQUEST_TIMEOUT_S)
        stops = consumer.offsets_for_times([TopicPartition(topic, p, to_ms) for p in partitions], REQUEST_TIMEOUT_S)
        for each in (*starts, *stops):
            if each.error is not None:
                raise KafkaException(each.error)
        for start, stop in zip(starts, stops, strict=True):
            _, end = _ends(consumer, (topic, start.partition))
            # No record with such a time, or a later one: librdkafka says -1, the end.
            first = start.offset if start.offset >= 0 else end
            found.append((start.partition, first, stop.offset if stop.offset >= 0 else end))
        return found

    def _compacted(self, topic: str) -> bool:
        """Whether the topic is compacted; False when the broker does not tell."""
        resource = ConfigResource(ConfigResource.Type.TOPIC, topic)
        settings = library_settings(self._config.client, {"bootstrap.servers": self._config.bootstrap_servers})
        of_client = {
            key: value for key, value in settings.items() if key.startswith(("sasl", "ssl", "security", "boot"))
        }
        try:
            admin = AdminClient({**of_client, "log_level": 0})
            [future] = admin.describe_configs([resource], request_timeout=REQUEST_TIMEOUT_S).values()
            policy = future.result(2 * REQUEST_TIMEOUT_S)["cleanup.policy"].value
        except (KafkaException, KeyError, TimeoutError) as error:
            self._context.log.warning("cleanup_policy_unknown", topic=topic, error=str(error))
            return False
        return "compact" in str(policy)

    async def _ask(self, request: Callable[[], T]) -> T:
        """The answer to a request, asked for until it comes."""
        backoff = Backoff()
        while True:
            try:
                return await _in_thread(request)
            except KafkaException as exception:
                self._context.counters["request_failed"] += 1
                self._watch.warn("request_failed", error=exception.args[0].str())
            await trio.sleep(backoff.failed())


def _partitions_of(consumer: Consumer, topic: str) -> set[int]:
    """The partitions of a topic; none if there is no such topic."""
    deadline = time.monotonic() + REQUEST_TIMEOUT_S
    while True:
        about = consumer.list_topics(topic, REQUEST_TIMEOUT_S).topics.get(topic)
        if about is None or (about.error is not None and about.error.code() in _NOT_THERE):
            return set()
        if about.error is None:
            return set(about.partitions)
        if time.monotonic() > deadline:
            raise KafkaException(about.error)
        time.sleep(0.1)  # a leader is being elected


def _ends(consumer: Consumer, place: tuple[str, int]) -> tuple[int, int]:
    """The first offset that is there and the next one to be written."""
    ends = consumer.get_watermark_offsets(TopicPartition(*place), timeout=REQUEST_TIMEOUT_S)
    if ends is None:
        raise KafkaException(KafkaError(KafkaError._TIMED_OUT))
    return ends


def _records(place: tuple[str, int], kind: TimestampType, rows: list[tuple[Message, list[Header] | None]]) -> Records:
    messages = [message for message, _ in rows]
    keys = [message.key() for message in messages]
    headers = [each for _, each in rows]
    return Records(
        stream=place[0],
        partition=place[1],
        positions=[message.offset() or 0 for message in messages],
        values=[message.value() for message in messages],
        keys=keys if any(key is not None for key in keys) else None,
        headers=headers if any(headers) else None,
        timestamps_ms=None if kind is TimestampType.NONE else [message.timestamp()[1] for message in messages],
        timestamp_type=kind,
    )


async def _in_thread(call: Callable[[], T]) -> T:
    """Run `call` in a worker thread to its end: the consumer takes one call at a time."""
    with trio.CancelScope(shield=True):
        return await trio.to_thread.run_sync(call)
    raise AssertionError("a shield alone cancels nothing")
