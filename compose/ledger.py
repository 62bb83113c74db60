"""Numbered records into the source side, and the account of what came out at the destination side.

    ledger.py topics BROKER TOPIC...                   makes topics
    ledger.py produce BROKER TOPIC... [--rate 200]     on the source side
    ledger.py watch BROKER TOPIC...                    on the destination side

Each record carries its place in its partition, without holes: whatever is missing or comes twice can be named. Both
print a line of JSON every second, and `produce` prints what it produced when SIGTERM ends it: then nothing is in its
hands any more that the broker does not have.
"""

from __future__ import annotations

import argparse
import json
import signal
import sys
import time
from typing import Any

from confluent_kafka import OFFSET_BEGINNING, Consumer, KafkaError, KafkaException, Message, Producer, TopicPartition
from confluent_kafka.admin import AdminClient
from confluent_kafka.cimpl import NewTopic

TELL_INTERVAL_S = 1.0
SILENCE_MS = 500
"""A longer pause between two records of a partition is told, with its beginning and end."""
SILENCES_TOLD = 20


class Stop:
    """Whether somebody asked for the end."""

    def __init__(self) -> None:
        self.asked = False
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._ask)

    def _ask(self, number: int, frame: object) -> None:
        self.asked = True


def tell(**facts: Any) -> None:
    print(json.dumps(facts), flush=True)


def make_topics(broker: str, topics: list[str]) -> None:
    """Make those that do not exist; waits for the broker."""
    client = AdminClient({"bootstrap.servers": broker})
    for made in client.create_topics([NewTopic(topic) for topic in topics], request_timeout=60).values():
        try:
            made.result()
        except KafkaException as error:
            if error.args[0].code() != KafkaError.TOPIC_ALREADY_EXISTS:
                raise


def partitions_of(client: Producer | Consumer, topic: str) -> list[int]:
    """Its partitions; waits until the topic is there."""
    while True:
        found = client.list_topics(topic, 10).topics[topic]
        if found.error is None and found.partitions:
            return sorted(found.partitions)
        time.sleep(0.5)


def produce(broker: str, topics: list[str], rate: float) -> None:
    """Numbered records, evenly over all partitions, until told to stop; the broker may be away for a while."""
    stop = Stop()
    producer = Producer(
        {"bootstrap.servers": broker, "enable.idempotence": True, "message.timeout.ms": 0, "linger.ms": 5}
    )
    run = str(time.time_ns())
    slots = [(topic, partition) for topic in topics for partition in partitions_of(producer, topic)]
    produced = dict.fromkeys(slots, 0)
    begun = told = time.monotonic()
    count = 0
    while not stop.asked:
        while count < (time.monotonic() - begun) * rate and not stop.asked:
            topic, partition = slots[count % len(slots)]
            place = produced[topic, partition]
            value = json.dumps({"run": run, "place": place, "sent_ms": time.time_ns() // 1_000_000})
            try:
                producer.produce(topic, value, key=f"{partition}-{place}", partition=partition)
            except BufferError:
                break
            produced[topic, partition] += 1
            count += 1
        producer.poll(0.01)
        if time.monotonic() - told > TELL_INTERVAL_S:
            told = time.monotonic()
            tell(produced=count, in_hand=len(producer))
    left = producer.flush(60)
    tell(produced=count, in_hand=left, ended=True, run=run, places={f"{t}/{p}": n for (t, p), n in produced.items()})


class Account:
    """What of one partition has arrived: for each run, all before `next` but for `holes`."""

    def __init__(self) -> None:
        self.next: dict[str, int] = {}
        self.holes: dict[str, set[int]] = {}
        self.copies = self.late = 0
        self.last_ms = 0
        self.silences: list[tuple[int, int]] = []

    def arrived(self, run: str, place: int, now_ms: int) -> None:
        following = self.next.setdefault(run, 0)
        holes = self.holes.setdefault(run, set())
        if place >= following:
            holes.update(range(following, place))
            self.next[run] = place + 1
        elif place in holes:
            holes.discard(place)
            self.late += 1
        else:
            self.copies += 1
            return
        if self.last_ms and now_ms - self.last_ms > SILENCE_MS:
            self.silences = [*self.silences[1 - SILENCES_TOLD :], (self.last_ms, now_ms)]
        self.last_ms = now_ms

    def facts(self) -> dict[str, Any]:
        return {
            "arrived": {run: following - len(self.holes[run]) for run, following in self.next.items()},
            "missing": sum(map(len, self.holes.values())),
            "copies": self.copies,
            "late": self.late,
            "last_ms": self.last_ms,
            "silences": self.silences,
        }


def watch(broker: str, topics: list[str]) -> None:
    """Read the topics from their beginning, as a reader of committed transactions does, and tell what came."""
    stop = Stop()
    consumer = Consumer(
        {
            "bootstrap.servers": broker,
            "group.id": "ledger",
            "enable.auto.commit": False,
            "isolation.level": "read_committed",
            "fetch.wait.max.ms": 50,
            "allow.auto.create.topics": False,
        }
    )
    slots = [(topic, partition) for topic in topics for partition in partitions_of(consumer, topic)]
    accounts = {slot: Account() for slot in slots}
    consumer.assign([TopicPartition(topic, partition, OFFSET_BEGINNING) for topic, partition in slots])
    told = time.monotonic()
    while not stop.asked:
        for message in consumer.consume(1000, 0.05):
            enter(accounts, message)
        if time.monotonic() - told > TELL_INTERVAL_S:
            told = time.monotonic()
            everything = [account.facts() for account in accounts.values()]
            tell(
                arrived=sum(sum(facts["arrived"].values()) for facts in everything),
                **{key: sum(facts[key] for facts in everything) for key in ("missing", "copies", "late")},
                silent_ms=time.time_ns() // 1_000_000 - max(facts["last_ms"] for facts in everything),
                partitions={f"{t}/{p}": facts for (t, p), facts in zip(accounts, everything, strict=True)},
            )
    consumer.close()


def enter(accounts: dict[tuple[str, int], Account], message: Message) -> None:
    error = message.error()
    if error is not None:
        if error.code() != KafkaError._PARTITION_EOF:
            print(error, file=sys.stderr, flush=True)
        return
    slot = str(message.topic()), int(message.partition() or 0)
    value = json.loads(message.value() or b"{}")
    accounts[slot].arrived(value["run"], value["place"], time.time_ns() // 1_000_000)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("what", choices=["topics", "produce", "watch"])
    parser.add_argument("broker")
    parser.add_argument("topics", nargs="+")
    parser.add_argument("--rate", type=float, default=200.0, help="records a second, of all topics together")
    arguments = parser.parse_args()
    if arguments.what == "topics":
        make_topics(arguments.broker, arguments.topics)
    elif arguments.what == "produce":
        produce(arguments.broker, arguments.topics, arguments.rate)
    else:
        watch(arguments.broker, arguments.topics)


if __name__ == "__main__":
    main()
