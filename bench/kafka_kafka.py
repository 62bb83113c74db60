"""kafka → gap → kafka on one real broker, against a plain loop that consumes and produces the same records.

Processor time per record and memory go to standard error: on a busy machine, time per record says more than records per
second. It counts all threads of a process, from the first record in the target on.
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

from confluent_kafka import Consumer, Producer, TopicPartition
from confluent_kafka.admin import AdminClient
from confluent_kafka.cimpl import NewTopic

from bench.measure import Figure, running_pair
from gapconn.testing.kafka_broker import ADDRESS_VARIABLE, make_node

RECORDS = 400_000
PARTITIONS = 4
VALUE_BYTES = 1024
RATES_MBPS = (1200, 1000, 900, 800, 700, 600, 500, 400, 300)


def run() -> tuple[Figure, Figure]:
    """Records per second until the last one is in the target; the pair at the highest of some rates without loss."""
    given = os.environ.get(ADDRESS_VARIABLE)
    if given:
        return _run_on(given)
    with tempfile.TemporaryDirectory(prefix="gapconn-bench-") as directory, make_node(Path(directory, "node")) as node:
        return _run_on(node.address)


def _run_on(address: str) -> tuple[Figure, Figure]:
    source = make_topic(address)
    _fill(address, source)
    for rate in RATES_MBPS:
        figure = _pair(address, source, rate)
        if not figure.lost:
            break
    return figure, _plain(address, source)


def _pair(address: str, source: str, rate_mbps: int) -> Figure:
    target = make_topic(address)
    source_section = (
        f'type = "kafka"\nbootstrap_servers = "{address}"\ntopics = ["{source}"]\ngroup_id = "{uuid.uuid4().hex}"'
    )
    sink_section = f'type = "kafka"\nbootstrap_servers = "{address}"\ntopic = "{target}"'
    with running_pair(source_section, sink_section, rate=f"{rate_mbps} Mbit/s") as pair:
        pair.wait_active()
        before: list[tuple[float, int]] = []
        arrived, took = _time_arrival(
            address,
            target,
            at_first=lambda count: before.extend((_cpu_s(p.pid), count) for p in (pair.ingress, pair.egress)),
        )
        for name, process, (cpu_s, count) in zip(
            ("ingress", "egress"), (pair.ingress, pair.egress), before, strict=True
        ):
            per_record_us = (_cpu_s(process.pid) - cpu_s) / max(1, arrived - count) * 1e6
            _say(f"{name}: {per_record_us:.1f} µs of processor a record, at most {_peak_mb(process.pid)} MB resident")
    return Figure(
        what="kafka → kafka, records of 1 KiB", value=arrived / took, unit="records/s", lost=RECORDS - arrived
    )


def _plain(address: str, source: str) -> Figure:
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
    _say(f"plain loop: {(time.process_time() - cpu_s) / done * 1e6:.1f} µs of processor a record")
    consumer.close()
    assert started is not None
    return Figure(what="plain consume and produce", value=done / (time.monotonic() - started), unit="records/s")


def make_topic(address: str) -> str:
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
    while last < RECORDS and time.monotonic() - changed < 15:
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


def _cpu_s(pid: int) -> float:
    """Processor time of a process and all its threads, in the kernel too."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _peak_mb(pid: int) -> int:
    """The most memory that the process had resident so far, in megabytes."""
    lines = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    return int(lines["VmHWM"].split()[0]) * 1024 // 1_000_000


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
