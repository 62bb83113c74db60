"""Hours at half the top rate: nothing grows, nothing is lost, nothing comes twice (`make soak`)."""

from __future__ import annotations

import os
import statistics
import threading
import time
from pathlib import Path
from typing import Final

import attrs
import pytest
import trio
from confluent_kafka import OFFSET_BEGINNING, Consumer, TopicPartition

from tests.faults.ledger import Account
from tests.faults.pair import PARTITIONS, ROUND_LIMIT_S, KafkaPair
from tests.faults.records import read_value
from tests.faults.scale import SCALE
from tests.kafka.cluster import Cluster
from tests.processes.ends import POLL_S, Ends

WARM_UP_SHARE: Final = 1 / 6
"""Of the time: buffers and caches fill."""
TOP_RATE_RECORDS: Final = 200_000 if SCALE.soak_s >= 60 else 20_000
"""The top rate is measured with so many."""
GROWTH_MAX: Final = 1.05
GROWTH_FLOOR_BYTES: Final = 16 << 20
"""What allocators and garbage collection may make of the same load."""
FILES_FLOOR: Final = 4
"""Connections come and go."""
KEPT: Final = {"retention_bytes": str(128 << 20), "segment_bytes": str(32 << 20), "retention_ms": "-1"}
"""Both topics lose their beginnings again, so that a disk is not what ends a long soak."""


@attrs.define(eq=False)
class Follower:
    """Reads the target topic while it is written, and expects each partition to go on without a hole.

    `run` blocks: call it in a thread.
    """

    pair: KafkaPair
    once: int = 0
    twice: int = 0
    skipped: int = 0
    """Records that were passed over: they can only be lost."""
    damaged: int = 0
    enough: threading.Event = attrs.field(factory=threading.Event)

    def run(self) -> None:
        consumer = Consumer(
            {
                "bootstrap.servers": self.pair.target.address,
                "group.id": "follower",
                "enable.auto.commit": False,
                "isolation.level": "read_committed",
                "log_level": 0,
            }
        )
        topic, expected = f"copy-{self.pair.topic}", [0] * PARTITIONS
        consumer.assign([TopicPartition(topic, partition, OFFSET_BEGINNING) for partition in range(PARTITIONS)])
        while not self.enough.is_set():
            for message in consumer.consume(2000, 0.1):
                if message.error() is not None:
                    continue
                place = read_value(message.value())
                if place is None or place[:2] != (self.pair.topic, message.partition()):
                    self.damaged += 1
                    continue
                _, partition, sequence = place
                if sequence < expected[partition]:
                    self.twice += 1
                    continue
                self.skipped += sequence - expected[partition]
                self.once += 1
                expected[partition] = sequence + 1
        consumer.close()

    async def reaches(self, records: int) -> None:
        """Wait until so many records are read, or were passed over."""
        deadline_s = trio.current_time() + ROUND_LIMIT_S
        while self.once + self.skipped < records:
            assert trio.current_time() < deadline_s, f"{self.once + self.skipped} of {records} records are there"
            await trio.sleep(POLL_S)


@attrs.frozen
class Sample:
    """What a process holds at a moment."""

    resident_bytes: int
    open_files: int

    @classmethod
    def of(cls, pid: int) -> Sample:
        pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
        return cls(pages * os.sysconf("SC_PAGE_SIZE"), len(os.listdir(f"/proc/{pid}/fd")))


def thirds(samples: list[Sample], of: str) -> tuple[int, int]:
    """The medians of the first and of the last third, without the warm-up."""
    values = [getattr(sample, of) for sample in samples[round(len(samples) * WARM_UP_SHARE) :]]
    count = len(values) // 3
    return round(statistics.median(values[:count])), round(statistics.median(values[-count:]))


async def _top_rate(pair: KafkaPair, follower: Follower) -> float:
    """Records a second, as fast as everything together can."""
    before = pair.load.produced
    began_s = time.monotonic()
    await pair.produce(TOP_RATE_RECORDS)
    await follower.reaches(before + TOP_RATE_RECORDS)
    return TOP_RATE_RECORDS / (time.monotonic() - began_s)


@pytest.mark.kafka
@pytest.mark.timeout(SCALE.soak_s + 1800)
async def test_soak(ends: Ends, kafka: Cluster, delivery: str) -> None:
    pair = await KafkaPair.make(ends, kafka, kafka, delivery)
    for topic in (pair.topic, f"copy-{pair.topic}"):
        await trio.to_thread.run_sync(lambda: kafka.configure_topic(topic, **KEPT))  # noqa: B023 - awaited right here
    pair.configure(rate="1 Gbit/s")
    follower = Follower(pair)
    samples: dict[str, list[Sample]] = {"ingress": [], "egress": []}
    async with trio.open_nursery() as nursery:
        nursery.start_soon(trio.to_thread.run_sync, follower.run)
        try:
            await pair.begin()
            top = await _top_rate(pair, follower)
            pair.load.records_per_second = top / 2
            async with pair.loaded():
                deadline_s = trio.current_time() + SCALE.soak_s
                while trio.current_time() < deadline_s:
                    for role, end in pair.running.items():
                        assert end.process.poll() is None, f"{end.name} ended"
                        samples[role].append(Sample.of(end.process.pid))
                    await trio.sleep(min(1.0, SCALE.soak_s / 60))
            await pair.finish()
            await follower.reaches(pair.load.produced)
        finally:
            follower.enough.set()
    facts = {"seconds": round(SCALE.soak_s), "records a second": round(top / 2)}
    flat = []
    for role, of_role in samples.items():
        for of, unit, floor in (("resident_bytes", 1 << 20, GROWTH_FLOOR_BYTES), ("open_files", 1, FILES_FLOOR)):
            first, last = thirds(of_role, of)
            words = "MiB" if unit > 1 else "open files"
            facts |= {f"{role}, {words}, first third": first // unit, f"{role}, {words}, last third": last // unit}
            flat.append(last <= max(first * GROWTH_MAX, first + floor))
    account = Account(
        case="soak", delivery=delivery, produced=pair.load.produced, once=follower.once, twice=follower.twice,
        lost=0, placeless=0, unaccounted=follower.skipped, false_alarms=0, damaged=follower.damaged, disordered=0,
        repaired=0, faults=facts,
    )  # fmt: skip
    print(account)  # noqa: T201 - shown when the test failed, and by `make soak`
    account.report()
    account.settle()
    assert not account.twice
    assert all(flat), facts
