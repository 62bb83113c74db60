"""What Kafka sinks share: a record as the producer takes it, the answers of brokers that are final, topics."""

from __future__ import annotations

import contextlib
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from itertools import repeat
from typing import Any, Final

from confluent_kafka import KafkaError, KafkaException, Producer

from gapconn.kafka_client import BrokerWatch
from gapconn.record import ORIGIN_HEADER, Header, Records
from gapconn.sinks import Delivery

ANY_PARTITION: Final = -1
REPAIR_HEADER: Final[Header] = ("gapconn-repair", b"1")
"""On a record that was lost before and sent again: it stands behind later ones."""
LATE_HEADER: Final[Header] = ("gapconn-late", b"1")
"""On a record of a message that was given up as lost and came after all: it may stand behind later ones."""
REQUEST_TIMEOUT_S: Final = 1.0
RECORD_OVERHEAD_BYTES: Final = 512
"""Memory of a record beside its value, so that small records are bounded too."""
SLICE_RECORDS: Final = 128
"""So many are given to librdkafka before other tasks get a turn: a fraction of a millisecond."""
BUFFER_FULL_WAIT_S: Final = 0.01

REJECTED = frozenset(
    {
        KafkaError.MSG_SIZE_TOO_LARGE,
        KafkaError.INVALID_MSG_SIZE,
        KafkaError.RECORD_LIST_TOO_LARGE,
        KafkaError.INVALID_RECORD,
        KafkaError.INVALID_MSG,
        KafkaError.INVALID_TIMESTAMP,
        KafkaError._INVALID_DIFFERENT_RECORD,
    }
)
"""Answers that another try of the same request does not change."""


def rows_of(
    records: Records,
    rows: slice,
    reporters: Iterable[Any],
    *,
    origin: str | None,
    marks: Sequence[Header],
    counters: Counter[str],
) -> Iterator[tuple[bytes | None, bytes | None, Any, int, Any]]:
    """Value, key, what to call with the report, timestamp and headers of each record.

    Args:
        records: A run.
        rows: Which of its records.
        reporters: What librdkafka is to call for each of them.
        origin: What the origin ids begin with; None adds no header.
        marks: Headers to be added (`marks_of`).
        counters: Where a timestamp that cannot be kept is counted.
    """
    stamps: Iterable[int] = repeat(0)
    if records.timestamps_ms is not None:
        stamps = records.timestamps_ms[rows]
        if min(stamps, default=1) < 1:
            # librdkafka takes 0 for "now", and -1 is no timestamp at all.
            counters["timestamp_changed"] += sum(stamp < 1 for stamp in stamps)
            stamps = [1 if stamp == 0 else max(stamp, 0) for stamp in stamps]
    keys: Iterable[bytes | None] = repeat(None) if records.keys is None else records.keys[rows]
    headers: Iterable[Any] = repeat(None) if records.headers is None else records.headers[rows]
    if origin is not None:
        headers = _with_origin(headers, origin, records.positions[rows])
    if marks:
        headers = ([*own, *marks] for own in headers)
    return zip(records.values[rows], keys, reporters, stamps, headers, strict=False)


def _with_origin(
    headers: Iterable[list[Header] | None], origin: str, positions: list[int]
) -> Iterator[list[tuple[str, str | bytes | None]]]:
    for own, position in zip(headers, positions, strict=False):
        yield [*(own or ()), (ORIGIN_HEADER, f"{origin}{position}")]


def marks_of(delivery: Delivery) -> list[Header]:
    """What the records of a delivery say about themselves, beside where they come from."""
    return [*([REPAIR_HEADER] if delivery.repair else ()), *([LATE_HEADER] if delivery.late else ())]


def size_of(records: Records) -> int:
    """About what a run takes in memory."""
    return RECORD_OVERHEAD_BYTES * len(records.positions) + sum(len(value) for value in records.values if value)


def count_partitions(producer: Producer, topic: str, watch: BrokerWatch, counters: Counter[str]) -> int | None:
    """How many partitions a topic has, 0 when it is not there; None without an answer. Blocks."""
    try:
        metadata = producer.list_topics(topic, REQUEST_TIMEOUT_S)
    except KafkaException as error:
        counters["request_failed"] += 1
        watch.warn("request_failed", error=error.args[0].str())
        return None
    watch.answered()
    return len(metadata.topics[topic].partitions) if topic in metadata.topics else 0


def say_topic_missing(watch: BrokerWatch, counters: Counter[str], topic: str, partitions: int, needed: int) -> None:
    """The sink waits for an operator, who can make the topic or its partitions."""
    event = "partition_missing" if partitions else "topic_missing"
    counters[event] += 1
    watch.warn(
        event,
        key=topic,
        topic=topic,
        partitions=partitions,
        effect=f"waiting until the topic has at least {needed} partitions: create them"
        + (', or set partition = "key"' if partitions else ""),
    )


def poll_until_empty(producer: Producer, timeout_s: float) -> None:
    deadline = time.monotonic() + timeout_s
    while len(producer) and time.monotonic() < deadline:
        with contextlib.suppress(KafkaException):
            producer.poll(0.02)
