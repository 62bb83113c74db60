"""A Kafka cluster as tests use it: topics of their own, records in and out, a group's offsets."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from functools import partial
from typing import Any, TypeVar

import attrs
from confluent_kafka import OFFSET_BEGINNING, Consumer, KafkaError, KafkaException, Producer, TopicPartition
from confluent_kafka.admin import AdminClient, AlterConfigOpType, ConfigEntry, ConfigResource  # type: ignore[attr-defined]  # exported without saying so
from confluent_kafka.cimpl import NewPartitions, NewTopic

T = TypeVar("T")

TIMEOUT_S = 60.0


@attrs.frozen(kw_only=True)
class Entry:
    """A record in a log."""

    value: bytes | None
    key: bytes | None = None
    headers: list[tuple[str, bytes | None]] | None = None
    timestamp_ms: int | None = None
    """None: the time when it is sent."""
    partition: int = 0
    offset: int = -1


class Cluster:
    """A client of everything at one address. All calls block: tests with tasks that go on call them in a thread."""

    def __init__(self, address: str) -> None:
        self.address = address
        self._admin = AdminClient(self._settings())

    def create_topic(self, *, name: str | None = None, partitions: int = 1, **config: str) -> str:
        """A new topic; settings with `_` for `.`; without a name, one that no other test has."""
        topic = name or self.name()
        # Tests use old timestamps, which a broker may take for expired.
        settings = {"retention.ms": "-1"} | {key.replace("_", "."): value for key, value in config.items()}
        deadline = time.monotonic() + TIMEOUT_S
        while True:
            try:
                _wait(self._admin.create_topics([NewTopic(topic, partitions, 1, config=settings)]))
                break
            except KafkaException as exception:
                # A node that was too busy to tell its controller that it lives counts as dead for a moment.
                fenced = exception.args[0].code() == KafkaError.INVALID_REPLICATION_FACTOR
                if not fenced or time.monotonic() > deadline:
                    raise
                time.sleep(0.2)
        while topic not in self._admin.list_topics(timeout=TIMEOUT_S).topics and time.monotonic() < deadline:
            time.sleep(0.02)
        return topic

    def name(self) -> str:
        """A name for a topic or group that nobody else has."""
        return f"t-{uuid.uuid4().hex[:12]}"

    def delete_topic(self, topic: str) -> None:
        """Delete it, and wait until it is gone."""
        _wait(self._admin.delete_topics([topic]))
        deadline = time.monotonic() + TIMEOUT_S
        while topic in self._admin.list_topics(timeout=TIMEOUT_S).topics and time.monotonic() < deadline:
            time.sleep(0.02)

    def add_partitions(self, topic: str, total: int) -> None:
        """Let it have `total` partitions."""
        _wait(self._admin.create_partitions([NewPartitions(topic, total)]))

    def configure_topic(self, topic: str, **config: str) -> None:
        """Change its settings; `_` for `.`."""
        resource = ConfigResource(ConfigResource.Type.TOPIC, topic)
        for key, value in config.items():
            change = ConfigEntry(key.replace("_", "."), value, incremental_operation=AlterConfigOpType.SET)
            resource.add_incremental_config(change)
        _wait(self._admin.incremental_alter_configs([resource]))

    def delete_before(self, topic: str, offset: int, *, partition: int = 0) -> None:
        """Delete a partition's first records, as retention does."""
        _wait(self._admin.delete_records([TopicPartition(topic, partition, offset)]))

    def send(self, topic: str, entries: Iterable[Entry], **settings: Any) -> None:
        """Append records."""
        producer = Producer(self._settings() | {"linger.ms": 0} | settings)
        errors: list[object] = []
        _produce(producer, topic, entries, errors)
        assert producer.flush(TIMEOUT_S) == 0
        assert not errors

    def send_transaction(self, topic: str, entries: Iterable[Entry], *, commit: bool) -> None:
        """Append records in a transaction; its marker takes an offset in every partition that it wrote to."""
        producer = Producer(self._settings() | {"transactional.id": self.name()})
        producer.init_transactions(TIMEOUT_S)
        producer.begin_transaction()
        _produce(producer, topic, entries, [])
        if commit:
            producer.commit_transaction(TIMEOUT_S)
        else:
            assert producer.flush(TIMEOUT_S) == 0  # So that there is something to abort.
            producer.abort_transaction(TIMEOUT_S)

    def read(self, topic: str, *, isolation_level: str = "read_committed") -> list[Entry]:
        """All records of a topic, by partition and offset."""
        settings = {
            "group.id": "unused",
            "enable.auto.commit": False,
            "isolation.level": isolation_level,
            "enable.partition.eof": True,
        }
        consumer = Consumer(self._settings() | settings)
        partitions = list(consumer.list_topics(topic, TIMEOUT_S).topics[topic].partitions)
        consumer.assign([TopicPartition(topic, partition, OFFSET_BEGINNING) for partition in partitions])
        entries: list[Entry] = []
        ends, deadline = 0, time.monotonic() + TIMEOUT_S
        while ends < len(partitions):
            assert time.monotonic() < deadline
            for message in consumer.consume(1000, 0.1 if not entries else 0.02):
                error = message.error()
                if error is not None:
                    assert error.code() == KafkaError._PARTITION_EOF, error
                    ends += 1
                    continue
                entries.append(
                    Entry(
                        value=message.value(),
                        key=message.key(),
                        headers=message.headers(),  # type: ignore[arg-type]  # a list, when consumed
                        timestamp_ms=message.timestamp()[1],
                        partition=message.partition() or 0,
                        offset=message.offset() or 0,
                    )
                )
        consumer.close()
        return sorted(entries, key=lambda entry: (entry.partition, entry.offset))

    def ends(self, topic: str) -> list[tuple[int, int]]:
        """The first offset of each partition, and the one behind its last."""
        consumer = Consumer(self._settings() | {"group.id": "unused"})
        found = []
        for partition in sorted(consumer.list_topics(topic, TIMEOUT_S).topics[topic].partitions):
            ends = _insist(partial(consumer.get_watermark_offsets, TopicPartition(topic, partition), TIMEOUT_S))
            assert ends is not None
            found.append(ends)
        consumer.close()
        return found

    def committed(self, group: str, topic: str, *, partition: int = 0) -> TopicPartition:
        """What a group has committed; the offset is negative when it has not."""
        consumer = Consumer(self._settings() | {"group.id": group})
        [offset] = _insist(lambda: consumer.committed([TopicPartition(topic, partition)], timeout=TIMEOUT_S))
        consumer.close()
        return offset

    def commit(self, group: str, topic: str, offset: int, metadata: str = "", *, partition: int = 0) -> None:
        """Set a group's offset, as an operator or a foreign program does: without metadata, unless it is given."""
        consumer = Consumer(self._settings() | {"group.id": group, "enable.auto.commit": False})
        consumer.commit(offsets=[TopicPartition(topic, partition, offset, metadata)], asynchronous=False)
        consumer.close()

    def _settings(self) -> dict[str, Any]:
        return {"bootstrap.servers": self.address, "log_level": 0}


def _produce(producer: Producer, topic: str, entries: Iterable[Entry], errors: list[object]) -> None:
    for entry in entries:
        producer.produce(
            topic,
            entry.value,
            entry.key,
            entry.partition,
            on_delivery=lambda error, _: errors.append(error) if error is not None else None,
            timestamp=entry.timestamp_ms or 0,
            headers=entry.headers,  # type: ignore[arg-type]  # list is invariant
        )


def _wait(futures: dict[Any, Future[Any]]) -> None:
    for future in futures.values():
        future.result(TIMEOUT_S)


def _insist(ask: Callable[[], T]) -> T:
    """Ask a broker that may have just started: it has not found its coordinator yet, or does not lead the partition."""
    deadline = time.monotonic() + TIMEOUT_S
    while True:
        try:
            return ask()
        except KafkaException:
            assert time.monotonic() < deadline
            time.sleep(0.1)
