"""kafka → gap → kafka on one real broker, against a plain loop that consumes and produces the same records.

Processor time counts all threads of a process, from the first record in the target on.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from confluent_kafka import Consumer, Producer, TopicPartition
from confluent_kafka.admin import AdminClient
from confluent_kafka.cimpl import NewTopic

from bench.measure import Figure, lost, rebuilt, running_pair
from gapconn.testing.kafka_broker import ADDRESS_VARIABLE, make_node

RECORDS = 400_000
PARTITIONS = 4
VALUE_BYTES = 1024


@contextlib.contextmanager
def running_broker() -> Iterator[str]:
    """The address of the given broker, or of one that is started for it."""
    given = os.environ.get(ADDRESS_VARIABLE)
    if given:
        yield given
        return
    with tempfile.TemporaryDirectory(prefix="gapconn-bench-") as directory, make_node(Path(directory, "node")) as node:
        yield node.address


def filled_topic(address: str) -> str:
    """A topic with `RECORDS` records."""
    topic = make_topic(address)
    _fill(address, topic)
    return topic


def carry(address: str, source: str, rate_bps: int) -> Figure:
    """Records per second that a pair copies from the topic `source`, at a rate of its link."""
    target = make_topic(address)
    source_section = (
        f'type = "kafka"\nbootstrap_servers = "{address}"\ntopics = ["{source}"]\ngroup_id = "{uuid.uuid4().hex}"'
    )
    sink_section = f'type = "kafka"\nbootstrap_servers = "{address}"\ntopic = "{target}"'
    with running_pair(source_section, sink_section, rate=rate_bps) as pair:
        pair.wait_active()
        before = 0

        def begin(count: int) -> None:
            nonlocal before
            before = count
            pair.count_cpu()

        arrived, took = _time_arrival(address, target, at_first=begin)
        cpu = pair.cpu_s_per_gb((arrived - before) * VALUE_BYTES)
        egress = pair.settled()
    return Figure(
        what="kafka → kafka, records of 1 KiB",
        value=arrived / took,
        unit="records/s",
        lost=RECORDS - arrived + lost(egress),
        rate_bps=rate_bps,
        cpu_s_per_gb=cpu,
        detail={
            "missed": egress["missed"],
            "rebuilt": rebuilt(egress),
            "cpu_us_per_record": {role: seconds * VALUE_BYTES / 1e3 for role, seconds in cpu.items()},
        },
    )


def plain(address: str, source: str) -> Figure:
    """What a careful program does in one process: the whole record, idempotent, acks=all."""
    target = make_topic(address)
    consumer = Consumer({"bootstrap.servers": address, "group.id": uuid.uuid4().hex, "auto.offset.reset": "earliest"})
    producer = Producer(
        {"bootstrap.servers": address, "enable.idempotence": True, "linger.ms": 5, "queue.buffering.max.messages": 0}
    )
    consumer.subscribe([source])
    done = 0
    started: float | None = None
    cpu_s = 0.0
    while done < RECORDS:
        records = consumer.consume(2000, 0.5)
        if records and started is None:
            started, cpu_s = time.monotonic(), time.process_time()
        for record in records:
            _, timestamp = record.timestamp()
            producer.produce(
                target,
                record.value(),
                record.key(),
                record.partition() or 0,
                timestamp=timestamp,
                headers=record.headers(),
            )
        producer.poll(0)
        done += len(records)
    producer.flush()
    took_s, cpu_s = time.monotonic() - (started or 0.0), time.process_time() - cpu_s
    consumer.close()
    return Figure(
        what="plain consume and produce",
        value=done / took_s,
        unit="records/s",
        detail={"cpu_us_per_record": cpu_s / done * 1e6},
    )


def make_topic(address: str) -> str:
    """A new, empty topic."""
    name = f"bench-{uuid.uuid4().hex[:12]}"
    admin = AdminClient({"bootstrap.servers": address})  # it must live as long as its futures
    for created in admin.create_topics([NewTopic(name, PARTITIONS, 1)]).values():
        created.result(30)
    return name


def _fill(address: str, topic: str) -> None:
    producer = Producer({"bootstrap.servers": address, "linger.ms": 50, "queue.buffering.max.messages": 0})
    value = bytes(VALUE_BYTES)
    for number in range(RECORDS):
        producer.produce(topic, value, str(number), number % PARTITIONS, headers=[("number", str(number))])
        if number % 10_000 == 0:
            producer.poll(0)
    producer.flush()


def _time_arrival(address: str, topic: str, at_first: Callable[[int], None]) -> tuple[int, float]:
    """Records in `topic`, and seconds from the first one seen to the last one; ends when nothing more comes.

    `at_first` is called with their number when the first ones are seen.
    """
    watcher = Consumer({"bootstrap.servers": address, "group.id": "none"})
    started: float | None = None
    last, changed = 0, time.monotonic()
    while last < RECORDS and time.monotonic() - changed < (5 if started else 15):
        count = sum(_end(watcher, topic, partition) for partition in range(PARTITIONS))
        now = time.monotonic()
        if count != last:
            # The first ones were on their way before they were seen: half a look's interval, on average.
            if started is None:
                started = changed
                at_first(count)
            last, changed = count, now
        time.sleep(0.02)
    watcher.close()
    assert started is not None, "nothing arrived"
    return last, changed - started


def _end(watcher: Any, topic: str, partition: int) -> int:
    _, end = watcher.get_watermark_offsets(TopicPartition(topic, partition), timeout=10)
    return int(end)
