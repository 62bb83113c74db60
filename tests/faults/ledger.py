"""What became of every record that was produced: delivered once, twice, reported as lost, or unaccounted for.

Three witnesses, none of which trusts another: what the source topic holds, what the target topic holds (each record
proves its own place), and what the journal of the egress says is missing.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Final, Self

import attrs
import numpy as np
from confluent_kafka import OFFSET_BEGINNING, Consumer, KafkaError, Message, TopicPartition

from tests.faults.records import read_value
from tests.kafka.cluster import TIMEOUT_S, Cluster

REPORT_VARIABLE: Final = "GAPCONN_FAULTS_REPORT"
"""A file to which each account is appended as a line of JSON."""
LATE_HEADERS: Final = frozenset({"gapconn-repair", "gapconn-late"})
"""On a record that stands behind later ones, and says so."""


def messages_of(kafka: Cluster, topic: str) -> Iterator[Message]:
    """What a topic holds, as whoever reads committed records sees it; partition after partition is in order."""
    consumer = Consumer(
        {
            "bootstrap.servers": kafka.address,
            "group.id": "ledger",
            "enable.auto.commit": False,
            "isolation.level": "read_committed",
            "enable.partition.eof": True,
            "log_level": 0,
        }
    )
    partitions = list(consumer.list_topics(topic, TIMEOUT_S).topics[topic].partitions)
    consumer.assign([TopicPartition(topic, partition, OFFSET_BEGINNING) for partition in partitions])
    ends, deadline = 0, time.monotonic() + TIMEOUT_S
    while ends < len(partitions):
        messages = consumer.consume(5000, 0.1)
        if messages:
            deadline = time.monotonic() + TIMEOUT_S
        assert time.monotonic() < deadline, f"{topic} cannot be read to its end"
        for message in messages:
            error = message.error()
            if error is None:
                yield message
            else:
                assert error.code() == KafkaError._PARTITION_EOF, error
                ends += 1
    consumer.close()


def check_source(kafka: Cluster, topic: str, counts: dict[int, int]) -> None:
    """The source topic holds exactly what was produced, at the offsets that are its sequence numbers."""
    found = dict.fromkeys(counts, 0)
    for message in messages_of(kafka, topic):
        partition, offset = message.partition(), message.offset()
        assert partition is not None
        assert read_value(message.value()) == (topic, partition, offset), "the load is not what it should be"
        assert offset == found[partition]
        found[partition] += 1
    assert found == counts


@attrs.define(kw_only=True)
class Account:
    """The sum of a case. `produced` is `once + twice + lost + placeless + unaccounted`."""

    case: str
    delivery: str
    produced: int
    once: int
    twice: int
    """Delivered more than once."""
    lost: int
    """Not delivered, and reported as lost with its place, by the journal."""
    placeless: int
    """Not delivered, and reported as lost by number only: an egress without any state cannot know their places."""
    unaccounted: int
    """Neither delivered nor reported."""
    false_alarms: int
    """Delivered, and also reported as lost."""
    damaged: int
    """In the target topic, and not what was produced."""
    disordered: int
    """Delivered behind a later one of its partition, without a header that says so, and the later one is not delivered
    again: a stream that goes back and comes again is in order."""
    repaired: int
    """Delivered late, with such a header."""
    faults: dict[str, int] = attrs.field(factory=dict)
    """How often what was done to it."""

    @classmethod
    def of(
        cls,
        case: str,
        delivery: str,
        counts: dict[int, int],
        topic: str,
        *,
        delivered: Iterable[Message],
        journal: Iterable[dict[str, Any]],
        faults: dict[str, int],
    ) -> Self:
        """Compare what was produced with what was delivered and what is in the journal (`gaps list --all --json`)."""
        first = {partition: np.full(count, -1) for partition, count in counts.items()}
        """Where in the target partition each record stands for the first time."""
        last = {partition: np.full(count, -1) for partition, count in counts.items()}
        seen = {partition: np.zeros(count, np.int64) for partition, count in counts.items()}
        damaged = repaired = 0
        for message in delivered:
            place = read_value(message.value())
            if place is None or place[:2] != (topic, message.partition()) or _origin(message) != place:
                damaged += 1
                continue
            _, partition, sequence = place
            seen[partition][sequence] += 1
            if any(name in LATE_HEADERS for name, _ in _headers(message)):
                repaired += seen[partition][sequence] == 1
                continue
            last[partition][sequence] = message.offset()
            if first[partition][sequence] < 0:
                first[partition][sequence] = message.offset()
        disordered = sum(_disordered(first[partition], last[partition]) for partition in counts)
        reported = {partition: np.zeros(count, np.bool_) for partition, count in counts.items()}
        counted = 0
        """Records that entries count and have no place for."""
        for entry in journal:
            places = entry["missing"] + entry["repaired"] + entry["gone"]
            counted += max(0, entry["records"] - sum(e - b + 1 for part in places for b, e in part["ranges"]))
            for part in entry["missing"] + entry["gone"]:
                assert part["stream"] == topic
                for begin, end in part["ranges"]:
                    reported[part["partition"]][begin : end + 1] = True
        times, told = (np.concatenate(list(arrays.values())) for arrays in (seen, reported))
        nowhere = int(((times == 0) & ~told).sum())
        return cls(
            case=case,
            delivery=delivery,
            produced=len(times),
            once=int((times == 1).sum()),
            twice=int((times > 1).sum()),
            lost=int(((times == 0) & told).sum()),
            placeless=min(counted, nowhere),
            unaccounted=nowhere - min(counted, nowhere),
            false_alarms=int(((times > 0) & told).sum()),
            damaged=damaged,
            disordered=disordered,
            repaired=int(repaired),
            faults=faults,
        )

    def report(self) -> None:
        """Append it to the report, if one is asked for."""
        path = os.environ.get(REPORT_VARIABLE)
        if path:
            with Path(path).open("a") as file:
                file.write(json.dumps(attrs.asdict(self)) + "\n")

    def settle(self, *, one_link: bool = True, places: bool = True) -> None:
        """Check what holds in every case.

        Args:
            one_link: One pair carried all of it. Order, and exactly once, are promises of a link: a partition that
                moves while its cluster is away is sent again from its last offset by the other pair.
            places: The egress had its state, so it can say of each lost record where it was.

        Raises:
            AssertionError: a record is not accounted for, or came damaged or out of order, or came twice where that
                is excluded.
        """
        assert self.produced == self.once + self.twice + self.lost + self.placeless + self.unaccounted
        assert not self.unaccounted, self
        assert not (self.placeless and places), self
        assert not self.damaged, self
        assert not (self.disordered and one_link), self
        assert not (self.twice and one_link and self.delivery == "exactly-once"), self


def _disordered(first: np.ndarray[Any, Any], last: np.ndarray[Any, Any]) -> int:
    """How many records of a partition came for the first time behind the last time of a later one."""
    came = first >= 0
    first, last = first[came], last[came]
    earliest_later = np.minimum.accumulate(last[::-1])[::-1]  # of this record or a later one
    return int((first[:-1] > earliest_later[1:]).sum())


def _headers(message: Message) -> Sequence[tuple[str, str | bytes | None]]:
    return message.headers() or ()  # type: ignore[return-value]  # never a dict when it is read


def _origin(message: Message) -> tuple[str, int, int] | None:
    """What the origin id says, which should be what the record itself says."""
    for name, value in _headers(message):
        if name == "gapconn-origin" and isinstance(value, bytes):
            _, topic, partition, offset = value.decode().split("/")
            return topic, int(partition), int(offset)
    return None
