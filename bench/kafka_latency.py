"""How long a record takes, kafka → gap → kafka at 1,000 records a second, against a plain loop that does the same.

    python -m bench.kafka_latency [HOST:PORT]     on that broker, else on one that is started for it

Both run all the time, each between topics of its own; the load goes to one and the other in turn, for some seconds
each, so both see the same broker and the same machine. A record carries the time at which it was given to the producer,
and the time that counts is the one at which a consumer of the target has it.
"""

from __future__ import annotations

import contextlib
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import attrs
from confluent_kafka import Consumer, Producer

from bench.kafka_kafka import PARTITIONS, VALUE_BYTES, make_topic
from bench.measure import running_pair
from gapconn.testing.kafka_broker import ADDRESS_VARIABLE, make_node

RECORDS_PER_S = 1000
SLICE_S = 5.0
ROUNDS = 4
WARM_UP_S = 4.0
"""Before the first slice. A broker that has just started makes whoever comes first wait."""
LEFT_OUT_S = 1.0
"""At the beginning of each slice: connections wake up, caches fill."""
STAMP_BYTES = 8


@attrs.frozen(kw_only=True)
class Latency:
    """What records took, in milliseconds."""

    p50_ms: float
    p99_ms: float
    records: int
    lost: int

    def __str__(self) -> str:
        return f"p50 {self.p50_ms:.1f} ms, p99 {self.p99_ms:.1f} ms ({self.records:,} records, {self.lost:,} lost)"


@attrs.define(kw_only=True)
class _Path:
    """One way from a topic to another one."""

    source: str
    target: str
    took_ms: list[float] = attrs.field(factory=list)
    sent: int = 0
    arrived: int = 0
    counted_from_ns: int = 0


def measure(address: str, *, rounds: int = ROUNDS, slice_s: float = SLICE_S) -> tuple[Latency, Latency]:
    """The latency through a pair, and through the plain loop."""
    pair = _Path(source=make_topic(address), target=make_topic(address))
    plain = _Path(source=make_topic(address), target=make_topic(address))
    source = (
        f'type = "kafka"\nbootstrap_servers = "{address}"\ntopics = ["{pair.source}"]\ngroup_id = "{uuid.uuid4().hex}"'
    )
    sink = f'type = "kafka"\nbootstrap_servers = "{address}"\ntopic = "{pair.target}"'
    with (
        running_pair(source, sink, rate="1 Gbit/s") as running,
        _plain_loop(address, plain),
        _watching(address, pair),
        _watching(address, plain),
    ):
        running.wait_active()
        producer = Producer({"bootstrap.servers": address, "linger.ms": 0})
        for path in (pair, plain):  # until the group of each is there, its connections, and a broker that is warm
            _load(producer, path, WARM_UP_S)
            _wait_for_all(path, 60)
        for _ in range(rounds):
            for path in (pair, plain):
                path.counted_from_ns = time.monotonic_ns() + int(LEFT_OUT_S * 1e9)
                _load(producer, path, LEFT_OUT_S + slice_s)
                _wait_for_all(path, 20)
    return _latency(pair), _latency(plain)


def _load(producer: Producer, path: _Path, duration_s: float) -> None:
    """Send `RECORDS_PER_S` evenly."""
    began_s = time.monotonic()
    filling = bytes(VALUE_BYTES - STAMP_BYTES)
    for number in range(int(duration_s * RECORDS_PER_S)):
        wait_s = began_s + number / RECORDS_PER_S - time.monotonic()
        if wait_s > 0:
            time.sleep(wait_s)
        stamp = time.monotonic_ns().to_bytes(STAMP_BYTES, "big")
        headers: list[tuple[str, str | bytes | None]] = [("number", str(number)), ("path", path.source)]
        producer.produce(path.source, stamp + filling, str(number), number % PARTITIONS, headers=headers)
        producer.poll(0)
        path.sent += 1
    producer.flush()


def _wait_for_all(path: _Path, timeout_s: float) -> None:
    until_s = time.monotonic() + timeout_s
    while path.arrived < path.sent and time.monotonic() < until_s:
        time.sleep(0.05)


def _latency(path: _Path) -> Latency:
    assert path.took_ms, "nothing arrived"
    cuts = statistics.quantiles(path.took_ms, n=100)
    return Latency(p50_ms=cuts[49], p99_ms=cuts[98], records=len(path.took_ms), lost=path.sent - path.arrived)


@contextlib.contextmanager
def _watching(address: str, path: _Path) -> Iterator[None]:
    """A consumer of the target, in a thread."""
    stop = threading.Event()
    consumer = Consumer({"bootstrap.servers": address, "group.id": uuid.uuid4().hex, "auto.offset.reset": "earliest"})
    consumer.subscribe([path.target])

    def watch() -> None:
        while not stop.is_set():
            message = consumer.poll(0.1)
            value = None if message is None or message.error() else message.value()
            if value is None:
                continue
            path.arrived += 1
            sent_ns = int.from_bytes(value[:STAMP_BYTES], "big")
            if path.counted_from_ns and sent_ns >= path.counted_from_ns:
                path.took_ms.append((time.monotonic_ns() - sent_ns) / 1e6)

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
        consumer.close()


@contextlib.contextmanager
def _plain_loop(address: str, path: _Path) -> Iterator[None]:
    """The plain loop in a process of its own, as the two ends have theirs."""
    process = subprocess.Popen([sys.executable, "-m", __spec__.name, "plain", address, path.source, path.target])
    try:
        yield
    finally:
        process.terminate()
        process.wait()


def plain(address: str, source: str, target: str) -> None:
    """What a careful program does that has nothing to wait for: each record goes on as soon as it is there."""
    consumer = Consumer({"bootstrap.servers": address, "group.id": uuid.uuid4().hex, "auto.offset.reset": "earliest"})
    producer = Producer({"bootstrap.servers": address, "enable.idempotence": True})
    consumer.subscribe([source])
    while True:
        record = consumer.poll(0.05)
        if record is not None and record.error() is None:
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


def main(arguments: list[str]) -> None:
    """Measure and print."""
    if arguments[:1] == ["plain"]:
        plain(*arguments[1:])
    given = arguments[0] if arguments else os.environ.get(ADDRESS_VARIABLE)
    if given:
        _print(*measure(given))
        return
    with tempfile.TemporaryDirectory(prefix="gapconn-bench-") as directory, make_node(Path(directory, "node")) as node:
        _print(*measure(node.address))


def _print(pair: Latency, plain_loop: Latency) -> None:
    print(f"pair        {pair}")
    print(f"plain loop  {plain_loop}")
    print(f"ratio       p50 {pair.p50_ms / plain_loop.p50_ms:.2f}, p99 {pair.p99_ms / plain_loop.p99_ms:.2f}")


if __name__ == "__main__":
    main(sys.argv[1:])
