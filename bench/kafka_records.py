"""Many different Kafka records through a pair, compared one by one with what is in the source.

    python -m bench.kafka_records run                     all of it: a broker, a pair, the comparison
    python -m bench.kafka_records produce HOST:PORT       make and fill the topics, on any cluster
    python -m bench.kafka_records compare HOST:PORT       compare them with their copies, after any pair carried them

Three topics: `gc-plain` (keys or none, headers with repeated names and null values, tombstones, timestamps),
`gc-transactions` (committed and aborted ones, interleaved) and `gc-compacted` (most of it compacted away before it is
read). Their copies have `copy-` before their names, and as many partitions. Compared are value, key, headers, timestamp
and order in each partition, and the origin in the added headers.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import os
import random
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import attrs
from confluent_kafka import OFFSET_BEGINNING, Consumer, KafkaError, KafkaException, Message, Producer, TopicPartition
from confluent_kafka.admin import AdminClient
from confluent_kafka.cimpl import NewTopic

from bench.measure import Pair, running_pair
from gapconn.testing.kafka_broker import ADDRESS_VARIABLE, make_node

PARTITIONS = 4
VALUE_BYTES = 1024
TRANSACTION_RECORDS = 500
COMPACTED_ROUNDS = 6
"""How often every key of the compacted topic is written."""
TOPICS = ("gc-plain", "gc-transactions", "gc-compacted")
FIRST_TIMESTAMP_MS = 1_700_000_000_000

_noise = random.Random(1).randbytes(1 << 20)


def main() -> int:
    """Exit code 0 when every record is the same, in order, and nothing was called lost."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.kafka_records", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    verbs = parser.add_subparsers(dest="verb", required=True)
    for verb in ("run", "produce", "compare"):
        options = verbs.add_parser(verb)
        if verb != "run":
            options.add_argument("source", help="brokers of the source side")
        if verb == "compare":
            options.add_argument("--target", help="brokers of the destination side, if they are others")
        else:
            options.add_argument("--records", type=int, default=1_000_000, help="how many (default 1,000,000)")
        if verb == "run":
            options.add_argument("--rate", default="400 Mbit/s", help="rate of the link (default 400 Mbit/s)")
    arguments = parser.parse_args()
    match arguments.verb:
        case "produce":
            produce(arguments.source, arguments.records)
            return 0
        case "compare":
            return report(arguments.source, arguments.target or arguments.source)
        case _:
            return run(arguments.records, arguments.rate)


def run(records: int, rate: str) -> int:
    """Everything on one broker: the given one, or one that is started for it."""
    with contextlib.ExitStack() as stack:
        address = os.environ.get(ADDRESS_VARIABLE)
        if not address:
            directory = stack.enter_context(tempfile.TemporaryDirectory(prefix="gapconn-bench-"))
            # A broker compacts sooner than it would by itself.
            address = stack.enter_context(make_node(Path(directory, "node"))).address
        started = time.monotonic()
        produce(address, records)
        wait_for_compaction(address)
        print(f"produced in {time.monotonic() - started:.0f} s")
        source = (
            f'type = "kafka"\nbootstrap_servers = "{address}"\ngroup_id = "gc-{os.urandom(4).hex()}"\n'
            f"topics = [{', '.join(repr(topic) for topic in TOPICS)}]"
        )
        sink = f'type = "kafka"\nbootstrap_servers = "{address}"\ntopic = "copy-{{topic}}"'
        with running_pair(source, sink, rate=rate) as pair:
            pair.wait_active()
            started = time.monotonic()
            took = wait_until_carried(pair) - started
            missed = pair.status("egress")["missed"]
            carried = pair.status("egress")["received"]["records"]
            sent = pair.status("ingress")["sent"]["records"]
        print(f"carried {carried:,} records of {sent:,} sent in {took:.1f} s: {carried / took:,.0f} records/s")
        print(f"missed, says the egress: {missed}")
        lost = bool(missed["messages"] or missed["records"] or missed["refused_records"] or missed["sink_losses"])
        return report(address, address) or lost


def produce(address: str, records: int) -> None:
    """Make the topics, and their empty copies, and fill them with about `records` records that count."""
    admin = AdminClient({"bootstrap.servers": address})
    compacting = {
        "cleanup.policy": "compact",
        "segment.ms": "500",
        "min.cleanable.dirty.ratio": "0.01",
        "delete.retention.ms": "86400000",
    }
    keeping = {"retention.ms": "-1"}  # The timestamps are old.
    topics = [NewTopic(name, PARTITIONS, 1, config=keeping) for name in ("gc-plain", "gc-transactions")]
    topics += [NewTopic("gc-compacted", PARTITIONS, 1, config=compacting)]
    topics += [NewTopic(f"copy-{name}", PARTITIONS, 1, config=keeping) for name in TOPICS]
    for created in admin.create_topics(topics).values():
        created.result(30)
    in_transactions, keys = records // 5, records // 100
    _fill_plain(address, records - in_transactions - keys)
    _fill_transactions(address, in_transactions)
    _fill_compacted(address, keys)


def _fill_plain(address: str, records: int) -> None:
    producer = _producer(address)
    for number in range(records):
        _send(producer, "gc-plain", number)
    producer.flush()


def _fill_transactions(address: str, records: int) -> None:
    """Two producers whose transactions overlap; every fourth one is aborted, and does not count."""
    producers = [_producer(address, **{"transactional.id": f"gc-{index}"}) for index in range(2)]
    for producer in producers:
        producer.init_transactions(30)
    numbers = iter(range(10**9))
    committed, rounds = 0, itertools.cycle([(True, True), (True, False)])
    while committed < records:
        for producer in producers:
            producer.begin_transaction()
        for _ in range(TRANSACTION_RECORDS):
            for producer in producers:
                _send(producer, "gc-transactions", next(numbers))
        for producer, commit in zip(producers, next(rounds), strict=True):
            if commit:
                producer.commit_transaction(30)
                committed += TRANSACTION_RECORDS
            else:
                producer.flush()  # So that there is something to abort.
                producer.abort_transaction(30)


def _fill_compacted(address: str, keys: int) -> None:
    producer = _producer(address)
    for round_number in range(COMPACTED_ROUNDS):
        for key in range(keys):
            number = round_number * keys + key
            _send(producer, "gc-compacted", number, key=b"key %d" % key, partition=key % PARTITIONS)
        producer.flush()
        # By their timestamps, the next ones go to new segments; only closed segments are compacted.
    for partition in range(PARTITIONS):
        _send(producer, "gc-compacted", partition, key=b"last", partition=partition)
    producer.flush()


def _producer(address: str, **settings: Any) -> Producer:
    buffers = {"queue.buffering.max.messages": 0, "queue.buffering.max.kbytes": 1 << 20}
    return Producer({"bootstrap.servers": address, "enable.idempotence": True, "linger.ms": 50} | buffers | settings)


def _send(
    producer: Producer, topic: str, number: int, *, key: bytes | None = None, partition: int | None = None
) -> None:
    """Every record is different, and every kind of record comes often."""
    if key is None and number % 10:
        key = b"" if number % 97 == 0 else b"%d" % number
    start = number * 7919 % (len(_noise) - VALUE_BYTES)
    value = b"%016d" % number + _noise[start : start + VALUE_BYTES - 16]
    headers: list[tuple[str, str | bytes | None]] = [
        ("number", b"%d" % number),
        ("repeated", b"1"),
        ("repeated", None),
        ("größe", b"\x00\xff"),
    ]
    producer.produce(
        topic,
        None if number % 20 == 3 and key is not None else b"" if number % 501 == 0 else value,
        key,
        number % PARTITIONS if partition is None else partition,
        timestamp=FIRST_TIMESTAMP_MS + 10 * number,
        headers=headers[: number % 5] or None,
    )
    if number % 1000 == 0:
        producer.poll(0)


def wait_for_compaction(address: str, timeout_s: float = 60) -> None:
    """Until at most half of the compacted topic is left."""
    deadline = time.monotonic() + timeout_s
    while True:
        watcher = Consumer({"bootstrap.servers": address, "group.id": "none"})
        ends = [watcher.get_watermark_offsets(TopicPartition("gc-compacted", p), timeout=10) for p in range(PARTITIONS)]
        watcher.close()
        left = sum(1 for p in range(PARTITIONS) for _ in _records(address, "gc-compacted", p))
        written = sum(end for _, end in ends)
        if left <= written / 2:
            print(f"compacted: {left:,} of {written:,} records are left in gc-compacted")
            return
        if time.monotonic() > deadline:
            raise TimeoutError(f"no compaction within {timeout_s} s: {left} of {written} records are left")
        time.sleep(0.5)


def wait_until_carried(pair: Pair, still_s: float = 3.0) -> float:
    """Until nothing has come for a while and the sink holds nothing; when the last record came."""
    records, since = -1, time.monotonic()
    while True:
        status = pair.status("egress")
        now = time.monotonic()
        if status["received"]["records"] != records or status["held"]["sink_messages"]:
            records, since = status["received"]["records"], now
        elif records and now - since > still_s:
            return since
        time.sleep(0.1)


@attrs.define
class Comparison:
    """What a comparison of one topic found."""

    records: int = 0
    keys: int = 0
    headers: int = 0
    tombstones: int = 0
    holes: int = 0
    """Offsets that have no record in the source: markers, aborted, compacted away."""
    duplicates: int = 0
    differences: list[str] = attrs.field(factory=list)


def report(source: str, target: str) -> int:
    """Compare all topics and print a table; 0 when everything is the same."""
    print("| topic | records | with key | with headers | tombstones | holes in offsets | duplicates | differences |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- |")
    found = {topic: compare(source, target, topic) for topic in TOPICS}
    for topic, each in found.items():
        print(
            f"| {topic} | {each.records:,} | {each.keys:,} | {each.headers:,} | {each.tombstones:,} | {each.holes:,} "
            f"| {each.duplicates} | {len(each.differences)} |"
        )
    print(f"{sum(each.records for each in found.values()):,} records compared")
    differences = [difference for each in found.values() for difference in each.differences]
    for difference in differences[:20]:
        print(difference)
    return int(bool(differences))


def compare(source: str, target: str, topic: str) -> Comparison:
    """Walk through both logs of every partition in step."""
    found = Comparison()
    for partition in range(PARTITIONS):
        arrived = _records(target, f"copy-{topic}", partition)
        sent = _records(source, topic, partition)
        expected, last = next(sent, None), -1
        for copy in arrived:
            origin = _origin(copy)
            place = f"{topic}/{partition}, offset {origin} of the source, {copy.offset()} of the copy"
            if origin <= last:
                found.duplicates += 1
                if origin < last:
                    found.differences.append(f"{place}: after {last}")
                continue
            while expected is not None and (expected.offset() or 0) < origin:
                found.differences.append(f"{topic}/{partition}: offset {expected.offset()} is missing")
                expected = next(sent, None)
            if expected is None or expected.offset() != origin:
                if topic != "gc-compacted":  # There, it may have been compacted away since.
                    found.differences.append(f"{place}: is not in the source")
            else:
                _count(found, expected, copy, place)
                expected = next(sent, None)
            found.holes += origin - last - 1
            last = origin
        for missing in itertools.chain([] if expected is None else [expected], sent):
            found.differences.append(f"{topic}/{partition}: offset {missing.offset()} is missing at the end")
    return found


def _count(found: Comparison, sent: Message, copy: Message, place: str) -> None:
    found.records += 1
    found.keys += sent.key() is not None
    found.tombstones += sent.value() is None
    own = [header for header in copy.headers() or [] if not str(header[0]).startswith("gapconn-")]
    found.headers += bool(own)
    for what, before, after in (
        ("value", sent.value(), copy.value()),
        ("key", sent.key(), copy.key()),
        ("headers", list(sent.headers() or []), own),
        ("timestamp", sent.timestamp(), copy.timestamp()),
    ):
        if before != after:
            found.differences.append(f"{place}: {what} was {str(before)[:80]}, is {str(after)[:80]}")


def _origin(copy: Message) -> int:
    headers: list[Any] = list(copy.headers() or [])
    origins = [value for name, value in headers if name == "gapconn-origin"]
    return int(origins[-1].rpartition(b"/")[2]) if origins else -1


def _records(address: str, topic: str, partition: int) -> Iterator[Message]:
    """All committed records of a partition."""
    consumer = Consumer(
        {
            "bootstrap.servers": address,
            "group.id": "none",
            "enable.auto.commit": False,
            "isolation.level": "read_committed",
            "enable.partition.eof": True,
        }
    )
    consumer.assign([TopicPartition(topic, partition, OFFSET_BEGINNING)])
    try:
        while True:
            for message in consumer.consume(1000, 0.2):
                error = message.error()
                if error is not None:
                    if error.code() == KafkaError._PARTITION_EOF:
                        return
                    raise KafkaException(error)
                yield message
    finally:
        consumer.close()


if __name__ == "__main__":
    sys.exit(main())
