"""The topic with the state: made where there is none, and read at a start."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final

from confluent_kafka import OFFSET_BEGINNING, KafkaError, KafkaException, TopicPartition
from confluent_kafka.cimpl import NewTopic
from structlog.typing import FilteringBoundLogger

from gapconn.dedup.kafka_clients import REQUEST_TIMEOUT_S, Clients, SessionFailed, ask
from gapconn.errors import DedupError
from gapconn.kafka_client import BrokerWatch

READ_TIMEOUT_S: Final = 60.0
"""How long nothing may come before the end."""

_SETTINGS: Final = {
    "cleanup.policy": "compact",
    # Small segments, soon compacted: the whole topic is read at a start.
    "segment.bytes": str(16 << 20),
    "min.cleanable.dirty.ratio": "0.2",
    "delete.retention.ms": "3600000",
    "max.message.bytes": str(4 << 20),
}


def make_state_topic(clients: Clients, topic: str, log: FilteringBoundLogger) -> None:
    """Make the topic where it does not exist.

    Raises:
        SessionFailed: that is not possible now.
        DedupError: the topic that is there cannot be used.
    """
    admin = clients.admin()
    metadata = ask(lambda: admin.list_topics(timeout=REQUEST_TIMEOUT_S))
    if topic in metadata.topics:
        if len(metadata.topics[topic].partitions) != 1:
            raise DedupError(f"topic {topic!r} must have one partition: the state needs one order")
        return
    try:
        admin.create_topics([NewTopic(topic, 1, config=_SETTINGS)])[topic].result(REQUEST_TIMEOUT_S)
    except (KafkaException, TimeoutError) as exception:
        raise SessionFailed(
            "state_topic_missing", topic=topic, error=str(exception),
            effect="it is tried again; or create it, with one partition and cleanup.policy=compact",
        ) from exception  # fmt: skip
    log.info("state_topic_created", topic=topic)


def read_state(clients: Clients, topic: str, watch: BrokerWatch, stopping: Callable[[], bool]) -> dict[bytes, bytes]:
    """The last value of each key.

    Raises:
        SessionFailed: it cannot be read now.
    """
    values: dict[bytes, bytes] = {}
    consumer = clients.state_reader()
    try:
        consumer.assign([TopicPartition(topic, 0, OFFSET_BEGINNING)])
        deadline = time.monotonic() + READ_TIMEOUT_S
        while time.monotonic() < deadline and not stopping():
            for message in ask(lambda: consumer.consume(10_000, 0.1)):
                error = message.error()
                if error is not None and error.code() == KafkaError._PARTITION_EOF:
                    return values
                if error is not None:
                    watch.on_error(error)
                    continue
                deadline = time.monotonic() + READ_TIMEOUT_S
                key, value = message.key() or b"", message.value()
                if value is None:
                    values.pop(key, None)
                else:
                    values[key] = value
    finally:
        consumer.close()
    raise SessionFailed("state_unreadable", topic=topic, effect="it is tried again")
