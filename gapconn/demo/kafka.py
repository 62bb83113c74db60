"""Topics on a real broker as the demo's data: made for it, filled, carried across, compared and removed."""

from __future__ import annotations

import contextlib
import secrets
import time
from collections.abc import Iterator
from typing import Any, Final

import attrs
import trio
from confluent_kafka import Consumer, KafkaException, Message, Producer, TopicPartition
from confluent_kafka.admin import AdminClient
from confluent_kafka.cimpl import NewTopic

from gapconn.demo.checks import Check
from gapconn.demo.ledger import Ledger, Ranges
from gapconn.demo.plan import RECORD_BYTES
from gapconn.demo.processes import DemoError
from gapconn.selfcheck import Pattern
from gapconn.units import parse_address

PARTITIONS: Final = 3
RECORDS_PER_S: Final = 4000
KEYS: Final = 1000
TOMBSTONE_EVERY: Final = 97
FIRST_ANSWER_TIMEOUT_S: Final = 5.0
ANSWER_TIMEOUT_S: Final = 20.0
DRAIN_TIMEOUT_S: Final = 60.0
READ_TIMEOUT_S: Final = 60.0
_FEED_INTERVAL_S: Final = 0.05


@attrs.frozen
class _Expected:
    """A record as it was produced."""

    key: bytes
    value: bytes | None
    headers: list[tuple[str, bytes | None]]
    timestamp_ms: int


class _Records:
    """The records of the demo: number `n` goes to partition `n % PARTITIONS`, where its offset is `n // PARTITIONS`."""

    def __init__(self) -> None:
        self._began_ms = int(time.time() * 1000)
        self._pattern = Pattern(size_bytes=RECORD_BYTES, seed=self._began_ms)

    def expected(self, number: int) -> _Expected:
        (value,) = self._pattern.values(number, 1)
        return _Expected(
            key=b"key-%d" % (number % KEYS),
            value=None if number % TOMBSTONE_EVERY == 0 else value,
            headers=[("number", b"%d" % number), ("empty", None), ("number", b"again")],
            timestamp_ms=self._began_ms + number,
        )


class KafkaCargo:
    """Records with keys, headers, timestamps and tombstones, from a topic to another one on the same broker.

    Args:
        servers: `host:port` of the broker; several separated by commas.

    Raises:
        DemoError: `servers` is something else.
    """

    def __init__(self, servers: str) -> None:
        for server in servers.split(","):
            try:
                parse_address(server)
            except ValueError as error:
                raise DemoError(f"--kafka {servers!r}: {error}; give the HOST:PORT of a broker") from error
        self.source = "a Kafka topic"
        self.sink = "another topic"
        self.overhead_s = 12.0
        self._servers = servers
        name = f"gapconn-demo-{secrets.token_hex(4)}"
        self.source_topic, self.target_topic, self._group = f"{name}-source", f"{name}-target", name
        self._records = _Records()
        self._produced = 0
        self._failed: str | None = None
        self._made = False

    async def prepare(self) -> None:
        """Make the two topics.

        Raises:
            DemoError: the broker does not answer, or refuses.
        """
        await trio.to_thread.run_sync(self._make_topics)

    def sections(self) -> str:
        """`[source]` and `[sink]` of the pair's configuration."""
        # As a static member, the restarted ingress gets its partitions back at once; else the group would wait for the
        # session of the killed one to time out. A long one, so that a busy machine does not cost the membership.
        return f"""[source]
type = "kafka"
bootstrap_servers = "{self._servers}"
topics = ["{self.source_topic}"]
group_id = "{self._group}"
client = {{ "group.instance.id" = "demo", "session.timeout.ms" = 30000 }}

[sink]
type = "kafka"
bootstrap_servers = "{self._servers}"
topic = "{self.target_topic}"
"""

    async def feed(self) -> None:
        """Produce records at `RECORDS_PER_S`, until cancelled.

        Raises:
            DemoError: the broker did not take one.
        """
        producer = Producer(self._client(**{"enable.idempotence": True, "linger.ms": 5}))
        began_s = trio.current_time()
        try:
            while self._failed is None:
                due = int((trio.current_time() - began_s) * RECORDS_PER_S)
                await trio.to_thread.run_sync(self._produce, producer, due)
                await trio.sleep(_FEED_INTERVAL_S)
            self._require_taken()
        finally:
            with trio.CancelScope(shield=True):
                waiting = await trio.to_thread.run_sync(producer.flush, ANSWER_TIMEOUT_S)
                if waiting:
                    self._failed = f"no answer for {waiting} of them"

    async def drain(self) -> None:
        """Wait until the ingress has committed everything that was produced.

        Raises:
            DemoError: it did not, or the broker did not take everything.
        """
        self._require_taken()
        await trio.to_thread.run_sync(self._wait_for_commits, abandon_on_cancel=True)

    async def verify(self, ledger: Ledger) -> list[Check]:
        """Read the target and compare it with what was produced, record by record."""
        ledger.tell("the target topic is read back and compared with what was produced")
        return await trio.to_thread.run_sync(self._compare, ledger)

    async def clean_up(self) -> str | None:
        """Remove the topics, and the group if the broker does not count the ingress as a member any more.

        Otherwise the broker removes the group itself, as nothing is left for it to remember.
        """
        if not self._made:
            return None
        return await trio.to_thread.run_sync(self._remove_topics)

    def _require_taken(self) -> None:
        if self._failed is not None:
            raise DemoError(f"the broker did not take the records of the demo: {self._failed}")

    # In worker threads.

    def _client(self, **settings: Any) -> dict[str, Any]:
        # What goes wrong is told by the calls; librdkafka's own words on stderr would spoil the picture.
        return {"bootstrap.servers": self._servers, "log_level": 0, "error_cb": lambda error: None, **settings}

    def _make_topics(self) -> None:
        try:
            admin = AdminClient(self._client())
            admin.list_topics(timeout=FIRST_ANSWER_TIMEOUT_S)
        except KafkaException as error:
            raise DemoError(
                f"no Kafka broker answers at {self._servers}: {error.args[0].str()}\n"
                "give --kafka the host:port of one that speaks plain text, or run `gapconn demo` without it"
            ) from error
        topics = [NewTopic(topic, PARTITIONS, -1) for topic in (self.source_topic, self.target_topic)]
        self._made = True
        for topic, made in admin.create_topics(topics, operation_timeout=ANSWER_TIMEOUT_S).items():
            try:
                made.result(ANSWER_TIMEOUT_S)
            except KafkaException as error:
                raise DemoError(
                    f"the topic {topic} cannot be made at {self._servers}: {error.args[0].str()}"
                ) from error

    def _produce(self, producer: Producer, up_to: int) -> None:
        for number in range(self._produced, up_to):
            record = self._records.expected(number)
            producer.produce(
                self.source_topic,
                record.value,
                record.key,
                number % PARTITIONS,
                on_delivery=self._note_report,
                timestamp=record.timestamp_ms,
                headers=record.headers,  # type: ignore[arg-type]  # list is invariant
            )
            self._produced += 1
        producer.poll(0)

    def _note_report(self, error: Any, message: Message) -> None:
        if error is not None:
            self._failed = error.str()

    def _produced_to(self, partition: int) -> int:
        """How many records this partition got; its offsets begin at 0 and have no holes."""
        return len(range(partition, self._produced, PARTITIONS))

    def _wait_for_commits(self) -> None:
        consumer = Consumer(self._client(**{"group.id": self._group}))
        places = [TopicPartition(self.source_topic, partition) for partition in range(PARTITIONS)]
        until = time.monotonic() + DRAIN_TIMEOUT_S
        try:
            while time.monotonic() < until:
                committed = consumer.committed(places, timeout=ANSWER_TIMEOUT_S)
                if all(place.offset == self._produced_to(place.partition) for place in committed):
                    return
                time.sleep(0.1)
            raise DemoError(f"the ingress did not commit all of {self.source_topic} within {DRAIN_TIMEOUT_S:g} s")
        except KafkaException as error:
            raise DemoError(f"the commits of the ingress could not be read: {error.args[0].str()}") from error
        finally:
            consumer.close()

    def _compare(self, ledger: Ledger) -> list[Check]:
        offsets: list[list[int]] = [[] for _ in range(PARTITIONS)]
        count = wrong = doubled = 0
        for message in self._target():
            count += 1
            arrived, offset = offsets[message.partition() or 0], self._offset_if_right(message)
            if offset is None:
                wrong += 1
            elif arrived and offset <= arrived[-1]:
                doubled += 1
            else:
                arrived.append(offset)
        lost = unreported = 0
        for partition, arrived in enumerate(offsets):
            reported = ledger.missing.get((self.source_topic, partition), Ranges())
            absent = Ranges()
            absent.add((offset, offset) for offset in set(range(self._produced_to(partition))).difference(arrived))
            lost += absent.count
            if absent.pairs != reported.pairs and not ledger.ranges_widened:
                unreported += 1
        again = ledger.egress.records_lost - lost
        return [
            Check(
                wrong == 0,
                f"{count:,} records in the target compared with what was produced, with keys, headers, timestamps and "
                f"tombstones: {wrong:,} are different",
            ),
            Check(doubled == 0, f"{doubled:,} records delivered twice or out of order"),
            Check(
                count + lost == self._produced,
                f"{self._produced:,} records produced = {count:,} delivered + {lost:,} lost"
                + (f"; {again:,} more were lost that had been delivered before" if again else ""),
            ),
            Check(
                unreported == 0,
                f"{lost:,} records lost: the egress named exactly these offsets"
                + (f", but not in {unreported} of {PARTITIONS} partitions" if unreported else ""),
            ),
        ]

    def _target(self) -> Iterator[Message]:
        """The records of the target, partition after partition."""
        consumer = Consumer(self._client(**{"group.id": self._group, "enable.auto.commit": False}))
        until = time.monotonic() + READ_TIMEOUT_S
        try:
            for partition in range(PARTITIONS):
                place = TopicPartition(self.target_topic, partition, 0)
                _, end = consumer.get_watermark_offsets(place, timeout=ANSWER_TIMEOUT_S)
                consumer.assign([place])
                read = 0
                while read < end:
                    if time.monotonic() > until:
                        raise DemoError(f"{self.target_topic} could not be read back within {READ_TIMEOUT_S:g} s")
                    for message in consumer.consume(1000, 0.2):
                        if message.error() is None:
                            read = (message.offset() or 0) + 1
                            yield message
        except KafkaException as error:
            raise DemoError(f"{self.target_topic} could not be read back: {error.args[0].str()}") from error
        finally:
            consumer.close()

    def _offset_if_right(self, message: Message) -> int | None:
        """The offset that the record had in the source; None when it is not as it was produced."""
        # The sink adds the origin, cluster/topic/partition/offset, behind the headers that the record had.
        headers: list[Any] = list(message.headers() or [("", None)])
        own, (_, origin) = headers[:-1], headers[-1]
        offset = int((origin or b"-1").rpartition(b"/")[2])
        partition = message.partition() or 0
        if not 0 <= offset < self._produced_to(partition):
            return None
        expected = self._records.expected(offset * PARTITIONS + partition)
        arrived = _Expected(message.key(), message.value(), own, message.timestamp()[1])  # type: ignore[arg-type]
        return offset if arrived == expected else None

    def _remove_topics(self) -> str | None:
        topics = [self.source_topic, self.target_topic]
        try:
            admin = AdminClient(self._client())
            with contextlib.suppress(KafkaException):
                admin.delete_consumer_groups([self._group])[self._group].result(ANSWER_TIMEOUT_S)
            for answer in admin.delete_topics(topics, operation_timeout=ANSWER_TIMEOUT_S).values():
                answer.result(ANSWER_TIMEOUT_S)
        except KafkaException as error:
            return f"the topics {' and '.join(topics)} could not be removed: {error.args[0].str()}"
        return None
